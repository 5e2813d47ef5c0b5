"""Single commands to Redis: a client, and the errors that its failures become."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from shared.errors import RedisUnavailable
from shared.redis_urls import RedisUrl

CONNECT_TIMEOUT_SECONDS = 0.4
COMMAND_TIMEOUT_SECONDS = 3.0
SENTINEL_TIMEOUT_SECONDS = 1.0
KEEPALIVE = {socket.TCP_KEEPIDLE: 3, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3}
"""Seconds without a word, seconds between two questions, questions without an answer."""
_PLACE_BEFORE_7 = re.compile(
    r"(?:(?:ERR )?Error running script \(call to f_\w+\): @\w+:\d+: (?:@?user_script: ?\d+: )?"
    r"|@user_script: \d+: )(?:-?([A-Z]{2,} .*)|(.*))"
)
_PLACE_SINCE_7 = re.compile(r" script: (\w+, )?on @.*")


class ServerIsReplica(RedisConnectionError):
    """A server takes no writes: it is no master, or not any more. Nothing was done.

    The connection to it is closed, so that the next one may lead to the master.
    """


def connect(redis_url: str) -> redis.Redis:
    """Return a client for `redis_url`; opens nothing until the first command.

    A host that is gone is noticed by the kernel within six seconds, also where nobody speaks. Where
    Sentinels are named, each new connection asks them for the master. Raises ValueError for a URL
    that `Settings` would not take.
    """
    url = RedisUrl.of(redis_url)
    options: dict[str, Any] = {
        "socket_timeout": COMMAND_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        # Once, on a new connection; a server that hangs would only be waited for twice.
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        "protocol": 2,
        "max_connections": 100_000,
        **url.options,
    }
    kind: Any = UnixDomainSocketConnection
    if url.path:
        options["path"] = url.path
    else:
        options |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
        if url.service:
            return _watched(url, options)
        kind = SSLConnection if url.tls else Connection
        ((options["host"], options["port"]),) = url.hosts
    return redis.Redis.from_pool(ConnectionPool(connection_class=_leaving(kind), **options))


def _watched(url: RedisUrl, options: dict[str, Any]) -> redis.Redis:
    """Return a client of the master that Sentinels name."""
    kind: Any = SentinelManagedSSLConnection if url.tls else SentinelManagedConnection
    asked: dict[str, Any] = {
        "socket_timeout": SENTINEL_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "protocol": 2,
        "ssl": url.tls,
        **url.of_sentinels,
    }
    asked |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinels: Any = Sentinel  # its types are not told
    client = sentinels(url.hosts, sentinel_kwargs=asked, **options).master_for(
        url.service, connection_class=_leaving(kind)
    )
    assert isinstance(client, redis.Redis)
    return client


@cache
def _leaving(connection_class: type[Any]) -> type[Any]:
    """Return a kind of connection that leaves a server which has become a replica.

    Where its master is now, a new connection finds: by Sentinels, or by the name it goes to.
    """

    class Leaving(connection_class):  # type: ignore[misc]
        def read_response(self, *arguments: Any, **named: Any) -> Any:
            try:
                return super().read_response(*arguments, **named)
            except ResponseError as error:
                if "READONLY" not in without_place(f"{error.status_code or ''} {error}"):
                    raise
                self.disconnect()
                raise ServerIsReplica(str(error)) from error

    return Leaving


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
    if isinstance(error, ResponseError | ServerIsReplica):
        # redis-py takes the code off some replies.
        reason = re.sub("^[A-Z]+ ", "", without_place(str(error)))
        return RedisUnavailable(f"Redis refuses the request: {reason}")
    return RedisUnavailable("cannot reach Redis, it does not answer")
