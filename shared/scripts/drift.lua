-- drift: add counts of rows to those of their hour and of the latest ones. Run by DriftCounts.add.
-- KEYS: hour, latest
-- ARGV: ttl_ms of the hour, ttl_ms of the latest, rows of a block, blocks kept, name, count, ...
-- The latest are a list of blocks, newest first, each names and counts as JSON: rows are added to
-- the newest one until it is full. `rows` is one of the names.
local block = {}
local newest = redis.call('LINDEX', KEYS[2], 0)
if newest then
    local found = cjson.decode(newest)
    if found.rows < tonumber(ARGV[3]) then
        block = found
        redis.call('LPOP', KEYS[2])
    end
end
for i = 5, #ARGV, 2 do
    redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
    block[ARGV[i]] = (block[ARGV[i]] or 0) + tonumber(ARGV[i + 1])
end
redis.call('LPUSH', KEYS[2], cjson.encode(block))
redis.call('LTRIM', KEYS[2], 0, ARGV[4] - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
