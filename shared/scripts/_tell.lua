-- Included by the scripts that give answers. An id's first 8 signs name the API process that waits for
-- it; nobody does for asynchronous and idempotent requests, whose answers are asked for later.
local function waits(process) return process ~= '@ASYNCHRONOUS@' and process ~= '@IDEMPOTENT@' end

-- Has the process collect the stored result: `answered` with its name is both its list of such ids and the channel
-- that it listens to.
local function tell(answered, id, ttl)
  local process = string.sub(id, 1, 8)
  if not waits(process) then return end
  local count = redis.call('RPUSH', answered .. process, id)
  redis.call('PEXPIRE', answered .. process, ttl)
  if count == 1 then redis.pcall('PUBLISH', answered .. process, '') end
end
