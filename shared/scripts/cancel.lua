-- cancel: close requests that nobody wants any more, and take them off the queue. Run by Courier for
-- clients that left and for passed deadlines, and by Detached.cancel.
-- KEYS: bytes, counts, queue of each level
-- ARGV: body key prefix, field of counts, 1 to leave alone what is running, id, id, ...
-- Walks the queue once, however many ids there are. Returns for each id: 'waiting' (it will not run),
-- 'running' (its answer is thrown away, unless it was left alone) or 'gone'.
local bytes_key, counts = KEYS[1], KEYS[2]
local prefix, field, only_waiting = ARGV[1], ARGV[2], ARGV[3] == '1'
local wanted, states = {}, {}
for i = 4, #ARGV do
  local open = redis.call('EXISTS', prefix .. ARGV[i]) == 1
  states[ARGV[i]] = open and 'running' or 'gone'
  wanted[ARGV[i]] = open or nil
end
for level = 3, #KEYS do
  if next(wanted) == nil then break end
  for _, ticket in ipairs(redis.call('LRANGE', KEYS[level], 0, -1)) do
    local id = string.sub(ticket, 32)
    if wanted[id] then
      redis.call('LREM', KEYS[level], 1, ticket)
      if redis.call('DECRBY', bytes_key, redis.call('STRLEN', prefix .. id)) <= 0 then redis.call('DEL', bytes_key) end
      states[id], wanted[id] = 'waiting', nil
    end
  end
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
