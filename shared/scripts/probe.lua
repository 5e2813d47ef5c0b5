-- probe: call every command that the other scripts need, once. Run by check_server, at the start of a process.
-- KEYS: bell, text, list, hash, zset, all its own   ARGV: ttl_ms
-- Leaves a token in the bell for the caller. Returns {}, or {command, error} of the first one that fails.
local bell, text, list, hash, zset = unpack(KEYS)
local ttl = ARGV[1]
local calls = {
  {'TIME'}, {'RPUSH', bell, '1'}, {'PEXPIRE', bell, ttl},
  {'SET', list, '1', 'PX', ttl}, {'RENAME', list, text}, {'GET', text}, {'INCRBY', text, 1}, {'DECRBY', text, 1},
  {'PTTL', text}, {'EXISTS', text, list}, {'GETDEL', text},
  {'RPUSH', list, 'b', 'c', 'd'}, {'LPUSH', list, 'a'}, {'LLEN', list}, {'LINDEX', list, 0}, {'LRANGE', list, 0, -1},
  {'LPOS', list, 'c'}, {'LINSERT', list, 'BEFORE', 'c', 'e'}, {'LREM', list, 1, 'c'}, {'LPOP', list}, {'LPOP', list, 1}, {'LTRIM', list, 1, -1},
  {'HSET', hash, 'a', '1', 'b', '2'}, {'HGET', hash, 'a'}, {'HMGET', hash, 'a', 'b'}, {'HSTRLEN', hash, 'a'}, {'HINCRBY', hash, 'a', 1},
  {'HINCRBYFLOAT', hash, 'a', 1.5}, {'HDEL', hash, 'b'}, {'HGETALL', hash},
  {'ZADD', zset, 1, 'a'}, {'ZADD', zset, 'XX', 2, 'a'}, {'ZSCORE', zset, 'a'}, {'ZRANGE', zset, 0, 0},
  {'ZRANGEBYSCORE', zset, '-inf', 3, 'LIMIT', 0, 100}, {'ZCARD', zset}, {'ZREMRANGEBYSCORE', zset, '-inf', 0}, {'ZREM', zset, 'a'},
  {'DEL', list, hash}, {'UNLINK', zset, text},
}
for _, call in ipairs(calls) do
  local reply = redis.pcall(unpack(call))
  if type(reply) == 'table' and reply.err then return {call[1], reply.err} end
end
cmsgpack.pack({struct.unpack('<B', struct.pack('<d', ttl))})
return {}
