// A table for the values of a small tensor: a cell for each, and what is pasted from a sheet fills many.
import { fill, h } from "./dom.js";

const MOST_CELLS = 256, MOST_COLUMNS = 32;
const TOKEN = /"(?:[^"\\]|\\.)*"|[^\s,[\]]+/g;

const columnsOf = (shape) => (shape.length ? shape[shape.length - 1] : 1);
const sizeOf = (shape) => shape.reduce((product, size) => product * size, 1);

/** Whether a table of this shape is still one that people read. */
export const isSmall = (shape) => sizeOf(shape) > 0 && sizeOf(shape) <= MOST_CELLS && columnsOf(shape) <= MOST_COLUMNS;

/** The values of a list in JSON, nested or not, each as it is written there: a number of 64 bits stays what it is. */
export const tokensOf = (text) => text.match(TOKEN) || [];

/** A table of a tensor's values; `changed` is called when somebody writes into it. */
export function makeGrid(input, changed) {
  const rows = h("tbody"), head = h("tr");
  const element = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Values of ${input.name}` }, h("table", { class: "grid" }, h("thead", {}, head), rows));
  let cells = [], columns = 1;

  function show(shape, tokens) {
    columns = columnsOf(shape);
    const count = sizeOf(shape);
    if (cells.length === count && head.children.length === columns + 1) {
      cells.forEach((cell, n) => { if (cell !== document.activeElement) cell.value = shown(tokens[n]); });
      return;
    }
    cells = Array.from({ length: count }, (_, n) => h("input", { type: "text", spellcheck: "false", autocomplete: "off", "aria-label": `${input.name}, ${place(n)}`, on: { input: changed, paste: (event) => paste(event, n) } }));
    cells.forEach((cell, n) => { cell.value = shown(tokens[n]); });
    fill(head, h("td"), Array.from({ length: columns }, (_, n) => h("th", { scope: "col" }, String(n + 1))));
    fill(rows, Array.from({ length: count / columns }, (_, row) => h("tr", {}, h("th", { scope: "row" }, String(row + 1)), cells.slice(row * columns, (row + 1) * columns).map((cell) => h("td", {}, cell)))));
  }
  const place = (n) => `row ${Math.floor(n / columns) + 1}, column ${(n % columns) + 1}`;

  function paste(event, start) {
    const lines = event.clipboardData.getData("text").replace(/\r?\n$/, "").split(/\r?\n/).map((line) => line.split(line.includes("\t") ? "\t" : ","));
    if (lines.length === 1 && lines[0].length === 1) return;
    event.preventDefault();
    lines.forEach((line, row) => line.forEach((value, column) => {
      const cell = (start % columns) + column < columns && cells[start + row * columns + column];
      if (cell) cell.value = value.trim();
    }));
    changed();
  }

  /** The cells as a list in JSON; a cell that is none of the tensor's values is named. */
  function text() {
    return `[${cells.map((cell, n) => token(cell.value, () => `${input.name}, ${place(n)}`)).join(",")}]`;
  }
  function token(value, where) {
    if (input.datatype === "BYTES") return JSON.stringify(value);
    const written = value.trim();
    let found;
    try { found = JSON.parse(written); } catch { /* said below */ }
    const wanted = input.datatype === "BOOL" ? "boolean" : "number";
    if (typeof found !== wanted) throw new Error(`${where()}: ${JSON.stringify(written)} is no ${wanted === "number" ? "number" : "true or false"}`);
    return written;
  }
  function shown(written) {
    if (written === undefined) return "";
    return written.startsWith('"') ? JSON.parse(written) : written;
  }
  return { element, show, text };
}
