-- compare: count one answer of a shadow beside that of the version that serves. Run by Comparisons.add.
-- KEYS: comparison
-- ARGV: ttl_ms, max_abs_difference, name, amount, name, amount, ...
for i = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1]) end
local highest = tonumber(redis.call('HGET', KEYS[1], 'max_abs_difference') or 0)
if tonumber(ARGV[2]) > highest then redis.call('HSET', KEYS[1], 'max_abs_difference', ARGV[2]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
