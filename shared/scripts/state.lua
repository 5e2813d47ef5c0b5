-- state: what became of one request. Run by AsyncRequests.state.
-- KEYS: of each level its queue and its delayed   ARGV: body key, result key, id, cache (see _cache.lua)
-- Returns {'done', result}, {'waiting', how many are in front of it}, {'running', 0} or {'gone'}. One that waits
-- is gone once its deadline has passed, whoever drops it. Who follows another is where that one is.
-- include cache

local body, result_key, id, tag = unpack(ARGV)
local result = redis.call('GET', result_key)
if result then return {'done', result} end
if redis.call('EXISTS', body) == 0 then return {'gone'} end
local cache = tag ~= '' and response_cache(tag)
local leader = cache and cache.follows(id)
if leader and cache.is_late(id) then return {'gone'} end
local ahead = 0
for _, queue in ipairs(KEYS) do
  for _, ticket in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    if string.sub(ticket, @ID@) == (leader or id) then
      local clock, is_ours = redis.call('TIME'), string.byte(ticket) == @TICKET_VERSION@
      local deadline = is_ours and struct.unpack('<d', ticket, @DEADLINE@) or math.huge
      if not leader and deadline <= clock[1] + clock[2] / 1e6 then return {'gone'} end
      return {'waiting', ahead}
    end
    ahead = ahead + 1
  end
end
return {'running', 0}
