-- keep: count what will be kept of a request for whose answer nobody waits, unless it is too much. Run by AsyncRequests.
-- KEYS: kept, kept:bytes
-- ARGV: the beginning of their names, id, then, or nothing to forget it: max_bytes, owner, bytes of its record, ms for
--       which that is kept, ms within which its answer comes, 0 for none
-- One API key may have four times as much as is free then, so a fifth is left to the others.
-- Returns {'kept', 0}, or {'all' or 'own', ms until something is forgotten} when it is too much of all or of its key's.
-- include kept

local tag, id, max_bytes, owner, bytes, record_ms, open_ms = unpack(ARGV)
local kept = kept_answers(tag)
kept.drop(id)
kept.drop('open:' .. id)
if not max_bytes then return {'kept', 0} end
local all, own, mean = kept.sums(owner)
local wanted = bytes + (open_ms == '0' and 0 or mean)
local free = max_bytes - all - wanted
if all > 0 and free < 0 then return {'all', kept.wait()} end
if owner ~= '' and own > 0 and own + wanted > 4 * free then return {'own', kept.wait()} end
kept.add(id, bytes, owner, record_ms)
if open_ms ~= '0' then kept.add('open:' .. id, mean, owner, open_ms) end
return {'kept', 0}
