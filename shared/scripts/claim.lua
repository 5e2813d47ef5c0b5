-- claim: the dynamic batcher. Takes one batch off the queue and, in the same step, records it as the
-- instance's in-flight work. Run by RequestQueue.claim.
-- KEYS: queue, bell, inflight   ARGV: max_rows, max_delay_seconds, body key prefix
-- Returns {now, wait_seconds, ticket, body, ticket, body, ...}; without tickets, wait_seconds says how
-- long the pending ones may still wait for company (-1: nothing is pending).
local queue, bell, inflight = unpack(KEYS)
local max_rows, max_delay, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6

-- A batch is a run of tickets from the head: it ends when it is full, before a request of another
-- signature, and around a request that has been in a crash, which travels alone.
local now_text = string.format('%.6f', now)
local reply, tickets = {now_text, '0'}, {}
local rows, seen, oldest, first_signature, complete = 0, 0, nil, nil, false
while not complete do
  local chunk = redis.call('LRANGE', queue, seen, seen + max_rows - 1)
  for _, ticket in ipairs(chunk) do
    local _, attempts, ticket_rows, enqueued, deadline, signature, next_byte =
      struct.unpack('<BBI4ddc8', ticket)
    local body = prefix .. string.sub(ticket, next_byte)
    if deadline <= now then
      redis.call('UNLINK', body)
    elseif rows > 0 and (rows + ticket_rows > max_rows or signature ~= first_signature or attempts > 0) then
      -- A boundary, unless it was cancelled or answered: such a one is no passenger and takes no seat.
      if redis.call('EXISTS', body) == 1 then
        complete = true
        break
      end
    else
      local payload = redis.call('GET', body)
      if payload then
        tickets[#tickets + 1] = ticket
        reply[#reply + 1] = ticket
        reply[#reply + 1] = payload
        rows, oldest, first_signature = rows + ticket_rows, oldest or enqueued, signature
        complete = rows >= max_rows or attempts > 0
      end
    end
    seen = seen + 1
    if complete then break end
  end
  if #chunk < max_rows then break end
end

local age = now - (oldest or now)
if not complete and rows > 0 and age < max_delay then return {now_text, string.format('%.6f', max_delay - age)} end

if seen > 0 then redis.call('LTRIM', queue, seen, -1) end
if rows == 0 then return {now_text, '-1'} end
redis.call('RPUSH', inflight, unpack(tickets))
if redis.call('LLEN', queue) > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
return reply
