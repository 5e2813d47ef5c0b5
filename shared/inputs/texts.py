"""Texts become a model's input: strings as they are, or ids by the model's tokenizer."""

from __future__ import annotations

from threading import Lock
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadRequest, ModelNotReady
from shared.messages import Tensor
from shared.model_spec import ModelSpec, TensorSpec, TextInput, check_row_count, fixed_length


class Assets(Protocol):
    """Whatever keeps the tokenizers' files: the registry."""

    def asset(self, digest: str) -> bytes | None:
        """Return the file of this digest, None when it is not there yet."""
        ...


class TokenizerCache:
    """Tokenizers by digest, fetched once per process."""

    def __init__(self, assets: Assets) -> None:
        """Start empty."""
        self._assets = assets
        self._tokenizers: dict[tuple[str, int, bool], Tokenizer] = {}
        self._lock = Lock()

    def encode(self, texts: list[str], spec: ModelSpec) -> tuple[tuple[Tensor, ...], list[bool]]:
        """Return the model's inputs, one row for each text, and for each whether it was cut.

        They are token ids [rows, length], of the model's length or the longest text's, or the texts
        where the model takes strings. Raises BadRequest for more texts than a batch has rows; where
        there is a tokenizer, also for an empty text, and for one above the model's length when its
        config does not allow a cut.
        """
        text = spec.text
        if not texts:
            return spec.no_rows(spec.inputs if text else filter(None, [spec.string_input])), []
        if text is None:
            return (_strings(texts, spec),), [False] * len(texts)
        check_row_count(len(texts), spec)
        for index, item in enumerate(texts):
            if not item.strip():
                raise BadRequest(f"text {index} is empty")
        # Long before the tokenizer would be slow: no token is shorter than a character.
        kept = 64 * text.max_length
        clipped = [item[-kept:] if text.cut_left else item[:kept] for item in texts]
        encodings = self._tokenizer(text).encode_batch(clipped)
        cut = [bool(each.overflowing) or len(each.ids) > text.max_length for each in encodings]
        cut = [c or len(a) < len(b) for c, a, b in zip(cut, clipped, texts, strict=True)]
        if any(cut) and not text.truncate:
            raise BadRequest(
                f"text {cut.index(True)} is longer than the {text.max_length} tokens of "
                f"'{spec.name}'"
            )
        longest = max(len(encoding.ids) for encoding in encodings)
        length = fixed_length(spec.inputs) or _rounded(longest, text)
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return tuple(
            Tensor.of(
                tensor.name, _shaped(_padded(columns[tensor.name], length, tensor), tensor, spec)
            )
            for tensor in spec.inputs
        ), cut

    def _tokenizer(self, text: TextInput) -> Tokenizer:
        # models may share the file, but not what stands beside it
        key = text.tokenizer, text.max_length, text.cut_left
        found = self._tokenizers.get(key)
        if found is None:
            with self._lock:
                content = self._assets.asset(text.tokenizer)
                if content is None:
                    raise ModelNotReady("the model's tokenizer is not in the registry yet")
                try:
                    found = Tokenizer.from_buffer(content)
                except Exception as error:  # a border: the library has no class for what it refuses
                    raise ModelNotReady(
                        f"the model's tokenizer is none of the `tokenizers` library: {error}"
                    ) from error
                found.no_padding()
                side = "left" if text.cut_left else "right"
                found.enable_truncation(text.max_length, direction=side)
                self._tokenizers[key] = found
        return found


def _rounded(longest: int, text: TextInput) -> int:
    """Return the length that texts are padded to: a multiple, but no more than the model takes."""
    multiple = -(-longest // text.pad_multiple) * text.pad_multiple
    return min(multiple, max(longest, text.max_length))


def _strings(texts: list[str], spec: ModelSpec) -> Tensor:
    """Return the texts as the input of a model that takes one string for each row."""
    declared = spec.string_input
    assert declared is not None, "only called for models that take texts"
    if spec.batched or -1 not in declared.dims:
        check_row_count(len(texts), spec)
    full = spec.full_shape(declared)
    shape = [1] * len(full)
    if -1 in full:
        shape[full.index(-1)] = len(texts)
    return Tensor.of(declared.name, np.array(texts, object).reshape(shape))


def _shaped(array: Array, declared: TensorSpec, spec: ModelSpec) -> Array:
    """Return rows of ids as the declared input: of its datatype, a single row where it has one."""
    if not spec.batched and len(declared.dims) == 1:
        array = array[0]
    return array.astype(NUMPY_TYPES[declared.datatype], copy=False)


def _padded(rows: list[list[int]], length: int, declared: TensorSpec) -> Array:
    array = np.full((len(rows), length), declared.pad, np.int64)
    for index, row in enumerate(rows):
        cut = row[:length]  # special tokens alone may be more
        start = length - len(cut) if declared.pad_left else 0
        array[index, start : start + len(cut)] = cut
    return array
