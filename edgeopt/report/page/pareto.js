// Latency against quality, size as area

const pareto = () => {
  const figure = find("pareto"),
    name = find("percentile").value || data.axis;
  const points = data.candidates
    .filter((one) => one.latency[name] && one.quality)
    .map((one) => ({
      ...one,
      x: one.latency[name].value,
      x1: one.latency[name].low,
      x2: one.latency[name].high,
      y: one.quality.value,
      y1: one.quality.low,
      y2: one.quality.high,
    }));
  if (!points.length)
    return figure.replaceChildren("No candidate has both a latency and a quality that could be drawn.");
  const width = figure.clientWidth,
    narrow = width < 560,
    height = Math.max(320, Math.min(460, width * 0.6));
  const margin = { marginLeft: narrow ? 52 : 64, marginRight: 16, marginTop: 44, marginBottom: 44 };
  const least = data.least_quality;
  const { left, right, limit, far } = timesOf(points, data.limits[`latency ${name}`]);
  const { bottom, top, exact, highest } = qualitiesOf(points, least);
  for (const one of points) one.y ??= exact;

  const inner = {
    width: width - margin.marginLeft - margin.marginRight,
    height: height - margin.marginTop - margin.marginBottom,
  };
  const place = {
    x: (ns) => margin.marginLeft + (Math.log(ns / left) / Math.log(right / left)) * inner.width,
    y: (quality) => height - margin.marginBottom - ((quality - bottom) / (top - bottom)) * inner.height,
    ns: (x) => left * (right / left) ** ((x - margin.marginLeft) / inner.width),
    quality: (y) => bottom + ((height - margin.marginBottom - y) / inner.height) * (top - bottom),
  };
  const frontier = frontierOf(points);
  const area = (one) => Math.sqrt(one.size ?? 1),
    largest = Math.max(...points.map(area));
  const radius = (one) => Math.max(3, (area(one) / largest) * (narrow ? 15 : 20));
  const labels = namesBeside(points, new Set(frontier.map((one) => one.n)), radius, place, {
    width,
    height,
    narrow,
    ...margin,
  });
  const ticks = logTicks(left, right, inner.width),
    steps = linearTicks(bottom, top, 7).filter((step) => step <= highest);
  const outside = [];
  if (limit) outside.push({ x1: limit, x2: right, y1: bottom, y2: top });
  if (least && limit) outside.push({ x1: left, x2: limit, y1: bottom, y2: least.value });
  else if (least) outside.push({ x1: left, x2: right, y1: bottom, y2: least.value });
  const dots = { x: "x", y: "y", r: radius, symbol: (one) => symbolOf(one.backend) };
  const told = (one) =>
    [`${one.n}  ${one.name}`, ...Object.entries(one.told).map(([key, text]) => `${key} ${text}`)].join("\n");

  const drawn = chart(
    figure,
    `${points.length} candidates by ${name} latency and ${data.metric_name}; the same numbers are in the table`,
    {
      width,
      height,
      ...margin,
      x: { type: "log", domain: [left, right], label: null },
      y: { domain: [bottom, top], label: null },
      r: { type: "identity" },
      symbol: { type: "identity" },
      marks: [
        Plot.gridX(ticks, { stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.gridY(steps, { stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.rect(outside, { x1: "x1", x2: "x2", y1: "y1", y2: "y2", fill: "var(--shade)", fillOpacity: 0.1 }),
        limit ? Plot.ruleX([limit], { stroke: "var(--bad)", strokeDasharray: "5 4" }) : null,
        least ? Plot.ruleY([least.value], { stroke: "var(--bad)", strokeDasharray: "5 4" }) : null,
        Plot.axisX(ticks, {
          text: time,
          label: `latency ${name}`,
          labelArrow: "none",
          labelAnchor: "center",
          labelOffset: 40,
        }),
        Plot.axisY(steps, { text: quality, label: null }),
        Plot.text([data.metric_name], {
          frameAnchor: "top-left",
          dx: 4 - margin.marginLeft,
          dy: -28,
          textAnchor: "start",
          lineAnchor: "bottom",
        }),
        Plot.line(frontier, { x: "x", y: "y", curve: "step-after", stroke: "var(--soft)", strokeWidth: 1.5 }),
        Plot.ruleY(
          points.filter((one) => one.x1 && one.x2),
          { y: "y", x1: "x1", x2: "x2", stroke: (one) => colorOf(one.backend), strokeOpacity: 0.7 },
        ),
        Plot.ruleX(
          points.filter((one) => one.y1 !== null),
          { x: "x", y1: "y1", y2: "y2", stroke: (one) => colorOf(one.backend), strokeOpacity: 0.7 },
        ),
        Plot.dot(points, {
          ...dots,
          fill: (one) => (one.status === "outside" ? "transparent" : colorOf(one.backend)),
          fillOpacity: 0.45,
          stroke: (one) => colorOf(one.backend),
          strokeWidth: 1.5,
        }),
        Plot.dot(
          points.filter((one) => one.status === "chosen"),
          { ...dots, r: (one) => radius(one) + 4, symbol: "circle", stroke: "var(--ink)", strokeWidth: 2 },
        ),
        Plot.text(labels, {
          x: (label) => place.ns(label.left),
          y: (label) => place.quality(label.middle),
          text: "text",
          textAnchor: "start",
          fill: "var(--ink)",
          ...HALO,
          fontWeight: (label) => (label.strong ? 700 : 400),
        }),
        limit
          ? Plot.text([`limit ${time(limit)}`], {
              x: limit,
              frameAnchor: "top",
              dy: -6,
              lineAnchor: "bottom",
              textAnchor: place.x(limit) > width / 2 ? "end" : "start",
              fill: "var(--bad)",
            })
          : null,
        least
          ? Plot.text([`${least.name} limit`], {
              y: least.value,
              frameAnchor: "right",
              dy: 10,
              dx: -4,
              textAnchor: "end",
              fill: "var(--bad)",
              ...HALO,
            })
          : null,
        points.some((one) => one.quality.exact)
          ? Plot.text(["exact"], { y: exact, frameAnchor: "right", textAnchor: "end", dy: -8, fill: "var(--soft)" })
          : null,
        Plot.dot(
          points,
          Plot.pointer({
            x: "x",
            y: "y",
            r: (one) => radius(one) + 3,
            symbol: "circle",
            stroke: "var(--ink)",
            maxRadius: 40,
          }),
        ),
        Plot.tip(
          points,
          Plot.pointer({
            x: "x",
            y: "y",
            title: told,
            maxRadius: 40,
            fill: "var(--panel)",
            stroke: "var(--line)",
            lineWidth: narrow ? 18 : 28,
            fontSize: 12,
          }),
        ),
      ],
    },
  );
  drawn.addEventListener("input", () => {
    for (const row of find("candidates").tBodies[0].rows)
      row.classList.toggle("pointed", row.dataset.n === String(drawn.value?.n));
  });
  const more = [];
  if (far) more.push(`The limit of ${time(far)} is far ${far > right ? "right" : "left"} of these.`);
  if (data.prefer !== `latency ${name}`) more.push(`The choice was made by ${data.prefer}.`);
  figure.append(legend(points, more.join(" ")));
};

// The ends of the axis of times. A limit that would squeeze the marks together is told as far instead.

const timesOf = (points, limit) => {
  const times = points.flatMap((one) => [one.x, one.x1 ?? one.x, one.x2 ?? one.x]);
  const left = Math.min(...times) / 1.25,
    right = Math.max(...times) * 1.25;
  if (!limit) return { left, right };
  if (limit > right * 4 || limit < left / 4) return { left, right, far: limit };
  return { left: Math.min(left, limit / 1.1), right: Math.max(right, limit * 1.1), limit };
};

// The ends of the axis of qualities; `exact` is where outputs stand that equal the original's, whose ratio has no end.

const qualitiesOf = (points, least) => {
  const values = points.flatMap((one) => [one.y, one.y1, one.y2]).filter((value) => value !== null);
  if (!values.length) return { bottom: 0, top: 1, exact: 0.5, highest: -Infinity };
  if (least) values.push(least.value);
  const bottom = Math.min(...values),
    highest = Math.max(...values);
  const unending = points.some((one) => one.y === null);
  const exact = unending ? highest + (highest - bottom || 1) * 0.25 : highest;
  const space = (exact - bottom || Math.abs(exact) * 0.02 || 1) * 0.12;
  return { bottom: bottom - space, top: exact + space, exact, highest: unending ? highest : Infinity };
};

// The candidates that no other one beats in both, the fastest first

const frontierOf = (points) => {
  const byTime = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return byTime.filter((one) => one.y > best && ((best = one.y), true));
};

// A label for each mark that there is room for: beside it, above or below, never over another

const namesBeside = (points, onFrontier, radius, place, frame) => {
  const boxes = points.map((one) => {
    const x = place.x(one.x),
      y = place.y(one.y),
      r = radius(one) * 0.8;
    return { n: one.n, x1: x - r, x2: x + r, y1: y - r, y2: y + r };
  });
  const collides = (box, n) =>
    boxes.some((b) => b.n !== n && b.x1 < box.x2 && b.x2 > box.x1 && b.y1 < box.y2 && b.y2 > box.y1) ||
    box.x1 < frame.marginLeft ||
    box.x2 > frame.width - 4 ||
    box.y1 < frame.marginTop - 8 ||
    box.y2 > frame.height - frame.marginBottom;
  const weight = (one) => (one.status === "chosen" ? 0 : one.baseline ? 1 : onFrontier.has(one.n) ? 2 : 3);
  const found = [];
  for (const one of [...points].sort((a, b) => weight(a) - weight(b) || a.n - b.n)) {
    const named = weight(one) < 3 && !(frame.narrow && weight(one) === 2);
    const texts = named ? [`${one.n} ${cut(one.name, frame.narrow ? 18 : 34)}`, `${one.n}`] : [`${one.n}`];
    const [x, y, r] = [place.x(one.x), place.y(one.y), radius(one) + (one.status === "chosen" ? 6 : 3)];
    search: for (const text of texts) {
      const long = text.length * PER_LETTER;
      for (const [dx, dy] of [
        [r, 0],
        [-r - long, 0],
        [-long / 2, -r - 7],
        [-long / 2, r + 7],
        [r * 0.7, -r * 0.7 - 6],
        [r * 0.7, r * 0.7 + 6],
      ]) {
        const box = { n: one.n, x1: x + dx, x2: x + dx + long, y1: y + dy - 7, y2: y + dy + 7 };
        if (collides(box, one.n)) continue;
        boxes.push({ ...box, n: null });
        found.push({ text, strong: one.status === "chosen", left: box.x1, middle: y + dy });
        break search;
      }
    }
  }
  return found;
};

const legend = (points, more) => {
  const box = document.createElement("figcaption");
  const used = backends.filter((backend) => points.some((one) => one.backend === backend));
  for (const backend of used) {
    const sample = Plot.plot({
      width: 18,
      height: 18,
      margin: 0,
      axis: null,
      x: { domain: [0, 1] },
      y: { domain: [0, 1] },
      symbol: { type: "identity" },
      r: { type: "identity" },
      marks: [
        Plot.dot([0], {
          x: 0.5,
          y: 0.5,
          r: 6,
          symbol: symbolOf(backend),
          fill: colorOf(backend),
          fillOpacity: 0.45,
          stroke: colorOf(backend),
          strokeWidth: 1.5,
        }),
      ],
    });
    sample.setAttribute("aria-hidden", "true");
    const item = document.createElement("span");
    item.append(sample, backend);
    box.append(item);
  }
  const sizes = points.map((one) => one.size).filter((bytes) => bytes !== null);
  const item = document.createElement("span");
  item.textContent = sizes.length ? `Areas: ${size(Math.min(...sizes))} to ${size(Math.max(...sizes))}. ${more}` : more;
  box.append(item);
  return box;
};
