// Tables that change where their content does, and keep the focus of who is in them.
import { fill, h } from "./dom.js";

/** Show `rows` by key; a row whose `mark` is as before stays as it is. */
export function table(body) {
  const shown = new Map();
  return (rows) => {
    const kept = new Set();
    let before = null;
    for (const { key, mark, cells, gone } of rows) {
      kept.add(key);
      let row = shown.get(key);
      if (!row || row.mark !== mark) {
        const fresh = h("tr", { "data-key": key, class: gone ? "gone" : null });
        fill(fresh, cells());
        if (row) row.element.replaceWith(fresh);
        row = { element: fresh, mark };
        shown.set(key, row);
      }
      const next = before ? before.nextSibling : body.firstChild;
      if (next !== row.element) body.insertBefore(row.element, next);
      before = row.element;
    }
    for (const [key, { element }] of shown) {
      if (!kept.has(key)) {
        element.remove();
        shown.delete(key);
      }
    }
  };
}

export const cell = (...content) => h("td", {}, ...content);
export const number = (text) => h("td", { class: "number" }, text);
