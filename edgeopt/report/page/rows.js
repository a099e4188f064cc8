// Charts of rows: the distribution of each candidate's calls, and what each step bought. A line of text stands above, a
// drawing below.

const FIRST = 16; // rows, before "show all"
const ROW = 42; // pixels
const shown = { spread: FIRST, gains: FIRST };

const rows = (id, all, draw) => {
  const figure = find(id),
    more = find(`more-${id}`),
    width = figure.clientWidth;
  const some = all.slice(0, shown[id]);
  more.hidden = all.length <= shown[id];
  more.textContent = `Show all ${all.length}`;
  more.onclick = () => {
    shown[id] = all.length;
    rows(id, all, draw);
  };
  if (!some.length) return (figure.closest("section").hidden = true);
  draw(figure, some, width, {
    width,
    height: some.length * ROW + 44,
    marginLeft: 4,
    marginRight: 12,
    marginTop: 8,
    marginBottom: 36,
  });
};

const title = (some, text, more, width) => [
  Plot.text(some, {
    y: (_, row) => row + 0.22,
    frameAnchor: "left",
    textAnchor: "start",
    fill: "var(--ink)",
    ...HALO,
    text: (one) => cut(text(one), Math.floor((width - (width < 560 ? 120 : 260)) / PER_LETTER)),
    fontWeight: (one) => (one.status === "chosen" ? 700 : 400),
  }),
  Plot.text(some, {
    y: (_, row) => row + 0.22,
    frameAnchor: "right",
    textAnchor: "end",
    fill: "var(--soft)",
    ...HALO,
    text: more,
  }),
];

const spread = () =>
  rows("spread", data.candidates, (figure, some, width, frame) => {
    const left = Math.min(...some.map((one) => one.spread.low)) / 1.05,
      right = Math.max(...some.map((one) => Math.max(one.spread.high, one.latency.p95?.value ?? 0))) * 1.05;
    const bars = some.flatMap((one, row) => {
      const { low, high, counts } = one.spread,
        step = Math.log(high / low) / counts.length || 0.002,
        tallest = Math.max(...counts);
      return counts
        .map((count, bin) => ({
          one,
          x1: low * Math.exp(step * bin),
          x2: low * Math.exp(step * (bin + 1)),
          y1: row + 0.78,
          y2: row + 0.78 - 0.42 * (count / tallest),
        }))
        .filter((bar) => bar.y1 !== bar.y2);
    });
    const percentiles = some.flatMap((one, row) =>
      ["p50", "p95"].filter((name) => one.latency[name]).map((name) => ({ one, row, name, ...one.latency[name] })),
    );
    const ticks = logTicks(left, right, width);
    const color = (bar) => colorOf(bar.one.backend);
    const y = (_, row) => row + 0.88;
    chart(figure, "The distribution of every candidate's latencies; their percentiles are in the table", {
      ...frame,
      x: { type: "log", domain: [left, right], label: null, clamp: true },
      y: { domain: [0, some.length], reverse: true, axis: null },
      marks: [
        Plot.gridX(ticks, { stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisX(ticks, {
          text: time,
          label: "latency of one call",
          labelArrow: "none",
          labelAnchor: "center",
          labelOffset: 34,
        }),
        Plot.rect(bars, { x1: "x1", x2: "x2", y1: "y1", y2: "y2", fill: color, fillOpacity: 0.55, inset: 0 }),
        Plot.ruleY(some, {
          y,
          x1: (one) => one.spread.p5,
          x2: (one) => one.latency.p95?.value ?? one.spread.high,
          stroke: (one) => colorOf(one.backend),
          strokeWidth: 1.5,
        }),
        Plot.ruleY(some, {
          y,
          x1: (one) => one.spread.p25,
          x2: (one) => one.spread.p75,
          stroke: (one) => colorOf(one.backend),
          strokeWidth: 5,
          strokeLinecap: "butt",
        }),
        Plot.rect(
          percentiles.filter((p) => p.low && p.high),
          {
            x1: "low",
            x2: "high",
            y1: (p) => p.row + 0.8,
            y2: (p) => p.row + 0.96,
            fill: "var(--ink)",
            fillOpacity: 0.3,
          },
        ),
        Plot.dot(
          percentiles.filter((p) => p.name === "p50"),
          { x: "value", y: (p) => p.row + 0.88, r: 3, fill: "var(--ink)" },
        ),
        Plot.ruleX(
          percentiles.filter((p) => p.name === "p95"),
          { x: "value", y1: (p) => p.row + 0.8, y2: (p) => p.row + 0.96, stroke: "var(--ink)", strokeWidth: 2 },
        ),
        ...title(
          some,
          (one) => `${one.n}  ${one.name}`,
          (one) =>
            width < 560 ? `p50 ${one.told.p50}` : `p50 ${one.told.p50}  p95 ${one.told.p95 ?? "-"}  ${one.calls} calls`,
          width,
        ),
      ],
    });
  });

const VERDICTS = { faster: "var(--good)", slower: "var(--bad)", tie: "var(--soft)", inconclusive: "var(--soft)" };

const gains = () =>
  rows("gains", data.gains, (figure, some, width, frame) => {
    const ends = some.flatMap((gain) => [gain.value, gain.low ?? gain.value, gain.high ?? gain.value, 1]);
    const left = Math.min(...ends) / 1.1,
      right = Math.max(...ends) * 1.1;
    const y = (_, row) => row + 0.68,
      ticks = logTicks(left, right, width, 6);
    chart(figure, "How many times as fast each step made a candidate; the same numbers are in the table below", {
      ...frame,
      x: { type: "log", domain: [left, right], label: null },
      y: { domain: [0, some.length], reverse: true, axis: null },
      marks: [
        Plot.gridX(ticks, { stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.ruleX([1], { stroke: "var(--soft)" }),
        Plot.axisX(ticks, {
          text: ratio,
          label: "times as fast",
          labelArrow: "none",
          labelAnchor: "center",
          labelOffset: 34,
        }),
        Plot.ruleY(some, {
          y,
          x1: 1,
          x2: "value",
          stroke: (gain) => VERDICTS[gain.verdict],
          strokeWidth: 8,
          strokeOpacity: 0.25,
          strokeLinecap: "butt",
        }),
        Plot.ruleY(
          some.filter((gain) => gain.low && gain.high),
          {
            y: (gain) => some.indexOf(gain) + 0.68,
            x1: "low",
            x2: "high",
            stroke: (gain) => VERDICTS[gain.verdict],
            strokeWidth: 2,
          },
        ),
        Plot.dot(some, { x: "value", y, r: 4, fill: (gain) => VERDICTS[gain.verdict] }),
        ...title(
          some,
          (gain) => `${gain.step}: ${gain.n}  ${gain.after}`,
          (gain) => [`${gain.value.toFixed(2)}x ${gain.verdict}`, ...(width < 700 ? [] : gain.also)].join(", "),
          width,
        ),
      ],
    });
  });
