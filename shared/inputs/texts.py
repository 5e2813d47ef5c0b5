"""Texts become a model's input: strings as they are, or ids by the model's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadRequest, ModelNotReady
from shared.inputs.loop import beside_loop, in_event_loop
from shared.messages import Tensor
from shared.model_spec import ModelSpec, TensorSpec, TextInput, check_text_count, fixed_length

MANY_CHARACTERS = 2048
"""Above it the tokenizer would hold up an event loop, by 1 to 3 ms for each so many characters, so
a thread asks it."""
MOST_TOKENS = 2**32
"""Numbers from here on the tokenizers library does not take for a token id."""


class Encoded(NamedTuple):
    """A model's inputs, one row for each text; whose text was cut; the tokens of all, 0 unknown."""

    inputs: tuple[Tensor, ...]
    cut: list[bool]
    token_count: int


class _Tokens(NamedTuple):
    """One text's tokens; with the special ones it may have more than a model's length."""

    ids: list[int]
    mask: list[int]
    types: list[int]
    cut: bool


class Assets(Protocol):
    """Whatever keeps the tokenizers' files: the registry."""

    def asset(self, digest: str) -> bytes | None:
        """Return the file of this digest, None when it is not there yet."""
        ...


class Line(Protocol):
    """Whatever stands in front of the threads beside an event loop."""

    def place(self, model: str) -> AbstractContextManager[None]:
        """Wait for a thread, for a request to a model, by its key; raises QueueFull."""
        ...


class TokenizerCache:
    """Tokenizers by digest, fetched once per process."""

    def __init__(self, assets: Assets, line: Line | None = None) -> None:
        """Start empty; in an event loop many characters wait in the `line` for a thread."""
        self._assets = assets
        self._line = line
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
        return self.encode_numbered(dict(enumerate(texts)), spec)[:2]

    def encode_numbered(self, texts: Mapping[int, str | list[int]], spec: ModelSpec) -> Encoded:
        """Encode as `encode` some texts, at least one, by which errors name their numbers.

        A text may come as token ids, which are taken as they are, but for a cut; raises BadRequest
        for those that its tokenizer does not know, or that a model of strings cannot take.
        """
        text = spec.text
        if text is None:
            return Encoded((_strings(texts, spec),), [False] * len(texts), 0)
        check_text_count(len(texts), spec)
        tokenizer = self._tokenizer(text)
        strings = {number: item for number, item in texts.items() if isinstance(item, str)}
        _check_filled(strings)
        tokens = self._tokens_of(strings, tokenizer, text, spec.key)
        for number, item in texts.items():
            if not isinstance(item, str):
                tokens[number] = _tokens_given(number, item, tokenizer, spec)
        for number, found in tokens.items():
            if found.cut and not text.truncate:
                raise BadRequest(
                    f"text {number} is longer than the {text.max_length} tokens of '{spec.name}'"
                )
        rows = [tokens[number] for number in texts]
        longest = max(len(row.ids) for row in rows)
        length = fixed_length(spec.inputs) or _rounded(longest, text)
        columns = {
            "input_ids": [row.ids for row in rows],
            "attention_mask": [row.mask for row in rows],
            "token_type_ids": [row.types for row in rows],
        }
        inputs = tuple(
            Tensor.of(
                tensor.name, _shaped(_padded(columns[tensor.name], length, tensor), tensor, spec)
            )
            for tensor in spec.inputs
        )
        return Encoded(inputs, [row.cut for row in rows], sum(len(row.ids) for row in rows))

    def _tokens_of(
        self, texts: Mapping[int, str], tokenizer: Tokenizer, text: TextInput, model: str
    ) -> dict[int, _Tokens]:
        """Return each text's tokens, cut to the model's length."""
        # Long before the tokenizer would be slow: no token is shorter than a character.
        kept = 64 * text.max_length
        clipped = [item[-kept:] if text.cut_left else item[:kept] for item in texts.values()]
        if self._line is None or not in_event_loop():
            encoded = _encoded(tokenizer, clipped, text.max_length)
        elif sum(map(len, clipped)) > MANY_CHARACTERS:
            with self._line.place(model):
                encoded = beside_loop(_encoded, tokenizer, clipped, text.max_length)
        else:  # fast: not by the library's threads, for whom a loop would wait on a busy machine
            few = [tokenizer.encode(each) for each in clipped]
            encoded = [_tokens_in(each, text.max_length) for each in few]
        found = {}
        for (number, whole), part, tokens in zip(texts.items(), clipped, encoded, strict=True):
            cut = tokens.cut or len(part) < len(whole)
            found[number] = tokens._replace(cut=cut)
        return found

    def text_of(self, ids: list[int], spec: ModelSpec) -> str:
        """Return the text that token ids stand for, as far as the tokenizer can tell it."""
        assert spec.text is not None, "only asked of models of tokens"
        text: str = self._tokenizer(spec.text).decode(ids)
        return text

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


def _encoded(tokenizer: Tokenizer, texts: list[str], max_length: int) -> list[_Tokens]:
    """Return each text's tokens; what is made of the library's own takes long as well."""
    return [_tokens_in(each, max_length) for each in tokenizer.encode_batch(texts)]


def _tokens_in(encoding: Encoding, max_length: int) -> _Tokens:
    ids = encoding.ids
    # subtle: special tokens alone may be more than a short model's length.
    cut = len(ids) > max_length or (
        # fast: asking for what was cut off copies all of it.
        len(ids) == max_length and bool(encoding.overflowing)
    )
    return _Tokens(ids, encoding.attention_mask, encoding.type_ids, cut)


def _check_filled(texts: Mapping[int, str]) -> None:
    """Raise BadRequest for an empty text."""
    for number, item in texts.items():
        if not item.strip():
            raise BadRequest(f"text {number} is empty")


def _tokens_given(number: int, ids: list[int], tokenizer: Tokenizer, spec: ModelSpec) -> _Tokens:
    """Return a client's own token ids, cut to the model's length; raises BadRequest."""
    text = spec.text
    assert text is not None, "only called for models with a tokenizer"
    if not ids:
        raise BadRequest(f"text {number} is empty")
    wrong = next((each for each in (min(ids), max(ids)) if not _is_token(each, tokenizer)), None)
    if wrong is not None:
        raise BadRequest(
            f"text {number}: {wrong} is no token id of '{spec.name}', expected 0 to "
            f"{tokenizer.get_vocab_size() - 1}"
        )
    cut = len(ids) > text.max_length
    kept = (ids[-text.max_length :] if text.cut_left else ids[: text.max_length]) if cut else ids
    return _Tokens(kept, [1] * len(kept), [0] * len(kept), cut)


def _is_token(number: int, tokenizer: Tokenizer) -> bool:
    return 0 <= number < MOST_TOKENS and tokenizer.id_to_token(number) is not None


def _rounded(longest: int, text: TextInput) -> int:
    """Return the length that texts are padded to: a multiple, but no more than the model takes."""
    multiple = -(-longest // text.pad_multiple) * text.pad_multiple
    return min(multiple, max(longest, text.max_length))


def _strings(texts: Mapping[int, str | list[int]], spec: ModelSpec) -> Tensor:
    """Return the texts as the input of a model that takes one string for each row."""
    ids = next((number for number, item in texts.items() if not isinstance(item, str)), None)
    if ids is not None:
        raise BadRequest(f"text {ids} is token ids: '{spec.name}' takes strings and no tokens")
    declared = spec.string_input
    assert declared is not None, "only called for models that take texts"
    check_text_count(len(texts), spec)
    full = spec.full_shape(declared)
    shape = [1] * len(full)
    if -1 in full:
        shape[full.index(-1)] = len(texts)
    return Tensor.of(declared.name, np.array(list(texts.values()), object).reshape(shape))


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
