// An answer for people: the best classes as bars, vectors in short, and where its time went.
import { amount, facts, h, seconds, shortened } from "./dom.js";

const TOP_K = 5, SHOWN_ROWS = 20, SHOWN_VALUES = 24;

const rows = (count) => `${amount(count)} ${count === 1 ? "row" : "rows"}`;

export function shownAnswer(answer, model) {
  if (answer.outputs) return h("div", {}, answer.outputs.map((output) => outputPart(output, model)));
  const described = answer.predictions || [answer];
  return h("div", {}, described.slice(0, SHOWN_ROWS).map((row, n) => rowPart(row, described.length > 1 ? n + 1 : 0)), more(described.length));
}

const more = (count) => count > SHOWN_ROWS && h("p", { class: "quiet" }, `and ${amount(count - SHOWN_ROWS)} more rows`);

const AROUND = new Set(["model", "version", "timings", "top_k", "confidence", "class"]);

function rowPart(row, number) {
  const parts = [];
  for (const [name, value] of Object.entries(row)) {
    if (AROUND.has(name)) continue;
    if (typeof value === "object" && value !== null) parts.push(vector(name, [value].flat(Infinity)));
    else parts.push(h("p", {}, name !== "label" && h("span", { class: "quiet" }, `${name}: `), h("span", { class: "best" }, String(value))));
  }
  if (row.top_k) parts.push(bars(row.top_k.map((item) => [item.label, item.confidence]), true));
  return h("section", {}, number > 0 && h("h3", {}, `Row ${number}`), parts);
}

/** Bars of [label, value]; those of shares are as long as they are, others as their place in the range. */
export function bars(pairs, areShares) {
  const values = pairs.map(([, value]) => value);
  const low = areShares ? 0 : Math.min(0, ...values), high = areShares ? 1 : Math.max(...values, low + 1e-9);
  return h("div", { class: "bars" }, pairs.flatMap(([label, value]) => {
    const bar = h("span", { class: "fill" });
    bar.style.width = `${(100 * (value - low)) / (high - low)}%`;
    return [h("span", { class: "label" }, label), h("span", { class: "track", "aria-hidden": "true" }, bar), h("span", { class: "value" }, areShares ? `${(100 * value).toFixed(1)} %` : shortened(value))];
  }));
}

function outputPart(output, model) {
  const labels = model.outputs.find((each) => each.name === output.name)?.labels || [];
  const size = output.shape.slice(model.batched ? 1 : 0).reduce((product, each) => product * each, 1);
  const rowCount = model.batched && output.shape.length > 1 ? output.shape[0] : 1;
  const title = h("h3", {}, output.name, " ", h("span", { class: "quiet" }, `${output.datatype} ${JSON.stringify(output.shape)}`));
  const shown = Array.from({ length: Math.min(rowCount, SHOWN_ROWS) }, (_, n) => {
    const values = rowCount > 1 ? output.data.slice(n * size, (n + 1) * size) : output.data;
    if (labels.length > 1 && labels.length === values.length) return ranked(labels, values);
    return vector(rowCount > 1 ? `row ${n + 1}` : "", values);
  });
  return h("section", {}, title, shown, more(rowCount));
}

function ranked(labels, values) {
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]).slice(0, TOP_K);
  return h("div", {}, h("p", { class: "best" }, labels[order[0]] || String(order[0])), bars(order.map((i) => [labels[i] || String(i), values[i]]), false));
}

function vector(name, values) {
  const head = name && h("span", { class: "quiet" }, `${name}: `);
  const numbers = values.every((value) => typeof value === "number");
  if (!numbers || values.length <= 8) return h("p", {}, head, h("code", {}, values.slice(0, SHOWN_VALUES).map((value) => (typeof value === "string" ? JSON.stringify(value) : String(value))).join(", ") + (values.length > SHOWN_VALUES ? ", …" : "")));
  const finite = values.filter(Number.isFinite);
  const mean = finite.reduce((sum, value) => sum + value, 0) / finite.length;
  const norm = Math.sqrt(finite.reduce((sum, value) => sum + value * value, 0));
  const [low, high] = finite.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const summary = { values: amount(values.length), "from": amount(low), "to": amount(high), mean: shortened(mean), length: shortened(norm) };
  return h("div", {}, head, facts(Object.entries(summary)), plot(values, low, high), h("p", {}, h("code", {}, values.slice(0, SHOWN_VALUES).map((value) => (Number.isInteger(value) ? value : shortened(value))).join(", "), values.length > SHOWN_VALUES ? ", …" : "")));
}

function plot(values, low, high) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const step = Math.max(1, Math.ceil(values.length / 500)), points = [];
  for (let i = 0; i < values.length; i += step) points.push(`${(300 * i) / Math.max(1, values.length - 1)},${60 - (56 * (values[i] - low)) / (high - low || 1) - 2}`);
  for (const [name, value] of Object.entries({ points: points.join(" "), fill: "none", stroke: "currentColor", "vector-effect": "non-scaling-stroke" })) line.setAttribute(name, value);
  for (const [name, value] of Object.entries({ viewBox: "0 0 300 60", preserveAspectRatio: "none", class: "plot", role: "img", "aria-label": "Plot of the values in their order" })) svg.setAttribute(name, value);
  svg.append(line);
  return svg;
}

const PARTS = [["edge", "edge (browser, network, API)"], ["queue", "queue"], ["wait", "wait (batch put together)"], ["compute", "compute (the model)"]];

/** A stacked bar of one request's time, what is not in its timings being the edge's. */
export function timingsPart(timings, total) {
  const parts = { queue: timings.queue_seconds || 0, wait: timings.batch_wait_seconds || 0, compute: timings.compute_seconds || 0 };
  parts.edge = Math.max(0, total - parts.queue - parts.wait - parts.compute);
  const sum = parts.edge + parts.queue + parts.wait + parts.compute;
  const bar = h("div", { class: "stack", role: "img", "aria-label": PARTS.map(([key, name]) => `${name}: ${seconds(parts[key])}`).join(", ") }, PARTS.map(([key]) => {
    const part = h("span", { class: key });
    part.style.width = `${(100 * parts[key]) / sum}%`;
    return part;
  }));
  return h("div", {}, bar, h("ul", { class: "legend" }, PARTS.map(([key, name]) => h("li", {}, h("i", { class: key }), `${name} `, h("strong", {}, seconds(parts[key]))))));
}

export function travelled(answer, timings) {
  const pairs = [["version", answer.version || answer.model_version || "–"], ["batch", rows(timings.batch_size || 0)], ["instance", timings.instance || "–"]];
  if (timings.attempts > 1) pairs.push(["attempts", String(timings.attempts)]);
  if (timings.cached) pairs.push(["cache", "answered from it"]);
  return facts(pairs);
}

/** Which batches many requests travelled in: those of one instance, size and duration shared one. */
export function burstPart(answers) {
  const batches = new Map(), failed = answers.filter((each) => each.status !== 200);
  for (const { timings, status } of answers) {
    if (status !== 200) continue;
    const key = `${timings.instance} ${timings.batch_size} ${timings.compute_seconds}`;
    batches.set(key, { size: timings.batch_size, mine: (batches.get(key)?.mine || 0) + 1, timings });
  }
  const list = [...batches.values()].sort((a, b) => b.size - a.size);
  const slowest = Math.max(...answers.map((each) => each.seconds));
  return h("div", {},
    h("p", { class: "best" }, `${amount(answers.length)} requests travelled in ${amount(list.length)} ${list.length === 1 ? "batch" : "batches"}`),
    h("p", { class: "quiet" }, `The last answer came after ${seconds(slowest)}.`),
    h("ul", { class: "batches", "aria-label": "Batches" }, list.map(({ size, mine, timings }) => h("li", {}, h("strong", {}, rows(size)), ` of ${amount(mine)} ${mine === 1 ? "request" : "requests"}, computed in ${seconds(timings.compute_seconds)}`))),
    failed.length > 0 && h("p", { class: "trouble", role: "alert" }, `${amount(failed.length)} were refused or failed: ${failed[0].error}`));
}
