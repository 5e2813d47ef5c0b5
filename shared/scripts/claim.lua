-- claim: the dynamic batcher. Takes one batch off the queue and, in the same step, records it as the
-- instance's in-flight work. Run by WorkQueue.claim.
-- KEYS: bell, inflight, bytes, counts, stats, order, then the lists of waiting requests as they are served
-- ARGV: max_rows, max_delay_seconds, body key prefix, preferred sizes, 1 to keep the order of answers,
--       cache (see _cache.lua), result_ttl_ms, idempotent_ttl_ms, what who came too late is answered, and 1 for a
--       batch that is claimed ahead, while another one is computed: none that might still grow, nor after a crash
-- Who is rejected gets that answer, and so does who expired and is waited for: its API process, whose clock is not
-- Redis's, may think that there is time.
-- Returns {now, wait, ticket, body, ticket, body, ...}, times in microseconds; without tickets, wait says
-- how long the pending ones may still wait for company (-1: nothing is pending); with tickets, how many were left
-- behind, as far as the batch could not grow. `now` is negative when the instance
-- has something in flight besides what it claims.
-- include tell
-- include hand_out
-- include cache

local bell, inflight, bytes_key, counts, stats, order = unpack(KEYS, 1, 6)
local first_list = 7
local max_rows, max_delay, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local ttl, idempotent_ttl, too_late = unpack(ARGV, 7, 9)
local max_tickets = 2000 -- Lua's unpack has a limit near 8000
local expire = 0
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6

-- Smallest first. The largest is the size to wait for; memory may hold fewer rows than it (max_rows).
local preferred, largest = {}, max_rows
for size in string.gmatch(ARGV[4], '%d+') do
  largest = tonumber(size)
  preferred[largest] = true
end

-- The pending batch is a run of tickets from the head, level 1 first, without the closed, those whose time is over
-- and those of another version, which wait for an instance that knows them. It cannot grow any more (`why`) when it is
-- full, before a request of another signature, and around a request that has been in a crash, which travels alone.
-- `mark` is where it had a size at which it may leave.
local reply, tickets, over, strange = {now * 1e6, 0}, {}, {}, {}
local rows, oldest, nearest, first_signature, why, mark = 0, now, math.huge, nil, nil, nil
local seen, seen_bytes, look = {}, 0, max_delay > 0 and 'EXISTS' or 'GET'
local last_list = first_list

local function keys_of(kind) return string.sub(prefix, 1, -#'body:' - 1) .. kind end

local function cut(position, bytes, reason)
  return {count = #tickets, rows = rows, list = last_list, position = position, bytes = bytes, why = reason}
end

for list = first_list, #KEYS do
  local position, chunk = 0, nil
  last_list = list
  repeat
    chunk = redis.call('LRANGE', KEYS[list], position, position + max_rows - 1)
    for _, ticket in ipairs(chunk) do
      local version, attempts, level, on_timeout, ticket_rows, enqueued, deadline, queue_deadline, signature,
        _, body_bytes = struct.unpack('@TICKET@', ticket)
      local body = prefix .. string.sub(ticket, @ID@)
      if version ~= @TICKET_VERSION@ then
        body_bytes = struct.unpack('<I4', string.sub(ticket, @SIZE@, @ID@ - 1))
        if redis.call('EXISTS', body) == 0 then
          over[#over + 1] = {ticket, body, expire, list, position, body_bytes}
        else
          strange[#strange + 1] = {ticket, list, position}
          body_bytes = 0 -- it goes on waiting
        end
      elseif deadline <= now or (on_timeout ~= 0 and queue_deadline <= now) then
        local fate = (deadline <= now and (on_timeout ~= @REJECT@ or queue_deadline > now)) and expire or on_timeout
        over[#over + 1] = {ticket, body, fate, list, position, body_bytes}
        if fate == @DELAY@ then
          local again = string.sub(ticket, 1, @ON_TIMEOUT@ - 1) .. '\0' .. string.sub(ticket, @ON_TIMEOUT@ + 1)
          redis.call('RPUSH', keys_of('delayed:') .. level, again)
          body_bytes = 0 -- it goes on waiting
        end
      elseif rows > 0 and (rows + ticket_rows > max_rows or signature ~= first_signature or attempts > 0) then
        -- A boundary, unless it was cancelled or answered: such a one adds no rows.
        if redis.call('EXISTS', body) == 1 then
          why = attempts > 0 and 'retry' or signature ~= first_signature and 'shape' or 'full'
          break
        end
      else
        -- fast: what waits for company is looked at again and again, so its body is read only when it leaves.
        local payload = redis.call(look, body)
        if payload and payload ~= 0 then
          if rows > 0 and not mark and rows + ticket_rows > largest then
            mark = cut(position, seen_bytes, 'full')
          end
          tickets[#tickets + 1] = ticket
          reply[#reply + 1] = ticket
          reply[#reply + 1] = payload
          rows, first_signature = rows + ticket_rows, signature
          if enqueued < oldest then oldest = enqueued end
          if on_timeout ~= 0 and queue_deadline < nearest then nearest = queue_deadline end
          if attempts > 0 then
            why = 'retry'
          elseif rows >= max_rows or #tickets == max_tickets then
            why = 'full'
          elseif preferred[rows] then
            mark = cut(position + 1, seen_bytes + body_bytes, 'preferred')
          end
        end
      end
      position, seen_bytes = position + 1, seen_bytes + body_bytes
      if why then break end
    end
  until why or #chunk < max_rows
  seen[list] = position
  if why then break end
end

local within_delay = max_delay > 0 and now - oldest < max_delay
local leaving
if within_delay and mark then
  leaving = mark
elseif why or rows == 0 or not within_delay or rows >= largest then
  leaving = cut(seen[last_list], seen_bytes, why or within_delay and 'full' or max_delay > 0 and 'delay' or 'greedy')
end

if ARGV[10] == '1' and leaving and (leaving.why == 'greedy' or leaving.why == 'retry') then leaving = nil end

-- What leaves the queue takes along the bytes that it came with, whatever became of its body.
local gone_bytes, left = 0, 1
if leaving then
  gone_bytes = leaving.bytes
  for list, position in pairs(seen) do
    if list == leaving.list then position = leaving.position end
    if position > 0 and list <= leaving.list then redis.call('LTRIM', KEYS[list], position, -1) end
  end
  -- Tickets of another version stay at the head, for an instance that knows them.
  for i = #strange, 1, -1 do
    local ticket, list, position = unpack(strange[i])
    if list < leaving.list or (list == leaving.list and position < leaving.position) then
      redis.call('LPUSH', KEYS[list], ticket)
    end
  end
  left = 0
  if why or leaving == mark or #strange > 0 then
    for list = first_list, #KEYS do left = left + redis.call('LLEN', KEYS[list]) end
  end
end

local expired, rejected = 0, 0
local function tell_too_late(id, life)
  redis.call('SET', keys_of('result:') .. id, too_late, 'PX', life, 'NX')
  tell(keys_of('answered:'), id, ttl)
end
for _, one in ipairs(over) do
  local ticket, body, fate, list, position, body_bytes = unpack(one)
  if not leaving or list > leaving.list or (list == leaving.list and position >= leaving.position) then
    redis.call('LREM', KEYS[list], 1, ticket)
    if fate ~= @DELAY@ then gone_bytes = gone_bytes + body_bytes end
  end
  local id = string.sub(ticket, @ID@)
  local is_open = fate ~= @DELAY@ and redis.call('UNLINK', body) == 1
  if is_open and fate == @REJECT@ then
    tell_too_late(id, string.sub(id, 1, 8) == '@IDEMPOTENT@' and idempotent_ttl or ttl)
    rejected = rejected + 1
  elseif is_open then
    expired = expired + 1
  end
  -- Of one that expired long ago the body has as well.
  if fate == expire and string.byte(ticket) == @TICKET_VERSION@ and waits(string.sub(id, 1, 8)) then
    tell_too_late(id, ttl)
  end
end
if expired > 0 then redis.call('HINCRBY', counts, 'expired', expired) end
if rejected > 0 then redis.call('HINCRBY', counts, 'rejected', rejected) end
if ARGV[5] == '1' and expired > 0 then hand_out(order, prefix, keys_of('result:'), keys_of('answered:')) end
if left == 0 then
  redis.call('DEL', bytes_key)
elseif gone_bytes > 0 then
  redis.call('DECRBY', bytes_key, gone_bytes)
end

if ARGV[6] ~= '' and #over > 0 then
  local cache = response_cache(ARGV[6])
  for _, one in ipairs(over) do
    if one[3] ~= @DELAY@ then cache.pass_on(string.sub(one[1], @ID@)) end
  end
  cache.count()
end
if not leaving or rows == 0 then
  local wait = rows == 0 and -1 or math.min(max_delay - (now - oldest), nearest - now) * 1e6
  return {redis.call('EXISTS', inflight) == 1 and -now * 1e6 or now * 1e6, wait}
end
for i = 2 * leaving.count + 3, #reply do reply[i] = nil end
if max_delay > 0 then
  for i = 1, leaving.count do reply[2 * i + 2] = redis.call('GET', prefix .. string.sub(tickets[i], @ID@)) end
end
if ARGV[5] == '1' then
  for i = 1, leaving.count do
    local id = string.sub(tickets[i], @ID@)
    -- What was put back has its place already.
    if not redis.call('LPOS', order, id) then redis.call('RPUSH', order, id) end
  end
end
if redis.call('RPUSH', inflight, unpack(tickets, 1, leaving.count)) > leaving.count then reply[1] = -reply[1] end
redis.call('HINCRBY', stats, 'left_' .. leaving.why, 1)
if left > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
reply[2] = left
return reply
