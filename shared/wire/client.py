"""Single commands to Redis: a client, and the errors that its failures become."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from shared.errors import RedisUnavailable

CONNECT_TIMEOUT_SECONDS = 0.4
COMMAND_TIMEOUT_SECONDS = 5.0
KEEPALIVE = {socket.TCP_KEEPIDLE: 3, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3}
"""Seconds without a word, seconds between two questions, questions without an answer."""
_PLACE_BEFORE_7 = re.compile(
    r"(?:(?:ERR )?Error running script \(call to f_\w+\): @\w+:\d+: (?:@?user_script: ?\d+: )?"
    r"|@user_script: \d+: )(?:-?([A-Z]{2,} .*)|(.*))"
)
_PLACE_SINCE_7 = re.compile(r" script: (\w+, )?on @.*")


def connect(redis_url: str) -> redis.Redis:
    """Return a client for `redis_url`; opens nothing until the first command.

    A host that is gone is noticed by the kernel within six seconds, also where nobody speaks.
    """
    over_network = {} if redis_url.startswith("unix:") else {"socket_keepalive_options": KEEPALIVE}
    return redis.Redis.from_url(
        redis_url,
        **over_network,
        socket_timeout=COMMAND_TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
        protocol=2,
        max_connections=100_000,
    )


def milliseconds(seconds: float) -> int:
    """Return a duration as Redis's commands take it."""
    return int(1000 * seconds)


def without_place(error: str) -> str:
    """Return an error reply without what it says of the script that it came from.

    Before Redis 7.0 that stands in front, and hides the code: "ERR Error running script (call to
    f_<digest>): @user_script:1: @user_script: 1: -OOM command not allowed", since then behind it:
    "OOM command not allowed script: <digest>, on @user_script:1."
    """
    if found := _PLACE_BEFORE_7.match(error):
        return found[1] or "ERR " + found[2]
    return _PLACE_SINCE_7.sub("", error)


def public_url(redis_url: str) -> str:
    """Return a REDIS_URL without its password, for messages."""
    parts = urlsplit(redis_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def asking(command: Callable[[], Any]) -> Any:
    """Run a client's command; raises RedisUnavailable.

    Its reply is `Any` only until the caller turns it into our types.
    """
    try:
        return command()
    except RedisError as error:
        raise unavailable(error) from error


def unavailable(error: RedisError) -> RedisUnavailable:
    """Return the error for a client when Redis fails: why, and nothing about our network."""
    if isinstance(error, BusyLoadingError):
        return RedisUnavailable("Redis is loading its data")
    if isinstance(error, ResponseError):
        # redis-py takes the code off some replies.
        reason = re.sub("^[A-Z]+ ", "", without_place(str(error)))
        return RedisUnavailable(f"Redis refuses the request: {reason}")
    return RedisUnavailable("cannot reach Redis, it does not answer")
