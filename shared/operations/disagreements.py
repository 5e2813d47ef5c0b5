"""Requests to which a shadow answered otherwise, as they are kept to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgpack

from shared.errors import BadMessage
from shared.messages import Tensor

LARGEST_PART_BYTES = 160 * 1024
"""Inputs or outputs above it are left out of an example; a picture of 224 x 224 fits."""


class Disagreement(NamedTuple):
    """One row of a request at a time (s), its inputs, and both versions' outputs for it.

    Inputs or outputs that were too large to be kept are empty. A shadow that failed has an `error`.
    """

    at: float
    inputs: tuple[Tensor, ...]
    served: tuple[Tensor, ...]
    shadow: tuple[Tensor, ...]
    error: str = ""

    def encode(self) -> bytes:
        """Return it as it is stored."""
        encoded: bytes = msgpack.packb(list(self))
        return encoded

    @classmethod
    def decode(cls, raw: bytes) -> Disagreement:
        """Read it as it was stored; raises BadMessage."""
        try:
            at, *parts, error = msgpack.unpackb(raw)
            inputs, served, shadow = (
                tuple(Tensor(name, kind, tuple(shape), *rest) for name, kind, shape, *rest in part)
                for part in parts
            )
        except (ValueError, TypeError, msgpack.UnpackException) as wrong:
            raise BadMessage(f"no example of this version: {wrong}") from wrong
        return cls(float(at), inputs, served, shadow, str(error))


def kept_row(tensors: Sequence[Tensor], row: int | None) -> tuple[Tensor, ...]:
    """Return one row of tensors, or all of them for None; nothing where that is too large."""
    found = tuple(tensors) if row is None else tuple(_row(each, row) for each in tensors)
    return found if sum(len(each.data) for each in found) <= LARGEST_PART_BYTES else ()


def _row(tensor: Tensor, row: int) -> Tensor:
    return Tensor.of(tensor.name, tensor.array()[row : row + 1], pixels=tensor.pixels)
