"""Finds a request that a served model answers, as a line of curl to paste."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from ferry.up.api_client import Answer, ask

PATIENCE_SECONDS = 30.0
MOST_NUMBERS = 64
"""Numbers that a line may hold; larger inputs are zeros from /dev/zero."""
EXAMPLE_SIZES = (8, 64, 512, 4096)
"""What free dimensions are tried with."""
EXAMPLE_TEXTS = ("a good day", "1")
NOT_IN_JSON = {"FP16", "BF16"}
"""Datatypes that do not travel in JSON."""
WIDTHS = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4,
    "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
"""Bytes of a number, by the protocol's datatypes; numpy would make `ferry up` slow to start."""
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAGUlEQVR42mNkEEAFTAIMqIBlOAswfkATAACi/gL54P"
    "LulQAAAABJRU5ErkJggg=="
)
"""A PNG of 16 x 16 grey pixels."""


class Request(NamedTuple):
    """A request: path, body, headers that are not curl's own; how a shell makes and ends it."""

    path: str
    body: bytes
    header: tuple[str, ...] = ()
    producer: str = ""
    consumer: str = ""

    def send(self, url: str) -> Answer:
        """Ask the API at `url`."""
        headers = dict(line.split(": ", 1) for line in self.header)
        headers.setdefault("Content-Type", "application/json")
        return ask(f"{url}{self.path}", self.body, headers, PATIENCE_SECONDS)

    def curl(self, url: str) -> str:
        """Return it as a line for a shell."""
        headers = "".join(f" -H {shlex.quote(line)}" for line in self.header)
        if self.producer:
            curl = f"curl -s {url}{self.path}{headers} --data-binary @-{self.consumer}"
            return f"{self.producer} | {curl}"
        return f"curl -s {url}{self.path}{headers} -d {shlex.quote(self.body.decode())}"


def working_example(url: str, name: str) -> str:
    """Return a line of curl that the model `name` of the API at `url` has just answered.

    Empty when it answers nothing that can be made up.
    """
    description = ask(f"{url}/v2/models/{name}", timeout=PATIENCE_SECONDS)
    config = ask(f"{url}/v2/models/{name}/config", timeout=PATIENCE_SECONDS)
    if not (description.is_good and config.is_good):
        return ""
    known = json.loads(description.body)
    requests: Iterator[Request]
    if any(each["datatype"] in NOT_IN_JSON for each in known["outputs"]):
        requests = _in_sizes(name, known["inputs"], json.loads(config.body), binary=True)
    else:
        requests = _requests(name, known["inputs"], json.loads(config.body))
    return next((each.curl(url) for each in requests if each.send(url).is_good), "")


def _requests(name: str, inputs: list[dict[str, Any]], config: dict[str, Any]) -> Iterator[Request]:
    """Yield requests that the model may answer, the most natural first."""
    kind = config.get("parameters", {}).get("input_kind", {}).get("string_value", "")
    predict = f"/predict/{name}"
    if kind == "image":
        yield Request(
            predict, base64.b64decode(PICTURE), ("Content-Type: image/png",),
            f"echo {PICTURE} | base64 -d",
        )  # fmt: skip
    if kind == "text" or [each["datatype"] for each in inputs] == ["BYTES"]:
        yield from (Request(predict, json.dumps({"text": text}).encode()) for text in EXAMPLE_TEXTS)
    yield from _in_sizes(name, inputs, config, binary=False)


def _in_sizes(
    name: str, inputs: list[dict[str, Any]], config: dict[str, Any], *, binary: bool
) -> Iterator[Request]:
    """Yield requests of tensors with several sizes for free dimensions; `binary` for the answer."""
    batched = config.get("max_batch_size", 0) > 0
    is_free = any(-1 in each["shape"][batched:] for each in inputs)
    for size in EXAMPLE_SIZES if is_free else EXAMPLE_SIZES[:1]:
        shaped = [each | {"shape": _shape(each["shape"], size, batched)} for each in inputs]
        yield from _tensors(name, shaped, binary)


def _shape(shape: list[int], size: int, batched: bool) -> list[int]:
    dims = [size if each == -1 else each for each in shape]
    return [1, *dims[1:]] if batched else dims


def _tensors(name: str, inputs: list[dict[str, Any]], binary: bool) -> Iterator[Request]:
    """Yield requests with one row for each input, in JSON if it is short."""
    numbers = sum(prod(each["shape"]) for each in inputs)
    datatypes = {each["datatype"] for each in inputs}
    if numbers <= MOST_NUMBERS and not binary and not datatypes & NOT_IN_JSON:
        for text in EXAMPLE_TEXTS if "BYTES" in datatypes else EXAMPLE_TEXTS[:1]:
            yield _json(name, inputs, text)
    if "BYTES" not in datatypes:
        yield _zeros(name, inputs, binary)


def _json(name: str, inputs: list[dict[str, Any]], text: str) -> Request:
    if len(inputs) == 1:
        rows = _nested(_values(inputs[0], text), inputs[0]["shape"])
        return Request(f"/predict/{name}", json.dumps({"input_tensor": rows}).encode())
    tensors = [
        {key: each[key] for key in ("name", "shape", "datatype")} | {"data": _values(each, text)}
        for each in inputs
    ]
    return Request(f"/v2/models/{name}/infer", json.dumps({"inputs": tensors}).encode())


def _values(tensor: dict[str, Any], text: str) -> list[Any]:
    count, datatype = prod(tensor["shape"]), tensor["datatype"]
    if datatype == "BYTES":
        return [text] * count
    if datatype == "BOOL":
        return [True] * count
    if datatype.startswith("FP"):
        return [round(0.1 * (1 + index % 10), 1) for index in range(count)]
    return [1] * count


def _nested(values: list[Any], shape: list[int]) -> Any:
    """Return flat values as nested lists of a shape."""
    if len(shape) == 1:
        return values
    step = prod(shape[1:])
    return [
        _nested(values[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])
    ]


def _zeros(name: str, inputs: list[dict[str, Any]], binary: bool) -> Request:
    """Return zeros in the protocol's binary form, whose bytes the line takes from /dev/zero."""
    sizes = [prod(each["shape"]) * WIDTHS[each["datatype"]] for each in inputs]
    tensors = [
        {key: each[key] for key in ("name", "shape", "datatype")}
        | {"parameters": {"binary_data_size": size}}
        for each, size in zip(inputs, sizes, strict=True)
    ]
    wanted = {"parameters": {"binary_data_output": True}} if binary else {}
    head = json.dumps({"inputs": tensors} | wanted)
    return Request(
        f"/v2/models/{name}/infer",
        head.encode() + bytes(sum(sizes)),
        (
            "Content-Type: application/octet-stream",
            f"Inference-Header-Content-Length: {len(head)}",
        ),
        f"(printf %s {shlex.quote(head)}; head -c {sum(sizes)} /dev/zero)",
        " -o answer.bin" if binary else "",
    )
