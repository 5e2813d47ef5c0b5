"""Makes up inputs for a model of which nothing is known but its declarations.

A model may refuse any of them, and be right: how long its sequences are, which words it knows, what
its numbers mean is nowhere declared. So several guesses are tried, and none of them decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice, product
from math import prod
from typing import NamedTuple

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.model_spec import ModelSpec, TensorSpec

SIZES = (16, 32, 1, 2, 3, 4, 17, 64, 224, 480, 1024, 4096, 16000, 48000)
"""Tried for a dimension of -1, all at once: 480 is a multiple of nearly everything that is."""
FEW_SIZES = (16, 480, 1)
"""Tried with each filling but the first."""
MAX_ELEMENTS = 2**24
"""Of one input: three free dimensions of 4096 are nobody's."""
MAX_HINTS = 6
MAX_HINTED = 40
NOISE_SEED = 20260


class Filling(NamedTuple):
    """The values of an input by its kind; None rises from element to element of a row."""

    number: float | None
    integer: int | None
    text: bytes


FILLINGS = (
    Filling(1, 1, b"1"),
    Filling(0.5, 0, b"1"),
    Filling(0, 1, b""),
    Filling(None, None, b"{}"),
    Filling(0, 0, b"a text"),
)


class Guess(NamedTuple):
    """The sizes of all free dimensions in the inputs' order, the values, optional inputs or not."""

    sizes: tuple[int, ...]
    filling: Filling = FILLINGS[0]
    optional: bool = True

    def encode(self) -> bytes:
        """Return the guess as JSON, for a later process."""
        return json.dumps([self.sizes, FILLINGS.index(self.filling), self.optional]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Guess:
        """Return the guess that `encode` wrote."""
        sizes, filling, optional = json.loads(data)
        return cls(tuple(sizes), FILLINGS[filling], optional)


class Guesses:
    """The guesses for one model, the likeliest first; `refused` lets its words lead to more."""

    def __init__(self, spec: ModelSpec) -> None:
        """Guess for `spec`."""
        self._spec = spec
        self._free = sum(size == -1 for tensor in spec.inputs for size in _dims(spec, tensor))
        self._hints: dict[int, None] = {}

    def __iter__(self) -> Iterator[Guess]:
        """Yield guesses until one is taken, each of a size that is no burden."""
        return filter(self._is_small, self._all())

    def refused(self, guess: Guess, message: str) -> None:
        """Take the numbers of a refusal, but those guessed, for sizes that the model wants."""
        for number in map(int, re.findall(r"\b\d{1,5}\b", message)):
            if number and number not in guess.sizes and len(self._hints) < MAX_HINTS:
                self._hints[number] = None

    def _all(self) -> Iterator[Guess]:
        for size in SIZES if self._free else (1,):
            yield Guess((size,) * self._free)
        for size, filling in product(FEW_SIZES if self._free else (1,), FILLINGS[1:]):
            yield Guess((size,) * self._free, filling)
        if any(tensor.optional for tensor in self._spec.inputs):
            yield Guess((SIZES[0],) * self._free, optional=False)
        if self._free:
            hinted = product([*self._hints, *FEW_SIZES], repeat=self._free)
            yield from map(Guess, islice(hinted, MAX_HINTED))

    def _is_small(self, guess: Guess) -> bool:
        return all(prod(shape) <= MAX_ELEMENTS for shape in _shapes(self._spec, guess).values())


def made_up(spec: ModelSpec, guess: Guess, rows: int) -> dict[str, Array]:
    """Return `rows` equal rows as guessed, pictures as pixels; nobody else holds these arrays."""
    made = {}
    for name, dims in _shapes(spec, guess).items():
        tensor = spec.inputs_by_name[name]
        if guess.optional or not tensor.optional:
            has_rows = spec.batched or _is_picture(spec, tensor)
            made[name] = _filled(spec, tensor, (rows, *dims) if has_rows else dims, guess.filling)
    return made


def noise(spec: ModelSpec, guess: Guess, rows: int) -> dict[str, Array]:
    """Return seeded rows that differ, in the sizes guessed, the later ones larger than the first.

    Pictures are noise, integers 0 and 1, which are in every vocabulary and every mask.
    """
    random = np.random.default_rng(NOISE_SEED)
    return {
        name: _noise(spec, spec.inputs_by_name[name], array, random)
        for name, array in made_up(spec, guess, rows).items()
    }


def _noise(spec: ModelSpec, tensor: TensorSpec, array: Array, random: np.random.Generator) -> Array:
    if _is_picture(spec, tensor):
        noise = random.integers(0, 128, array.shape)
        noise[1:] += 127
        return noise.astype(np.uint8)
    if array.dtype == object or usual_value(tensor) is not None:
        return array
    if tensor.datatype.startswith(("FP", "BF")):
        values = random.normal(size=array.shape)
        if spec.batched:
            values[1:] = 2 * values[1:] + 1
        return values.astype(array.dtype)
    bits = random.integers(0, 2, array.shape)
    bits[..., :1] = 1  # no mask is all zeros
    return (2 * bits if tensor.pad == 1 else bits).astype(array.dtype)


def _filled(spec: ModelSpec, tensor: TensorSpec, shape: tuple[int, ...], filling: Filling) -> Array:
    if _is_picture(spec, tensor):
        return np.ones(shape, np.uint8)
    dtype = NUMPY_TYPES[tensor.datatype]
    if dtype.hasobject:
        return np.full(shape, filling.text, dtype)
    is_float = tensor.datatype.startswith(("FP", "BF"))
    value = filling.number if is_float else filling.integer
    usual = usual_value(tensor)
    if value is not None or usual is not None:
        found = value if usual is None else usual
        return np.full(shape, 2 if found == tensor.pad == 1 else found, dtype)
    row = prod(shape[1:] if spec.batched else shape)
    rising = np.arange(row) / (row if is_float else 1)
    return np.resize(rising, shape).astype(dtype)


def usual_value(tensor: TensorSpec) -> int | None:
    """Return the value that an input has by its name: a mask lets all through."""
    return 0 if tensor.name == "token_type_ids" else 1 if "mask" in tensor.name else None


def _shapes(spec: ModelSpec, guess: Guess) -> Mapping[str, tuple[int, ...]]:
    """Return each input's shape of a row."""
    sizes = iter(guess.sizes)
    return {
        tensor.name: tuple([next(sizes) if size == -1 else size for size in _dims(spec, tensor)])
        for tensor in spec.inputs
    }


def _dims(spec: ModelSpec, tensor: TensorSpec) -> tuple[int, ...]:
    image = spec.image
    if image and _is_picture(spec, tensor):
        return (image.height, image.width, len(image.channels))
    return tensor.dims


def _is_picture(spec: ModelSpec, tensor: TensorSpec) -> bool:
    return spec.image is not None and spec.image.input == tensor.name
