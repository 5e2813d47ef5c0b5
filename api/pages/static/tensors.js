// Tensors of protocol v2: examples, bodies with and without binary data, and answers.

/** The values of an example, one formula for all clients: JavaScript's, and Python's beside it. */
export const PATTERNS = {
  tenths: { value: (i) => ((i % 10) + 1) / 10, python: "(i % 10 + 1) / 10" },
  ones: { value: () => 1, python: "1" },
  bytes: { value: (i) => (i * 7) % 256, python: "i * 7 % 256" },
  turns: { value: (i) => i % 2 === 0, python: "i % 2 == 0" },
  strings: { value: () => "1", python: "\"1\"" },
  zeros: { value: () => 0, python: "0" },
};
/** Above so many values an example is a formula, not a list. */
export const LONGEST_LIST = 2048;

export const count = (shape) => shape.reduce((product, size) => product * size, 1);

export function patternOf(datatype, shape) {
  if (datatype === "BYTES") return "strings";
  if (datatype === "BOOL") return "turns";
  if (datatype === "UINT8" && count(shape) > 255) return "bytes";
  return /^(FP|BF)/.test(datatype) ? "tenths" : "ones";
}

export function exampleText(pattern, shape) {
  return JSON.stringify(Array.from({ length: count(shape) }, (_, i) => PATTERNS[pattern].value(i)));
}

/** Return v2's body and headers; `inputs` have their values as the text that the user sees. */
export function inferBody(inputs, outputs) {
  const chunks = [];
  const shown = inputs.map((input) => {
    const head = `"name":${JSON.stringify(input.name)},"shape":${JSON.stringify(input.shape)},"datatype":"${input.datatype}"`;
    if (!isBinary(input.datatype)) return `{${head},"data":${input.text}}`;
    const chunk = encoded(JSON.parse(input.text).flat(Infinity), input.datatype);
    chunks.push(chunk);
    return `{${head},"parameters":{"binary_data_size":${chunk.length}}}`;
  });
  let json = `{"inputs":[${shown.join(",")}]`;
  if (outputs.some((output) => output.binary)) {
    json += `,"outputs":${JSON.stringify(outputs.map(({ name, binary }) => ({ name, parameters: { binary_data: binary } })))}`;
  }
  json += "}";
  if (!chunks.length) return { body: json, headers: { "Content-Type": "application/json" } };
  const head = new TextEncoder().encode(json);
  const body = new Uint8Array(head.length + chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const part of [head, ...chunks]) { body.set(part, at); at += part.length; }
  return { body, headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(head.length) } };
}

/** Return an answer's JSON, with the values of its binary outputs as `data`, and its text. */
export async function readAnswer(response) {
  const length = response.headers.get("Inference-Header-Content-Length");
  if (length === null) {
    const text = await response.text();
    return { text, answer: JSON.parse(text) };
  }
  const raw = await response.arrayBuffer();
  const text = new TextDecoder().decode(new Uint8Array(raw, 0, Number(length)));
  const answer = JSON.parse(text);
  let at = Number(length);
  for (const output of answer.outputs) {
    const size = output.parameters?.binary_data_size;
    if (size === undefined) continue;
    output.data = decoded(new DataView(raw, at, size), output.datatype);
    at += size;
  }
  return { text, answer };
}

const isBinary = (datatype) => datatype === "FP16" || datatype === "BF16";

function encoded(values, datatype) {
  const view = new DataView(new ArrayBuffer(2 * values.length));
  values.forEach((value, i) => view.setUint16(2 * i, datatype === "BF16" ? brain(value) : half(value), true));
  return new Uint8Array(view.buffer);
}

const WIDTHS = { BOOL: 1, UINT8: 1, INT8: 1, UINT16: 2, INT16: 2, FP16: 2, BF16: 2, UINT32: 4, INT32: 4, FP32: 4, UINT64: 8, INT64: 8, FP64: 8 };
const READERS = {
  BOOL: (view, at) => view.getUint8(at) !== 0,
  UINT8: (view, at) => view.getUint8(at), INT8: (view, at) => view.getInt8(at),
  UINT16: (view, at) => view.getUint16(at, true), INT16: (view, at) => view.getInt16(at, true),
  UINT32: (view, at) => view.getUint32(at, true), INT32: (view, at) => view.getInt32(at, true),
  UINT64: (view, at) => Number(view.getBigUint64(at, true)), INT64: (view, at) => Number(view.getBigInt64(at, true)),
  FP32: (view, at) => view.getFloat32(at, true), FP64: (view, at) => view.getFloat64(at, true),
  FP16: (view, at) => fromHalf(view.getUint16(at, true)),
  BF16: (view, at) => asFloat(view.getUint16(at, true) << 16),
};

function decoded(view, datatype) {
  const values = [];
  if (datatype === "BYTES") {
    for (let at = 0; at < view.byteLength;) {
      const size = view.getUint32(at, true);
      values.push(new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + at + 4, size)));
      at += 4 + size;
    }
    return values;
  }
  for (let at = 0; at < view.byteLength; at += WIDTHS[datatype]) values.push(READERS[datatype](view, at));
  return values;
}

const scratch = new DataView(new ArrayBuffer(4));

function asFloat(bits) {
  scratch.setInt32(0, bits);
  return scratch.getFloat32(0);
}

function bitsOf(value) {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

function brain(value) {
  const bits = bitsOf(value);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** Round to IEEE 754's half precision, to the nearest even. */
function half(value) {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 1e-30)));
  const steps = size / 2 ** (exponent - 10);
  let rounded = Math.floor(steps);
  const rest = steps - rounded;
  if (rest > 0.5 || (rest === 0.5 && rounded % 2)) rounded += 1;
  return sign | (exponent === -14 ? rounded : rounded + ((exponent + 14) << 10));
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}
