"""POST /v1/embeddings as OpenAI has it: its body, and vectors as it answers them.

Source: https://platform.openai.com/docs/api-reference/embeddings and the client `openai`, which
asks for base64 unless it is told otherwise.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from api.payloads.json_arrays import json_type
from api.payloads.v2_json import load_object
from shared.datatypes import Array
from shared.errors import BadModelOutput, BadRequest

BODY_FIELDS = ("input", "model", "encoding_format", "dimensions", "user")
ENCODINGS = ("float", "base64")
MAX_TEXTS = 2048
LONGEST_SAID = 40
_STRINGS, _IDS, _ROWS = {str}, {int}, {list}

Text = str | list[int]
"""A text, or its token ids."""


class EmbeddingBody(NamedTuple):
    """A checked request: `model` as it was named, its texts, and the form of their vectors.

    `dimensions` are the first numbers of each vector that are wanted, None for all.
    """

    model: str
    texts: list[Text]
    encoding_format: str = "float"
    dimensions: int | None = None

    @property
    def name_and_version(self) -> tuple[str, str | None]:
        """Return the model's name, and its version if it was named as `name/version`."""
        name, _, version = self.model.rpartition("/")
        is_version = version.isascii() and version.isdigit()
        return (name, version) if name and is_version else (self.model, None)


def parse_embeddings(raw: bytes) -> EmbeddingBody:
    """Return the request in a body; raises BadRequest about the field that is wrong."""
    body = load_object(raw, tensor_keys=("input",))
    unknown = next((name for name in body if name not in BODY_FIELDS), None)
    if unknown is not None:
        raise BadRequest.about(
            unknown[:LONGEST_SAID],
            f"unrecognized request argument {_said(unknown)}: expected {', '.join(BODY_FIELDS)}",
        )
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest.about("model", f'"model" must be a model\'s name, not {_said(model)}')
    encoding = body.get("encoding_format")
    if encoding not in (None, *ENCODINGS):
        raise BadRequest.about(
            "encoding_format", f'"encoding_format" must be float or base64, not {_said(encoding)}'
        )
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise BadRequest.about(
            "dimensions", f'"dimensions" must be a whole number from 1, not {_said(dimensions)}'
        )
    user = body.get("user")
    if not isinstance(user, str | None):
        raise BadRequest.about("user", f'"user" must be a string, not {json_type(user)}')
    return EmbeddingBody(model, _texts(body.get("input")), encoding or "float", dimensions)


def cut_vectors(vectors: Array, dimensions: int | None, numbers: Sequence[int]) -> Array:
    """Return FP32 [texts, size] cut to `dimensions`, and then of length 1 again.

    Raises BadRequest for more dimensions than there are, BadModelOutput for what is no number;
    `numbers` are the texts' in the request.
    """
    size = vectors.shape[1]
    check_dimensions(dimensions, size)
    wrong = ~np.isfinite(vectors).all(axis=1)
    if wrong.any():
        number = numbers[int(wrong.argmax())]
        raise BadModelOutput(f"the vector of text {number} holds NaN or infinities")
    if dimensions in (None, size):
        return vectors
    kept = vectors[:, :dimensions].astype(np.float64)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    found: Array = (kept / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return found


def check_dimensions(dimensions: int | None, size: int) -> None:
    """Raise BadRequest for more dimensions than vectors of this size have."""
    if dimensions is not None and dimensions > size:
        raise BadRequest.about(
            "dimensions", f'"dimensions" must be from 1 to {size}, not {dimensions}'
        )


def written_vectors(vectors: Array, numbers: Sequence[int], encoding: str) -> Iterator[bytes]:
    """Yield each vector as the object that answers it: FP32 [texts, size], by number.

    In base64 it is little-endian whatever the machine is; as numbers each is the shortest that
    reads as the same FP32.
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    for number, row in zip(numbers, rows, strict=True):
        if encoding == "base64":
            shown = b'"%b"' % b64encode(row.tobytes())
        else:
            shown = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
        yield b'{"object":"embedding","index":%d,"embedding":%b}' % (number, shown)


def embedding_list(written: Sequence[bytes], model: str, token_count: int) -> bytes:
    """Return the whole answer, of vectors in the order of their texts."""
    usage = {"prompt_tokens": token_count, "total_tokens": token_count}
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
        b",".join(written), orjson.dumps(model), orjson.dumps(usage),
    )  # fmt: skip


def _texts(value: Any) -> list[Text]:
    """Return what is to be embedded; raises BadRequest about `input`."""
    if isinstance(value, str):
        return [_checked(0, value)]
    if not isinstance(value, list) or not value:
        wanted = "a text, token ids, or a list of either"
        found = "an empty list" if value == [] else _said(value)
        raise BadRequest.about("input", f'"input" must be {wanted}, not {found}')
    kinds = set(map(type, value))
    if kinds == _IDS:
        return [_checked(0, value)]
    if kinds not in (_STRINGS, _ROWS):
        raise BadRequest.about(
            "input",
            '"input" must be a list of texts, of token ids, or of lists of token ids, '
            f"not one of {' and '.join(sorted({json_type(each) for each in value}))}",
        )
    if len(value) > MAX_TEXTS:
        raise BadRequest.about(
            "input", f'"input" has {len(value)} texts, at most {MAX_TEXTS} are taken'
        )
    return [_checked(number, each) for number, each in enumerate(value)]


def _checked(number: int, item: Any) -> Text:
    """Return a text or its token ids; raises BadRequest where it is empty or holds others."""
    if isinstance(item, str):
        if not item.strip():
            raise BadRequest.about("input", f"text {number} is empty")
        return item
    if not item:
        raise BadRequest.about("input", f"text {number} is empty")
    if set(map(type, item)) != _IDS:
        odd = next(each for each in item if type(each) is not int)
        raise BadRequest.about(
            "input", f"text {number} must be token ids, which are whole numbers, not {_said(odd)}"
        )
    ids: list[int] = item
    return ids


def _said(value: Any) -> str:
    """Return a wrong value for a sentence: itself if it is short, else its kind."""
    if (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= LONGEST_SAID)
    ):
        return orjson.dumps(value).decode()
    return json_type(value)
