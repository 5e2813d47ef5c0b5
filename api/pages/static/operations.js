// The operations page: one stream of events, from which everything on it is drawn.
import { letterButtons, modelButtons } from "./actions.js";
import { RATES, histogram, makeCharts } from "./charts.js";
import { showExamples } from "./examples.js";
import { amount, ask, bytes, facts, fill, h, seconds, shortened } from "./dom.js";
import { cell, number, table } from "./tables.js";

const find = (id) => document.getElementById(id);
const main = find("main"), mode = main.dataset.mode;
const GONE_MS = 30000, SECONDS_KEPT = 900, RETRY_MS = 3000, PAGE = 50, FRESH_SECONDS = 3;
const STATES = { READY: "good", ready: "good", finished: "good", LOADING: "", starting: "", queued: "", started: "", cancelling: "" };
const state = { sections: {}, versions: {}, seconds: [], minutes: [], gone: new Map(), start: 0, dead: null };
const charts = makeCharts(find("charts"));
const body = (id) => find(id).querySelector("tbody");
const showModels = table(body("models")), showInstances = table(body("instances")), showDead = table(body("dead")), showShadows = table(body("shadows")), showDrift = table(body("drift")), showJobs = table(body("jobs"));

connect();
find("chosen").addEventListener("change", draw);
find("span").addEventListener("change", draw);
find("filter").addEventListener("input", drawModels);
find("older").addEventListener("click", () => turn(PAGE));
find("newer").addEventListener("click", () => turn(-PAGE));
if (["127.0.0.1", "localhost", "[::1]"].includes(location.hostname)) find("dashboard").href = `http://${location.hostname}:${main.dataset.dashboard}/`;
else find("dashboard").replaceWith("The job dashboard");
setInterval(() => { if (!document.hidden) charts.show(...chartArguments()); }, 1000);

function connect() {
  const stream = new EventSource("/ops/stream");
  stream.onopen = () => live("live", "good");
  stream.onmessage = (event) => take(JSON.parse(event.data));
  stream.onerror = () => {
    live("away, trying again", "bad");
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  };
}

function live(text, kind) {
  const place = find("live");
  if (place.textContent === text) return;
  place.textContent = text;
  place.className = `state ${kind}`;
}

function take(news) {
  if (news.whole) {
    Object.assign(state, { sections: {}, versions: {}, seconds: news.seconds, minutes: news.minutes, dead: state.start ? state.dead : null });
  }
  const instances = state.sections.instances;
  Object.assign(state.sections, news.sections);
  Object.assign(state.versions, news.versions);
  for (const key of news.gone || []) delete state.versions[key];
  if (news.sections.instances) remember(instances || []);
  for (const point of news.points || []) addPoint(point);
  if (news.sections.dead && !state.start) state.dead = news.sections.dead;
  find("trouble").hidden = !state.sections.trouble;
  find("trouble").textContent = state.sections.trouble ? `Redis is away: ${state.sections.trouble}. Figures go on once it is back.` : "";
  draw();
}

function addPoint(point) {
  const last = state.seconds[state.seconds.length - 1];
  if (last && last[0] >= point[0]) return;
  state.seconds.push(point);
  if (state.seconds.length > SECONDS_KEPT) state.seconds.shift();
}

/** Keep instances that went on show for a while: gone, and by then replaced. */
function remember(before) {
  const there = new Set(state.sections.instances.map((each) => each.id));
  const now = Date.now();
  for (const each of before) if (!there.has(each.id)) state.gone.set(each.id, { ...each, until: now + GONE_MS });
  for (const [id, { until }] of state.gone) if (until < now || there.has(id)) state.gone.delete(id);
}

const chartArguments = () => [state[find("span").value], find("span").value, find("chosen").value];

function draw() {
  drawChoice();
  charts.show(...chartArguments());
  drawModels();
  drawInstances();
  drawPanel();
  drawShadows();
  drawDrift();
  drawDead();
  drawJobs();
}

function drawChoice() {
  const select = find("chosen"), keys = Object.keys(state.versions).sort();
  if (select.dataset.keys === keys.join()) return;
  const before = select.value;
  fill(select, h("option", { value: "" }, "all models"), keys.map((key) => h("option", { value: key }, key)));
  select.value = keys.includes(before) ? before : "";
  select.dataset.keys = keys.join();
}

function drawModels() {
  const models = state.sections.models || [], wanted = find("filter").value.toLowerCase();
  const last = state.seconds[state.seconds.length - 1];
  const rates = last && Date.now() / 1000 - last[0] < FRESH_SECONDS ? last[1] : {};
  find("no-models").hidden = models.length > 0 || !state.sections.models;
  find("models").hidden = !models.length;
  showModels(models.filter((model) => model.name.toLowerCase().includes(wanted)).flatMap((model) => (model.versions.length ? model.versions : [null]).map((row) => modelRow(model, row, rates))));
}

function modelRow(model, row, rates) {
  if (!row) return { key: model.name, mark: JSON.stringify(model), cells: () => [cell(model.name), cell("–"), stateCell(model.state, model.reason || model.note), ...Array.from({ length: 9 }, () => number("–")), cell(h("div", { class: "row" }, modelButtons(model, null, mode)))] };
  const rate = rates[row.key] || [], counts = state.versions[row.key];
  const shown = { waiting: counts?.depth || 0, oldest: counts?.depth ? seconds(counts.oldest_seconds) : "–", failed: counts ? notAnswered(counts) : 0 };
  const figures = ["requests", "rows"].map((name) => (rate[RATES[name]] ? shortened(rate[RATES[name]]) : "0")).concat(["p50", "p95", "p99"].map((name) => (rate[RATES[name]] ? seconds(rate[RATES[name]]) : "–")));
  return {
    key: `${model.name}/${row.version}`,
    mark: JSON.stringify([model, row, shown, figures]),
    cells: () => [
      cell(h("a", { href: `/?model=${encodeURIComponent(model.name)}` }, model.name)), cell(row.version, row.role && h("span", { class: "quiet" }, ` ${row.role}`)),
      stateCell(row.state, row.reason || row.warning), number(`${Math.round(100 * row.share)} %`), number(amount(shown.waiting)), number(shown.oldest), ...figures.map(number), number(amount(shown.failed)),
      cell(h("div", { class: "row" }, modelButtons(model, row, mode))),
    ],
  };
}

const notAnswered = (counts) => Object.entries(counts.ended).reduce((sum, [name, count]) => sum + (name === "retried" ? 0 : count), 0);

function stateCell(text, reason) {
  return cell(h("span", { class: `state ${STATES[text] ?? "bad"}` }, String(text || "unknown").toLowerCase()), reason && h("div", { class: "quiet" }, reason));
}

function drawInstances() {
  const living = state.sections.instances || [];
  const rows = [...living, ...[...state.gone.values()].map((each) => ({ ...each, state: "gone", reason: "" }))];
  showInstances(rows.map((each) => ({
    key: each.id, mark: JSON.stringify(each), gone: each.state === "gone",
    cells: () => [cell(h("code", {}, each.id)), cell(`${each.model}/${each.version}`), cell(each.host), cell(each.device, each.memory_bytes ? ` ${bytes(each.memory_bytes)}` : ""), stateCell(each.state, each.reason), number(each.batch_rows ? `${amount(each.batch_rows)} in ${seconds(each.batch_seconds)}` : "–"), number(shortened(each.requests_per_second)), number(amount(each.restarts))],
  })));
  const devices = state.sections.devices || [];
  const mark = JSON.stringify(devices);
  if (find("devices").dataset.mark === mark) return;
  find("devices").dataset.mark = mark;
  fill(find("devices"), devices.map((device) => h("p", {}, h("strong", {}, `${device.host} ${device.place || device.uuid}`), ` ${device.name}`, device.used_bytes !== null ? `, ${bytes(device.used_bytes)} of ${bytes(device.memory_bytes)} taken` : "", device.utilisation_percent !== null ? `, busy ${Math.round(device.utilisation_percent)} %` : "", device.fault && h("span", { class: "bad" }, ` ${device.fault}`))));
}

/** The chosen version's batches and ends, since its Redis was filled; of all versions, the errors by code and what was refused before it reached one. */
function drawPanel() {
  const key = find("chosen").value, counts = state.versions[key], errors = errorsOf(counts ? [counts] : Object.values(state.versions)), refused = key ? [] : errorsOf([{ errors: state.sections.refused || {} }]);
  const mark = JSON.stringify([counts || errors, refused]);
  if (find("panel").dataset.mark === key + mark) return;
  find("panel").dataset.mark = key + mark;
  const byCode = errors.length > 0 && h("div", {}, h("h3", {}, "Errors by code"), facts(errors));
  const atDoor = refused.length > 0 && h("div", {}, h("h3", {}, "Refused before a queue"), facts(refused));
  if (!counts) return void fill(find("panel"), h("div", { class: "two" }, byCode, atDoor));
  fill(find("panel"), h("div", { class: "two" },
    histogram("Batches by rows", Object.entries(counts.sizes)), histogram("Why batches left the queue", Object.entries(counts.left)),
    h("div", {}, h("h3", {}, "Requests"), facts([["answered", amount(counts.requests)], ["rows", amount(counts.rows)], ["batches", amount(counts.batches)], ["in flight", amount(counts.in_flight)], ["dead letters", amount(counts.dead_count)], ["retried", amount(counts.ended.retried || 0)]])), byCode));
}

function errorsOf(versions) {
  const found = new Map();
  for (const { errors } of versions) for (const [name, count] of Object.entries(errors)) found.set(name, (found.get(name) || 0) + count);
  return [...found].sort().map(([name, count]) => [name, amount(count)]);
}

function drawShadows() {
  const shadows = state.sections.shadows || [];
  find("shadows").hidden = !shadows.length;
  showShadows(shadows.map((each) => ({
    key: each.model, mark: JSON.stringify(each),
    cells: () => [cell(`${each.model}/${each.shadow}`), cell(`version ${each.version}`), number(`${amount(each.request_count)}${each.failed_count ? `, ${amount(each.failed_count)} failed` : ""}`), number(amount(each.row_count)), number(each.row_count ? `${shortened((100 * each.agreed_count) / each.row_count)} %` : "–"), number(each.max_abs_difference === null ? "other shape" : shortened(each.max_abs_difference)), number(each.request_count ? `${seconds(each.shadow_seconds / each.request_count)} beside ${seconds(each.served_seconds / each.request_count)}` : "–"), cell(h("button", { type: "button", class: "small", "aria-label": `Show what version ${each.shadow} of ${each.model} answered otherwise`, on: { click: () => showExamples(find("examples"), each.model) } }, "Show"))],
  })));
}

function drawDrift() {
  const drift = state.sections.drift || [];
  find("drift").hidden = !drift.length;
  showDrift(drift.map((each) => ({
    key: `${each.model}/${each.version}`, mark: JSON.stringify(each),
    cells: () => [cell(each.model), cell(each.version), driftState(each), number(amount(each.rows)), cell(each.signals.map((found) => h("div", {}, `${found.signal}: ${found.change} (PSI ${found.psi}, limit ${found.limit})`)))],
  })));
}

function driftState({ signals, missing }) {
  if (missing) return cell(h("span", { class: "quiet" }, `${amount(missing)} more answers are needed`));
  return cell(h("span", { class: `state ${signals.length ? "bad" : "good"}` }, signals.length ? "drift" : "steady"));
}

function drawJobs() {
  const jobs = state.sections.jobs || [];
  find("jobs").parentElement.hidden = !jobs.length;
  showJobs(jobs.map((job) => ({
    key: job.id, mark: JSON.stringify(job),
    cells: () => [
      cell(h("a", { href: `/jobs/${encodeURIComponent(job.id)}` }, h("code", {}, job.id.slice(0, 8)))), cell(job.kind), cell(job.model),
      stateCell(job.state, job.error && String(job.error)),
      cell(h("progress", { max: 1, value: job.progress, "aria-label": `Progress of job ${job.id}` }), ` ${Math.round(100 * job.progress)} % ${job.step || ""}`),
      cell(job.state === "finished" && h("a", { href: `/jobs/${encodeURIComponent(job.id)}/result` }, "result"), job.kind === "optimise" && job.state === "finished" && [" ", h("a", { href: `/models/${encodeURIComponent(job.model)}/report` }, "report")]),
    ],
  })));
}

async function turn(step) {
  state.start = Math.max(0, state.start + step);
  state.dead = await (await ask(`/ops/dead?start=${state.start}`)).json();
  drawDead();
}

function drawDead() {
  const dead = state.dead || { count: 0, letters: [] };
  find("dead-count").textContent = amount(dead.count);
  find("no-dead").hidden = dead.count > 0;
  find("dead").parentElement.hidden = !dead.count;
  find("older").hidden = state.start + PAGE >= dead.count;
  find("newer").hidden = !state.start;
  showDead(dead.letters.map((letter) => ({
    key: letter.id, mark: letter.id,
    cells: () => [cell(new Date(letter.died * 1000).toLocaleString()), cell(letter.model), cell(`${letter.reason}; ${amount(letter.rows)} ${letter.rows === 1 ? "row" : "rows"}, after ${seconds(letter.waited_seconds)}`), cell(letter.instance), cell(h("code", {}, letter.id)), cell(h("div", { class: "row" }, letterButtons(letter, () => turn(0))))],
  })));
}
