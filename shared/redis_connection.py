"""The only place that opens Redis: a client for single commands, wires for the hot path.

A wire is one raw connection whose commands are written together and whose replies are read one by
one, which a client's pipeline cannot do: a blocking command and what follows it leave in one write.
"""

from __future__ import annotations

import logging
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 0.4
COMMAND_TIMEOUT_SECONDS = 5.0
SCRIPTS = ("push", "collect", "claim", "publish", "recover")


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


class Wire:
    """One connection with our scripts loaded. Not for use by two threads at once.

    A lost connection closes it and raises redis.RedisError; the next `send` opens it anew. An error
    reply of one command is raised as redis.ResponseError and leaves it open.
    """

    def __init__(self, connection: Any) -> None:
        """Wrap a redis-py connection that is not open yet."""
        connection.retry = Retry(NoBackoff(), 0)
        self._connection = connection
        self._open = False
        self._unread = 0

    def send(self, *commands: tuple[Any, ...]) -> None:
        """Write all commands at once; their replies must then be read in the same order.

        Replies that nobody read, after one was an error, are dropped with the connection.
        """
        if self._unread:
            self.close()
        try:
            if not self._open:
                self._connect()
            self._connection.send_packed_command(
                self._connection.pack_commands(commands), check_health=False
            )
            self._unread = len(commands)
        except (RedisError, OSError) as error:
            self.close()
            raise _redis_error(error) from error

    def reply(self, wait_seconds: float = 0.0) -> Any:
        """Read the next reply; `wait_seconds` is what the command itself may block."""
        self._unread -= 1
        try:
            return self._connection.read_response(timeout=wait_seconds + COMMAND_TIMEOUT_SECONDS)
        except ResponseError as error:
            if isinstance(error, NoScriptError):
                self.close()
                raise _redis_error(error) from error
            raise
        except (RedisError, OSError) as error:
            self.close()
            raise _redis_error(error) from error

    def close(self) -> None:
        """Drop the connection and whatever replies were still to come."""
        self._open = False
        self._unread = 0
        self._connection.disconnect()

    def _connect(self) -> None:
        self._connection.connect()
        loads = [("SCRIPT", "LOAD", script_text(name)) for name in SCRIPTS]
        self._connection.send_packed_command(self._connection.pack_commands(loads))
        for _ in loads:
            self._connection.read_response()
        self._open = True


def open_wire(client: redis.Redis) -> Wire:
    """Return a new wire with the client's connection settings."""
    return Wire(client.connection_pool.make_connection())


@cache
def script_text(name: str) -> str:
    """Return the text of shared/scripts/<name>.lua."""
    return files("shared").joinpath("scripts", f"{name}.lua").read_text()


@cache
def script_digest(name: str) -> str:
    """Return what EVALSHA calls the script by."""
    return sha1(script_text(name).encode(), usedforsecurity=False).hexdigest()


def _redis_error(error: Exception) -> RedisError:
    if isinstance(error, NoScriptError) or not isinstance(error, RedisError):
        return RedisConnectionError(str(error))
    return error
