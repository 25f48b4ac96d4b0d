-- Merges what a replica knows of the entries of one bucket, and returns what the store knows.
-- KEYS: the last round of the replica, the index of the bucket, and the entries.
-- ARGV: the round, 1 if something is written, and eight values for each entry.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local round = tonumber(ARGV[1])
local last = tonumber(redis.call('GET', KEYS[1]) or '-1')
-- A later round was executed before this one, which was given up.
if round < last then return {now} end
if round > last and ARGV[2] == '1' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', 3600000)
end
local base = #KEYS[2]
local max_index = 20000
local removal_ms = 3600000

local function whole(number) return string.format('%.0f', number) end

local function left(key)
  local ms = redis.call('PTTL', key)
  if ms > 0 then return now + ms end
  return 0
end

-- Counters have the fields '@', the stamp of the last removal; '#', their end; '=', their total; and
-- the contribution of each replica.

-- Notes that an entry exists, for replicas that start.
local function note(key)
  local till = left(key)
  if till == 0 then till = 9e15 end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  redis.call('ZADD', KEYS[2], whole(till), string.sub(key, base))
  if redis.call('ZCARD', KEYS[2]) > max_index then
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, 0)
  end
end

-- Begins a counter, which ends at a time on this clock; '0' for none.
local function begin(key, epoch, till)
  redis.call('HSET', key, '@', epoch, '#', till)
  if till == '0' then redis.call('PERSIST', key) else redis.call('PEXPIREAT', key, till) end
end

local function count(key, field, epoch, known, sum, delta, ttl, reset)
  local stored = redis.call('HMGET', key, '@', '#', '=', field)
  local current, till, total, old = stored[1], stored[2], stored[3], stored[4]
  -- What the replica knows has not ended, so that a counter without it has lost data.
  local is_alive = known == '' or known == '0' or tonumber(known) > now
  if not is_alive and known ~= till then epoch = '' end
  if (current and current < epoch) or (not current and reset == '1') then
    redis.call('DEL', key)
    current, till, total, old = epoch, whole(now + removal_ms), false, false
    begin(key, current, till)
  end
  local value = delta
  if current then
    if current == epoch and (is_alive or known == till) then value = sum end
  elseif is_alive and known ~= '' then
    if sum == '0' then return 0 end
    value, current, till, total = sum, epoch, known, '0'
    begin(key, current, till)
    note(key)
  elseif delta ~= '0' then
    current = epoch
  else
    return 0
  end
  local before, new = tonumber(old or '0'), tonumber(value)
  if before ~= new then
    local after = whole(tonumber(total or '0') + new - before)
    if not total then
      till = '0'
      if ttl ~= '0' then till = whole(now + ttl) end
      begin(key, current, till)
      note(key)
    end
    redis.call('HSET', key, field, value, '=', after)
    total = after
  end
  return {total or '0', current, till, value}
end

local function read(key, stamp)
  local current = redis.call('GET', key)
  if not current then return 0 end
  local own = string.sub(current, 1, 32)
  if own == stamp then return 1 end
  return {own, string.sub(current, 33, 33), string.sub(current, 34), left(key)}
end

local function write(key, stamp, ttl, kind, bytes)
  local current = redis.call('GET', key)
  if current and string.sub(current, 1, 32) >= stamp then return read(key, stamp) end
  redis.call('SET', key, stamp .. kind .. bytes)
  if ttl ~= '0' then redis.call('PEXPIRE', key, ttl) end
  note(key)
  return 1
end

local replies = {now}
for number = 3, #KEYS do
  local key, at = KEYS[number], 3 + (number - 3) * 8
  local op, one, two, three, four, five, six, seven = unpack(ARGV, at, at + 7)
  local reply
  if op == 'c' then
    reply = count(key, one, two, three, four, five, six, seven)
  elseif op == 'w' then
    reply = write(key, one, two, three, four)
  else
    reply = read(key, one)
  end
  replies[#replies + 1] = reply
end
return replies
