-- cancel: close requests that nobody wants any more, and take them off the queue. Run by Courier for
-- clients that left and for passed deadlines, and by Detached.cancel.
-- KEYS: bytes, counts, queue of each level
-- ARGV: body key prefix, field of counts, 1 to leave alone what is running, id, id, ...
-- Walks each queue once, however many ids there are. Returns for each id: 'waiting' (it will not run),
-- 'running' (its answer is thrown away, unless it was left alone) or 'gone'.
local bytes_key, counts = KEYS[1], KEYS[2]
local prefix, field, only_waiting = ARGV[1], ARGV[2], ARGV[3] == '1'
local wanted, states = {}, {}
for i = 4, #ARGV do
  local open = redis.call('EXISTS', prefix .. ARGV[i]) == 1
  states[ARGV[i]] = open and 'running' or 'gone'
  wanted[ARGV[i]] = open or nil
end

local function take_off(queue)
  local kept, first, bytes = {}, nil, 0
  for position, ticket in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    local id = string.sub(ticket, 36)
    if wanted[id] then
      first = first or position
      bytes = bytes + struct.unpack('<I4', string.sub(ticket, 32, 35))
      states[id], wanted[id] = 'waiting', nil
    elseif first then
      kept[#kept + 1] = ticket
    end
  end
  if not first then return end
  -- What stands behind the first is written anew: LREM would walk the list once for each.
  if first == 1 then redis.call('DEL', queue) else redis.call('LTRIM', queue, 0, first - 2) end
  for i = 1, #kept, 1000 do redis.call('RPUSH', queue, unpack(kept, i, math.min(i + 999, #kept))) end
  if redis.call('DECRBY', bytes_key, bytes) <= 0 then redis.call('DEL', bytes_key) end
end

for level = 3, #KEYS do
  if next(wanted) == nil then break end
  take_off(KEYS[level])
end

local replies, cancelled = {}, 0
for i = 4, #ARGV do
  local state = states[ARGV[i]]
  if state == 'waiting' or (state == 'running' and not only_waiting) then
    cancelled = cancelled + redis.call('UNLINK', prefix .. ARGV[i])
  end
  replies[#replies + 1] = state
end
if cancelled > 0 then redis.call('HINCRBY', counts, field, cancelled) end
return replies
