-- What bench/load.py reads from wrk.
function done(summary, latency)
  local errors = {}
  for _, kind in ipairs({ "connect", "read", "write", "status", "timeout" }) do
    errors[#errors + 1] = string.format('"%s":%d', kind, summary.errors[kind])
  end
  print(string.format('report {"requests":%d,"duration_us":%d,"p50_us":%.1f,"p99_us":%.1f,"errors":{%s}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), table.concat(errors, ",")))
end

-- A pause before each request, spread evenly around $PACE_MS.
local pace_ms = tonumber(os.getenv("PACE_MS") or "0")
if pace_ms > 0 then
  function delay()
    return math.random(pace_ms / 2, pace_ms * 3 / 2)
  end
end
