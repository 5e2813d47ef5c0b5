// Elements of text: nothing that a server says is ever read as HTML.

/** Make an element; `on` are its listeners, children that are no nodes become text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Put `children` in the place of all that is in `element`. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A labelled field. */
export function field(label, control, hint = "") {
  control.id ||= `f${field.count = (field.count || 0) + 1}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint && h("div", { class: "hint" }, hint));
}

export const trouble = (text) => h("p", { class: "trouble", role: "alert" }, text);

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

// People's units.

export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${shortened(value * 1e3)} ms`;
  if (value < 120) return `${shortened(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let place = 0;
  while (value >= 1000 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${place ? shortened(value) : value} ${units[place]}`;
}

export function amount(value) {
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return shortened(value);
}

export const shortened = (value) => String(Number(value.toPrecision(3)));

/** Ask our own server, and say in an error what it says. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, "X-Ferry-Page": token() } });
  } catch {
    throw new Error("The server does not answer: it is stopped, or the network is away.");
  }
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

/** The reason in an error's answer. */
export async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error || text;
  } catch {
    return text || `status ${response.status}`;
  }
}

const token = () => (document.cookie.match(/(?:^|; )ferry_page=([^;]+)/) || [])[1] || "";
