"""What Redis does in one step, as Lua: rows under their versions, the claim, the position.

Invariant: a script looks at everything before it changes anything (Redis does not roll back), and no number that is
compared becomes a double: incarnations and offsets are texts of digits, compared by their length, then digit by digit.
"""

from __future__ import annotations

LESS = """
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
"""  # no number of these is written with a zero before it

# KEYS: of each row its key, then of each its mark. ARGV: incarnation, form, now in ms, how long the mark of a deleted
# row stays in ms (or ""); then, as one MessagePack, the offsets of the rows and their payloads ("": deleted; JSON: a
# text; a hash: names and texts in turn). A server without room refuses a script at its first write, which is an MSET:
# nothing is changed then. Answers how many rows had an effect, and a mark that cannot be read.
ROWS = (
    LESS
    + """
local batch = cmsgpack.unpack(ARGV[5])
local offsets, payloads = batch[1], batch[2]
local words, last, gone, hashes = {}, 0, {}, {}
local count, now, json, taken = #KEYS / 2, ':' .. ARGV[3], ARGV[2] == 'json', 0
for from = 1, count, 1000 do
  local to, missing = math.min(from + 999, count), {}
  local found = redis.call('MGET', unpack(KEYS, count + from, count + to))
  for row = from, to do
    local mark, fresh = found[row - from + 1], true
    if mark then
      local incarnation, offset = mark:match('^(%d+):(%d+)')
      if not incarnation then return {-1, KEYS[count + row]} end
      fresh = less(incarnation, ARGV[1]) or (incarnation == ARGV[1] and less(offset, offsets[row]))
    else
      missing[#missing + 1] = KEYS[count + row]
    end
    if fresh then
      taken = taken + 1
      local version, payload = ARGV[1] .. ':' .. offsets[row], payloads[row]
      words[last + 1] = KEYS[count + row]
      last = last + 2
      if payload == '' then
        gone[#gone + 1] = row
        words[last] = version .. now
      else
        words[last] = version
        if json then
          words[last + 1], words[last + 2] = KEYS[row], payload
          last = last + 2
        else
          hashes[#hashes + 1] = row
        end
      end
    end
  end
  -- MGET says of what is no string that it is not there.
  if #missing > 0 and redis.call('EXISTS', unpack(missing)) > 0 then
    for _, name in ipairs(missing) do redis.call('GET', name) end
  end
end
for from = 1, last, 4000 do redis.call('MSET', unpack(words, from, math.min(from + 3999, last))) end
for _, row in ipairs(gone) do
  if ARGV[4] ~= '' then redis.call('PEXPIRE', KEYS[count + row], ARGV[4]) end
  redis.call('DEL', KEYS[row])
end
for _, row in ipairs(hashes) do
  redis.call('DEL', KEYS[row])
  local fields = payloads[row]
  for from = 1, #fields, 1000 do
    redis.call('HSET', KEYS[row], unpack(fields, from, math.min(from + 999, #fields)))
  end
end
return {taken, ''}
"""
)

# KEYS: the positions of a delivery. ARGV: partition, topic id, partitions, holder, the incarnation of one that is new.
CLAIM = """
local K, P = KEYS[1], ARGV[1]
local log = redis.call('HMGET', K, 'topic_id', 'partitions')
if log[1] and (log[1] ~= ARGV[2] or log[2] ~= ARGV[3]) then return {'other', log[1], log[2]} end
redis.call('HSET', K, 'topic_id', ARGV[2], 'partitions', ARGV[3], P .. '.holder', ARGV[4])
redis.call('HSETNX', K, 'incarnation', ARGV[5])
local incarnation = redis.call('HGET', K, 'incarnation')
-- What was said of another incarnation is no position in this one.
if redis.call('HGET', K, P .. '.incarnation') ~= incarnation then
  redis.call('HSET', K, P .. '.incarnation', incarnation, P .. '.position', '0', P .. '.run', '')
end
redis.call('HINCRBY', K, P .. '.epoch', 1)
local now = redis.call('HMGET', K, P .. '.epoch', P .. '.position', P .. '.run')
return {'claimed', now[1], incarnation, now[2], now[3]}
"""

# KEYS: the positions of a delivery. ARGV: partition, epoch, start, end, run. A position that is behind `start` has gone
# back with a server that lost what it acknowledged: moving it on would skip what went with it (FAULTS S13).
MOVE = (
    LESS
    + """
local K, P = KEYS[1], ARGV[1]
local now = redis.call('HMGET', K, P .. '.epoch', P .. '.position', P .. '.holder')
if now[1] ~= ARGV[2] or not now[2] then return {'fenced', now[1] or '', now[2] or '', now[3] or ''} end
if less(now[2], ARGV[3]) then return {'behind', now[1], now[2], now[3]} end
if less(now[2], ARGV[4]) then redis.call('HSET', K, P .. '.position', ARGV[4], P .. '.run', ARGV[5]) end
return {'done', '', '', ''}
"""
)

# KEYS: the positions of a delivery. ARGV: incarnation, topic id, partitions, holder, how many partitions were seen; of
# each of them partition, epoch, position, run; then of each that is moved partition, position, run. Answers what is
# not as it was seen, which changes nothing; "" when it is moved. A position of another incarnation counts as 0.
OPERATE = """
local K = KEYS[1]
local function held(P, field) return redis.call('HGET', K, P .. '.' .. field) end
local incarnation, there = redis.call('HGET', K, 'incarnation'), 0
for _, name in ipairs(redis.call('HKEYS', K)) do
  if name:match('^%d+%.epoch$') then there = there + 1 end
end
if there ~= tonumber(ARGV[5]) then return 'the number of partitions' end
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  local P, position, run = ARGV[at], held(ARGV[at], 'position'), held(ARGV[at], 'run')
  if held(P, 'incarnation') ~= incarnation then position, run = '0', '' end
  if held(P, 'epoch') ~= ARGV[at + 1] or position ~= ARGV[at + 2] or run ~= ARGV[at + 3] then
    return 'the position of partition ' .. P
  end
  at = at + 4
end
redis.call('HSET', K, 'incarnation', ARGV[1], 'topic_id', ARGV[2], 'partitions', ARGV[3])
while at <= #ARGV do
  local P = ARGV[at]
  redis.call('HINCRBY', K, P .. '.epoch', 1)
  redis.call('HSET', K, P .. '.position', ARGV[at + 1], P .. '.run', ARGV[at + 2],
    P .. '.incarnation', ARGV[1], P .. '.holder', ARGV[4])
  at = at + 3
end
return ''
"""
