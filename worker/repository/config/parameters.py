"""The `parameters` of a `config.pbtxt` that Ferry reads: numbers, lists of numbers, file names."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(parameters: dict[str, str], key: str, default: str, kind: type[Number]) -> Number:
    """Return the one number in a parameter; raises ValueError naming key and value."""
    return numbers(parameters, key, default, kind, count=1)[0]


def numbers(
    parameters: dict[str, str], key: str, default: str, kind: type[Number], count: int = 0
) -> tuple[Number, ...]:
    """Return a parameter's numbers, `count` of them unless it is 0; raises ValueError."""
    text = parameters.get(key, default)
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{key} {text!r}: expected {kind.__name__}s, separated by commas"
        ) from None
    if count and len(found) != count:
        raise ValueError(f"{key} {text!r}: {len(found)} numbers, expected {count}")
    return found


def plain_name(field: str, name: str) -> str:
    """Return a file's name; refuses those that would leave the model's own directory."""
    if Path(name).name != name or name in {".", ".."}:
        raise ValueError(f"{field} {name!r} must not contain a path")
    return name
