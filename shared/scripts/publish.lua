-- publish: hand out a batch's answers, drop it from the instance's in-flight work and count what it cost, in one step.
-- KEYS: inflight, stats, and order if answers are to be told of in the order in which requests were claimed
-- ARGV: ticket count, result_ttl_ms, kept_ttl_ms, body, result and answered key prefix,
--       passes and requests (see encode_costs), cache (see _cache.lua), its max_bytes and ttl_ms,
--       id, result, id, result, ...
-- A request is open as long as its body exists, so the first answer for an id wins, and only first ones are
-- counted. The id's first 8 signs name the API process that waits for it, which is told by its `answered` list;
-- nobody waits for 00000000 (DETACHED) and 00000001 (KEPT), whose answers are asked for later.
-- Returns how many answers were the first.
-- include hand_out
-- include cache

local count, ttl, kept_ttl, body_prefix, result_prefix, answered_prefix, passes, requests = unpack(ARGV, 1, 8)
local cache = ARGV[9] ~= '' and response_cache(ARGV[9], ttl, kept_ttl)
local first_id = 12
local told, first, closed = {}, 0, {}
for i = first_id, #ARGV, 2 do
  local id = ARGV[i]
  if redis.call('UNLINK', body_prefix .. id) == 1 then
    local process = string.sub(id, 1, 8)
    -- subtle: what was claimed before Redis lost its memory has no place, and waits for nobody.
    local keeps_order = KEYS[3] and redis.call('LPOS', KEYS[3], id)
    local long = process == '00000001' or keeps_order
    redis.call('SET', result_prefix .. id, ARGV[i + 1], 'PX', long and kept_ttl or ttl)
    if not keeps_order and process ~= '00000000' and process ~= '00000001' then
      told[process] = told[process] or {}
      table.insert(told[process], id)
    end
    first = first + 1
  else
    local n, k = (#ARGV + 1 - first_id) / 2, (i + 2 - first_id) / 2
    local pass, rows = struct.unpack('<H', requests, 2 * k - 1), struct.unpack('<I4', requests, 2 * n + 4 * k - 3)
    local queued = struct.unpack('<d', requests, 6 * n + 8 * k - 7)
    local sum = closed[pass] or {0, 0, 0}
    closed[pass] = {sum[1] + 1, sum[2] + rows, sum[3] + queued}
  end
  if cache then
    local failed, seconds = cache.answer(id, ARGV[i + 1], tonumber(ARGV[10]), tonumber(ARGV[11]))
    if failed > 0 then
      redis.call('HINCRBY', KEYS[2], 'failed', failed)
      redis.call('HINCRBYFLOAT', KEYS[2], 'failed_seconds', seconds)
    end
  end
end
if cache then cache.count() end
for process, ids in pairs(told) do
  redis.call('RPUSH', answered_prefix .. process, unpack(ids))
  redis.call('PEXPIRE', answered_prefix .. process, ttl)
end

if KEYS[3] then hand_out(KEYS[3], body_prefix, result_prefix, answered_prefix) end

for pass = 1, #passes / 64 do
  local size, answered, queued, claimed_at, seconds, input, infer, output =
    struct.unpack('<dddddddd', passes, 64 * pass - 63)
  local rows = size
  if closed[pass] then
    answered, rows, queued = answered - closed[pass][1], rows - closed[pass][2], queued - closed[pass][3]
  end
  if answered > 0 and size < 0 then
    redis.call('HINCRBY', KEYS[2], 'failed', answered)
    redis.call('HINCRBYFLOAT', KEYS[2], 'failed_seconds', queued + answered * seconds)
  elseif answered > 0 then
    local stored = redis.call('HGET', KEYS[2], size) or string.rep('\0', 96)
    local a, b, c, last, d, e, f, g, h, x, y, z = struct.unpack('<dddddddddddd', stored)
    redis.call('HSET', KEYS[2], size, struct.pack('<dddddddddddd',
      a + 1, b + answered, c + rows, math.max(last, claimed_at), d + queued + answered * seconds, e + queued,
      f + answered * input, g + answered * infer, h + answered * output, x + input, y + infer, z + output))
  end
end
redis.call('LTRIM', KEYS[1], count, -1)
return first
