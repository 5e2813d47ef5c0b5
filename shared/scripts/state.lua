-- state: what became of one request. Run by Detached.state.
-- KEYS: queue of each level   ARGV: body key, result key, id
-- Returns {'done', result}, {'waiting', how many are in front of it}, {'running', 0} or {'gone'}. One that waits
-- is gone once its deadline has passed, whoever drops it.
local body, result_key, id = unpack(ARGV)
local result = redis.call('GET', result_key)
if result then return {'done', result} end
if redis.call('EXISTS', body) == 0 then return {'gone'} end
local ahead = 0
for _, queue in ipairs(KEYS) do
  for _, ticket in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    if string.sub(ticket, 36) == id then
      local clock, deadline = redis.call('TIME'), struct.unpack('<d', string.sub(ticket, 16, 23))
      if deadline <= clock[1] + clock[2] / 1e6 then return {'gone'} end
      return {'waiting', ahead}
    end
    ahead = ahead + 1
  end
end
return {'running', 0}
