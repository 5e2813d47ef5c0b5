-- Included by the scripts that close requests of a model whose answers keep the order in which they were claimed.
-- `order` has the ids of what is claimed and open, and of what was closed behind one of these. Takes off what is
-- closed at its head, and tells the processes that wait for an answer, if there is one.
local function hand_out(order, body_prefix, result_prefix, answered_prefix)
  local id = redis.call('LINDEX', order, 0)
  while id and redis.call('EXISTS', body_prefix .. id) == 0 do
    redis.call('LPOP', order)
    local left = redis.call('PTTL', result_prefix .. id)
    if left > 0 then tell(answered_prefix, id, left) end
    id = redis.call('LINDEX', order, 0)
  end
end
