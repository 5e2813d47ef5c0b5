"""The hot path's connection: commands written together, replies read one by one.

A client's pipeline cannot do that: a blocking command and what follows it leave in one write.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from shared.messages import Buffer
from shared.wire.client import COMMAND_TIMEOUT_SECONDS, not_the_master, without_place
from shared.wire.packing import Command, PackedCommand, pack
from shared.wire.scripts import SCRIPTS, script_text

LONGEST_BLOCK_SECONDS = 0.5
"""The longest that a blocking command on a wire may wait, and Redis still have its usual time."""
READ_BYTES = 1 << 16

NO_REPLY = PackedCommand.of("CLIENT", "REPLY", "SKIP")
"""Redis answers neither this nor the command behind it, not even with an error."""
_INCOMPLETE = object()


class Wire:
    """One connection with our scripts loaded. Not for use by two threads at once.

    redis-py opens it, with all that its URL asks for (TLS, users, unix sockets); the commands go
    past redis-py (fast: it spends more on one than Redis does). A lost connection closes the wire
    and raises redis.RedisError; the next `send` opens it anew. An error reply of one command is
    raised as redis.ResponseError and leaves it open.
    """

    def __init__(
        self,
        make_connection: Callable[[], Any],
        scripts: Sequence[str] = SCRIPTS,
        timeout_seconds: float = LONGEST_BLOCK_SECONDS + COMMAND_TIMEOUT_SECONDS,
    ) -> None:
        """Wrap a redis-py connection, which is opened when it is first needed.

        It loads these `scripts`, and waits so long for a reply.
        """
        self._make_connection = make_connection
        self._scripts = scripts
        self._timeout_seconds = timeout_seconds
        self._connection = make_connection()
        self._connection.retry = Retry(NoBackoff(), 0)
        self._socket: socket.socket | None = None
        self._reader = _reader()
        self._unread = 0
        self.until: float | None = None
        """The monotonic time at which writing, and reading, gives up, however much comes; or None.

        Without, as with it, each piece may take as long as a reply.
        """
        self.connections = 0
        """The number of connections so far: after another one Redis calls us by another id."""

    def send(self, *commands: Command) -> None:
        """Write all commands at once; their replies must then be read in the same order.

        Replies that nobody read, after one was an error, are dropped with the connection.
        """
        if self._unread:
            self.close()
        self.send_behind(*commands)

    def send_behind(self, *commands: Command) -> None:
        """Write all commands at once, behind those whose replies have not been read yet."""
        buffers = pack(commands)
        try:
            opened = self._socket or self._connect()
            for data in buffers:
                if self.until is not None:
                    _send_until(opened, data, self.until)
                    continue
                sent = opened.send(data)
                if sent < len(data):  # rare; fast: gevent's sendall costs twice its send
                    opened.sendall(memoryview(data)[sent:])
            self._unread += len(commands) - 2 * commands.count(NO_REPLY)
        except (RedisError, OSError) as error:
            self.close()
            raise _redis_error(error) from error

    def reply(self) -> Any:
        """Read the next reply, waiting for it as long as a blocking command may take."""
        self._unread -= 1
        try:
            found = self._next_reply()
        except Exception as error:  # a border: hiredis raises many things for what is no reply
            self.close()
            raise _redis_error(error) from error
        if isinstance(found, ResponseError):
            raise found
        if isinstance(found, RedisError):
            self.close()
            raise found
        return found

    def replies_so_far(self) -> Iterator[Any]:
        """Return the replies that are there, from a socket that does not block."""
        assert self._socket is not None, "somebody who closes a wire stops reading it first"
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise _redis_error(error) from error
        if not data:
            raise RedisConnectionError("Redis closed the connection")
        self._reader.feed(data)
        yield from self.replies_read()

    def replies_read(self) -> Iterator[Any]:
        """Return the replies that came along with one that was read."""
        while (found := self._read()) is not _INCOMPLETE:
            yield found

    def plain_socket(self) -> socket.socket | None:
        """Return the open socket, None when there is none or it has layers of its own (TLS)."""
        return None if isinstance(self._socket, ssl.SSLSocket) else self._socket

    def has_reply(self, seconds: float) -> bool:
        """Wait so long for the next reply to begin; tell whether it has."""
        return bool(self._readable(seconds))

    def has_reply_before(self, wakeup: int, block_seconds: float) -> bool:
        """Wait for the reply to a command that blocks so long; False once `wakeup` can be read."""
        found = self._readable(block_seconds + COMMAND_TIMEOUT_SECONDS, wakeup)
        if not found:
            self.close()
            raise RedisConnectionError("Redis does not answer")
        return found != [wakeup]

    def _readable(self, seconds: float, *others: int) -> list[int]:
        """Wait so long for the next reply to begin, or for others; return what can be read."""
        opened = self._socket
        assert opened is not None, "a reply is waited for after a send"
        if self._reader.has_data() or (isinstance(opened, ssl.SSLSocket) and opened.pending()):
            return [opened.fileno()]
        poll = select.poll()
        for descriptor in (opened.fileno(), *others):
            poll.register(descriptor, select.POLLIN)
        return [found for found, _ in poll.poll(1000 * seconds)]

    @property
    def is_open(self) -> bool:
        """Tell whether there is a connection, as far as is known."""
        return self._socket is not None

    @property
    def is_settled(self) -> bool:
        """Tell whether it is open and has read all replies, and nothing else."""
        return self.is_open and not self._unread and not self._reader.has_data()

    def beside(self) -> Wire:
        """Return another wire to the same Redis; opens nothing before its first command."""
        return Wire(self._make_connection, self._scripts, self._timeout_seconds)

    def close(self) -> None:
        """Drop the connection and whatever replies were still to come."""
        self._socket = None
        self._reader = _reader()
        self._unread = 0
        self._connection.disconnect()

    def _read(self) -> Any:
        try:
            return self._reader.gets()
        except Exception as error:  # a border, as in `reply`
            raise _redis_error(error) from error

    def _next_reply(self) -> Any:
        if self._socket is None:
            raise RedisConnectionError("the connection was lost before the reply")
        while (found := self._reader.gets()) is _INCOMPLETE:
            if self.until is not None and time.monotonic() >= self.until:
                raise TimeoutError
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise RedisConnectionError("Redis closed the connection")
            self._reader.feed(data)
        return found

    def _connect(self) -> socket.socket:
        try:
            self._connection.connect()
            for name in self._scripts:
                self._connection.send_command("SCRIPT", "LOAD", script_text(name))
                self._connection.read_response()
        except hiredis.HiredisError as error:  # what came was no reply
            raise _redis_error(error) from error
        # subtle: what redis-py read ahead would be lost, but every reply so far was waited for.
        opened: socket.socket = self._connection._sock
        _set_timeout(opened, self._timeout_seconds)
        self._socket = opened
        self.connections += 1
        return opened


def open_wire(client: redis.Redis) -> Wire:
    """Return a new wire with the client's connection settings."""
    return Wire(client.connection_pool.make_connection)


def _set_timeout(opened: socket.socket, seconds: float) -> None:
    """Set the time after which reads and writes raise OSError.

    fast: Python would ask `poll` before each of them; the kernel's own time-outs cost nothing. They
    are not for sockets that do not block by themselves (gevent's), or have layers of their own
    (TLS).
    """
    if type(opened) is not socket.socket or type(opened).__module__ != "socket":
        opened.settimeout(seconds)
        return
    opened.settimeout(None)
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _send_until(opened: socket.socket, data: Buffer, until: float) -> None:
    """Send all of it; raises OSError, also where a monotonic time has come.

    Its own loop: gevent's `sendall` has one time-out for all of it, Python's one for each piece.
    """
    left = memoryview(data)
    while left:
        if time.monotonic() >= until:
            raise TimeoutError
        left = left[opened.send(left) :]


def _reader() -> Any:
    return hiredis.Reader(replyError=_reply_error, notEnoughData=_INCOMPLETE)


def _reply_error(text: str) -> RedisError:
    """Return the exception of an error reply; those that a new connection may mend close the wire.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors
    """
    code = without_place(text).partition(" ")[0]
    if code == "LOADING":
        return BusyLoadingError(text)
    if code in ("NOSCRIPT", "MASTERDOWN"):
        return RedisConnectionError(text)
    return not_the_master(text) or ResponseError(text)


def _redis_error(error: Exception) -> RedisError:
    if isinstance(error, TimeoutError | BlockingIOError):
        return RedisConnectionError("Redis does not answer")
    if isinstance(error, hiredis.HiredisError):
        return RedisConnectionError(f"Redis sends what is no reply: {error}")
    return error if isinstance(error, RedisError) else RedisConnectionError(str(error))
