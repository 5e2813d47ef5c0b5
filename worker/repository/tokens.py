"""Reads from a tokenizer's own files how its texts are padded and cut.

`tokenizer.json` says it where its `padding` and `truncation` are not null. Else the files that lie
beside it do, as Hugging Face's libraries write them: `tokenizer_config.json`,
`special_tokens_map.json`, `config.json`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

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
    """The token that pads, its type, the sides, and the length that a tokenizer cuts at, if any."""

    pad_id: int = 0
    pad_type_id: int = 0
    pad_left: bool = False
    pad_multiple: int = 1
    cut_left: bool = False
    max_length: int | None = None


def token_rules(tokenizer: str, directory: Path) -> TokenRules:
    """Return the rules in a tokenizer's text, and in the files of `directory` for what it lacks.

    Raises ValueError for a tokenizer that is no JSON object.
    """
    try:
        own = json.loads(tokenizer)
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
    )


def padded_inputs(inputs: tuple[TensorSpec, ...], rules: TokenRules) -> tuple[TensorSpec, ...]:
    """Return a model's inputs with the values that pad them: 0 for all but ids and their types."""
    values = {IDS: rules.pad_id, TYPES: rules.pad_type_id}
    return tuple(
        tensor.model_copy(update={"pad": values.get(tensor.name, 0), "pad_left": rules.pad_left})
        for tensor in inputs
    )


def _beside(directory: Path) -> dict[str, Any]:
    """Return what the files beside a tokenizer say; of two that name one thing the first counts."""
    found: dict[str, Any] = {}
    for name in BESIDE:
        try:
            read = _object(json.loads(read_text(directory / name)))
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
        vocabulary = {pair[0]: index for index, pair in enumerate(vocabulary)}
    added = own.get("added_tokens") or []
    return _object(vocabulary) | {token["content"]: token["id"] for token in added}


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
