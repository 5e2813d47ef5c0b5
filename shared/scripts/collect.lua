-- collect: take the answers that are there for one API process. Run by Collector.
-- KEYS: answered (and the channel of that name)
-- ARGV: result key prefix, id, id, ... (ids to look at besides the announced ones)
-- Returns {id, result, id, result, ...}.
local ids = redis.call('LPOP', KEYS[1], 1000) or {}
for i = 2, #ARGV do ids[#ids + 1] = ARGV[i] end
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
