-- Returns the time, all hosts, and the days in a range.
-- KEYS: the hosts, and the days. ARGV: the first and the last day.
local time = redis.call('TIME')
return {
  time[1] * 1000 + math.floor(time[2] / 1000),
  redis.call('HGETALL', KEYS[1]),
  redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3]),
}
