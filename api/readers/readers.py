"""Reads bodies: small and plain ones at once, all others in processes beside the event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgpack

from api.access.fair_line import FairLine
from api.payloads.embeddings import EmbeddingBody, parse_embeddings
from api.payloads.infer_request import InferBody
from api.payloads.json_size import check_json, check_json_size, is_light_json
from api.payloads.v1_json import Form, parse_predict
from api.payloads.v2_json import load_object, parse_infer
from api.readers.child import PredictPart, predict_part
from shared.errors import BadRequest, FerryError, by_code
from shared.inputs.loop import in_event_loop
from shared.inputs.picture_weight import is_light
from shared.inputs.pictures import MANY_PIXELS, as_wanted, open_batch
from shared.inputs.reader_process import UNREADABLE, ReaderProcess
from shared.inputs.texts import TokenizerCache
from shared.messages import Buffer, RequestedOutput, Tensor
from shared.model_spec import ModelSpec
from shared.settings import Settings

log = logging.getLogger(__name__)

TAKERS = {"text": "text", "input_tensor": "tensor"}
"""What takes a part of a /predict body."""
READER = "api.readers.child"
COUNT = 2
"""Readers of one API process: each may hold FERRY_MAX_IMAGE_PIXELS several times over."""


class Readers:
    """One process's reading of bodies; its helpers start at the first body that needs one.

    Without gevent there is no loop to hold up, and everything is read where it is asked for.
    """

    def __init__(self, settings: Settings) -> None:
        """Start nothing yet."""
        self._max_pixels = settings.max_image_pixels
        self._max_json_bytes = settings.max_json_bytes
        self._seconds = settings.request_timeout_seconds
        self._line = FairLine(COUNT, settings.max_waiting, settings.request_timeout_seconds)
        self._idle: list[ReaderProcess] = []

    def infer(self, raw: Buffer, spec: ModelSpec, json_length: int | None) -> InferBody:
        """Check a v2 body against its model; raises what `parse_infer` raises, or BadRequest."""
        length = len(raw) if json_length is None else json_length
        if is_light_json(raw, length):
            return parse_infer(raw, spec, json_length)
        check_json(memoryview(raw)[:length], spec, self._max_json_bytes)
        if not in_event_loop():
            return parse_infer(raw, spec, json_length)
        request_id, inputs, outputs, parameters, binary = self._ask(
            "infer", spec, [raw], [json_length]
        )
        wanted = tuple([RequestedOutput(*output) for output in outputs])
        return InferBody(request_id, _tensors(inputs), wanted, parameters, binary)

    def predict(
        self, raw: bytes, spec: ModelSpec, tokenizers: TokenizerCache
    ) -> tuple[Form, tuple[Tensor, ...]]:
        """Check a version 1 body against its model; raises as `infer`."""
        if is_light_json(raw, len(raw)):
            return parse_predict(raw, spec, tokenizers, self.pictures)
        check_json(raw, spec, self._max_json_bytes)
        if not in_event_loop():
            return parse_predict(raw, spec, tokenizers, self.pictures)
        form, inputs, texts = self._ask("predict", spec, [raw], [])
        if texts is not None:
            return cast(Form, form), tokenizers.encode(texts, spec)[0]
        return cast(Form, form), _tensors(inputs)

    def embeddings(self, raw: bytes) -> EmbeddingBody:
        """Check a body that asks for embeddings; raises what `parse_embeddings` raises."""
        if is_light_json(raw, len(raw)) or not in_event_loop():
            return parse_embeddings(raw)
        return EmbeddingBody(*self._ask("embeddings", None, [raw], []))

    def predict_body(self, raw: bytes, model: Callable[[str], ModelSpec]) -> PredictPart:
        """Return a /predict body's part that counts; of a large one a tensor is made.

        `model` returns who takes a "tensor", or a "text". Raises what it raises where there is
        none, and as `infer`.
        """
        check_json_size(len(raw), self._max_json_bytes)
        if is_light_json(raw, len(raw)) or not in_event_loop():
            return predict_part(load_object(raw))
        spec, of_texts = _found(model, "tensor"), _found(model, "text")
        if spec is not None:
            check_json(raw, spec, self._max_json_bytes)
        described = of_texts.model_dump_json() if of_texts else None
        part = PredictPart(*self._ask("object", spec, [raw], [described]))
        if part.value is None:
            return part._replace(value=[] if model(TAKERS[part.what]) else None)
        if part.what == "input_tensor":
            return part._replace(value=_tensors([part.value])[0])
        return part

    def pictures(self, pictures: Sequence[Buffer], spec: ModelSpec) -> Tensor:
        """Return the tensor of encoded pictures, see `as_wanted`; raises BadRequest."""
        if not in_event_loop() or all(map(is_light, pictures)):
            opened = open_batch(pictures, spec)
            if opened.pixels <= MANY_PIXELS or not in_event_loop():
                return as_wanted(pictures, opened, spec)
        sizes = [len(picture) for picture in pictures]
        return _tensors([self._ask("pictures", spec, pictures, [sizes])])[0]

    def _ask(
        self, task: str, spec: ModelSpec | None, parts: Sequence[Buffer], arguments: list[Any]
    ) -> Any:
        """Have a reader do a task; raises the error that it met, or BadRequest when it died."""
        described = spec.model_dump_json() if spec else None
        head = msgpack.packb([task, described, arguments])
        with self._line.place(spec.key if spec else ""):
            until = time.monotonic() + self._seconds
            good, found = msgpack.unpackb(self._answer(head, parts, until), strict_map_key=False)
        if not good:
            code, message, param = found
            raise BadRequest.about(param, message) if param else by_code(code, message)
        return found

    def _answer(self, head: bytes, parts: Sequence[Buffer], until: float) -> memoryview:
        while True:
            reader = (
                self._idle.pop() if self._idle else ReaderProcess(READER, str(self._max_pixels))
            )
            reply = reader.ask(head, parts, until)
            if reply is not None:
                self._idle.append(reader)
                return reply
            if reader.end():  # between two tasks: one that was idle, or had grown
                raise BadRequest(UNREADABLE)


def _found(model: Callable[[str], ModelSpec], kind: str) -> ModelSpec | None:
    try:
        return model(kind)
    except FerryError:
        log.debug("no model takes a large %s, it may be something else", kind, exc_info=True)
        return None


def _tensors(items: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(
        [
            Tensor(name, datatype, tuple(shape), data, pixels)
            for name, datatype, shape, data, pixels in items
        ]
    )
