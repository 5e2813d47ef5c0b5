// The same request for other clients: curl, Python and JavaScript, ready to copy and to run.
import { LONGEST_LIST, PATTERNS, count } from "./tensors.js";

/** A picture up to so many bytes stands in the code itself; a larger one is read from its file. */
const LARGEST_INLINE = 48 * 1024;
const NUMPY = { BOOL: "np.bool_", FP16: "np.float16", FP32: "np.float32", FP64: "np.float64", BYTES: "np.object_", BF16: "bfloat16" };
const numpyType = (datatype) => NUMPY[datatype] || `np.${datatype.toLowerCase()}`;

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const url = (request) => location.origin + request.path;
const quoted = JSON.stringify;
const base64 = (bytes) => {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
};
const wrapped = (text) => text.replace(/.{100}/g, "$&\n").trimEnd();
const isInline = (request) => request.body.length <= LARGEST_INLINE;

/** Write JSON as Python's literal; numbers stay as they were written, however long. */
function python(json) {
  return json.replace(/"(?:[^"\\]|\\.)*"|\btrue\b|\bfalse\b|\bnull\b/g, (found) => ({ true: "True", false: "False", null: "None" })[found] || quoted(JSON.parse(found)));
}

const isMade = (input) => input.pattern && count(input.shape) > LONGEST_LIST;
const data = (input) => (isMade(input) ? `[${PATTERNS[input.pattern].python} for i in range(${count(input.shape)})]` : python(input.text));
const headersPython = (request) => `{${Object.entries(request.headers).map(([name, value]) => `${quoted(name)}: ${quoted(value)}`).join(", ")}}`;

/** Return the clients' code by name; `tokens` are the tensors of texts, once the server has told them. */
export function snippets(request, model, tokens) {
  return { curl: curl(request), "Python, requests": requests(request), "Python, tritonclient": triton(request, model, tokens), JavaScript: javascript(request) };
}

function curl(request) {
  const headers = Object.entries(request.headers).map(([name, value]) => ` -H ${shell(`${name}: ${value}`)}`).join("");
  const to = `curl -s ${shell(url(request))}${headers}`;
  if (request.kind === "picture") {
    return isInline(request) ? `base64 -d <<'END' | ${to} --data-binary @-\n${wrapped(base64(request.body))}\nEND` : `${to} --data-binary @${shell(request.name)}`;
  }
  if (typeof request.body !== "string") return `base64 -d <<'END' | ${to} --data-binary @- --output -\n${wrapped(base64(request.body))}\nEND`;
  if (request.inputs?.some(isMade)) return `python3 - <<'END' | ${to} --data-binary @-\nimport json\nprint(json.dumps(${body(request)}))\nEND`;
  return request.body.length < 8192 ? `${to} --data-binary ${shell(request.body)}` : `${to} --data-binary @- <<'END'\n${request.body}\nEND`;
}

function body(request) {
  if (request.kind === "text") return python(request.body);
  const inputs = request.inputs.map((input) => `{"name": ${quoted(input.name)}, "shape": ${quoted(input.shape)}, "datatype": "${input.datatype}", "data": ${data(input)}}`);
  const outputs = request.outputs.some((output) => output.binary) ? `, "outputs": ${python(quoted(request.outputs.map(({ name, binary }) => ({ name, parameters: { binary_data: binary } }))))}` : "";
  return `{"inputs": [${inputs.join(", ")}]${outputs}}`;
}

function requests(request) {
  const close = "print(answer.status_code, answer.text)";
  if (request.kind === "picture" && !isInline(request)) {
    return `import requests\n\nwith open(${quoted(request.name)}, "rb") as file:\n    answer = requests.post(${quoted(url(request))}, data=file, headers=${headersPython(request)}, timeout=60)\n${close}`;
  }
  if (typeof request.body !== "string") {
    return `import base64\n\nimport requests\n\nbody = base64.b64decode("""\n${wrapped(base64(request.body))}\n""")\nanswer = requests.post(${quoted(url(request))}, data=body, headers=${headersPython(request)}, timeout=60)\n${request.kind === "picture" ? close : "print(answer.status_code, answer.content)"}`;
  }
  return `import requests\n\nbody = ${body(request)}\nanswer = requests.post(${quoted(url(request))}, json=body, timeout=60)\n${close}`;
}

function triton(request, model, tokens) {
  const inputs = request.inputs || (request.kind === "text" ? textInputs(request, model, tokens) : null);
  if (request.kind === "text" && !inputs) return "# v2 takes token ids: they stand here once the server has told them.";
  const lines = ["import numpy as np", "import tritonclient.http as triton"];
  const datatypes = inputs ? inputs.map((input) => input.datatype) : [model.inputs[0].datatype];
  if (datatypes.includes("BF16")) lines.splice(1, 0, "from ml_dtypes import bfloat16");
  if (!inputs) lines.unshift("import base64", "import io", "");
  if (!inputs) lines.splice(4, 0, "from PIL import Image");
  lines.push("");
  const secure = location.protocol === "https:" ? ", ssl=True" : "";
  lines.push(`client = triton.InferenceServerClient(${quoted(location.host)}${secure})`, "inputs = []");
  if (inputs) for (const input of inputs) lines.push(...tensorLines(input, `np.array(${data(input)}, ${numpyType(input.datatype)}).reshape(${quoted(input.shape)})`));
  else lines.push(...pictureLines(request, model));
  const version = /\/versions\/(\d+)\//.exec(request.infer)?.[1];
  lines.push(`answer = client.infer(${quoted(model.name)}, inputs${version ? `, ${quoted(version)}` : ""})`);
  lines.push(`for output in answer.get_response()["outputs"]:`, `    print(output["name"], answer.as_numpy(output["name"]).tolist())`);
  return lines.join("\n");
}

function tensorLines(input, array) {
  return [
    `x = ${array}`,
    `inputs.append(triton.InferInput(${quoted(input.name)}, list(x.shape), "${input.datatype}"))`,
    `inputs[-1].set_data_from_numpy(x)`,
  ];
}

function textInputs(request, model, tokens) {
  const source = model.tokens ? tokens : null;
  if (!model.tokens) {
    const input = model.inputs.find((each) => !each.optional) || model.inputs[0];
    const shape = model.batched ? [request.texts.length, ...input.shape.slice(1)] : input.shape;
    return [{ name: input.name, datatype: "BYTES", shape, text: quoted(request.texts), pattern: null }];
  }
  return source && source.map((input) => ({ ...input, text: quoted(input.data), pattern: null }));
}

/** The server's own way from a picture to the tensor; see docs/repository.md. */
function pictureLines(request, model) {
  const { picture } = model;
  const source = isInline(request) ? `io.BytesIO(base64.b64decode("""\n${wrapped(base64(request.body))}\n"""))` : quoted(request.name);
  const resample = `Image.Resampling.${picture.interpolation.toUpperCase()}`;
  const size = `(${picture.width}, ${picture.height})`;
  const lines = [`picture = Image.open(${source}).convert("${picture.channels === "L" ? "L" : "RGB"}")`];
  if (picture.resize === "crop") {
    const shorter = picture.resize_size || Math.min(picture.width, picture.height);
    lines.push(
      `wide, high = (int(${shorter} * side / min(picture.size)) for side in picture.size)`,
      `picture = picture.resize((wide, high), ${resample})`,
      `left, top = round((wide - ${picture.width}) / 2), round((high - ${picture.height}) / 2)`,
      `picture = picture.crop((left, top, left + ${picture.width}, top + ${picture.height}))`,
    );
  } else if (picture.resize === "pad") {
    const ground = picture.background.length === 1 ? picture.background[0] : picture.background;
    const colour = picture.channels === "L" ? [ground].flat()[0] : Array.isArray(ground) ? `(${ground.join(", ")})` : `(${ground}, ${ground}, ${ground})`;
    lines.push("from PIL import ImageOps", `picture = ImageOps.pad(picture, ${size}, ${resample}, color=${colour})`);
  } else lines.push(`picture = picture.resize(${size}, ${resample})`);
  lines.push(`pixels = np.asarray(picture, np.float32).reshape(${picture.height}, ${picture.width}, -1)`);
  if (picture.channels === "BGR") lines.push("pixels = pixels[..., ::-1]");
  const declared = model.inputs.find((input) => input.name === picture.input);
  lines.push(`pixels = (pixels * np.float32(${picture.scale}) - np.float32(${quoted(picture.mean)})) / np.float32(${quoted(picture.std)})`);
  if (picture.layout === "NCHW") lines.push("pixels = pixels.transpose(2, 0, 1)");
  lines.push(...tensorLines(declared, `np.ascontiguousarray(pixels${model.batched ? "[None]" : ""}, ${numpyType(declared.datatype)})`));
  return lines;
}

function javascript(request) {
  const headers = JSON.stringify(request.headers);
  const close = `console.log(response.status, await response.text());`;
  let body = shellFree(request);
  return `${body}\nconst response = await fetch(${quoted(url(request))}, { method: "POST", headers: ${headers}, body });\n${close}`;
}

function shellFree(request) {
  if (request.kind === "picture" && !isInline(request)) return `const body = document.querySelector("input[type=file]").files[0]; // ${request.name.replace(/[\r\n]/g, " ")}`;
  if (typeof request.body !== "string") return `const body = Uint8Array.from(atob(${quoted(base64(request.body))}), (character) => character.charCodeAt(0));`;
  if (request.inputs?.some(isMade)) {
    const inputs = request.inputs.map((input) => `{ name: ${quoted(input.name)}, shape: ${quoted(input.shape)}, datatype: "${input.datatype}", data: ${isMade(input) ? `Array.from({ length: ${count(input.shape)} }, (_, i) => ${PATTERNS[input.pattern].javascript || PATTERNS[input.pattern].python.replace("==", "===")})` : input.text} }`);
    return `const body = JSON.stringify({ inputs: [${inputs.join(", ")}] });`;
  }
  return `const body = ${quoted(request.body)};`;
}
