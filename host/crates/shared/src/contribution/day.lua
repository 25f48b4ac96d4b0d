-- Returns fields and values of a day, without those of one host; 0 if they are too large.
-- KEYS: the hash of the day. ARGV: the host, the first and the last hour, and the maximum of bytes.
local first, last, max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local reply, bytes = {}, 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local id, hour = string.match(field, '^(%x+):(%w+)$')
  local number = tonumber(hour or '')
  if id and id ~= ARGV[1] and (not number or (number >= first and number <= last)) then
    bytes = bytes + redis.call('HSTRLEN', KEYS[1], field)
    if bytes > max then return 0 end
    reply[#reply + 1] = field
    reply[#reply + 1] = redis.call('HGET', KEYS[1], field)
  end
end
return reply
