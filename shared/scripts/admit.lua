-- admit: count a request of an API key, unless it is one too many. Run by Admission.
-- KEYS: rate, active
-- ARGV: how many requests may come in, so many ms (0: any number), how many may be under way (0: any number), the
--       request's id, how many ms it is under way at most
-- Returns {'ok', 0}, or {'rate' or 'concurrency', ms until it may be asked again}.
-- The rate is a clock (GCRA): each request puts it on by its share of the period, and it may be ahead of now by one.
local count, period, places, id, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000

if places > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= places then return {'concurrency', 1000} end
end
if count > 0 then
  local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + period / count
  local ahead = due - now - period
  -- A hundredth of a ms is what is lost in writing the clock.
  if ahead > 0.01 then return {'rate', math.ceil(ahead)} end
  redis.call('SET', KEYS[1], string.format('%.3f', due), 'PX', math.max(1, math.ceil(due - now)))
end
if places > 0 then
  redis.call('ZADD', KEYS[2], now + lease, id)
  if redis.call('PTTL', KEYS[2]) < tonumber(lease) then redis.call('PEXPIRE', KEYS[2], lease) end
end
return {'ok', 0}
