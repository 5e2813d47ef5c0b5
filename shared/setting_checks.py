"""A setting, and the checks of settings' values: each returns the value, or raises ValueError."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import field
from typing import Any
from urllib.parse import urlsplit

from shared.names import MODEL_NAME
from shared.redis_urls import RedisUrl, store_urls

_ADDRESS = r"(?:\d{1,3}(?:\.\d{1,3}){3}|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?)"
_PROTOCOL = r"(?:tcp|udp|sctp)"
_SERVICE_LINK = re.compile(
    rf"(?:\w+_)?(?:SERVICE_HOST={_ADDRESS}|SERVICE_PORT(?:_\w+)?=\d+"
    rf"|PORT(?:_\d+_(?:TCP|UDP|SCTP))?={_PROTOCOL}://{_ADDRESS}:\d+"
    rf"|PORT_\d+_(?:TCP|UDP|SCTP)_(?:PROTO={_PROTOCOL}|PORT=\d+|ADDR={_ADDRESS}))"
)

_HOST_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f:.]+")
_GPU = re.compile(r"\d+|(?:GPU|MIG)-[0-9A-Za-z/-]+")
MOST = 2**53
"""What Redis's scripts, JSON and browsers still count in ones."""
MOST_MESSAGE_BYTES = 2**31 - 1
"""gRPC's library has 32 bits for it."""
LEAST_SECONDS = 0.001
MOST_WAIT_SECONDS = 2_000_000
"""The system has 32 bits for the milliseconds of a wait."""
MOST_KEPT_SECONDS = 10 * 365 * 86_400
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)


def setting(default: Any, variable: str, effect: str, check: Callable[[str], Any]) -> Any:
    """Return a dataclass's field that is read from a variable of the environment."""
    return field(default=default, metadata={"variable": variable, "effect": effect, "check": check})


def is_service_link(variable: str, value: str) -> bool:
    """Tell whether Kubernetes sets a variable to such a value, for a Service in the namespace.

    A Service `ferry` gives every pod FERRY_PORT=tcp://10.0.0.1:8000, FERRY_SERVICE_HOST and more
    (so did Docker's links). No setting is ever written like one.
    """
    return _SERVICE_LINK.fullmatch(f"{variable}={value}") is not None


def text(value: str) -> str:
    """Return a value that is not empty."""
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def http_url(value: str) -> str:
    """Return the URL of a server that is asked by HTTP."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL like http://127.0.0.1:4318")
    return value


def one_of(*words: str) -> Callable[[str], str]:
    """Return a check for one of these words."""

    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return value

    return check


def whole(low: int, high: int = MOST) -> Callable[[str], int]:
    """Return a check for whole numbers from `low` to `high`."""

    def check(value: str) -> int:
        wanted = f"must be a whole number, at least {low} and at most {high}"
        try:
            number = int(value)
        except ValueError:
            raise ValueError(wanted) from None
        if not low <= number <= high:
            raise ValueError(wanted)
        return number

    return check


def seconds(value: str, most: float = MOST_WAIT_SECONDS) -> float:
    """Return a duration above 0."""
    number = _float(value)
    if not LEAST_SECONDS <= number <= most:
        raise ValueError(
            f"must be a number of seconds, at least {LEAST_SECONDS} and at most {most}"
        )
    return number


def long_seconds(value: str) -> float:
    """Return a duration above 0 for which something is kept, and nobody waits."""
    return seconds(value, MOST_KEPT_SECONDS)


def _float(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def share(value: str) -> float:
    """Return a part of a whole."""
    number = _float(value)
    if not 0 <= number <= 1:
        raise ValueError("must be from 0 to 1")
    return number


def seconds_or_none(value: str) -> float:
    """Return a duration, or 0 for none."""
    return 0.0 if _float(value) == 0 else long_seconds(value)


def host_names(value: str) -> str:
    """Return names of hosts, separated by commas, each perhaps with a dot before it, or `*`."""
    names = [name.strip().lower() for name in value.split(",")]
    if names != ["*"] and not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("must be names of hosts without ports, separated by commas, or *")
    return ",".join(name.removesuffix(".") for name in names)


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


def readiness(value: str) -> str:
    """Return a rule for the server's readiness."""
    if not all(MODEL_NAME.fullmatch(name.strip()) for name in value.split(",")):
        raise ValueError("must be strict, any, or names of models, separated by commas")
    return value


def modules(value: str) -> str:
    """Return names of Python modules, separated by commas."""
    names = [name.strip() for name in value.split(",")]
    if not all(_MODULE.fullmatch(name) for name in names):
        raise ValueError("must be names of Python modules, separated by commas")
    return ",".join(names)


def gpus(value: str) -> str:
    """Return numbers or UUIDs of GPUs, separated by commas, or `none`."""
    names = [name.strip() for name in value.split(",")]
    if names != ["none"] and not all(_GPU.fullmatch(name) for name in names):
        raise ValueError("must be numbers or UUIDs of GPUs, separated by commas, or none")
    if len(set(names)) < len(names):
        raise ValueError("must name each GPU once")
    return ",".join(names)


def log_level(value: str) -> str:
    """Return the name of one of logging's levels."""
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return value.upper()


def log_format(value: str) -> str:
    """Return a form of log lines."""
    if value not in {"text", "json"}:
        raise ValueError("must be text or json")
    return value


def redis_url(value: str) -> str:
    """Return a URL that says nothing wrong and nothing that is passed over."""
    RedisUrl.of(value)
    return value


def body_urls(value: str) -> str:
    """Return a list of servers that can be body stores."""
    if not store_urls(value):
        raise ValueError("must name at least one server, as redis://host:6379")
    return value


def flag(value: str) -> bool:
    """Return a switch, on or off."""
    if value.lower() not in {"0", "1", "false", "true"}:
        raise ValueError("must be 0 or 1")
    return value.lower() in {"1", "true"}


def key_prefix(value: str) -> str:
    """Return a word that can begin a key; in a cluster it does so in braces, which may be given."""
    word = value[1:-1] if value.startswith("{") and value.endswith("}") else value
    if not word or any(sign in word for sign in "{}: "):
        raise ValueError("must be a word without braces, colons or spaces")
    return value
