-- recover: put what an instance held back to the head of its queue, oldest first. Run for a dead
-- instance by a supervisor (crashed = 1), and by an instance that lost its connection (crashed = 0) or its device.
-- KEYS: bell, inflight, bytes, counts, dead, order
-- ARGV: crashed, max_attempts, result_ttl_ms, idempotent_ttl_ms, dead_ttl_ms, queue, body, result, answered and
--       dead body key prefix, error result, instance, cache (see _cache.lua), id, id, ... of the suspects
-- With suspects (crashed = 1) an attempt is counted for these alone: the others were not running when it failed.
-- A request whose attempts are used up is answered with the error result instead, and kept among the dead. One
-- that goes back has had its time on the queue: the time-out of its queue policy is over.
-- Atomic, so two supervisors that recover the same instance do it once. Returns {put back, given up}.
-- include tell
-- include hand_out
-- include cache

local bell, inflight, bytes_key, counts, dead, order = unpack(KEYS)
local crashed, max_attempts, ttl, idempotent_ttl, dead_ttl, queue_prefix, body_prefix, result_prefix, answered_prefix,
  dead_prefix, error_result, instance, tag = unpack(ARGV, 1, 13)
local suspects, suspected = {}, #ARGV > 13
for i = 14, #ARGV do suspects[ARGV[i]] = true end
local cache = response_cache(tag, ttl, idempotent_ttl)
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6

local function give_up(id, body, attempts, level, rows, enqueued, signature)
  local keeps_order = redis.call('LPOS', order, id)
  local long = keeps_order or string.sub(id, 1, 8) == '@IDEMPOTENT@'
  redis.call('RENAME', body, dead_prefix .. id)
  redis.call('PEXPIRE', dead_prefix .. id, dead_ttl)
  redis.call('LPUSH', dead, cmsgpack.pack({id, rows, level, attempts, enqueued, now, instance, signature}))
  redis.call('LTRIM', dead, 0, 999)
  redis.call('HINCRBY', counts, 'dead', 1 + (cache.answer(id, error_result)))
  redis.call('SET', result_prefix .. id, error_result, 'PX', long and idempotent_ttl or ttl)
  if not keeps_order then tell(answered_prefix, id, ttl) end
end

local tickets = redis.call('LRANGE', inflight, 0, -1)
-- subtle: changes nothing, and Redis at its memory limit lets a script that has written go on writing.
redis.call('LTRIM', inflight, 0, -1)
local back, given_up, bytes = 0, 0, 0
for i = #tickets, 1, -1 do
  local version, attempts, level, _, rows, enqueued, _, _, signature = struct.unpack('@TICKET@', tickets[i])
  local id = string.sub(tickets[i], @ID@)
  local body = body_prefix .. id
  local counts_one = not suspected or suspects[id]
  if counts_one then attempts = attempts + crashed end
  if redis.call('EXISTS', body) == 1 then
    -- One of another version is given up by those who know what to write down of it.
    if counts_one and attempts >= tonumber(max_attempts) and version == @TICKET_VERSION@ then
      give_up(id, body, attempts, level, rows, enqueued, signature)
      given_up = given_up + 1
    else
      -- Of another version's no time-out is known, it keeps the one that it may have.
      local on_timeout = version == @TICKET_VERSION@ and '\0' or string.sub(tickets[i], @ON_TIMEOUT@, @ON_TIMEOUT@)
      local again = string.char(version, math.min(attempts, 255), level) .. on_timeout
      redis.call('LPUSH', queue_prefix .. level, again .. string.sub(tickets[i], @ON_TIMEOUT@ + 1))
      bytes = bytes + struct.unpack('<I4', string.sub(tickets[i], @SIZE@, @ID@ - 1))
      back = back + 1
    end
  else
    cache.pass_on(id)
  end
end
cache.count()
redis.call('UNLINK', inflight)
hand_out(order, body_prefix, result_prefix, answered_prefix)
if back > 0 then
  redis.call('INCRBY', bytes_key, bytes)
  if crashed == '1' then redis.call('HINCRBY', counts, 'retried', back) end
end
-- A dead instance may also have taken the token of requests that it left waiting for company.
if (back > 0 or crashed == '1') and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
return {back, given_up}
