-- publish: hand out a batch's answers, drop it from the instance's in-flight work and count what it cost, in one step.
-- KEYS: inflight, stats, and order if answers are to be told of in the order in which requests were claimed
-- ARGV: result_ttl_ms, idempotent_ttl_ms, body, result and answered key prefix, cache (see _cache.lua), its
--       max_bytes and ttl_ms, ticket count, passes and requests (see encode_costs), id, result, id, result, ...
-- A request is open as long as its body exists, so the first answer for an id wins, and only first ones are
-- counted. The id's first 8 signs name the API process that waits for it. A small result is said to it on its channel,
-- as id, I4 length and result, those of a batch in one message; a large one, or one that nobody is there to hear, is
-- stored to be collected (see _tell.lua). What is said and lost with a connection is asked for anew, and run again.
-- Returns how many answers were the first.
-- include tell
-- include hand_out
-- include cache

local ttl, idempotent_ttl, body_prefix, result_prefix, answered_prefix = unpack(ARGV, 1, 5)
local count, passes, requests = unpack(ARGV, 9, 11)
local cache = ARGV[6] ~= '' and response_cache(ARGV[6], ttl, idempotent_ttl)
local first_id = 12
-- Bytes of a result, and of a message: Redis hangs up on a listener to whom it owes too many.
local max_said, max_message, sizes = 8192, 262144, {}
local said, first, closed, latencies = {}, 0, {}, {}
local asked = (#ARGV + 1 - first_id) / 2

local function store(i, keeps_order)
  local process = string.sub(ARGV[i], 1, 8)
  local life = (keeps_order or process == '@IDEMPOTENT@') and idempotent_ttl or ttl
  if not waits(process) then
-- include kept
    kept_answers((string.gsub(body_prefix, 'body:$', ''))).answer(ARGV[i], #ARGV[i + 1], life)
  end
  redis.call('SET', result_prefix .. ARGV[i], ARGV[i + 1], 'PX', life)
  if not keeps_order then tell(answered_prefix, ARGV[i], ttl) end
end

for i = first_id, #ARGV, 2 do
  local id = ARGV[i]
  if redis.call('UNLINK', body_prefix .. id) == 1 then
    local process = string.sub(id, 1, 8)
    -- subtle: what was claimed before Redis lost its memory has no place, and waits for nobody.
    local keeps_order = KEYS[3] and redis.call('LPOS', KEYS[3], id)
    local size = (sizes[process] or 0) + #ARGV[i + 1]
    if keeps_order or #ARGV[i + 1] > max_said or size > max_message or not waits(process) then
      store(i, keeps_order)
    else
      said[process] = said[process] or {}
      table.insert(said[process], i)
      sizes[process] = size
    end
    first = first + 1
    local latency = string.byte(requests, 14 * asked + (i + 2 - first_id) / 2)
    latencies[latency] = (latencies[latency] or 0) + 1
  else
    local n, k = asked, (i + 2 - first_id) / 2
    local pass, rows = struct.unpack('<H', requests, 2 * k - 1), struct.unpack('<I4', requests, 2 * n + 4 * k - 3)
    local queued = struct.unpack('<d', requests, 6 * n + 8 * k - 7)
    local sum = closed[pass] or {0, 0, 0}
    closed[pass] = {sum[1] + 1, sum[2] + rows, sum[3] + queued}
  end
  if cache then
    local failed, seconds = cache.answer(id, ARGV[i + 1], tonumber(ARGV[7]), tonumber(ARGV[8]))
    if failed > 0 then
      redis.call('HINCRBY', KEYS[2], 'failed', failed)
      redis.call('HINCRBYFLOAT', KEYS[2], 'failed_seconds', seconds)
    end
  end
end
if cache then cache.count() end
for process, answers in pairs(said) do
  local parts = {}
  for n, i in ipairs(answers) do
    parts[3 * n - 2], parts[3 * n - 1], parts[3 * n] = ARGV[i], struct.pack('<I4', #ARGV[i + 1]), ARGV[i + 1]
  end
  local heard = redis.pcall('PUBLISH', answered_prefix .. process, table.concat(parts))
  if heard == 0 or type(heard) == 'table' then -- a table is an error: this user may not publish
    for _, i in ipairs(answers) do store(i) end
  end
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
for latency, n in pairs(latencies) do
  if latency < 255 then redis.call('HINCRBY', KEYS[2], 'latency_' .. latency, n) end
end
redis.call('LTRIM', KEYS[1], count, -1)
return first
