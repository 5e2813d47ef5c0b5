-- The ticket and the id in it, see shared/ticket.py, which fills in what stands between two @. Included by the scripts
-- that make or read tickets. A ticket of another version has its level, the size of its body and its id where ours
-- have them; the rest of it is not known here. fast: names of places, since every function costs each run of a script.
local TICKET_VERSION, ticket_format = @TICKET_VERSION@, '<BBBBI4dddc8I4'
local LEVEL, ON_TIMEOUT, ENQUEUED, DEADLINE = 3, 4, 9, 17 -- from the beginning
local SIZE, ID = -36, -32 -- from the end
local REJECT, DELAY = @REJECT@, @DELAY@ -- on time-out
local ASYNCHRONOUS, IDEMPOTENT = '@ASYNCHRONOUS@', '@IDEMPOTENT@' -- an id's first 8 signs, when no process waits
