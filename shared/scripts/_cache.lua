-- The response cache and those who ask the same at the same time. Included, behind tell, by the scripts that open and
-- close requests; a model without a cache has an empty `tag` (the beginning of its keys' names) and calls nothing of
-- this.
-- `asked:<digest>` has the tickets of open requests that ask the same. The first one leads: its ticket is on a queue
-- or in flight as well. The others follow, they wait for its answer. Whoever ends a leader without an answer has the
-- next one lead, so `digest:<id>` of a leader lives as long as its list.
local function response_cache(tag, ttl, idempotent_ttl)
-- include kept
  local cache = {hits = 0, hit_seconds = 0, hit_lookup_seconds = 0, misses = 0, miss_lookup_seconds = 0}
  local answers, expiry, used, followed = tag .. 'cache', tag .. 'cache:expiry', tag .. 'cache:used', tag .. 'followed'
  local entry_bytes = 300 -- what an entry takes in the hash and both sorted sets beside its answer
  local most_at_once = 64 * 2 ^ 20 -- bytes of answers that are handed to followers in one step

  -- subtle: os.clock would cost less, but exists from Redis 7.4 only.
  local function clock()
    local time = redis.call('TIME')
    return time[1] + time[2] / 1e6
  end

  local now = clock()
  local began = now
  local function id_of(ticket) return string.sub(ticket, @ID@) end
  local function level_of(ticket) return string.byte(ticket, @LEVEL@) end
  local function size_of(ticket) return (struct.unpack('<I4', string.sub(ticket, @SIZE@, @ID@ - 1))) end
  -- Of another version's ticket no time is known: it waits, as if it had come just now.
  local function is_ours(ticket) return string.byte(ticket) == @TICKET_VERSION@ end
  local function enqueued_of(ticket) return is_ours(ticket) and struct.unpack('<d', ticket, @ENQUEUED@) or now end
  local function deadline_of(ticket) return is_ours(ticket) and struct.unpack('<d', ticket, @DEADLINE@) or math.huge end

  local function add_followed(bytes)
    if redis.call('INCRBY', followed, bytes) <= 0 then redis.call('DEL', followed) end
  end

  local function drop(digest)
    local size = redis.call('HSTRLEN', answers, digest)
    if size > 0 then
      redis.call('HDEL', answers, digest)
      redis.call('HINCRBY', answers, 'bytes', -size - entry_bytes)
    end
    redis.call('ZREM', expiry, digest)
    redis.call('ZREM', used, digest)
  end

  local function keep(digest, answer, max_bytes, ttl_ms)
    for _, old in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 100)) do drop(old) end
    drop(digest)
    local room = max_bytes - #answer - entry_bytes
    if room < 0 then return end
    while tonumber(redis.call('HGET', answers, 'bytes') or 0) > room do
      local oldest = redis.call('ZRANGE', used, 0, 0)[1]
      if oldest then drop(oldest) else redis.call('UNLINK', answers, expiry, used) end
    end
    redis.call('HSET', answers, digest, answer)
    redis.call('HINCRBY', answers, 'bytes', #answer + entry_bytes)
    redis.call('ZADD', expiry, now + ttl_ms / 1000, digest)
    redis.call('ZADD', used, now, digest)
    for _, key in ipairs({answers, expiry, used}) do redis.call('PEXPIRE', key, ttl_ms) end
  end

  local function kept(digest)
    local answer = redis.call('HGET', answers, digest)
    if not answer or tonumber(redis.call('ZSCORE', expiry, digest) or 0) <= now then return nil end
    redis.call('ZADD', used, 'XX', now, digest)
    return answer
  end

  local function give(id, result)
    local process = string.sub(id, 1, 8)
    local life = process == '@IDEMPOTENT@' and idempotent_ttl or ttl
    if not waits(process) then kept_answers(tag).answer(id, #result, life) end
    redis.call('SET', tag .. 'result:' .. id, result, 'PX', life)
    tell(tag .. 'answered:', id, ttl)
  end

  -- Has the list and its leader's digest live for `ttl_ms` at least, as its longest living member does.
  local function hold(digest, ttl_ms)
    local asked = tag .. 'asked:' .. digest
    local left = math.max(ttl_ms, redis.call('PTTL', asked))
    redis.call('PEXPIRE', asked, left)
    redis.call('SET', tag .. 'digest:' .. id_of(redis.call('LINDEX', asked, 0)), digest, 'PX', left)
    if redis.call('PTTL', followed) < left then redis.call('PEXPIRE', followed, left) end
  end

  -- Returns whom `id` follows, if it does.
  function cache.follows(id)
    local digest = redis.call('GET', tag .. 'digest:' .. id)
    local first = digest and redis.call('LINDEX', tag .. 'asked:' .. digest, 0)
    return first and id_of(first) ~= id and id_of(first) or nil
  end

  -- Returns whether the deadline of a follower has passed.
  function cache.is_late(id)
    local asked = tag .. 'asked:' .. redis.call('GET', tag .. 'digest:' .. id)
    for _, ticket in ipairs(redis.call('LRANGE', asked, 0, -1)) do
      if id_of(ticket) == id then return deadline_of(ticket) <= now end
    end
  end

  -- Returns 'hit': the request has its answer, 'followed': it waits for another's, 'full <n>', or nil: it has to be
  -- queued, and to `lead`. It does not wait for one that is less urgent.
  function cache.join(id, digest, ticket, payload, ttl_ms, max_requests, max_bytes)
    local answer = kept(digest)
    if answer then
      give(id, struct.pack('<Bd', 0xc1, 0) .. answer)
      cache.hits, cache.hit_lookup_seconds = cache.hits + 1, cache.hit_lookup_seconds + clock() - began
      began = clock()
      return 'hit'
    end
    local asked = tag .. 'asked:' .. digest
    local first = redis.call('LINDEX', asked, 0)
    if not first or level_of(ticket) < level_of(first) then return nil end
    local count, bytes = redis.call('LLEN', asked), tonumber(redis.call('GET', followed) or 0)
    if count > max_requests or bytes + #payload > max_bytes then return 'full ' .. count end
    redis.call('SET', tag .. 'body:' .. id, payload, 'PX', ttl_ms)
    redis.call('SET', tag .. 'digest:' .. id, digest, 'PX', ttl_ms)
    redis.call('RPUSH', asked, ticket)
    add_followed(size_of(ticket))
    hold(digest, tonumber(ttl_ms))
    return 'followed'
  end

  function cache.lead(digest, ticket, ttl_ms)
    local asked = tag .. 'asked:' .. digest
    if redis.call('LPUSH', asked, ticket) > 1 then add_followed(size_of(redis.call('LINDEX', asked, 1))) end
    hold(digest, tonumber(ttl_ms))
    cache.misses, cache.miss_lookup_seconds = cache.misses + 1, cache.miss_lookup_seconds + clock() - began
    began = clock()
  end

  -- Takes the first of a list away; returns the ticket that is first then.
  local function advance(asked)
    redis.call('LPOP', asked)
    local ticket = redis.call('LINDEX', asked, 0)
    if ticket then add_followed(-size_of(ticket)) end
    return ticket
  end

  -- Nobody leads the list any more: its first open request goes to the head of the queue, as what is put back does.
  local function lead_on(digest, ticket)
    while ticket and redis.call('EXISTS', tag .. 'body:' .. id_of(ticket)) == 0 do
      redis.call('DEL', tag .. 'digest:' .. id_of(ticket))
      ticket = advance(tag .. 'asked:' .. digest)
    end
    if not ticket then return end
    hold(digest, 0)
    redis.call('LPUSH', tag .. 'queue:' .. level_of(ticket), ticket)
    redis.call('INCRBY', tag .. 'bytes', size_of(ticket))
    if redis.call('LLEN', tag .. 'bell') == 0 then redis.call('RPUSH', tag .. 'bell', '1') end
    cache.misses = cache.misses + 1
  end

  -- The request is closed without an answer. If it `is_running`, its answer may be there before that of the next one
  -- to lead, and will be everybody's.
  function cache.pass_on(id, is_running)
    local digest = redis.call(is_running and 'GET' or 'GETDEL', tag .. 'digest:' .. id)
    local first = digest and redis.call('LINDEX', tag .. 'asked:' .. digest, 0)
    if first and id_of(first) == id then lead_on(digest, advance(tag .. 'asked:' .. digest)) end
  end

  -- A request has its result, or was closed while it was computed: everybody who asks the same gets it as well. A good
  -- one is kept, and taken from whoever has it first; an error is the leader's only, and not kept.
  -- subtle: a result ends with nil (0xc0) when it has no error, and no text ends so.
  -- Returns how many others were given an error, and how many seconds they had waited.
  function cache.answer(id, result, max_bytes, keep_ms)
    local digest = redis.call('GETDEL', tag .. 'digest:' .. id)
    if not digest then return 0, 0 end
    local asked, failed = tag .. 'asked:' .. digest, string.byte(result, -1) ~= 0xc0
    local ticket = redis.call('LINDEX', asked, 0)
    if failed and (not ticket or id_of(ticket) ~= id) then return 0, 0 end
    local count, seconds = 0, 0
    while ticket and count * #result < most_at_once do
      local other = id_of(ticket)
      redis.call('DEL', tag .. 'digest:' .. other)
      if other ~= id and redis.call('UNLINK', tag .. 'body:' .. other) == 1 then
        local waited = math.max(0, now - enqueued_of(ticket))
        give(other, failed and result or struct.pack('<Bd', 0xc1, waited) .. result)
        count, seconds = count + 1, seconds + waited
      end
      ticket = advance(asked)
    end
    lead_on(digest, ticket)
    if failed then return count, seconds end
    cache.hits, cache.hit_seconds = cache.hits + count, cache.hit_seconds + seconds
    began = clock()
    keep(digest, result, max_bytes, keep_ms)
    cache.miss_lookup_seconds = cache.miss_lookup_seconds + clock() - began
    return 0, 0
  end

  -- Writes down what was counted since.
  function cache.count()
    for _, name in ipairs({'hits', 'misses'}) do
      if cache[name] > 0 then redis.call('HINCRBY', tag .. 'stats', name, cache[name]) end
    end
    for _, name in ipairs({'hit_seconds', 'hit_lookup_seconds', 'miss_lookup_seconds'}) do
      if cache[name] > 0 then redis.call('HINCRBYFLOAT', tag .. 'stats', name, cache[name]) end
    end
  end

  return cache
end
