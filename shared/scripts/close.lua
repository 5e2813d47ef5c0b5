-- close: have a model version take no more requests, for good if nothing waits and nothing runs. Run by a
-- supervisor before it stops the version's instances, so that none of them leaves work behind.
-- KEYS: closed, elsewhere, stats, counts, dead, then every queue and every instance's in-flight list
-- ARGV: ttl_ms, counts_ttl_ms
-- Returns 1 when it is closed, 0 when there is work left.
redis.call('SET', KEYS[2], 'all') -- what is there is finished, and nothing comes any more
for i = 6, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end
end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
for i = 3, 5 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 1
