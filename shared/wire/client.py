"""Single commands to Redis: a client, and the errors that its failures become."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from shared.errors import RedisUnavailable

CONNECT_TIMEOUT_SECONDS = 0.4
COMMAND_TIMEOUT_SECONDS = 5.0


def connect(redis_url: str) -> redis.Redis:
    """Return a client for `redis_url`; opens nothing until the first command."""
    return redis.Redis.from_url(
        redis_url,
        socket_timeout=COMMAND_TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
        protocol=2,
        max_connections=100_000,
    )


def milliseconds(seconds: float) -> int:
    """Return a duration as Redis's commands take it."""
    return int(1000 * seconds)


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
        # redis-py takes the code off some replies, and scripts add where they failed.
        reason, _, _ = re.sub("^[A-Z]+ ", "", str(error)).partition(" script: ")
        return RedisUnavailable(f"Redis refuses the request: {reason}")
    return RedisUnavailable("cannot reach Redis, it does not answer")
