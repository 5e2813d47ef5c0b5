-- claim: the dynamic batcher. Takes one batch off the queue and, in the same step, records it as the
-- instance's in-flight work. Run by WorkQueue.claim.
-- KEYS: bell, inflight, bytes, counts, queue of each level
-- ARGV: max_rows, max_delay_seconds, body key prefix
-- Returns {now, wait, ticket, body, ticket, body, ...}, times in microseconds; without tickets, wait says
-- how long the pending ones may still wait for company (-1: nothing is pending), and nothing is changed.
local bell, inflight, bytes_key, counts = unpack(KEYS, 1, 4)
local max_rows, max_delay, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local max_tickets = 2000 -- Lua's unpack has a limit near 8000
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6

-- A batch is a run of tickets from the head, level 1 first: it ends when it is full, before a request of
-- another signature, and around a request that has been in a crash, which travels alone.
local reply, tickets, seen, expired = {now * 1e6, 0}, {}, {}, {}
local rows, oldest, first_signature, complete = 0, now, nil, false
local seen_bytes, left = 0, 0
for level = 5, #KEYS do
  local queue, position = KEYS[level], 0
  local chunk
  repeat
    chunk = redis.call('LRANGE', queue, position, position + max_rows - 1)
    for _, ticket in ipairs(chunk) do
      local _, attempts, _, ticket_rows, enqueued, deadline, signature, body_bytes, next_byte =
        struct.unpack('<BBBI4ddc8I4', ticket)
      local body = prefix .. string.sub(ticket, next_byte)
      if deadline <= now then
        expired[#expired + 1] = body
      elseif rows > 0 and (rows + ticket_rows > max_rows or signature ~= first_signature or attempts > 0) then
        -- A boundary, unless it was cancelled or answered: such a one is no passenger and takes no seat.
        if redis.call('EXISTS', body) == 1 then
          complete, left = true, 1
          break
        end
      else
        local payload = redis.call('GET', body)
        if payload then
          tickets[#tickets + 1] = ticket
          reply[#reply + 1] = ticket
          reply[#reply + 1] = payload
          rows, first_signature = rows + ticket_rows, signature
          if enqueued < oldest then oldest = enqueued end
          complete = rows >= max_rows or attempts > 0 or #tickets == max_tickets
        end
      end
      position, seen_bytes = position + 1, seen_bytes + body_bytes
      if complete then break end
    end
  until complete or #chunk < max_rows
  seen[level] = position
  if complete then break end
end

local age = now - oldest
if not complete and rows > 0 and age < max_delay then return {now * 1e6, (max_delay - age) * 1e6} end

for level, position in pairs(seen) do
  if position > 0 then redis.call('LTRIM', KEYS[level], position, -1) end
end
if complete and left == 0 then
  for level = 5, #KEYS do left = left + redis.call('LLEN', KEYS[level]) end
end
-- What leaves the queue takes along the bytes that it came with, whatever became of its body.
if left == 0 then redis.call('DEL', bytes_key) else redis.call('DECRBY', bytes_key, seen_bytes) end
if #expired > 0 then
  local closed = 0
  for _, body in ipairs(expired) do closed = closed + redis.call('UNLINK', body) end
  if closed > 0 then redis.call('HINCRBY', counts, 'expired', closed) end
end
if rows == 0 then return {now * 1e6, -1} end
redis.call('RPUSH', inflight, unpack(tickets))
if left > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
return reply
