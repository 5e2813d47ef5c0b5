"""Checks of settings' values: each returns the value, or raises ValueError."""

from __future__ import annotations

from collections.abc import Callable

from shared.names import MODEL_NAME


def text(value: str) -> str:
    """Return a value that is not empty."""
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a check for whole numbers from `low` to `high`, if there is one."""

    def check(value: str) -> int:
        number = int(value)
        if number < low or (high is not None and number > high):
            raise ValueError(f"must be at least {low}" + (f" and at most {high}" if high else ""))
        return number

    return check


def seconds(value: str) -> float:
    """Return a duration above 0."""
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError("must be a positive number of seconds")
    return number


def seconds_or_none(value: str) -> float:
    """Return a duration, or 0 for none."""
    return 0.0 if float(value) == 0 else seconds(value)


def control_mode(value: str) -> str:
    """Return a model control mode."""
    if value not in {"none", "explicit", "poll"}:
        raise ValueError("must be none, explicit or poll")
    return value


def model_names(value: str) -> str:
    """Return names of models, separated by commas, or `*`."""
    for name in value.split(","):
        if name.strip() != "*" and not MODEL_NAME.fullmatch(name.strip()):
            raise ValueError("must be names of models, separated by commas, or *")
    return value


def log_level(value: str) -> str:
    """Return the name of one of logging's levels."""
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return value.upper()


def redis_url(value: str) -> str:
    """Return a URL that redis-py opens."""
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


def flag(value: str) -> bool:
    """Return a switch, on or off."""
    if value.lower() not in {"0", "1", "false", "true"}:
        raise ValueError("must be 0 or 1")
    return value.lower() in {"1", "true"}


def key_prefix(value: str) -> str:
    """Return a word that can begin a key."""
    if not value or any(sign in value for sign in "{}: "):
        raise ValueError("must be a word without braces, colons or spaces")
    return value
