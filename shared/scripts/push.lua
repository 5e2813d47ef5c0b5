-- push: accept requests, each once. Run by RequestQueue.push, through Courier, which sends several at once.
-- KEYS: queue, bell, then body and result of each request
-- ARGV: max_queue_size, then id, rows, signature, timeout_seconds, body_ttl_ms, body of each request
-- Returns for each: 'queued', 'known' (this id is stored or answered already: a push sent again after a
-- lost connection changes nothing) or 'full' (refused).
local queue, bell, max_queue_size = KEYS[1], KEYS[2], tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local length = redis.call('LLEN', queue)

local statuses, tickets = {}, {}
for i = 1, (#ARGV - 1) / 6 do
  local body, result = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local id, rows, signature, timeout, ttl, payload = unpack(ARGV, 6 * i - 4, 6 * i + 1)
  if redis.call('EXISTS', body, result) > 0 then
    statuses[i] = 'known'
  elseif length + #tickets >= max_queue_size then
    statuses[i] = 'full'
  else
    redis.call('SET', body, payload, 'PX', ttl)
    tickets[#tickets + 1] = struct.pack('<BBI4ddc8', 1, 0, rows, now, now + timeout, signature) .. id
    statuses[i] = 'queued'
  end
end
if #tickets > 0 then
  redis.call('RPUSH', queue, unpack(tickets))
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end
return statuses
