"""Single commands to Redis: a client, and the errors that its failures become."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from functools import cache, partial
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
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from shared.errors import RedisUnavailable
from shared.redis_urls import RedisUrl
from shared.wire.cluster import MOVED, SlotMaster
from shared.wire.tls import TlsFailed, explaining

CONNECT_TIMEOUT_SECONDS = 0.4
COMMAND_TIMEOUT_SECONDS = 3.0
DISCOVERY_TIMEOUT_SECONDS = 1.0
KEEPALIVE = {socket.TCP_KEEPIDLE: 3, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3}
"""Seconds without a word, seconds between two questions, questions without an answer."""
_PLACE_BEFORE_7 = re.compile(
    r"(?:(?:ERR )?Error running script \(call to f_\w+\): @\w+:\d+: (?:@?user_script: ?\d+: )?"
    r"|@user_script: \d+: )(?:-?([A-Z]{2,} .*)|(.*))"
)
_PLACE_SINCE_7 = re.compile(r" script: (\w+, )?on @.*")


class NotTheMaster(RedisConnectionError):
    """A server takes no writes, or not ours: it is no master, or not any more. Nothing was done.

    The connection to it is closed, so that the next one may lead to the master.
    """


def connect(
    redis_url: str,
    key_prefix: str = "",
    *,
    command_seconds: float = COMMAND_TIMEOUT_SECONDS,
    connect_seconds: float = CONNECT_TIMEOUT_SECONDS,
) -> redis.Redis:
    """Return a client for `redis_url`; opens nothing until the first command.

    A host that is gone is noticed by the kernel within six seconds, also where nobody speaks. Where
    Sentinels are named, each new connection asks them for the master; where nodes of a cluster are,
    it asks these who has the keys of `key_prefix`. Raises ValueError for a URL that `Settings`
    would not take.
    """
    url = RedisUrl.of(redis_url)
    options: dict[str, Any] = {
        "socket_timeout": command_seconds,
        "socket_connect_timeout": connect_seconds,
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
        kind = explaining(SSLConnection) if url.tls else Connection
        if url.cluster:
            asked = {name: value for name, value in options.items() if name != "max_connections"}
            asked["socket_timeout"] = DISCOVERY_TIMEOUT_SECONDS
            options["slot_master"] = SlotMaster(url.hosts, key_prefix, partial(kind, **asked))
            kind = _clustered(kind)
        else:
            ((options["host"], options["port"]),) = url.hosts
    return redis.Redis.from_pool(ConnectionPool(connection_class=_leaving(kind), **options))


def _watched(url: RedisUrl, options: dict[str, Any]) -> redis.Redis:
    """Return a client of the master that Sentinels name."""
    kind: Any = SentinelManagedConnection
    if url.tls:
        kind = explaining(SentinelManagedSSLConnection)
    asked: dict[str, Any] = {
        "socket_timeout": DISCOVERY_TIMEOUT_SECONDS,
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
def _clustered(connection_class: type[Any]) -> type[Any]:
    """Return a kind of connection that goes to the node of a cluster which has our keys."""

    class Clustered(connection_class):  # type: ignore[misc]
        def __init__(self, slot_master: SlotMaster, **options: Any) -> None:
            super().__init__(**options)
            self._slot_master = slot_master

        def connect_check_health(self, *arguments: Any, **named: Any) -> None:
            if self._sock is None:
                self.host, self.port = self._slot_master.address()
            super().connect_check_health(*arguments, **named)

    return Clustered


@cache
def _leaving(connection_class: type[Any]) -> type[Any]:
    """Return a kind of connection that leaves a server which is not the master of our keys.

    Where that is now, a new connection finds: by Sentinels, by nodes, or by the name it goes to.
    """

    class Leaving(connection_class):  # type: ignore[misc]
        def read_response(self, *arguments: Any, **named: Any) -> Any:
            try:
                return super().read_response(*arguments, **named)
            except ResponseError as error:
                text = f"{error.status_code or ''} {error}".strip()
                if (found := not_the_master(text)) is None:
                    raise
                self.disconnect()
                raise found from error

    return Leaving


def not_the_master(error: str) -> NotTheMaster | None:
    """Return the exception of an error reply if it says that the server is no master of our keys.

    What it says of the cluster's addresses stays with it.
    """
    text = without_place(error)
    code = text.partition(" ")[0]
    if code in MOVED or "non local key" in text:  # that is what a script is told
        return NotTheMaster(f"{code} our keys are on the way to another node of the cluster")
    return NotTheMaster(text) if "READONLY" in text else None


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
    if isinstance(error, TlsFailed):
        return RedisUnavailable("cannot reach Redis: TLS fails")
    if isinstance(error, ResponseError | NotTheMaster | AuthenticationError):
        # redis-py takes the code off some replies.
        reason = re.sub("^[A-Z]+ ", "", without_place(str(error)))
        return RedisUnavailable(f"Redis refuses the request: {reason}")
    return RedisUnavailable("cannot reach Redis, it does not answer")
