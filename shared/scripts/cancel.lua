-- cancel: close requests that nobody wants any more, and take them off the queue. Run by Cancels for
-- clients that left and for passed deadlines, and by AsyncRequests.cancel.
-- KEYS: bytes, counts, order, then of each level its queue and its delayed
-- ARGV: body, result and answered key prefix, field of counts, 1 to leave alone what is running,
--       cache (see _cache.lua), id, id, ...
-- Walks each queue once, however many ids there are. Returns for each id: 'waiting' (it will not run),
-- 'running' (its answer is thrown away, unless it was left alone) or 'gone'. What is to be 'rejected' for its queue
-- policy's sake is left alone as well when it has been claimed before, and was put back.
-- include tell
-- include hand_out
-- include cache

local bytes_key, counts, order = KEYS[1], KEYS[2], KEYS[3]
local prefix, result_prefix, answered_prefix, field = unpack(ARGV, 1, 4)
local only_waiting, first_id, first_list = ARGV[5] == '1', 7, 4
local cache = ARGV[6] ~= '' and response_cache(ARGV[6])
local wanted, states = {}, {}
for i = first_id, #ARGV do
  local open = redis.call('EXISTS', prefix .. ARGV[i]) == 1
  states[ARGV[i]] = open and 'running' or 'gone'
  wanted[ARGV[i]] = open or nil
end

local function take_off(queue)
  local kept, first, bytes = {}, nil, 0
  for position, ticket in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    local id = string.sub(ticket, @ID@)
    local is_rejected = string.byte(ticket) == @TICKET_VERSION@ and string.byte(ticket, @ON_TIMEOUT@) == @REJECT@
    if wanted[id] and (field ~= 'rejected' or is_rejected) then
      first = first or position
      bytes = bytes + struct.unpack('<I4', string.sub(ticket, @SIZE@, @ID@ - 1))
      states[id], wanted[id] = 'waiting', nil
    elseif first then
      kept[#kept + 1] = ticket
    end
  end
  if not first then return end
  -- fast: what stands behind the first is written anew, LREM would walk the list once for each.
  if first == 1 then redis.call('DEL', queue) else redis.call('LTRIM', queue, 0, first - 2) end
  for i = 1, #kept, 1000 do redis.call('RPUSH', queue, unpack(kept, i, math.min(i + 999, #kept))) end
  if redis.call('DECRBY', bytes_key, bytes) <= 0 then redis.call('DEL', bytes_key) end
end

for list = first_list, #KEYS do
  if next(wanted) == nil then break end
  take_off(KEYS[list])
end
if cache then
  for id in pairs(wanted) do
    if cache.follows(id) then states[id] = 'waiting' end
  end
end

local replies, cancelled = {}, 0
for i = first_id, #ARGV do
  local state = states[ARGV[i]]
  if state == 'waiting' or (state == 'running' and not only_waiting) then
    cancelled = cancelled + redis.call('UNLINK', prefix .. ARGV[i])
    if cache then cache.pass_on(ARGV[i], state == 'running') end
  end
  replies[#replies + 1] = state
end
if cancelled > 0 then
  redis.call('HINCRBY', counts, field, cancelled)
  hand_out(order, prefix, result_prefix, answered_prefix)
end
if cache then cache.count() end
return replies
