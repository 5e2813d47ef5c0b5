// What a shadow answered otherwise: the input, and both answers beside each other.
import { ask, facts, fill, h, shortened, trouble } from "./dom.js";

/** Fetch and show the kept disagreements of a model's shadow. */
export async function showExamples(place, model) {
  try {
    const found = await (await ask(`/ops/disagreements/${encodeURIComponent(model)}`)).json();
    const { shownAnswer } = await import("./answers.js"); // only who looks at answers needs it
    const hide = h("button", { type: "button", class: "small", on: { click: () => fill(place) } }, "Hide");
    const title = `What version ${found.shadow} of ${found.model} answered otherwise than version ${found.version}`;
    fill(place, h("div", { class: "row" }, h("h3", {}, title), hide),
      found.examples.length ? h("ol", { class: "examples", tabindex: "0", "aria-label": title }, found.examples.map((each) => example(each, found, shownAnswer))) : h("p", { class: "quiet" }, "Nothing yet. The newest disagreements are kept here with their inputs."));
  } catch (error) {
    fill(place, trouble(error.message));
  }
}

function example(each, found, shownAnswer) {
  const answer = (row) => (row ? shownAnswer(row, { outputs: [] }) : h("p", { class: "quiet" }, "Too large to be kept."));
  return h("li", {},
    h("p", { class: "quiet" }, new Date(each.at * 1000).toLocaleString()),
    h("div", { class: "three" },
      h("section", {}, h("h4", {}, "Input"), each.inputs.length ? each.inputs.map(input) : h("p", { class: "quiet" }, "Too large to be kept.")),
      h("section", {}, h("h4", {}, `Version ${found.version}`), answer(each.served)),
      h("section", {}, h("h4", {}, `Version ${found.shadow}, the shadow`), each.error ? trouble(each.error) : answer(each.shadow))));
}

function input({ name, kind, value, count, datatype, shape }) {
  if (kind === "picture") return h("img", { src: value, alt: `The picture, as the model saw it: ${shape[2]} x ${shape[1]} pixels`, class: "seen" });
  if (kind === "text") return h("blockquote", {}, value);
  return facts([[`${name}, ${datatype} ${JSON.stringify(shape)}`, h("code", {}, value.map((number) => (number === null ? "NaN" : shortened(number))).join(", "), count > value.length ? ", …" : "")]]);
}
