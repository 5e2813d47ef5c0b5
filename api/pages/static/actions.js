// What operators do: each action is confirmed by a sentence that names what will happen.
import { ask, fill, h } from "./dom.js";

const dialog = document.getElementById("sure");
const done = document.getElementById("done");

/** Ask for a yes; resolves to the values of `fields`, or null. */
function confirmed(title, text, fields = []) {
  document.getElementById("sure-title").textContent = title;
  document.getElementById("sure-text").textContent = text;
  fill(document.getElementById("sure-fields"), fields.map((field) => h("div", { class: "field" }, h("label", {}, `${field.label} `, field.control))));
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true }));
}

async function act(body) {
  done.classList.remove("bad");
  done.textContent = "Working …";
  try {
    const answer = await (await ask("/ops/actions", { method: "POST", body: JSON.stringify(body) })).json();
    done.textContent = `Done: ${answer.done}.`;
  } catch (error) {
    done.classList.add("bad");
    done.textContent = `Not done: ${error.message}`;
  }
}

const button = (text, what, danger, click) => h("button", { type: "button", class: danger ? "small danger" : "small", "aria-label": `${text} ${what}`, on: { click } }, text);

/** The buttons of one version of a model. */
export function modelButtons(model, row, mode) {
  const name = model.name, buttons = [];
  const others = model.versions.filter((each) => each.version !== row?.version);
  if (row && row.role !== "serves") {
    buttons.push(button("Use", `version ${row.version} of ${name}`, false, async () => {
      if (await confirmed(`Use version ${row.version} of ${name}?`, `All requests to ${name} that name no version will go to version ${row.version}, on every machine.`)) act({ action: "use", model: name, version: row.version });
    }));
    const isShadow = row.role === "shadow";
    buttons.push(button(isShadow ? "No shadow" : "Shadow", `version ${row.version} of ${name}`, false, async () => {
      const text = isShadow ? `Version ${row.version} of ${name} will get no more copies of requests.` : `Version ${row.version} of ${name} will get a copy of each request, and its answers are compared with those that clients get.`;
      if (await confirmed(`${isShadow ? "No shadow for" : "Shadow"} ${name}?`, text)) act({ action: "shadow", model: name, version: isShadow ? "" : row.version });
    }));
    buttons.push(button("Split", `requests to ${name}`, false, () => split(model, row, others)));
  }
  if (mode === "explicit" && (!row || row === model.versions[0])) {
    buttons.push(button("Load", name, false, async () => {
      if (await confirmed(`Load ${name}?`, `${name} will be read from the repository anew, and its new content takes the requests once it is ready.`)) act({ action: "load", model: name });
    }));
    if (row) buttons.push(button("Unload", name, true, async () => {
      if (await confirmed(`Unload ${name}?`, `${name} will answer no more requests: all of its versions leave every machine.`)) act({ action: "unload", model: name });
    }));
  }
  return buttons;
}

async function split(model, row, others) {
  const serves = others.find((each) => each.role === "serves") || others[0];
  if (!serves) return;
  const percent = h("input", { type: "number", min: 1, max: 99, value: 10, required: true });
  const text = `Requests to ${model.name} that name no version will be split: the share below to version ${row.version}, the rest to version ${serves.version}.`;
  if (!(await confirmed(`Split the requests to ${model.name}?`, text, [{ label: `Percent to version ${row.version}`, control: percent }]))) return;
  const share = Number(percent.value);
  act({ action: "split", model: model.name, weights: { [row.version]: share, [serves.version]: 100 - share } });
}

/** The buttons of one dead request; `changed` is called when one of them was pressed. */
export function letterButtons(letter, changed) {
  const what = `request ${letter.id} of ${letter.model}`;
  return [
    button("Replay", what, false, async () => {
      if (await confirmed("Replay this request?", `Request ${letter.id} will wait for ${letter.model} once more. If the model dies by it, it may take others of its batch through another try.`)) await act({ action: "replay", id: letter.id }).then(changed);
    }),
    button("Drop", what, true, async () => {
      if (await confirmed("Drop this request?", `Request ${letter.id} to ${letter.model} and its inputs will be forgotten. This cannot be undone.`)) await act({ action: "drop", id: letter.id }).then(changed);
    }),
  ];
}
