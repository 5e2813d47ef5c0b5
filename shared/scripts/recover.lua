-- recover: put what an instance held back to the head of its queue, oldest first. Run for a dead
-- instance by a supervisor (crashed = 1), and by an instance that lost its connection (crashed = 0).
-- KEYS: queue, bell, inflight   ARGV: crashed, max_attempts, result_ttl_ms, body, result and answered key prefix, error result
-- A request whose attempts are used up is answered with the error result instead.
-- Atomic, so two supervisors that recover the same instance do it once. Returns {put back, given up}.
local queue, bell, inflight = unpack(KEYS)
local crashed, max_attempts, ttl, body_prefix, result_prefix, answered_prefix, error_result = unpack(ARGV)
local tickets = redis.call('LRANGE', inflight, 0, -1)
local back, given_up = 0, 0
for i = #tickets, 1, -1 do
  local version, attempts = struct.unpack('<BB', tickets[i])
  local id = string.sub(tickets[i], 31)
  attempts = attempts + crashed
  if redis.call('EXISTS', body_prefix .. id) == 1 then
    if attempts >= tonumber(max_attempts) then
      redis.call('UNLINK', body_prefix .. id)
      redis.call('SET', result_prefix .. id, error_result, 'PX', ttl)
      local answered = answered_prefix .. string.sub(id, 1, 8)
      redis.call('RPUSH', answered, id)
      redis.call('PEXPIRE', answered, ttl)
      given_up = given_up + 1
    else
      redis.call('LPUSH', queue, struct.pack('<BB', version, attempts) .. string.sub(tickets[i], 3))
      back = back + 1
    end
  end
end
redis.call('UNLINK', inflight)
if back > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
return {back, given_up}
