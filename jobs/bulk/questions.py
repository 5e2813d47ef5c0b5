"""Items become requests of as many rows as wanted, each row as the model's clients send it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jobs.bulk.sources import Item, read_picture
from shared.datatypes import Array
from shared.errors import BadRequest, FerryError
from shared.inputs.pictures import picture_batch
from shared.inputs.tables import (
    MAX_COLUMNS,
    PICTURE_COLUMNS,
    TEXT_COLUMNS,
    declared_inputs,
    only_column,
)
from shared.inputs.texts import TokenizerCache
from shared.messages import Tensor
from shared.model_spec import ModelSpec

log = logging.getLogger(__name__)


class Question(NamedTuple):
    """Items that one request asks for, with its inputs; or a single one and why it asks nothing."""

    items: tuple[Item, ...]
    inputs: tuple[Tensor, ...] = ()
    error: str = ""

    @property
    def halves(self) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
        """Return its items in two parts."""
        middle = len(self.items) // 2
        return self.items[:middle], self.items[middle:]


class Questions:
    """Makes the requests of one model version."""

    def __init__(self, spec: ModelSpec, tokenizers: TokenizerCache, folder: Path) -> None:
        """Ask `spec`; pictures that a table names lie in `folder`."""
        self._spec = spec
        self._tokenizers = tokenizers
        self._folder = folder.resolve()

    def of(self, items: tuple[Item, ...]) -> Iterator[Question]:
        """Yield few requests for these items; an item that makes none is one with an error.

        Raises a FerryError that says nothing of an item, such as ModelNotReady.
        """
        try:
            inputs = self._inputs(items)
        except Exception as error:  # a border: whatever an item's encoding raises is its error
            if isinstance(error, FerryError) and not isinstance(error, BadRequest):
                raise
            if len(items) == 1:
                log.debug("%s is answered with an error: %s", items[0].source, type(error).__name__)
                yield Question(items, error=str(error) or type(error).__name__)
                return
            for half in Question(items).halves:
                yield from self.of(half)
        else:
            yield Question(items, inputs)

    def _inputs(self, items: Sequence[Item]) -> tuple[Tensor, ...]:
        """Return the inputs of these items; raises BadRequest or ValueError where one has none."""
        for item in items:
            if item.error:
                raise ValueError(item.error)
        wholes = [item.whole for item in items if item.whole is not None]
        if wholes and len(wholes) != len(items):
            raise ValueError("it has no columns, as others have")
        columns = {} if wholes else _columns(items)
        spec = self._spec
        if spec.image is not None and (found := self._pictures(wholes, columns)):
            return (picture_batch(found, spec),)
        if spec.input_kind == "text" and (texts := _texts(wholes, columns, spec)):
            return self._tokenizers.encode(texts, spec)[0]
        if wholes:
            columns = {spec.inputs[0].name: wholes}
        return tuple(
            Tensor.of(name, _finite(name, array if spec.batched else array[0]))
            for name, array in declared_inputs(columns, spec).items()
        )

    def _pictures(self, wholes: list[Any], columns: Mapping[str, list[Any]]) -> list[bytes]:
        """Return encoded pictures: the items themselves, or the files that a column names."""
        if wholes:
            return [each for each in wholes if isinstance(each, bytes)]
        name = only_column(columns, PICTURE_COLUMNS, self._spec)
        if name is None:
            raise ValueError(
                f"there is no column {PICTURE_COLUMNS[0]!r} among {sorted(columns)[:MAX_COLUMNS]}"
            )
        if not all(isinstance(each, str | bytes) for each in columns[name]):
            return []  # the numbers of a tensor
        return [each if isinstance(each, bytes) else self._file(each) for each in columns[name]]

    def _file(self, name: str) -> bytes:
        file = (self._folder / name).resolve()
        if not file.is_relative_to(self._folder):
            raise ValueError(f"{name!r} lies outside of the input's folder")
        try:
            return read_picture(file)
        except OSError as error:
            raise ValueError(f"{name!r} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error


def _finite(name: str, array: Array) -> Array:
    """Return an array; raises ValueError for NaN and infinities, which no JSON request has."""
    if not array.dtype.hasobject and not np.isfinite(array).all():
        raise ValueError(f"input {name!r}: NaN or an infinite number, expected finite ones")
    return array


def _columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    names = items[0].columns.keys()
    for item in items:
        if item.columns.keys() != names:
            raise ValueError(f"its columns are {sorted(item.columns)[:MAX_COLUMNS]}")
    return {name: [item.columns[name] for item in items] for name in names}


def _texts(wholes: list[Any], columns: Mapping[str, list[Any]], spec: ModelSpec) -> list[str]:
    """Return the items as texts, none where a column is called as an input of token ids."""
    name = None if wholes else only_column(columns, TEXT_COLUMNS, spec)
    if not wholes and (name is None or (spec.text is not None and name in spec.inputs_by_name)):
        return []
    texts = wholes if name is None else columns[name]
    if not all(isinstance(each, str) for each in texts):
        raise ValueError("expected a text")
    return list(texts)
