// A canvas to draw a small grey picture on, bright on dark.
import { h } from "./dom.js";

const SIDE = 256, SENT_SIDE = 64;
const SEVEN = [[0.27, 0.2, 0.74, 0.2], [0.74, 0.2, 0.44, 0.84]];

/** Return the canvas with its buttons; `picture` returns a PNG, that of a seven before anything is drawn. */
export function drawing(onChange) {
  const canvas = h("canvas", { class: "drawing", width: SIDE, height: SIDE, role: "img", tabindex: "0", "aria-label": "Drawing: draw one character with the mouse, a finger or a pen. With the keyboard, press a digit to have it drawn." });
  const pen = canvas.getContext("2d");
  let isExample = true, last = null;

  function blank() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, SIDE, SIDE);
    isExample = false;
  }
  function clear() {
    blank();
    onChange();
  }
  function line(from, to) {
    pen.strokeStyle = "#fff";
    pen.lineWidth = SIDE / 10;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...to);
    pen.stroke();
  }
  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (isExample) clear();
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    line(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const here = place(event);
    line(last, here);
    last = here;
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (last) onChange(); last = null; });
  canvas.addEventListener("keydown", (event) => {
    if (!/^[\w]$/.test(event.key) || event.ctrlKey || event.metaKey) return;
    clear();
    pen.fillStyle = "#fff";
    pen.font = `bold ${SIDE * 0.8}px sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(event.key, SIDE / 2, SIDE / 2);
    onChange();
  });
  blank();
  for (const [a, b, c, d] of SEVEN) line([a * SIDE, b * SIDE], [c * SIDE, d * SIDE]);
  isExample = true;
  const element = h("div", {}, canvas, h("div", { class: "row" }, h("button", { type: "button", on: { click: clear } }, "Clear"), h("span", { class: "hint" }, "Draw one character; a seven is there to begin with.")));
  return { element, picture: () => png(smaller(canvas)) };
}

/** The drawing as it is sent: small enough to stand in copied code. */
function smaller(canvas) {
  const small = h("canvas", { width: SENT_SIDE, height: SENT_SIDE });
  small.getContext("2d").drawImage(canvas, 0, 0, SENT_SIDE, SENT_SIDE);
  return small;
}

/** Return a picture to begin with where nothing is drawn: colours and a disc. */
export function examplePicture(width, height) {
  const canvas = h("canvas", { width, height });
  const pen = canvas.getContext("2d");
  const sky = pen.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, "#3b82c4");
  sky.addColorStop(1, "#e8c07a");
  pen.fillStyle = sky;
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = "#b3302b";
  pen.beginPath();
  pen.arc(width / 2, height / 2, Math.min(width, height) / 3, 0, 7);
  pen.fill();
  return png(canvas);
}

const png = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));
