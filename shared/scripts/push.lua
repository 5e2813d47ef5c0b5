-- push: accept requests, each once. Run by RequestQueue.push, through Courier, which sends several at once.
-- KEYS: bell, bytes, closed, queue of each level
-- ARGV: body and result key prefix, max_requests, max_bytes,
--       then id, rows, level, signature, timeout_seconds, body_ttl_ms, body of each request
-- Returns for each: 'queued', 'known' (this id is stored or answered already: a push sent again after a
-- lost connection changes nothing), 'full <waiting>' (refused) or 'closed' (refused: this version is leaving).
local bell, bytes_key = KEYS[1], KEYS[2]
local closed = redis.call('EXISTS', KEYS[3]) == 1
local body_prefix, result_prefix, max_requests, max_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local waiting = 0
for level = 4, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[level]) end
-- An empty queue takes one request of any size, so only behind others the bytes count.
local bytes = waiting > 0 and tonumber(redis.call('GET', bytes_key) or 0) or 0

local statuses, tickets, added = {}, {}, 0
for i = 1, (#ARGV - 4) / 7 do
  local id, rows, level, signature, timeout, ttl, payload = unpack(ARGV, 7 * i - 2, 7 * i + 4)
  local body = body_prefix .. id
  if redis.call('EXISTS', body, result_prefix .. id) > 0 then
    statuses[i] = 'known'
  elseif closed then
    statuses[i] = 'closed'
  elseif waiting >= max_requests or (waiting > 0 and bytes + added + #payload > max_bytes) then
    statuses[i] = 'full ' .. waiting
  else
    redis.call('SET', body, payload, 'PX', ttl)
    local queue = KEYS[3 + level]
    tickets[queue] = tickets[queue] or {}
    local ticket = struct.pack('<BBBI4ddc8I4', 3, 0, level, rows, now, now + timeout, signature, #payload) .. id
    table.insert(tickets[queue], ticket)
    waiting, added = waiting + 1, added + #payload
    statuses[i] = 'queued'
  end
end
if added > 0 then
  for queue, new in pairs(tickets) do redis.call('RPUSH', queue, unpack(new)) end
  redis.call('INCRBY', bytes_key, added)
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end
return statuses
