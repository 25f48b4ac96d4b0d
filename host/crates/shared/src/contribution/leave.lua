-- Removes what a host has contributed, and that it was there.
-- KEYS: the hosts, and the hash of each day. ARGV: id.
redis.call('HDEL', KEYS[1], ARGV[1])
for number = 2, #KEYS do
  redis.call('HDEL', KEYS[number], ARGV[1] .. ':d')
  for hour = 0, 23 do redis.call('HDEL', KEYS[number], ARGV[1] .. ':' .. hour) end
end
return 1
