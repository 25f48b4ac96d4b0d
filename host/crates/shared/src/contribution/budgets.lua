-- Writes what a host has used of budgets, and returns what all others have used of each.
-- KEYS: the hash of each budget. ARGV: id, and for each budget: three counts and the milliseconds
-- to keep it.
local id, replies = ARGV[1], {}
local pattern = '^(%d+) (%d+) (%d+)$'

local function counts(text)
  local one, two, three = string.match(text or '', pattern)
  return {tonumber(one or '0'), tonumber(two or '0'), tonumber(three or '0')}
end

for number, key in ipairs(KEYS) do
  local at = 2 + (number - 1) * 4
  -- A write that comes late, or of a process that goes, does not take anything back.
  local own, sum, all = counts(redis.call('HGET', key, id)), {0, 0, 0}, redis.call('HGETALL', key)
  for count = 1, 3 do own[count] = math.max(own[count], tonumber(ARGV[at + count - 1])) end
  for field = 1, #all, 2 do
    if all[field] ~= id then
      local other = counts(all[field + 1])
      for count = 1, 3 do sum[count] = sum[count] + other[count] end
    end
  end
  if own[1] + own[2] + own[3] > 0 then
    redis.call('HSET', key, id, string.format('%.0f %.0f %.0f', own[1], own[2], own[3]))
    if redis.call('PTTL', key) < tonumber(ARGV[at + 3]) then
      redis.call('PEXPIRE', key, ARGV[at + 3])
    end
  end
  replies[number] = string.format('%.0f %.0f %.0f', sum[1], sum[2], sum[3])
end
return replies
