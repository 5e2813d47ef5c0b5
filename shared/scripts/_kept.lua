-- What is kept of requests for whose answers nobody waits, of one model version: how many bytes, until when, of which
-- API key. Included by the scripts that store such answers.
-- `kept` has members by when they are forgotten: `<id>` is a request's record, `open:<id>` the place of its answer until
-- that is there, `answer:<id>` the answer. `kept:bytes` has of each member its bytes and its key, the sums `all` and
-- `of:<key>`, and the answers' mean size as `mean`.
local function kept_answers(tag)
  local kept, members, bytes_of = {}, tag .. 'kept', tag .. 'kept:bytes'
  local clock = redis.call('TIME')
  local now = clock[1] + clock[2] / 1e6

  local function number(field, otherwise) return tonumber(redis.call('HGET', bytes_of, field) or otherwise) end

  local function count(bytes, owner)
    redis.call('HINCRBY', bytes_of, 'all', bytes)
    if owner ~= '' and redis.call('HINCRBY', bytes_of, 'of:' .. owner, bytes) <= 0 then
      redis.call('HDEL', bytes_of, 'of:' .. owner)
    end
  end

  -- Returns the key that a member belongs to, nil when there is none of this name.
  function kept.drop(member)
    local bytes, owner = string.match(redis.call('HGET', bytes_of, member) or '', '^(%d+) (.*)$')
    if not bytes then return nil end
    redis.call('ZREM', members, member)
    redis.call('HDEL', bytes_of, member)
    count(-bytes, owner)
    return owner
  end

  function kept.add(member, bytes, owner, ttl_ms)
    redis.call('ZADD', members, now + ttl_ms / 1000, member)
    redis.call('HSET', bytes_of, member, bytes .. ' ' .. owner)
    count(bytes, owner)
    for _, key in ipairs({members, bytes_of}) do
      if redis.call('PTTL', key) < tonumber(ttl_ms) then redis.call('PEXPIRE', key, ttl_ms) end
    end
  end

  -- Returns the bytes of all, those of one key, and of an answer as they are; forgets what is over.
  function kept.sums(owner)
    for _, old in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', now, 'LIMIT', 0, 1000)) do kept.drop(old) end
    return number('all', 0), number('of:' .. owner, 0), math.floor(number('mean', 1024))
  end

  -- Returns how many ms it takes until something is forgotten.
  function kept.wait()
    local first = redis.call('ZRANGE', members, 0, 0, 'WITHSCORES')[2]
    return math.ceil(math.max(0, (tonumber(first) or now) - now) * 1000)
  end

  -- Counts an answer. It is stored however large: what was accepted is answered, the limit is for what comes next.
  function kept.answer(id, size, ttl_ms)
    local owner = kept.drop('open:' .. id)
    if not owner then return end -- nobody counts it
    local mean = number('mean', size)
    redis.call('HSET', bytes_of, 'mean', mean + (size - mean) / 8)
    kept.add('answer:' .. id, size, owner, ttl_ms)
  end

  return kept
end
