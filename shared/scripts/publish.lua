-- publish: hand out a batch's answers and drop it from the instance's in-flight work, in one step.
-- KEYS: inflight
-- ARGV: ticket count, result_ttl_ms, kept_ttl_ms, body, result and answered key prefix, id, result, id, result, ...
-- A request is open as long as its body exists, so the first answer for an id wins. The id's first
-- 8 signs name the API process that waits for it, which is told by its `answered` list; nobody waits for
-- 00000000 (DETACHED) and 00000001 (KEPT), whose answers are asked for later.
-- Returns how many answers were the first.
local count, ttl, kept_ttl, body_prefix, result_prefix, answered_prefix = unpack(ARGV, 1, 6)
local told, first = {}, 0
for i = 7, #ARGV, 2 do
  local id = ARGV[i]
  if redis.call('UNLINK', body_prefix .. id) == 1 then
    local process = string.sub(id, 1, 8)
    redis.call('SET', result_prefix .. id, ARGV[i + 1], 'PX', process == '00000001' and kept_ttl or ttl)
    if process ~= '00000000' and process ~= '00000001' then
      told[process] = told[process] or {}
      table.insert(told[process], id)
    end
    first = first + 1
  end
end
for process, ids in pairs(told) do
  redis.call('RPUSH', answered_prefix .. process, unpack(ids))
  redis.call('PEXPIRE', answered_prefix .. process, ttl)
end
redis.call('LTRIM', KEYS[1], count, -1)
return first
