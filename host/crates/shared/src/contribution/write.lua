-- Writes what a host contributes, and returns what was there of its write before, and when the
-- process began, by the clock of the store.
-- KEYS: the hosts, the days, and the hash of each day.
-- ARGV: id, mark, when the process began, or '' and for how many milliseconds it runs, name,
-- milliseconds to keep, maximum number of hosts, and for each day: its number, 1 if all other
-- fields of the host go, the number of fields, and their names and values.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, mark, began, name, keep, max_hosts =
  ARGV[1], ARGV[2], ARGV[3], ARGV[5], tonumber(ARGV[6]), ARGV[7]
local day_ms = 86400000

local function whole(number) return string.format('%.0f', number) end

if began == '' then began = whole(now - ARGV[4]) end

-- Lets a key live until then at least.
local function extend(key, till)
  if redis.call('PTTL', key) < till - now then redis.call('PEXPIREAT', key, whole(till)) end
end

local at = 8
for number = 3, #KEYS do
  local key, day, count = KEYS[number], ARGV[at], tonumber(ARGV[at + 2])
  -- A clock that is ahead does not make it live longer.
  local till = math.min((day + 1) * day_ms, now + day_ms) + keep
  if ARGV[at + 1] == '1' then
    redis.call('HDEL', key, id .. ':d')
    for hour = 0, 23 do redis.call('HDEL', key, id .. ':' .. hour) end
  end
  at = at + 3
  for _ = 1, count do
    if till > now then redis.call('HSET', key, id .. ':' .. ARGV[at], ARGV[at + 1]) end
    at = at + 2
  end
  if redis.call('EXISTS', key) == 1 then
    extend(key, till)
    redis.call('ZADD', KEYS[2], day, day)
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(math.floor((now - keep) / day_ms) - 2))

local before = redis.call('HGET', KEYS[1], id)
if not before then
  local all, oldest, oldest_at = redis.call('HGETALL', KEYS[1]), nil, nil
  for number = 1, #all, 2 do
    local last = tonumber(string.match(all[number + 1], '^%S+ (%d+) ') or '0')
    if last < now - keep - 2 * day_ms then
      redis.call('HDEL', KEYS[1], all[number])
    elseif not oldest or last < oldest_at then
      oldest, oldest_at = all[number], last
    end
  end
  if redis.call('HLEN', KEYS[1]) >= tonumber(max_hosts) and oldest then
    redis.call('HDEL', KEYS[1], oldest)
  end
end
redis.call('HSET', KEYS[1], id, mark .. '.' .. began .. ' ' .. whole(now) .. ' ' .. name)
extend(KEYS[1], now + keep + 2 * day_ms)
extend(KEYS[2], now + keep + 2 * day_ms)
return {before or '', began}
