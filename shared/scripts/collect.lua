-- collect: take the answers that are there for one API process. Run by Collector.
-- KEYS: answered (and the channel of that name), order
-- ARGV: result key prefix, id, id, ... (ids to look at besides the announced ones)
-- An answer that is held back for the order's sake is announced in its turn, and left until then.
-- Returns {id, result, id, result, ...}.
local ids = redis.call('LPOP', KEYS[1], 1000) or {}
for i = 2, #ARGV do
  if not redis.call('LPOS', KEYS[2], ARGV[i]) then ids[#ids + 1] = ARGV[i] end
end
local found = {}
for _, id in ipairs(ids) do
  local result = redis.call('GETDEL', ARGV[1] .. id)
  if result then
    found[#found + 1] = id
    found[#found + 1] = result
  end
end
if redis.call('LLEN', KEYS[1]) > 0 then redis.pcall('PUBLISH', KEYS[1], '') end
return found
