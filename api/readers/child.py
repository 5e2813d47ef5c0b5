"""A reader's process (`python -m api.readers.child PIXELS`): bodies in, checked tensors out.

It reads what its API process must not: hours of Python over a few clever kilobytes, gigabytes of
lists. `shared.inputs.reader_process` bounds each task; it also ends when it is idle for long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack

from api.payloads.embeddings import parse_embeddings
from api.payloads.infer_request import input_tensor
from api.payloads.json_arrays import json_type
from api.payloads.v1_json import parse_predict
from api.payloads.v2_json import load_object, parse_infer
from shared.errors import BadRequest, FerryError, PayloadTooLarge
from shared.inputs.pictures import decode_batch, limit_pictures, open_batch, picture_input
from shared.inputs.reader_process import TOO_MUCH_MEMORY, allow, serve
from shared.messages import Tensor
from shared.model_spec import ModelSpec, check_text_count

READER_IDLE_SECONDS = 300.0
HEADER_SECONDS, WHOLE_SECONDS = 2.0, 20.0
"""Processor time for the headers of a request's pictures, and for all that is read of a request."""
Body = memoryview


class PredictPart(NamedTuple):
    """What of a /predict body is asked: "text", "input_tensor", or "nothing", beside its names.

    A text is a list, unless it stands alone.
    """

    what: str
    value: Any


def predict_part(body: Mapping[str, Any]) -> PredictPart:
    """Return the part that counts; raises BadRequest for texts that are none."""
    if "text" in body:
        return PredictPart("text", _checked_text(body["text"]))
    if "input_tensor" in body:
        return PredictPart("input_tensor", body["input_tensor"])
    return PredictPart("nothing", sorted(body)[:10])


def _checked_text(value: Any) -> Any:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f'"text" must be a string or a list of strings, not {json_type(value)}')
    return value


class _Texts:
    """Stands in for the tokenizers, which the API process has: keeps the texts for it."""

    found: list[str] | None = None

    def encode(self, texts: list[str], spec: ModelSpec) -> tuple[tuple[Tensor, ...], list[bool]]:
        """Return nothing yet; raises BadRequest for more texts than the model takes at once."""
        check_text_count(len(texts), spec)
        self.found = texts
        return (), []


def read_infer(body: Body, spec: ModelSpec, json_length: int | None) -> Any:
    """Return a v2 body's parts."""
    return parse_infer(body, spec, json_length)


def read_predict(body: Body, spec: ModelSpec) -> Any:
    """Return a version 1 body's form and inputs, or texts for the tokenizer."""
    texts = _Texts()
    form, inputs = parse_predict(bytes(body), spec, texts, picture_input)
    return form, inputs, texts.found


def read_embeddings(body: Body, _spec: None) -> Any:
    """Return the parts of a body that asks for embeddings."""
    return parse_embeddings(bytes(body))


def read_object(body: Body, spec: ModelSpec | None, of_texts: str | None) -> Any:
    """Return the one of a /predict body's parts that counts; of a tensor what `spec` makes of it.

    Texts are for the model `of_texts`. Without a model that takes it, a part is None.
    """
    part = predict_part(load_object(bytes(body)))
    if part.what == "text" and isinstance(part.value, list):
        if of_texts is None:
            return part._replace(value=None)
        check_text_count(len(part.value), ModelSpec.model_validate_json(of_texts))
    if part.what != "input_tensor":
        return part
    fits = spec is not None and len(spec.inputs) == 1
    return part._replace(value=input_tensor(part.value, spec) if spec and fits else None)


def read_pictures(body: Body, spec: ModelSpec, sizes: list[int]) -> Any:
    """Return the tensor of the pictures, which lie in `body` one after the other."""
    allow(HEADER_SECONDS)
    pictures, start = [], 0
    for size in sizes:
        pictures.append(body[start : start + size])
        start += size
    opened = open_batch(pictures, spec)
    allow(WHOLE_SECONDS)
    return decode_batch(opened, spec)


TASKS: dict[str, Callable[..., Any]] = {
    "infer": read_infer,
    "predict": read_predict,
    "object": read_object,
    "embeddings": read_embeddings,
    "pictures": read_pictures,
}


def _answer(head: bytes, body: Body) -> bytes:
    task, spec, arguments = msgpack.unpackb(head)
    try:
        described = ModelSpec.model_validate_json(spec) if spec else None
        return _pack([True, TASKS[task](body, described, *arguments)])
    except FerryError as error:
        return _pack([False, [error.code, error.message, getattr(error, "param", None)]])
    except MemoryError:
        return _pack([False, [PayloadTooLarge.code, TOO_MUCH_MEMORY, None]])


def _pack(reply: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(reply)
    return packed


def main() -> None:
    """Read one task after the other."""
    limit_pictures(int(sys.argv[1]))
    serve(_answer, WHOLE_SECONDS, READER_IDLE_SECONDS)


if __name__ == "__main__":
    main()
