// The form that fits a model's signature: a picture, texts, or tensors. Each returns its element and `request`.
import { drawing, examplePicture } from "./drawing.js";
import { bytes, field, fill, h } from "./dom.js";
import { isSmall, makeGrid, tokensOf } from "./grid.js";
import { LONGEST_LIST, count, exampleText, inferBody, patternOf } from "./tensors.js";

const TOP_K = 5;

export function formOf(model, versioned, onChange) {
  const make = { image: pictureForm, text: textForm, tensor: tensorForm }[model.form];
  return make(model, versioned, onChange);
}

const predictPath = (model, versioned) => `/predict/${encodeURIComponent(model.name)}${versioned ? `/versions/${model.version}` : ""}?top_k=${TOP_K}`;
const inferPath = (model, versioned) => `/v2/models/${encodeURIComponent(model.name)}${versioned ? `/versions/${model.version}` : ""}/infer`;

function pictureForm(model, versioned, onChange) {
  const drawn = model.picture.drawn ? drawing(() => { chosen = null; show(); onChange(); }) : null;
  let chosen = null;
  const preview = h("img", { alt: "" });
  const said = h("p", { class: "hint" });
  const file = h("input", { type: "file", accept: "image/*", on: { change: () => file.files[0] && choose(file.files[0]) } });
  const camera = h("input", { type: "file", accept: "image/*", capture: "environment", on: { change: () => camera.files[0] && choose(camera.files[0]) } });
  const zone = h("div", { class: "drop", tabindex: "0", role: "group", "aria-label": "Picture: drop or paste one here" },
    h("p", {}, "Drop a picture here, paste one (Ctrl+V), or:"), field("Choose a file", file), field("Take a photo", camera), preview, said);

  function choose(blob) {
    chosen = { blob, name: blob.name || "picture.png" };
    show();
    onChange();
  }
  function show() {
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.hidden = !chosen;
    if (chosen) {
      preview.alt = `The picture ${chosen.name}`;
      preview.src = URL.createObjectURL(chosen.blob);
    } else preview.removeAttribute("src");
    said.textContent = chosen ? `${chosen.name}, ${bytes(chosen.blob.size)}` : drawn ? "What is drawn is sent." : "Nothing chosen: an example is sent, made of colours.";
  }
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
  });
  const paste = (event) => {
    if (!zone.isConnected) return document.removeEventListener("paste", paste);
    if (event.clipboardData.files[0]) choose(event.clipboardData.files[0]);
  };
  document.addEventListener("paste", paste);
  show();

  const { width, height } = model.picture;
  const example = drawn ? null : examplePicture(Math.min(width, 256), Math.min(height, 256));
  return {
    element: h("div", { class: "two" }, drawn && drawn.element, zone),
    async request() {
      const name = drawn && !chosen ? "drawn.png" : "example.png";
      const picture = chosen || { blob: await (drawn ? drawn.picture() : example), name };
      const body = new Uint8Array(await picture.blob.arrayBuffer());
      const headers = { "Content-Type": picture.blob.type || "application/octet-stream" };
      return { kind: "picture", path: predictPath(model, versioned), infer: inferPath(model, versioned), headers, body, name: picture.name };
    },
  };
}

function textForm(model, versioned, onChange) {
  const text = h("textarea", { rows: 4, spellcheck: "false", on: { input: onChange } });
  text.value = "What a lovely evening, and the food was good!";
  const lines = h("input", { type: "checkbox", on: { change: onChange } });
  const id = "each-line";
  lines.id = id;
  return {
    element: h("div", {}, field("Text", text), h("div", { class: "row" }, lines, h("label", { for: id }, "Each line is a text of its own"))),
    async request() {
      const texts = lines.checked ? text.value.split("\n").filter((line) => line.trim()) : [text.value];
      if (!texts.length) throw new Error("There is no text: write at least one line.");
      const body = JSON.stringify({ text: lines.checked ? texts : texts[0] });
      return { kind: "text", path: predictPath(model, versioned), infer: inferPath(model, versioned), headers: { "Content-Type": "application/json" }, body, texts };
    },
  };
}

function tensorForm(model, versioned, onChange) {
  const required = model.inputs.filter((input) => !input.optional);
  const rows = model.inputs.map((input) => tensorField(input, !input.optional || !required.length, onChange));
  return {
    element: h("div", {}, rows.map((row) => row.element)),
    async request() {
      const inputs = rows.map((row) => row.read()).filter((input) => input);
      const { body, headers } = inferBody(inputs, model.outputs);
      const path = inferPath(model, versioned);
      return { kind: "tensor", path, infer: path, headers, body, inputs, outputs: model.outputs };
    },
  };
}

function tensorField(input, sent, onChange) {
  const pattern = patternOf(input.datatype, input.shape);
  const shape = h("input", { type: "text", size: 18, spellcheck: "false", value: JSON.stringify(input.shape) });
  const fillWith = h("select", {}, h("option", { value: pattern }, "example"), pattern !== "strings" && pattern !== "turns" && h("option", { value: "zeros" }, "zeros"), h("option", { value: "own" }, "my own"));
  const look = h("select", {}, h("option", { value: "table" }, "table"), h("option", { value: "json" }, "JSON"));
  const data = h("textarea", { class: "data", rows: 4, spellcheck: "false" });
  const note = h("p", { class: "hint" });
  const use = h("input", { type: "checkbox", checked: sent });
  use.checked = sent;
  const name = `${input.name}, ${input.datatype} ${JSON.stringify(input.declared)}`;
  const values = field("Values, row after row", data);
  const grid = makeGrid(input, () => { fillWith.value = "own"; try { data.value = grid.text(); } catch { /* said when it is sent */ } onChange(); });
  const rows = input.declared[0] === -1 && h("div", { class: "row" }, h("button", { type: "button", class: "small", on: { click: () => resize(1) } }, "Add a row"), h("button", { type: "button", class: "small", on: { click: () => resize(-1) } }, "Remove the last row"));
  const cells = h("div", { class: "field" }, grid.element, rows);

  function wantedShape() {
    const found = JSON.parse(shape.value);
    if (!Array.isArray(found) || !found.every((size) => Number.isInteger(size) && size >= 0)) throw new Error();
    return found;
  }
  function asTable() {
    try { return look.value === "table" && isSmall(wantedShape()); } catch { return false; }
  }
  function show() {
    let size = 0;
    try { size = count(wantedShape()); } catch { /* said when it is sent */ }
    const isLong = size > LONGEST_LIST;
    if (fillWith.value !== "own" && !isLong) {
      try { data.value = exampleText(fillWith.value, wantedShape()); } catch { data.value = "[]"; }
    }
    cells.hidden = !asTable();
    if (!cells.hidden) grid.show(wantedShape(), tokensOf(data.value));
    values.hidden = !cells.hidden || (isLong && fillWith.value !== "own");
    note.textContent = isLong && values.hidden ? `${size.toLocaleString("en")} values, made by a formula that the copied code has too.` : "";
    onChange();
  }
  function resize(step) {
    const wanted = wantedShape(), tokens = tokensOf(data.value), row = tokens.length / wanted[0];
    wanted[0] += step;
    if (!isSmall(wanted)) return;
    shape.value = JSON.stringify(wanted);
    if (fillWith.value === "own") data.value = `[${(step > 0 ? tokens.concat(tokens.slice(-row)) : tokens.slice(0, -row)).join(",")}]`;
    show();
  }
  shape.addEventListener("input", show);
  fillWith.addEventListener("change", show);
  look.addEventListener("change", show);
  use.addEventListener("change", onChange);
  data.addEventListener("input", () => { fillWith.value = "own"; onChange(); });
  show();

  function read() {
    if (!use.checked) return null;
    let wanted;
    try { wanted = wantedShape(); } catch { throw new Error(`${input.name}: the shape must be a list of whole numbers, as ${JSON.stringify(input.shape)}`); }
    const isMade = fillWith.value !== "own";
    const text = isMade ? exampleText(fillWith.value, wanted) : asTable() ? grid.text() : data.value.trim();
    try { JSON.parse(text); } catch (error) { throw new Error(`${input.name}: the values are not JSON: ${error.message}`); }
    return { name: input.name, datatype: input.datatype, shape: wanted, text, pattern: isMade ? fillWith.value : null };
  }
  const legend = h("legend", {}, h("strong", {}, name));
  const optional = input.optional && h("label", { class: "row" }, use, "send this optional input");
  const element = fill(h("fieldset"), legend, optional, h("div", { class: "row" }, field("Shape", shape), field("Fill with", fillWith), field("Shown as", look)), note, cells, values);
  return { element, read };
}
