"""Reads from a tokenizer's own files how its texts are padded and cut.

`tokenizer.json` says it where its `padding` and `truncation` are not null. Else the files that lie
beside it do, as Hugging Face's libraries write them: `tokenizer_config.json`,
`special_tokens_map.json`, `config.json`.
"""

from __future__ import annotations

import json
import logging
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.datatypes import NUMPY_TYPES
from shared.errors import BadModel
from shared.model_spec import TensorSpec
from worker.repository.config.text import IDS
from worker.repository.text_file import read_text

log = logging.getLogger(__name__)

TYPES = "token_type_ids"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
PAD_NAMES = (
    "[PAD]",
    "<pad>",
    "<PAD>",
    "[pad]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
)
"""Names of the token for padding, in files that do not tell which one it is."""
LONGEST_LENGTH = 1_000_000
"""Larger ones stand for no limit: the libraries write 10 to the power of 30."""


class TokenRules(NamedTuple):
    """The token that pads, its type, the sides, and the length that a tokenizer cuts at, if any.

    `splits` says that the file has what makes tokens of texts.
    """

    pad_id: int = 0
    pad_type_id: int = 0
    pad_left: bool = False
    pad_multiple: int = 1
    cut_left: bool = False
    max_length: int | None = None
    splits: bool = True


def read_tokenizer(
    file: Path, inputs: tuple[TensorSpec, ...]
) -> tuple[str, TokenRules, tuple[TensorSpec, ...]]:
    """Return a tokenizer's text, its rules, and a model's inputs with the values that pad them.

    What the tokenizer lacks is read from the files beside it. Raises BadModel naming the file.
    """
    text = read_text(file)
    try:
        rules = token_rules(text, file.parent)
        return text, rules, _padded_inputs(inputs, rules)
    except ValueError as error:
        raise BadModel(f"{file}: {error}") from error


def token_rules(tokenizer: str, directory: Path) -> TokenRules:
    """Return the rules in a tokenizer's text, and in the files of `directory` for what it lacks.

    Raises ValueError for a tokenizer that is none.
    """
    try:
        own = _parsed(tokenizer)
    except ValueError as error:
        raise ValueError(f"the tokenizer is no JSON: {error}") from error
    if not isinstance(own, dict):
        raise ValueError("the tokenizer is no JSON object")
    beside = _beside(directory)
    padding, cutting = _object(own.get("padding")), _object(own.get("truncation"))
    return TokenRules(
        pad_id=_first(_number(padding.get("pad_id")), _pad_id(own, beside)) or 0,
        pad_type_id=_first(
            *map(_number, (padding.get("pad_type_id"), beside.get("pad_token_type_id")))
        )
        or 0,
        pad_left=_is_left(padding.get("direction") or beside.get("padding_side")),
        pad_multiple=max(1, _number(padding.get("pad_to_multiple_of")) or 1),
        cut_left=_is_left(cutting.get("direction") or beside.get("truncation_side")),
        max_length=_length(cutting.get("max_length")) or _length(beside.get("model_max_length")),
        splits=isinstance(own.get("model"), dict),
    )


def _parsed(text: str) -> Any:
    """Return what a JSON text says; raises ValueError, also for one of too many levels."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too many levels of brackets") from error


def _padded_inputs(inputs: tuple[TensorSpec, ...], rules: TokenRules) -> tuple[TensorSpec, ...]:
    """Return a model's inputs with the values that pad them: 0 for all but ids and their types."""
    values = {IDS: ("pad_id", rules.pad_id), TYPES: ("pad_type_id", rules.pad_type_id)}
    return tuple(
        tensor.model_copy(
            update={"pad": _pad(tensor, *values[tensor.name]), "pad_left": rules.pad_left}
            if tensor.name in values
            else {"pad": 0, "pad_left": rules.pad_left}
        )
        for tensor in inputs
    )


def _pad(tensor: TensorSpec, key: str, value: int) -> int:
    """Return the value that pads an input; raises ValueError when its datatype cannot hold it."""
    largest = _largest(tensor.datatype)
    if value > largest:
        raise ValueError(
            f"{key} {value} (or what the files beside it name) does not fit input "
            f"{tensor.name!r} of TYPE_{tensor.datatype}, expected at most {largest}"
        )
    return value


def _largest(datatype: str) -> int:
    """Return up to which number a datatype holds every one exactly."""
    of_floats = {"FP64": 1 << 53, "FP32": 1 << 24, "FP16": 1 << 11, "BF16": 1 << 8, "BOOL": 1}
    return of_floats.get(datatype) or int(np.iinfo(NUMPY_TYPES[datatype]).max)


def _beside(directory: Path) -> dict[str, Any]:
    """Return what the files beside a tokenizer say; of two that name one thing the first counts."""
    found: dict[str, Any] = {}
    for name in BESIDE:
        try:
            read = _object(_parsed(read_text(directory / name)))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, BadModel) as error:
            log.warning("%s is left out: %s", directory / name, error)
            continue
        found = {key: value for key, value in read.items() if value is not None} | found
    return found


def _pad_id(own: dict[str, Any], beside: dict[str, Any]) -> int | None:
    """Return the id of the token that pads: the one that is named, given, or known by its name."""
    token = beside.get("pad_token")
    name = token.get("content") if isinstance(token, dict) else token
    ids = _ids(own)
    if isinstance(name, str) and name in ids:
        return ids[name]
    given = _number(beside.get("pad_token_id"))
    return _first(given, *(ids.get(name) for name in PAD_NAMES))


def _ids(own: dict[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens by their text, added ones before those of the vocabulary."""
    vocabulary = _object(own.get("model")).get("vocab")
    if isinstance(vocabulary, list):  # Unigram's, pairs of token and score in the order of ids
        vocabulary = {_token(pair, n): n for n, pair in enumerate(vocabulary)}
    added = own.get("added_tokens") or []
    if not isinstance(added, list):
        raise ValueError(f"added_tokens is {reprlib.repr(added)}, expected a list")
    ids = _object(vocabulary) | dict(_added(each, n) for n, each in enumerate(added))
    wrong = next((token for token, number in ids.items() if type(number) is not int), None)
    if wrong is not None:
        raise ValueError(
            f"token {reprlib.repr(wrong)} has the id {reprlib.repr(ids[wrong])}, no number"
        )
    return ids


def _token(pair: Any, index: int) -> str:
    if isinstance(pair, list) and pair and isinstance(pair[0], str):
        return pair[0]
    raise ValueError(
        f"model.vocab[{index}] is {reprlib.repr(pair)}, expected a list of token and score"
    )


def _added(token: Any, index: int) -> tuple[str, Any]:
    if isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token:
        return token["content"], token["id"]
    raise ValueError(
        f"added_tokens[{index}] is {reprlib.repr(token)}, expected an object with content and id"
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _length(value: Any) -> int | None:
    number = _number(value)
    return number if number and number < LONGEST_LENGTH else None


def _is_left(value: Any) -> bool:
    return str(value).lower() == "left"


def _first(*numbers: int | None) -> int | None:
    return next((number for number in numbers if number is not None), None)
