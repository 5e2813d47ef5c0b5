"""The parsers of what clients send, each called as its route calls it; for any bytes at all."""

from __future__ import annotations

from typing import Any

from flask import Flask
from registered import spec
from werkzeug.exceptions import HTTPException

from api.app import create_app
from api.infer.options import options_of
from api.payloads.binary_tensors import HEADER_VARIABLE, header_length
from api.payloads.v1_json import parse_predict
from api.payloads.v2_json import parse_infer
from api.server.body import read_form
from shared.errors import BadRequest
from shared.inputs.pictures import picture_batch
from shared.messages import InferRequest, Tensor
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from shared.settings import Settings

LIMIT = 100_000


def _one(name: str, datatype: str, *dims: int, batched: bool = True) -> ModelSpec:
    model = spec(name, TensorSpec(name="x", datatype=datatype, dims=dims))
    return model if batched else model.model_copy(update={"max_batch_size": 0})


MODELS = (
    _one("numbers", "FP32", 2),
    _one("loose", "FP32", -1, batched=False),
    _one("grid", "INT16", -1, -1, batched=False),
    _one("words", "BYTES", -1, batched=False),
    _one("word", "BYTES", 1),
    _one("truths", "BOOL", 2),
    _one("halves", "FP16", 2),
    _one("brains", "BF16", -1),
    _one("whole", "UINT64", 2),
    spec(
        "pairs",
        TensorSpec(name="a", datatype="FP32", dims=(2,)),
        TensorSpec(name="b", datatype="BYTES", dims=(1,)),
    ),
    spec(
        "pictures",
        TensorSpec(name="x", datatype="FP32", dims=(3, 8, 8)),
        image=ImageInput(input="x", height=8, width=8),
    ),
)

_FORMS = Flask("forms")
_FORMS.config.update(MAX_CONTENT_LENGTH=LIMIT, MAX_FORM_PARTS=256)


def check_v2(raw: bytes, model: ModelSpec) -> None:
    """Parse a v2 body; what is accepted must be a request that a worker can read."""
    body = parse_infer(raw, model)
    options_of({}, body.parameters).level(model)
    _check_accepted(body.inputs, model)


def check_frame(raw: bytes, model: ModelSpec, header: str) -> None:
    """Parse JSON and tensor data behind it, cut by the header."""
    body = parse_infer(raw, model, header_length({HEADER_VARIABLE: header}, len(raw)))
    options_of({}, body.parameters).level(model)
    _check_accepted(body.inputs, model)


def check_v1(raw: bytes, model: ModelSpec) -> None:
    """Parse version 1's body."""
    _check_accepted(parse_predict(raw, model, _no_tokenizers())[1], model)


def check_form(raw: bytes) -> None:
    """Parse a form and decode its files as pictures, as /predict does."""
    with _FORMS.test_request_context(
        "/predict", method="POST", data=raw, content_type="multipart/form-data; boundary=xyz"
    ):
        try:
            files = read_form()[1].getlist("file")
        except HTTPException as error:
            raise BadRequest(str(error)) from error
        if files:
            picture_batch([file.read() for file in files], MODELS[-1])


def app_that_refuses_what_fits(settings: Settings) -> Flask:
    """Return the API with a queue that refuses: what is well formed is a 400 as well."""
    app = create_app(settings)

    def refuse(*_: Any, **_named: Any) -> None:
        raise BadRequest("it fits")

    app.extensions["ferry"].queues.ask = refuse
    return app


def _no_tokenizers() -> Any:
    return None


def _check_accepted(inputs: tuple[Tensor, ...], model: ModelSpec) -> None:
    assert [tensor.name for tensor in inputs] == [declared.name for declared in model.inputs]
    request = InferRequest("id", 1, inputs, signature=model.signature(inputs))
    for tensor in InferRequest.decode("id", 1, request.encode()).inputs:
        assert tensor.array().size > 0 or not model.has_rows(inputs)
