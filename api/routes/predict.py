"""POST /predict: a picture, a sentence or a few numbers, for people with curl."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.datastructures import FileStorage

from api.access.guard import KEY, may_know
from api.infer.inference import checked_version
from api.infer.options import options_of
from api.infer.question import Question
from api.payloads.infer_request import check_missing, input_tensor
from api.routes.flask_side import response_of, services
from api.server.body import read_any, read_form
from shared.errors import BadRequest, shown
from shared.messages import AnswerForm, Buffer, Tensor
from shared.model_spec import MAX_TOP_K, ModelSpec

blueprint = Blueprint("predict", __name__)
DEFAULT_TOP_K = 3
MAX_LISTED = 10
SENT = {"image": "a picture", "text": '{"text": "..."}', "tensor": '{"input_tensor": rows}'}
"""The body for each kind of input."""


@blueprint.post("/predict")
@blueprint.post("/predict/<name>")
@blueprint.post("/predict/<name>/versions/<version>")
def predict(name: str | None = None, version: str | None = None) -> Response:
    """Answer pictures (multipart `file` parts or the raw body), texts or tensors (JSON).

    Without a model's name, the one model that takes this kind of input answers; 400 lists the
    candidates when there are several. Next stop: `Inference.respond`.
    """
    catalog = services().catalog
    if request.mimetype == "multipart/form-data":
        files = _files()
        return catalog.by_current(lambda: _pictures(files, name, version, one=None))
    body = read_any()
    raw = body if isinstance(body, bytes) or not _is_json(body) else bytes(body)
    if isinstance(raw, bytes) and _is_json(raw):
        return catalog.by_current(lambda: _json(raw, name, version))
    if not raw:
        raise BadRequest(
            'the body is empty: send a picture, {"text": ...} or {"input_tensor": ...}'
        )
    return catalog.by_current(lambda: _pictures([raw], name, version, one=True))


def _is_json(raw: Buffer) -> bool:
    return request.mimetype == "application/json" or bytes(raw[:64]).lstrip()[:1] == b"{"


def _files() -> list[bytes]:
    form, parts = read_form()
    files = parts.getlist("file")
    if not files:
        names = sorted({*parts, *form})
        raise BadRequest(
            f'multipart has no part named "file" with a file name, only {shown(names)}'
        )
    return [_read(file) for file in files]


def _read(file: FileStorage) -> bytes:
    """Read and close, since large files stand on the disk."""
    with closing(file):
        content: bytes = file.read()
    return content


def _pictures(
    pictures: Sequence[Buffer], name: str | None, version: str | None, *, one: bool | None
) -> Response:
    spec = _model("image", name, version)
    inputs = (services().readers.pictures(pictures, spec),)
    one = len(pictures) == 1 if one is None else one
    return _described(spec, inputs, version, tuple(pictures), one=one)


def _json(raw: bytes, name: str | None, version: str | None) -> Response:
    found = services().readers.predict_body(raw, lambda kind: _model(kind, name, version))
    if found.what == "text":
        return _texts(found.value, raw, name, version)
    if found.what == "input_tensor":
        return _tensor(found.value, raw, name, version)
    raise BadRequest(f'the JSON body needs "text" or "input_tensor", it has {shown(found.value)}')


def _texts(value: str | list[str], raw: bytes, name: str | None, version: str | None) -> Response:
    texts = [value] if isinstance(value, str) else value
    spec = _model("text", name, version)
    if not texts and not spec.batched:
        raise BadRequest('"text" is an empty list')
    inputs, cut = services().tokenizers.encode(texts, spec)
    return _described(spec, inputs, version, (raw,), one=isinstance(value, str), cut=cut)


def _tensor(data: Any, raw: bytes, name: str | None, version: str | None) -> Response:
    """Answer `{"input_tensor": rows}` with the first output's raw rows."""
    spec = _model("tensor", name, version)
    if len(spec.inputs) != 1:
        raise BadRequest(f"'{spec.name}' has {len(spec.inputs)} inputs, use /v2/models/.../infer")
    declared = spec.inputs[0]
    if data == [] and spec.batched:
        return _respond(spec, spec.no_rows([declared]), AnswerForm("tensor"), version, (raw,))
    tensor = data if isinstance(data, Tensor) else input_tensor(data, spec)
    return _respond(spec, (tensor,), AnswerForm("tensor"), version, (raw,))


def _model(kind: str, name: str | None, version: str | None) -> ModelSpec:
    """Return the named model, or the only one that takes `kind`; raises BadRequest."""
    catalog = services().catalog
    if name is not None:
        spec = catalog.serving(name, checked_version(version))
        if kind not in ("tensor", spec.input_kind):
            raise BadRequest(
                f"'{name}' takes {spec.input_kind} input, not {kind}: send {SENT[spec.input_kind]}"
            )
        return spec
    key = request.environ.get(KEY)
    specs = [spec for spec in catalog.specs() if may_know(key, spec.name)]
    found = [spec for spec in specs if spec.input_kind == kind]
    # Who asks nobody by name wants to be told what this is: /v1/embeddings is for vectors.
    fitting = [spec.name for spec in found if not spec.gives_vectors] or [it.name for it in found]
    if len(fitting) != 1:
        raise BadRequest(_which(kind, fitting, specs))
    return catalog.serving(fitting[0])


def _which(kind: str, fitting: list[str], served: list[ModelSpec]) -> str:
    """Return why no model is chosen: several take this kind of input, or none does."""
    if fitting:
        return (
            f"{len(fitting)} models take {kind} input, name one in the path: "
            f"/predict/<model> with one of {_listed(fitting)}"
        )
    if not served:
        return f"no model takes {kind} input, because none is served"
    kinds = [f"'{spec.name}' takes {spec.input_kind}s" for spec in served]
    return f"no model takes {kind} input: {', '.join(kinds[:MAX_LISTED])}{_more(kinds)}"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:MAX_LISTED]) + _more(names)


def _more(items: list[str]) -> str:
    return f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""


def _described(
    spec: ModelSpec,
    inputs: tuple[Tensor, ...],
    version: str | None,
    sent: tuple[Buffer, ...],
    *,
    one: bool,
    cut: list[bool] | None = None,
) -> Response:
    check_missing([tensor.name for tensor in inputs], spec)
    form = AnswerForm("rows", top_k=_top_k(), one=one, cut=tuple(cut or ()))
    return _respond(spec, inputs, form, version, sent)


def _respond(
    spec: ModelSpec,
    inputs: tuple[Tensor, ...],
    form: AnswerForm,
    version: str | None,
    sent: tuple[Buffer, ...],
) -> Response:
    options = options_of(request.environ, {})
    question = Question(spec, inputs, (), options, form, version is not None, sent)
    return response_of(services().inference.respond(question, request.environ))


def _top_k() -> int:
    raw = request.args.get("top_k", str(DEFAULT_TOP_K))
    # subtle: Python refuses to read thousands of digits.
    digits = raw.lstrip("0") if raw.isascii() and raw.isdigit() else ""
    if not 1 <= len(digits) <= len(str(MAX_TOP_K)) or int(digits) > MAX_TOP_K:
        raise BadRequest(f"top_k={shown(raw)} must be a number from 1 to {MAX_TOP_K}")
    return int(digits)
