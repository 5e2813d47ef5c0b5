"""Rows that models are asked with: real ones or made-up ones, in batches of any size.

They are what reaches an instance: pixels of pictures, ids of texts, or the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModel, BadRequest
from shared.inputs.pictures import picture_batch
from shared.inputs.texts import TokenizerCache
from shared.messages import Tensor
from shared.model_spec import ModelSpec, TensorSpec
from worker.instance.made_up import usual_value

MADE_UP_SIZES = (16, 7, 32, 64)
"""The sizes of free dimensions of made-up rows, one after another from batch to batch."""
CACHED_BYTES = 1 << 30
"""Of decoded pictures that are kept for the next time that they are asked for."""
MOST_WORDS = 24
COARSE = 8


class Batch(NamedTuple):
    """Rows as a backend takes them; `pixels` are the inputs that are pictures."""

    inputs: Mapping[str, Array]
    pixels: frozenset[str]
    rows: int


@dataclass(frozen=True)
class Rows:
    """Rows by their numbers, 0 to `count` - 1.

    `labels` has the number of the class of each row, where that is known.
    """

    count: int
    take: Callable[[Sequence[int]], Batch]
    labels: Array | None = None
    source: str = "made-up rows"

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[range, Batch]]:
        """Yield the rows' numbers and the rows, `size` at a time; a smaller batch may end it."""
        end = self.count if limit is None else min(self.count, limit)
        for start in range(0, end, size):
            numbers = range(start, min(start + size, end))
            yield numbers, self.take(numbers)


class OneAsset:
    """A tokenizer's file where the registry would be asked for it."""

    def __init__(self, content: bytes | None) -> None:
        """Keep `content`."""
        self._content = content

    def asset(self, _digest: str) -> bytes | None:
        """Return the file."""
        return self._content


def array_rows(
    arrays: Mapping[str, Array], spec: ModelSpec, pixels: frozenset[str] = frozenset()
) -> Callable[[Sequence[int]], Batch]:
    """Return how to take rows of whole arrays [rows, ...]."""

    def take(numbers: Sequence[int]) -> Batch:
        chosen = {name: array[list(numbers)] for name, array in arrays.items()}
        if not spec.batched:  # the model takes one, without a dimension for it
            chosen = {n: a if n in pixels else a[0] for n, a in chosen.items()}
        return Batch(chosen, pixels, len(numbers))

    return take


def picture_rows(files: Sequence[Path], spec: ModelSpec) -> Callable[[Sequence[int]], Batch]:
    """Return how to take pictures as the API would decode them; the take raises BadModel."""
    cache: dict[int, Array] = {}

    def pixels(number: int) -> Array:
        if number not in cache:
            try:
                found = picture_batch([files[number].read_bytes()], spec).array()
            except (BadRequest, OSError) as error:
                raise BadModel(f"--data {files[number]}: {error}") from error
            if found.nbytes * len(cache) >= CACHED_BYTES:
                return found
            cache[number] = found
        return cache[number]

    def take(numbers: Sequence[int]) -> Batch:
        assert spec.image is not None, "only asked of models that take pictures"
        rows = np.concatenate([pixels(number) for number in numbers])
        return Batch({spec.image.input: rows}, frozenset({spec.image.input}), len(numbers))

    return take


def text_rows(
    texts: Sequence[str], spec: ModelSpec, tokenizer: bytes | None
) -> Callable[[Sequence[int]], Batch]:
    """Return how to take texts as the API would encode them; the take raises BadModel."""
    cache = TokenizerCache(OneAsset(tokenizer))

    def take(numbers: Sequence[int]) -> Batch:
        try:
            tensors, _ = cache.encode([texts[number] for number in numbers], spec)
        except BadRequest as error:
            raise BadModel(f"rows {list(numbers)}: {error}") from error
        return _batch(tensors, len(numbers))

    return take


def _batch(tensors: Sequence[Tensor], count: int) -> Batch:
    return Batch({tensor.name: tensor.array() for tensor in tensors}, frozenset(), count)


def made_up_rows(
    spec: ModelSpec,
    count: int,
    seed: int = 0,
    tokenizer: bytes | None = None,
    sizes: Sequence[int] = MADE_UP_SIZES,
) -> Rows:
    """Return seeded rows of many kinds: pictures of noise and of shapes, words, numbers.

    Free dimensions change from batch to batch, and are equal within one.
    """
    if spec.text is not None and tokenizer is not None:
        words = _words(tokenizer)
        random = np.random.default_rng(seed)
        lengths = random.integers(1, MOST_WORDS, count)
        texts = [" ".join(random.choice(words, length)) for length in lengths]
        return Rows(count, text_rows(texts, spec, tokenizer))
    names = frozenset({spec.image.input} if spec.image else ())

    def take(numbers: Sequence[int]) -> Batch:
        size = sizes[(numbers[0] // 7) % len(sizes)]
        rows = [_row(spec, np.random.default_rng((seed, number)), size) for number in numbers]
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return array_rows(stacked, spec, names)(range(len(numbers)))

    return Rows(count, take)


def _row(spec: ModelSpec, random: np.random.Generator, size: int) -> dict[str, Array]:
    kind = int(random.integers(4))
    made = {}
    for tensor in spec.inputs:
        if spec.image is not None and spec.image.input == tensor.name:
            shape = (spec.image.height, spec.image.width, len(spec.image.channels))
            made[tensor.name] = _picture(random, shape, kind)
        else:
            dims = [size if each == -1 else each for each in tensor.dims]
            made[tensor.name] = _tensor(tensor, random, dims, kind)
    return made


def _picture(random: np.random.Generator, shape: tuple[int, ...], kind: int) -> Array:
    """Return noise, coarse patches, or either with little contrast."""
    height, width, channels = shape
    if kind % 2:
        patches = random.integers(0, 256, (COARSE, COARSE, channels))
        rows, columns = np.arange(height) * COARSE // height, np.arange(width) * COARSE // width
        picture = patches[rows][:, columns]
    else:
        picture = random.integers(0, 256, shape)
    if kind > 1:
        picture = 96 + picture // 4
    return picture.astype(np.uint8)


def _tensor(
    tensor: TensorSpec, random: np.random.Generator, dims: Sequence[int], kind: int
) -> Array:
    dtype = NUMPY_TYPES[tensor.datatype]
    if dtype.hasobject:
        words = [b"a", b"good", b"Bad,", b"place", b"1", b"the", b"isn't", b"well-made."]
        flat = [b" ".join(random.choice(words, 1 + kind)) for _ in range(int(np.prod(dims)))]
        return np.array(flat, object).reshape(dims)
    if tensor.datatype.startswith(("FP", "BF")):
        scale = (1.0, 0.1, 3.0, 1.0)[kind]
        values = random.uniform(size=dims) if kind == 3 else random.normal(size=dims) * scale  # noqa: PLR2004
        return values.astype(dtype)
    usual = usual_value(tensor)
    if usual is not None:
        return np.full(dims, usual, dtype)
    bits = random.integers(0, 2, dims)
    bits[..., :1] = 1  # no mask is all zeros
    return (2 * bits if tensor.pad == 1 else bits).astype(dtype)


def _words(tokenizer: bytes) -> list[str]:
    """Return whole words that a tokenizer knows, sorted."""
    from tokenizers import Tokenizer  # noqa: PLC0415  slow to import, and for texts alone

    vocabulary = Tokenizer.from_buffer(tokenizer).get_vocab(with_added_tokens=False)
    plain = sorted(word for word in vocabulary if word.isalpha() and word.isascii())
    return plain or sorted(vocabulary)
