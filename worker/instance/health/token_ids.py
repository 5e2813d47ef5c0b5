"""Refuses token ids beyond a model's vocabulary before they reach its device: they may kill it.

How many there are the config says (`vocabulary_size`), or a pass over rows that the model takes:
the rows of the embedding that looks an input's values up as they came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared.datatypes import Array
from shared.errors import BadRequest, described
from shared.model_spec import ModelSpec
from worker.repository.config.text import vocabulary_sizes

log = logging.getLogger(__name__)

LOOKUPS = {"aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"}
"""The operators that take a table, then whole numbers that must be among its rows."""
COPIES = {"aten::to", "aten::_to_copy", "aten::clone", "aten::contiguous", "aten::alias"}
"""What keeps each value. A view begins where the tensor does that it is a view of."""


class Vocabulary(NamedTuple):
    """How many token ids each input may hold, from 0 on; inputs that hold none are not in it."""

    sizes: Mapping[str, int]

    def check(self, arrays: Mapping[str, Array]) -> None:
        """Raise BadRequest naming an id that is in no vocabulary."""
        for name, size in self.sizes.items():
            array = arrays.get(name)
            if array is None or not array.size:
                continue
            low, high = array.min(), array.max()
            if not (low > -1 and high < size):  # also of what is no number
                wrong = low if not low > -1 else high
                raise BadRequest(
                    f"input {name!r}: {wrong} is no token id of the model, expected 0 to {size - 1}"
                )


def vocabulary_of(
    spec: ModelSpec, run: Callable[[Mapping[str, Array]], object], inputs: Mapping[str, Array]
) -> Vocabulary | None:
    """Return what is known of a model's vocabularies, None when nothing is.

    `run` makes a pass over `inputs` that the model is known to take, which may be none.
    """
    sizes = dict(vocabulary_sizes(spec))
    unsaid = {
        name: array
        for name, array in inputs.items()
        if array.dtype.kind in "iu" and array.size and name not in sizes
    }
    if unsaid:
        try:
            with _Lookups(unsaid) as seen:
                run(inputs)
            sizes |= seen.rows
        except BaseException as error:  # a border: it need not take being watched
            log.info("%s: its tables are not known, it raised %s", spec.key, described(error))
    return Vocabulary(sizes) if sizes else None


class _Lookups(TorchDispatchMode):
    """Watches a pass, whichever format the model came in, for tables that it looks inputs up in."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: dict[str, int] = {}
        self._known = {array.ctypes.data: (name, array.size) for name, array in inputs.items()}
        self._kept: list[torch.Tensor] = []  # memory that is given back would be known by another

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if name in LOOKUPS and (known := self._input(args[1])):
            rows = len(args[0])
            self.rows[known] = min(rows, self.rows.get(known, rows))
        source = self._input(args[0]) if args else ""
        if source and func._schema.is_mutable:
            self._known.pop(args[0].data_ptr(), None)
        found = func(*args, **(kwargs or {}))
        if source and name in COPIES and isinstance(found, torch.Tensor):
            self._known[found.data_ptr()] = (source, found.numel())
            self._kept.append(found)
        return found

    def _input(self, value: object) -> str:
        """Return which input's values a tensor holds, all of them; empty for none's."""
        if not isinstance(value, torch.Tensor):
            return ""
        name, size = self._known.get(value.data_ptr(), ("", 0))
        return name if size == value.numel() else ""
