// Lines over time by uPlot, of one version or of all; gaps are seconds in which nothing happened.
import { amount, fill, h, seconds } from "./dom.js";

/** Places in a version's rates, as the server writes them. */
export const RATES = { requests: 0, rows: 1, errors: 2, p50: 3, p95: 4, p99: 5, depth: 6, oldest: 7 };
const SPANS = { seconds: { length: 900, step: 1 }, minutes: { length: 86400, step: 60 } };
const CHARTS = [
  { title: "Requests and rows per second", series: [["requests/s", "requests", "--compute"], ["rows/s", "rows", "--wait"], ["not answered/s", "errors", "--bad"]], unit: amount },
  { title: "Latency", series: [["p50", "p50", "--compute"], ["p95", "p95", "--queue"], ["p99", "p99", "--bad"]], unit: seconds },
  { title: "Waiting requests", series: [["waiting", "depth", "--queue"]], unit: amount },
];
const HEIGHT = 170, SUMMED = new Set(["requests", "rows", "errors", "depth"]);

/** The charts; `show(points, span, key)` draws points [time, {version: rates}] anew. */
export function makeCharts(place) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let plots = [];
  function build() {
    for (const { plot } of plots) plot.destroy();
    plots = CHARTS.map(({ title, series, unit }) => {
      const holder = h("div", { class: "chart", role: "img", "aria-label": title });
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
      const plot = new uPlot({
        width: 320, height: HEIGHT, cursor: { points: { size: 6 } },
        scales: { y: { range: (_, low, high) => [0, high || 1] } },
        axes: [axis, { ...axis, size: 64, values: (_, values) => values.map(unit) }],
        series: [{}, ...series.map(([label, , ink]) => ({ label, stroke: colour(ink), width: 1.5, points: { show: false }, value: (_, value) => (value === null || value === undefined ? "–" : unit(value)) }))],
      }, [[], ...series.map(() => [])], holder);
      return { plot, holder, title, names: series.map(([, name]) => name) };
    });
    fill(place, plots.map(({ holder, title }) => h("div", { class: "chart" }, h("h3", {}, title), holder)));
    fit();
  }
  function fit() {
    for (const { plot, holder } of plots) plot.setSize({ width: Math.max(240, holder.clientWidth), height: HEIGHT });
  }
  build();
  new ResizeObserver(fit).observe(place);
  let last = null;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { build(); if (last) show(...last); });
  function show(points, span, key) {
    last = [points, span, key];
    const { length, step } = SPANS[span];
    const now = Math.floor(Date.now() / 1000 / step) * step;
    const times = Array.from({ length: length / step }, (_, i) => now - length + (i + 1) * step);
    const places = new Map(points.map(([at, versions]) => [Math.round(at / step) * step, versions]));
    for (const { plot, names } of plots) {
      plot.setData([times, ...names.map((name) => times.map((time) => figure(places.get(time), name, key)))]);
    }
  }
  return { show };
}

function figure(versions, name, key) {
  if (!versions) return SUMMED.has(name) ? 0 : null;
  const rates = key ? [versions[key]].filter(Boolean) : Object.values(versions);
  const values = rates.map((each) => each[RATES[name]]);
  if (!values.length) return SUMMED.has(name) ? 0 : null;
  return SUMMED.has(name) ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values) || null;
}

/** Bars of counts by name, each with its number for who cannot see them. */
export function histogram(title, pairs) {
  const most = Math.max(...pairs.map(([, count]) => count), 1);
  const said = pairs.map(([name, count]) => `${name}: ${amount(count)}`).join(", ");
  const bars = pairs.map(([name, count]) => {
    const bar = h("span", { title: `${name}: ${amount(count)}` });
    bar.style.height = `${(100 * count) / most}%`;
    return bar;
  });
  return h("div", {}, h("h3", {}, title), pairs.length ? [h("div", { class: "histogram", role: "img", "aria-label": said }, bars), h("p", { class: "quiet" }, said)] : h("p", { class: "quiet" }, "None yet."));
}
