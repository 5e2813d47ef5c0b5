-- push: accept requests, each once. Run by RequestQueue.push, through Courier, which sends several at once.
-- KEYS: bell, bytes, closed, elsewhere, turns, then of each level its queue, and its delayed if there are queue policies
-- ARGV: body and result key prefix, max_requests, max_bytes, cache (see _cache.lua), result_ttl_ms, idempotent_ttl_ms,
--       levels, then id, rows, level, signature, timeout_seconds, body_ttl_ms, body, terms, digest,
--       1 if it names this version, of each request
-- terms is empty, or of the level's queue policy B on time-out, d its time-out in seconds, I4 max_queue_size, then I4
-- bytes besides its body that count, I4 rows of a turn and the owner with whom others take turns (see _turns.lua), or none.
-- Returns for each: 'queued', 'known' (this id is stored or answered already: a push sent again after a
-- lost connection changes nothing), 'full <waiting>' (refused) or 'closed' (refused: this version is leaving, or
-- such requests go to another one by now); of a model with a cache also 'hit' (answered already) or 'followed' (it waits for another's answer).
-- include tell
-- include cache
-- include turns

local bell, bytes_key = KEYS[1], KEYS[2]
local body_prefix, result_prefix, max_requests, max_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local cache = ARGV[5] ~= '' and response_cache(unpack(ARGV, 5, 7))
local lists_of_level = (#KEYS - 5) / ARGV[8]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local waiting = 0
for list = 6, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[list]) end
-- fast: at low load a request finds nobody to take turns with, then who had any is not written down.
local is_new, is_alone, is_sure = waiting == 0, waiting == 0 and #ARGV == 18, false
-- An empty queue takes one request of any size, so only behind others the bytes count.
local bytes, added = waiting > 0 and tonumber(redis.call('GET', bytes_key) or 0) or 0, 0
local turn_bytes = max_bytes / 64

local function goes_elsewhere(named)
  local who = redis.call('GET', KEYS[4])
  return who == 'all' or (who == 'unnamed' and named ~= '1')
end

local statuses, tickets, refused = {}, {}, 0
local fair, lone, lone_given -- of the turns of keys, see _turns.lua
-- fast: requests of one key have the same terms, which are read once.
local read_terms, on_timeout, queue_timeout, max_level, besides, turn_rows, owner = '', 0, 0, 0, 0, 0, ''
for i = 1, (#ARGV - 8) / 10 do
  local id, rows, level, signature, timeout, ttl, payload, terms, digest, named =
    unpack(ARGV, 10 * i - 1, 10 * i + 8)
  local body, result, place = body_prefix .. id, result_prefix .. id, 6 + (level - 1) * lists_of_level
  local queue = KEYS[place]
  if terms ~= read_terms then
    read_terms, on_timeout, queue_timeout, max_level, besides, turn_rows, owner = terms, 0, 0, 0, 0, 0, ''
    if #terms > 0 then
      on_timeout, queue_timeout, max_level, besides, turn_rows = struct.unpack('<BdI4I4I4', terms)
      owner = string.sub(terms, 22)
    end
  end
  local size, on_level = #payload + besides, 0
  if max_level > 0 then
    on_level = redis.call('LLEN', queue) + redis.call('LLEN', KEYS[place + 1]) + #(tickets[queue] or {})
  end
  local turn = 0
  -- subtle: small requests do not name the queue of large ones, whose turns stand in the same hash.
  if owner ~= '' and is_new and not is_sure then
    is_sure = true
    if redis.call('EXISTS', (string.gsub(KEYS[6], '%d+$', ARGV[8] + 1))) == 1 then is_new, is_alone = false, false end
  end
  if owner ~= '' and is_alone then
    redis.call('DEL', KEYS[5])
  elseif owner ~= '' then
    local name = level .. ':' .. owner
    if lone == nil then lone, lone_given = lone_owner(KEYS[5], is_new, name) end
    if name == lone and not (is_scarce(waiting, max_requests) or is_scarce(bytes + added, max_bytes - size)
        or (max_level > 0 and is_scarce(on_level, max_level))) then
      turn = math.floor(lone_given)
    else
      fair, lone = fair or fair_turns(KEYS[5], tickets, is_new, KEYS[6], lone, lone_given), false
      turn = fair.next(queue, level, name)
    end
  end
  local ticket = struct.pack('@TICKET@', @TICKET_VERSION@, 0, level, on_timeout, rows,
    now, now + timeout, now + queue_timeout, signature, turn, size) .. id
  -- fast: nearly always there is none of them, and one question is enough.
  local unusual = redis.call('EXISTS', KEYS[3], KEYS[4], body, result) > 0
  local closed = unusual and (redis.call('EXISTS', KEYS[3]) == 1 or goes_elsewhere(named))
  local known = unusual and redis.call('EXISTS', body, result) > 0
  local asks = cache and digest ~= '' and not known and not closed
  local joined = asks and cache.join(id, digest, ticket, payload, ttl, max_requests, max_bytes)
  if known then
    statuses[i] = 'known'
  elseif closed then
    statuses[i] = 'closed'
  elseif joined then
    statuses[i] = joined
  elseif max_level > 0 and on_level >= max_level then
    statuses[i], refused = 'full ' .. on_level, refused + 1
  elseif waiting >= max_requests or (waiting > 0 and bytes + added + size > max_bytes) then
    statuses[i], refused = 'full ' .. waiting, refused + 1
  elseif fair and owner ~= '' and (fair.has_its_share(waiting, max_requests)
      or (waiting > 0 and fair.has_its_share(bytes + added, max_bytes - size))
      or (max_level > 0 and fair.has_its_share(on_level, max_level, level))) then
    statuses[i], refused = 'full ' .. waiting, refused + 1
  else
    redis.call('SET', body, payload, 'PX', ttl)
    if fair and owner ~= '' then
      fair.put(queue, ticket, math.max(rows / turn_rows, size / turn_bytes))
    else
      tickets[queue] = tickets[queue] or {}
      table.insert(tickets[queue], ticket)
      if lone and owner ~= '' then
        lone_given = lone_given + math.max(rows / turn_rows, size / turn_bytes)
      end
    end
    if asks then cache.lead(digest, ticket, ttl) end
    waiting, added = waiting + 1, added + size
    statuses[i] = 'queued'
  end
end
if added > 0 then
  for queue, new in pairs(tickets) do redis.call('RPUSH', queue, unpack(new)) end
  if fair then fair.keep() end
  if lone then redis.call('HSET', KEYS[5], 'lone', struct.pack('<d', lone_given) .. lone) end
  redis.call('INCRBY', bytes_key, added)
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end
if refused > 0 then redis.call('HINCRBY', string.gsub(body_prefix, 'body:$', 'counts'), 'full', refused) end
if cache then cache.count() end
return statuses
