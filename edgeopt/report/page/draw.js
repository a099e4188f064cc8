// Draw, and again when the width changes

const percentiles = find("percentile");
for (const name of percentiles ? ["p50", "p90", "p95", "p99"] : [])
  if (data.candidates.some((one) => one.latency[name]))
    percentiles.append(new Option(name, name, false, name === data.axis));
percentiles?.addEventListener("input", pareto);
let drawn = 0;
const draw = () => {
  const width = find("pareto")?.clientWidth ?? 0;
  if (width === drawn || width === 0) return;
  drawn = width;
  for (const one of [pareto, spread, find("gains") ? gains : () => {}]) one();
};
new ResizeObserver(draw).observe(document.querySelector("main"));
draw();
