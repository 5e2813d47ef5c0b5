-- Fair turns between the API keys whose requests wait on one level: lower turns stand in front, those of one turn in
-- the order of their arrival. Included by push.lua. An owner has turn after turn, of so many rows or bytes each; who
-- has had none for a while joins in the turn that is being served. So a thousand requests of one owner delay another's by
-- what is left of one turn. A ticket without an owner has turn 0 and stands where it came.
-- `turns` has in turns what each owner was given on a level, `<level>:<owner>`; the most that any was, `<level>:most`,
-- and the turn at the head as last seen, `<level>:now`. They begin anew when nothing was waiting (`is_new`). `tickets`
-- has by queue what is still to be appended to it; `first_queue` is level 1's.
-- fast: as long as all are of one owner on one level, `turns` has but the field `lone`: d given, `<level>:<owner>`. Nobody
-- was given more, so the next one stands at the end, and most of what is below is not even made.

-- Returns the only owner so far and what it was given, `name` if none was before, false if several were.
local function lone_owner(turns, is_new, name)
  if is_new then redis.call('DEL', turns) end
  local stored = not is_new and redis.call('HGET', turns, 'lone')
  if stored then return string.sub(stored, 9), (struct.unpack('<d', stored)) end
  if not is_new and redis.call('EXISTS', turns) == 1 then return false end
  return name, 1
end

-- Returns whether so little is free of the `most` that may wait when `taken` do that owners are bound to their shares.
local function is_scarce(taken, most) return taken > 4 * (most - taken) end

-- `lone` is the owner that was alone until now, if one was.
local function fair_turns(turns, tickets, is_new, first_queue, lone, lone_given)
  local fair, levels, given, heads, totals = {}, {}, {}, {}, nil
  local on, name, seen, turn, is_last
  if lone then given[lone], levels[string.match(lone, '%d+')] = lone_given, {now = 1, most = lone_given} end

  local function turn_of(ticket)
    return string.byte(ticket) == @TICKET_VERSION@ and struct.unpack('<d', ticket, @TURN@) or 0
  end

  local function flush(queue)
    if tickets[queue] then redis.call('RPUSH', queue, unpack(tickets[queue])) end
    tickets[queue] = nil
  end

  -- Puts a ticket behind all of its own and of earlier turns.
  -- fast: who has least waiting stands in front, where LINSERT begins to look.
  local function insert(queue, ticket, turn)
    local low, high, behind = -1, 0, redis.call('LINDEX', queue, 0)
    while behind and turn_of(behind) <= turn do
      low, high = high, 2 * high + 1
      behind = redis.call('LINDEX', queue, high)
    end
    while high - low > 1 do
      local middle = math.floor((low + high) / 2)
      local other = redis.call('LINDEX', queue, middle)
      if other and turn_of(other) <= turn then low = middle else high, behind = middle, other end
    end
    if behind then redis.call('LINSERT', queue, 'BEFORE', behind, ticket) else redis.call('RPUSH', queue, ticket) end
  end

  -- Returns the turn of an owner's next request on a level; `level_and_owner` is `<level>:<owner>`.
  function fair.next(queue, level, level_and_owner)
    on, name = level, level_and_owner
    if not given[name] then
      local found = is_new and {} or redis.call('HMGET', turns, level .. ':now', level .. ':most', name)
      levels[level] = levels[level] or {now = tonumber(found[1] or 1), most = tonumber(found[2] or 1)}
      given[name] = tonumber(found[3] or 1)
    end
    seen, turn = levels[level], math.floor(given[name])
    is_last = turn >= math.floor(seen.most)
    if not is_last then
      flush(queue)
      local head = redis.call('LINDEX', queue, 0)
      seen.now = head and math.max(seen.now, turn_of(head)) or math.floor(seen.most)
      given[name] = math.max(given[name], seen.now)
      turn = math.floor(given[name])
    end
    return turn
  end

  -- Puts the ticket of this request there, which takes a `share` of the turn.
  function fair.put(queue, ticket, share)
    if is_last then
      tickets[queue] = tickets[queue] or {}
      table.insert(tickets[queue], ticket)
    else
      insert(queue, ticket, turn)
    end
    given[name] = given[name] + share
    seen.most = math.max(seen.most, given[name])
    if totals and (heads[on] or math.huge) < math.huge then
      totals[on], totals.all = (totals[on] or 0) + share, totals.all + share
    else
      totals = nil
    end
  end

  -- Returns how many turns of what waits on a level are those of an owner that was given so many.
  local function waiting_of(level, turns_given)
    if not heads[level] then
      local first = redis.call('LINDEX', (string.gsub(first_queue, '%d+$', level)), 0)
      local served = levels[level] and levels[level].now or tonumber(redis.call('HGET', turns, level .. ':now') or 1)
      heads[level] = first and math.max(served, turn_of(first)) or math.huge
    end
    return math.max(0, turns_given - heads[level])
  end

  -- Returns whether the owner of `next` has its share of the `most` that may wait when `taken` do: four times what is
  -- free. Of these it has the part that its turns are of all turns that wait, on one level or on all.
  -- fast: where there is room nobody counts.
  function fair.has_its_share(taken, most, level)
    if not is_scarce(taken, most) then return false end
    if not totals then
      for queue in pairs(tickets) do flush(queue) end
      heads, totals = {}, {all = 0}
      local all, fields = {}, redis.call('HGETALL', turns)
      for i = 1, #fields, 2 do all[fields[i]] = tonumber(fields[i + 1]) end
      for each, turns_given in pairs(given) do all[each] = turns_given end
      for each, turns_given in pairs(all) do
        local of, owner = string.match(each, '^(%d+):(.*)$')
        if owner ~= 'now' and owner ~= 'most' then
          local some = waiting_of(of, turns_given)
          totals[of], totals.all = (totals[of] or 0) + some, totals.all + some
        end
      end
    end
    local mine = waiting_of(on, given[name])
    return mine > 0 and mine / totals[level or 'all'] * taken > 4 * (most - taken)
  end

  -- Writes down what was given.
  function fair.keep()
    local fields = {}
    if lone then redis.call('HDEL', turns, 'lone') end
    for level, of in pairs(levels) do
      for field, value in pairs(of) do
        fields[#fields + 1], fields[#fields + 2] = level .. ':' .. field, value
      end
    end
    for field, value in pairs(given) do
      fields[#fields + 1], fields[#fields + 2] = field, value
    end
    redis.call('HSET', turns, unpack(fields))
  end

  return fair
end
