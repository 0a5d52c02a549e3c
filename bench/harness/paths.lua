-- The paths of a file in turn, a line each: wrk ... -s paths.lua URL -- FILE
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "") .. "wrk.lua")

local requests = {}
local at = 0

function init(arguments)
  for path in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("GET", path)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end
