-- claim: the dynamic batcher. Takes one batch off the queue and, in the same step, records it as the
-- instance's in-flight work. Run by WorkQueue.claim.
-- KEYS: bell, inflight, bytes, counts, queue of each level
-- ARGV: max_rows, max_delay_seconds, body key prefix
-- Returns {now, wait_seconds, ticket, body, ticket, body, ...}; without tickets, wait_seconds says how
-- long the pending ones may still wait for company (-1: nothing is pending).
local bell, inflight, bytes_key, counts = unpack(KEYS, 1, 4)
local max_rows, max_delay, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6

-- A batch is a run of tickets from the head, level 1 first: it ends when it is full, before a request of
-- another signature, and around a request that has been in a crash, which travels alone.
local now_text = string.format('%.6f', now)
local reply, tickets, seen = {now_text, '0'}, {}, {}
local rows, oldest, first_signature, complete = 0, now, nil, false
local taken_bytes, expired_bytes, expired, left = 0, 0, 0, 0
for level = 5, #KEYS do
  local queue, position = KEYS[level], 0
  local chunk
  repeat
    chunk = redis.call('LRANGE', queue, position, position + max_rows - 1)
    for _, ticket in ipairs(chunk) do
      local _, attempts, _, ticket_rows, enqueued, deadline, signature, next_byte =
        struct.unpack('<BBBI4ddc8', ticket)
      local body = prefix .. string.sub(ticket, next_byte)
      if deadline <= now then
        expired_bytes = expired_bytes + redis.call('STRLEN', body)
        expired = expired + redis.call('UNLINK', body)
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
          taken_bytes = taken_bytes + #payload
          rows, first_signature = rows + ticket_rows, signature
          if enqueued < oldest then oldest = enqueued end
          complete = rows >= max_rows or attempts > 0
        end
      end
      position = position + 1
      if complete then break end
    end
  until complete or #chunk < max_rows
  seen[level] = position
  if complete then break end
end

local function release(bytes)
  if redis.call('DECRBY', bytes_key, bytes) <= 0 then redis.call('DEL', bytes_key) end
end

if expired > 0 then
  redis.call('HINCRBY', counts, 'expired', expired)
  release(expired_bytes)
end
local age = now - oldest
if not complete and rows > 0 and age < max_delay then return {now_text, string.format('%.6f', max_delay - age)} end

for level, position in pairs(seen) do
  if position > 0 then redis.call('LTRIM', KEYS[level], position, -1) end
end
if rows == 0 then return {now_text, '-1'} end
redis.call('RPUSH', inflight, unpack(tickets))
release(taken_bytes)
if complete and left == 0 then
  for level = 5, #KEYS do left = left + redis.call('LLEN', KEYS[level]) end
end
if left > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
return reply
