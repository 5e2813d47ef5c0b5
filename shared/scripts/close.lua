-- close: have a model version take no more requests, for good if nothing waits and nothing runs. Run by a
-- supervisor before it stops the version's instances, so that none of them leaves work behind.
-- KEYS: served, closed, elsewhere, stats, counts, dead, turns, then every queue and every instance's in-flight list
-- ARGV: model, its content's ModelSpec.key, ttl_ms, counts_ttl_ms
-- Returns 'closed', 'busy' when there is work left, or 'served', having done nothing, when requests go to it by
-- now: the supervisor may have stood still since it looked.
local row = redis.call('HGET', KEYS[1], ARGV[1])
for _, key in pairs(row and cjson.decode(row).versions or {}) do
  if key == ARGV[2] then return 'served' end
end
redis.call('SET', KEYS[3], 'all') -- what is there is finished, and nothing comes any more
for i = 8, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return 'busy' end
end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
for i = 4, 7 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return 'closed'
