-- revision: number a version's content, so that what replaces it while it runs gets another name. Run by
-- DesiredStore.revision.
-- KEYS: revisions
-- ARGV: name/version, fingerprint, 1 if it replaces what runs, supervisor, sign-of-life key prefix
-- The hash holds name/version -> the last number, name/version/fingerprint -> its number, and
-- name/version@number -> fingerprint and supervisor. A number stands for one content at a time: what was never
-- seen takes over the last one only if nobody who lives gave that to something else.
local revisions, name, fingerprint, replaces, supervisor, alive = KEYS[1], unpack(ARGV)
local function get(field) return redis.call('HGET', revisions, field) or '' end
local known = get(name .. '/' .. fingerprint)
if known ~= '' and string.sub(get(name .. '@' .. known), 1, #fingerprint) == fingerprint then
  return tonumber(known)
end
local latest = tonumber(get(name)) or 0
local before, holder = string.match(get(name .. '@' .. latest), '^(%S+) (%S+)$')
if replaces == '1' or (holder and holder ~= supervisor and redis.call('EXISTS', alive .. holder) == 1) then
  latest = latest + 1
elseif before then
  redis.call('HDEL', revisions, name .. '/' .. before)
end
redis.call('HSET', revisions, name, latest, name .. '/' .. fingerprint, latest,
  name .. '@' .. latest, fingerprint .. ' ' .. supervisor)
return latest
