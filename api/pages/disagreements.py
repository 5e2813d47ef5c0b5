"""Requests to which a shadow answered otherwise, as the operations page shows them.

A picture is shown as that, a text's tokens as the text, and other tensors by their first values.
"""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

from PIL import Image

from api.payloads.predictions import describe_rows
from shared.errors import FerryError
from shared.inputs.pictures import picture_batch
from shared.inputs.texts import TokenizerCache
from shared.messages import InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.operations.disagreements import Disagreement

SHOWN_CLASSES, SHOWN_VALUES, SHOWN_CHARACTERS = 3, 64, 2000


def shown_disagreement(
    found: Disagreement, served: ModelSpec, shadow: ModelSpec, tokenizers: TokenizerCache
) -> dict[str, Any]:
    """Return when it was, the inputs, and both answers as `/predict` gives them."""
    return {
        "at": round(found.at, 3),
        "inputs": _inputs(found.inputs, shadow, tokenizers),
        "served": _answer(found.served, served),
        "shadow": _answer(found.shadow, shadow),
        "error": found.error,
    }


def _inputs(
    tensors: tuple[Tensor, ...], spec: ModelSpec, tokenizers: TokenizerCache
) -> list[dict[str, Any]]:
    if spec.text is not None and (text := _text(tensors, spec, tokenizers)) is not None:
        return [{"name": "text", "kind": "text", "value": text}]
    return [_input(each, spec) for each in tensors]


def _text(tensors: tuple[Tensor, ...], spec: ModelSpec, tokenizers: TokenizerCache) -> str | None:
    """Return the text of which token ids were made, None where there is none to be told."""
    ids = next((each for each in tensors if each.name == "input_ids"), None)
    if ids is None:
        return None
    try:
        return tokenizers.text_of(ids.array().reshape(-1).tolist(), spec)[:SHOWN_CHARACTERS]
    except (FerryError, OverflowError, TypeError):  # no such tokens, or no tokenizer any more
        return None


def _input(tensor: Tensor, spec: ModelSpec) -> dict[str, Any]:
    head = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.pixels and spec.image is not None:
        if tensor.datatype == "BYTES":  # as it came, the worker decodes it
            tensor = picture_batch(tensor.array().tolist(), spec)
        return head | {"kind": "picture", "value": _picture(tensor, spec.image.channels)}
    values = tensor.array().reshape(-1)
    if tensor.datatype == "BYTES":
        text = b"\n".join(values).decode(errors="replace")
        return head | {"kind": "text", "value": text[:SHOWN_CHARACTERS]}
    few = [float(each) for each in values[:SHOWN_VALUES]]
    return head | {"kind": "numbers", "value": few, "count": values.size}


def _picture(tensor: Tensor, channels: str) -> str:
    """Return a picture as the model saw it, as a PNG in a `data:` address."""
    pixels = tensor.array()[0]
    if channels == "BGR":
        pixels = pixels[..., ::-1]
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels.copy()).save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _answer(outputs: tuple[Tensor, ...], spec: ModelSpec) -> dict[str, Any] | None:
    """Return an answer's one row, None where it was too large or no row can be made of it."""
    try:
        rows = describe_rows(spec, InferResult(outputs), SHOWN_CLASSES) if outputs else []
    except (FerryError, ValueError, IndexError, KeyError):  # outputs that another release kept
        return None
    return rows[0] if rows else None
