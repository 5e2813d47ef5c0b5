"""What JSON may hold, by size and by count, looked at before any of it is parsed.

Parsed, JSON takes up to fifty times its own size: `[[],[],...]` is a list of lists.
"""

from __future__ import annotations

from shared.bodies.turns import let_others
from shared.errors import BadRequest, PayloadTooLarge
from shared.messages import Buffer
from shared.model_spec import ModelSpec

LIGHT_JSON_BYTES = 256 * 1024
COUNTED_BYTES = 2**20
FEW_BYTES = 16 * 1024
"""Whatever stands in so little is parsed within some milliseconds."""
LIGHT_BRACKETS = 4096
"""Lists and objects that are made within some milliseconds: each costs a hundred numbers' time."""
OTHER_VALUES = 10_000
"""Values of a body besides its tensors' elements: names, shapes, parameters."""


def check_json(text: Buffer, spec: ModelSpec, max_bytes: int) -> None:
    """Raise PayloadTooLarge, or BadRequest for more values than the model's largest request has.

    fast: commas and brackets are counted as bytes. In strings they may be as many as they like, so
    of a model that takes strings the size alone is limited.
    """
    check_json_size(len(text), max_bytes)
    if spec.text or any(each.datatype == "BYTES" for each in spec.inputs):
        return
    most = spec.batch_rows * sum(map(spec.most_elements, spec.inputs))
    found = _values_in(text, most + OTHER_VALUES)
    if found > most + OTHER_VALUES:
        raise BadRequest(
            f"the JSON has at least {found} values, the largest request to '{spec.name}' has "
            f"{most} elements"
        )


def _values_in(text: Buffer, enough: int) -> int:
    """Return how many values there are at least; no more is looked at than tells of `enough`."""
    view, commas, brackets, braces = memoryview(text), 0, 0, 0
    for start in range(0, len(view), COUNTED_BYTES):
        if start:
            let_others()
        piece = bytes(view[start : start + COUNTED_BYTES])
        commas += piece.count(b",")
        brackets += piece.count(b"[")
        braces += piece.count(b"{")
        if max(commas, brackets // 2, braces) > enough:
            break
    return max(commas, brackets // 2, braces)


def is_light_json(raw: Buffer, length: int) -> bool:
    """Tell whether the JSON in the first `length` bytes is parsed within some milliseconds."""
    if length <= FEW_BYTES:
        return True
    if length > LIGHT_JSON_BYTES:
        return False
    plain = bytes(memoryview(raw)[:length])
    return plain.count(b"[") + plain.count(b"{") <= LIGHT_BRACKETS


def check_json_size(length: int, max_bytes: int) -> None:
    """Raise PayloadTooLarge for JSON above FERRY_MAX_JSON_BYTES."""
    if length > max_bytes:
        raise PayloadTooLarge(
            f"the JSON is {length} bytes, at most {max_bytes} bytes are taken: send large tensors "
            "as binary data"
        )
