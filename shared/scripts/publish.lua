-- publish: hand out a batch's answers and drop it from the instance's in-flight work, in one step.
-- KEYS: inflight   ARGV: ticket count, result_ttl_ms, body key prefix, result key prefix, id, result, id, result, ...
-- A request is open as long as its body exists, so the first answer for an id wins.
-- Returns how many answers were the first.
local inflight = KEYS[1]
local count, ttl, body_prefix, result_prefix = unpack(ARGV, 1, 4)
local first = 0
for i = 5, #ARGV, 2 do
  if redis.call('UNLINK', body_prefix .. ARGV[i]) == 1 then
    local result = result_prefix .. ARGV[i]
    redis.call('RPUSH', result, ARGV[i + 1])
    redis.call('PEXPIRE', result, ttl)
    first = first + 1
  end
end
redis.call('LTRIM', inflight, count, -1)
return first
