// The playground: a model's form, its answer, and the same request as code.
import { burstPart, shownAnswer, timingsPart, travelled } from "./answers.js";
import { ask, field, fill, h, trouble } from "./dom.js";
import { formOf } from "./forms.js";
import { snippets } from "./snippets.js";
import { readAnswer } from "./tensors.js";

const MISSING_LOOK_MS = 2000;
const place = document.getElementById("model");
const links = [...document.querySelectorAll("[data-model]")];

document.getElementById("filter")?.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const link of links) link.parentElement.hidden = !link.dataset.model.toLowerCase().includes(wanted);
});

const chosen = links.find((link) => link.hasAttribute("aria-current")) || links[0];
if (chosen) {
  chosen.setAttribute("aria-current", "true");
  show(chosen.dataset.model, "");
} else waitForModels();

/** Without a model, or without Redis: look again until there is one. */
function waitForModels() {
  setTimeout(async () => {
    try {
      const found = await (await fetch("/v1/models")).json();
      if (found.models?.length) location.reload();
      else waitForModels();
    } catch {
      waitForModels();
    }
  }, MISSING_LOOK_MS);
}

async function show(name, version) {
  const path = `/pages/models/${encodeURIComponent(name)}${version ? `/versions/${version}` : ""}`;
  try {
    build(await (await ask(path)).json(), version);
  } catch (error) {
    fill(place, h("h1", {}, name), trouble(error.message), h("button", { on: { click: () => show(name, version) } }, "Try again"));
  }
}

function build(model, version) {
  const result = h("section", { id: "result", "aria-live": "polite" });
  const code = h("section", { id: "code" });
  let changes = 0;
  const form = formOf(model, version !== "", () => { changes += 1; setTimeout(() => later(changes), 150); });
  async function later(number) {
    if (number === changes) showCode(code, form, model);
  }
  const copies = h("select", {}, [1, 10, 100].map((count) => h("option", { value: count }, String(count))));
  const send = h("button", { class: "main", type: "submit", id: "send" }, "Send");
  const body = h("form", { on: { submit: (event) => { event.preventDefault(); run(form, model, Number(copies.value), send, result); } } },
    form.element, h("div", { class: "row" }, send, h("label", {}, "times at once: ", copies)));
  const versions = h("select", { on: { change: () => show(model.name, versions.value) } }, h("option", { value: "" }, "the one that serves"), model.versions.map((each) => h("option", { value: each }, each)));
  versions.value = version;
  fill(place,
    h("h1", {}, model.name),
    h("p", { class: "quiet" }, `version ${model.version} · ${model.platform} · ${model.batched ? `batches of up to ${model.max_batch_size} rows` : "one request at a time"}${model.steps.length ? ` · made of ${model.steps.join(", ")}` : ""}`),
    model.versions.length > 1 && field("Version", versions),
    !model.ready && trouble(model.reason ? `It does not answer: ${model.reason}` : "It is loading, and does not answer yet."),
    h("div", { class: "two" }, h("section", { "aria-label": "Request" }, h("h2", {}, "Request"), body), h("div", {}, h("h2", {}, "Answer"), fill(result, h("p", { class: "quiet" }, "Press Send: what is filled in is a valid example.")))),
    h("h2", {}, "The same request elsewhere"), code);
  showCode(code, form, model);
}

async function run(form, model, count, button, result) {
  button.disabled = true;
  fill(result, h("p", { class: "quiet" }, "Waiting for the answer …"));
  try {
    const request = await form.request();
    fill(result, count === 1 ? await one(request, model) : await many(request, count));
  } catch (error) {
    fill(result, trouble(error.message));
  }
  button.disabled = false;
}

async function one(request, model) {
  const began = performance.now();
  const response = await ask(request.path, { method: "POST", headers: request.headers, body: request.body });
  const { text, answer } = await readAnswer(response);
  const total = (performance.now() - began) / 1000;
  const raw = h("details", {}, h("summary", {}, "The answer as it came"), h("pre", { tabindex: "0" }, text.length > 100000 ? `${text.slice(0, 100000)} …` : text));
  return [shownAnswer(answer, model), h("h3", {}, "Where its time went"), timingsPart(answer.timings, total), travelled(answer, answer.timings), raw];
}

async function many(request, count) {
  const path = `/pages/burst?count=${count}&to=${encodeURIComponent(request.path)}`;
  const { answers } = await (await ask(path, { method: "POST", headers: request.headers, body: request.body })).json();
  return burstPart(answers);
}

async function showCode(place, form, model) {
  let request;
  try {
    request = await form.request();
  } catch (error) {
    fill(place, h("p", { class: "quiet" }, error.message));
    return;
  }
  tabs(place, snippets(request, model, null));
  if (request.kind !== "text" || !model.tokens) return;
  try {
    const path = `/pages/models/${encodeURIComponent(model.name)}/tokens`;
    const { inputs } = await (await ask(path, { method: "POST", body: JSON.stringify({ text: request.texts }) })).json();
    tabs(place, snippets(request, model, inputs));
  } catch { /* the other clients' code stands there */ }
}

let lastTab = "curl";

function tabs(place, codes) {
  const text = h("pre", { id: "snippet", tabindex: "0", role: "tabpanel", "aria-label": "Code" });
  const names = Object.keys(codes);
  const buttons = names.map((name, n) => h("button", {
    type: "button", role: "tab", "aria-controls": "snippet",
    on: { click: () => choose(name), keydown: (event) => { const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]; if (step) { const next = (n + step + names.length) % names.length; choose(names[next]); buttons[next].focus(); } } },
  }, name));
  function choose(name) {
    lastTab = name;
    text.textContent = codes[name];
    buttons.forEach((button, n) => { button.setAttribute("aria-selected", String(names[n] === name)); button.tabIndex = names[n] === name ? 0 : -1; });
  }
  const said = h("span", { role: "status", class: "hint" });
  const copy = h("button", { type: "button", on: { click: async () => { await navigator.clipboard.writeText(text.textContent); said.textContent = "Copied."; } } }, "Copy");
  fill(place, h("div", { class: "row" }, h("div", { class: "tabs", role: "tablist", "aria-label": "Clients" }, buttons), copy, said), text);
  choose(names.includes(lastTab) ? lastTab : names[0]);
}
