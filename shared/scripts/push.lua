-- push: accept one request, once. Run by RequestQueue.push, through Courier.
-- KEYS: queue, bell, body, result   ARGV: id, rows, signature, timeout_seconds, body, max_queue_size, body_ttl_ms
-- Returns 'queued', 'known' (this id is stored or answered already: a push sent again after a lost
-- connection changes nothing) or 'full' (refused).
local queue, bell, body, result = unpack(KEYS)
local id, rows, signature, timeout, payload, max_queue_size, ttl = unpack(ARGV)

if redis.call('EXISTS', body, result) > 0 then return 'known' end
if redis.call('LLEN', queue) >= tonumber(max_queue_size) then return 'full' end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local ticket = struct.pack('<BBI4ddc8', 1, 0, rows, now, now + timeout, signature) .. id
redis.call('SET', body, payload, 'PX', ttl)
redis.call('RPUSH', queue, ticket)
if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
return 'queued'
