-- One line of JSON at the end of a run, with whole numbers instead of wrk's rounded ones.
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local parts = {}
  for _, at in ipairs({50, 90, 99, 99.9}) do
    parts[#parts + 1] = string.format('"p%g":%.4f', at, latency:percentile(at) / 1e3)
  end
  io.write(string.format(
    '{"requests":%d,"bytes":%d,"seconds":%.6f,"errors":%d,"latency_ms":{%s,"max":%.4f}}\n',
    summary.requests, summary.bytes, summary.duration / 1e6, failed,
    table.concat(parts, ","), latency.max / 1e3))
end
