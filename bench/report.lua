-- What bench/load.py reads from wrk.
function done(summary, latency)
  local errors = {}
  for _, kind in ipairs({ "connect", "read", "write", "status", "timeout" }) do
    errors[#errors + 1] = string.format('"%s":%d', kind, summary.errors[kind])
  end
  print(string.format('report {"requests":%d,"duration_us":%d,"p50_us":%.1f,"p99_us":%.1f,"errors":{%s}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), table.concat(errors, ",")))
end
