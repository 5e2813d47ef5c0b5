-- Included by the scripts that give answers. Has the API process that waits for `id`, whose result is stored, collect
-- it: `answered` with the process's name is both its list of such ids and the channel that it listens to. Nobody waits
-- for 00000000 (ASYNCHRONOUS) and 00000001 (IDEMPOTENT), whose answers are asked for later.
local function waits(process) return process ~= '00000000' and process ~= '00000001' end

local function tell(answered, id, ttl)
  local process = string.sub(id, 1, 8)
  if not waits(process) then return end
  local count = redis.call('RPUSH', answered .. process, id)
  redis.call('PEXPIRE', answered .. process, ttl)
  if count == 1 then redis.pcall('PUBLISH', answered .. process, '') end
end
