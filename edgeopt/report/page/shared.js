// What the charts share: the run's numbers, how a person reads them, ticks and colours. The files of this folder are one
// script, in the order that html.py names. All text that comes from the run is set as text, never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const COLORS = 7;
const SYMBOLS = ["circle", "square", "triangle", "diamond", "cross", "star", "wye"];
const PER_LETTER = 6.4; // pixels
const backends = [...new Set(data.candidates.map((one) => one.backend))].sort();
const colorOf = (backend) => `var(--c${backends.indexOf(backend) % COLORS})`;
const symbolOf = (backend) => SYMBOLS[backends.indexOf(backend) % SYMBOLS.length];
document.body.classList.add("scripted");

// Numbers as a person reads them

const inUnits = (units) => (number) => {
  const [unit, scale] = units.find(([, scale]) => number >= scale * 0.9995) ?? units.at(-1);
  const value = number / scale;
  return `${Number(value.toPrecision(3))} ${unit}`;
};
const time = inUnits([
  ["s", 1e9],
  ["ms", 1e6],
  ["µs", 1e3],
  ["ns", 1],
]);
const size = inUnits([
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
  ["B", 1],
]);
const ratio = (number) => `${Number(number.toPrecision(3))}x`;
const quality = (number) =>
  data.metric === "sqnr" ? `${number.toFixed(1)} dB` : `${Number((number * 100).toFixed(2))} %`;

const cut = (text, letters) => {
  if (text.length <= letters) return text;
  const head = Math.ceil((letters - 1) / 2);
  return `${text.slice(0, head)}…${text.slice(text.length - (letters - 1 - head))}`;
};

// Ticks of a logarithmic axis, as many digits of each power of ten as there is room for

const logTicks = (low, high, width, letters = 7) => {
  const place = (tick) => (Math.log(tick / low) / Math.log(high / low)) * width;
  for (const digits of [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of digits) {
        const tick = Number(`${digit}e${power}`);
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    if (
      ticks.length > 1 &&
      ticks.every((tick, index) => !index || place(tick) - place(ticks[index - 1]) >= letters * PER_LETTER)
    )
      return ticks;
  }
  return [0.12, 0.5, 0.88].map((share) => Number((low * (high / low) ** share).toPrecision(3))); // they are all near
};

// Ticks of quality: round steps, no share of more than all

const linearTicks = (low, high, most) => {
  const rough = (high - low) / most,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick * step <= high; tick++) ticks.push(tick * step);
  return data.metric === "sqnr" ? ticks : ticks.filter((tick) => tick < 1.000001);
};

const chart = (figure, label, options) => {
  const drawn = Plot.plot({
    style: {
      background: "transparent",
      color: "var(--ink)",
      fontFamily: "inherit",
      fontSize: "12px",
      overflow: "visible",
    },
    ...options,
  });
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", label);
  figure.replaceChildren(drawn);
  return drawn;
};

const HALO = { stroke: "var(--paper)", strokeWidth: 4, strokeLinejoin: "round" };
