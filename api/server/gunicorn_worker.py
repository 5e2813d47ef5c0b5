"""gunicorn's gevent worker, except in how it stops and in the form of its own refusals.

It stops soon when nothing is under way, and refuses in JSON.

gunicorn's own waits for every connection that a client keeps open, idle or not, and looks once a
second: a stop took two seconds under load, and half a minute beside an idle client.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.event import Event
from gevent.hub import Waiter
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker

if TYPE_CHECKING:
    # subtle: at run time it would bind the standard library's locks before gevent replaces them.
    from api.server.fast_path import FastPath

NOTIFY_SECONDS = 5.0
"""Between two signs of life to gunicorn, which wants one in `timeout`, half a minute."""
DRAIN_LOOK_SECONDS = 0.02
MOST_IN_A_ROW = 16
"""Requests that are answered without a look at other connections, one client's or new ones'."""
SCRATCH_BYTES = 256 * 1024
DISCARD_SECONDS = 5.0
"""What is left of a refused body is read for so long."""
WRITE_MARGIN_SECONDS = 5.0
"""A client that takes nothing of a piece of its answer for so much longer than a connection may be
idle has left."""
LINGER_SECONDS = 0.5
"""The time in which connections may be idle once a stop has begun.

A client that asks again meanwhile is answered, with `Connection: close`: closing at once would
meet requests that are on their way.
"""


class JsonLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger, whose lines are JSON: FERRY_LOG_FORMAT."""

    def setup(self, cfg: Any) -> None:
        """Set up as gunicorn does, but for the form of the lines."""
        from shared.logs import lines_of  # noqa: PLC0415  see above

        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(lines_of("json"))


class Listener(NamedTuple):
    """What gunicorn asks of a listening socket at each request, also once `_close` closed it."""

    name: Any

    def getsockname(self) -> Any:
        """Return its address."""
        return self.name


class PromptGeventWorker(GeventWorker):  # type: ignore[misc]
    """Closes idle connections when it stops, and ends when the last request is answered."""

    alive: bool
    nr: int
    max_requests: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take gunicorn's arguments."""
        super().__init__(*arguments, **options)
        self._idle: dict[socket.socket, None] = {}
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._insistent, self._in_a_row = BoundedSemaphore(), 0
        self._told_to_stop = False
        self._stirred = Event()
        self._fast_path: FastPath | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Remember SIGTERM for `run`.

        subtle: gunicorn's own ends `alive` here. Clients told to close would connect anew while
        there is still a listener, and some of them be reset with it.
        """
        self._told_to_stop = True
        gevent.get_hub().loop.run_callback_threadsafe(self._stirred.set)

    def run(self) -> None:
        """Serve until SIGTERM; then answer the requests at hand, for up to `graceful_timeout`."""
        from shared.bodies.turns import rest_by  # noqa: PLC0415  see above
        from shared.inputs.loop import LOOP_THREADS  # noqa: PLC0415

        gevent.get_hub().threadpool_size = LOOP_THREADS + 1  # one for names of hosts

        rest_by(_rest)
        extensions = getattr(self.wsgi, "extensions", {})
        services = extensions.get("ferry")
        # by which gunicorn answers what it cannot read
        util.write_error = partial(_write_error, services and services.refusals.note)
        wsgi.SERVER = "ferry"  # what it names in the header Server
        if self.cfg.keepalive and not _logs_requests(self.cfg):
            self._fast_path = extensions.get("fast_path")
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive and not self._told_to_stop:
            self.notify()
            self._stirred.wait(NOTIFY_SECONDS)
        for server in servers:
            self._close(server)
        self.alive = False  # from here on gunicorn answers with `Connection: close`
        if streams := extensions.get("streams"):
            streams.close()  # they would have no end
        began = time.monotonic()
        while any(len(server.pool) for server in servers):
            self.notify()
            gevent.sleep(DRAIN_LOOK_SECONDS)
            waited_seconds = time.monotonic() - began
            if waited_seconds > self.cfg.graceful_timeout:
                break
            if waited_seconds > LINGER_SECONDS:
                self._end_idle_connections()
        for server in servers:
            server.stop(timeout=1)
        if tracing := extensions.get("tracing"):
            tracing.close()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve one connection."""
        client.settimeout(self.cfg.keepalive + WRITE_MARGIN_SECONDS)
        self._idle[client] = None
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.pop(client, None)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> Any:
        """Answer one request of a connection, and those behind it whose heads are known."""
        self._idle.pop(sock, None)
        try:
            fast_path = self._fast_path
            if fast_path is None or not self._answered_by(fast_path.try_answer, req, sock):
                answered = super().handle_request(listener_name, req, sock, addr)
                self._skip(req, sock)
                return answered
            self._skip(req, sock)
            while data := self._read_next(req, sock):
                if not self._answered_by(fast_path.try_answer_next, data, req, sock):
                    req.unreader.unread(data)
                    break
                self._let_others(req)
            self._skip(req, sock)
            return True
        except TimeoutError:  # its client reads no answer
            raise StopIteration from None
        finally:
            self._idle[sock] = None
            self._let_others(req)

    def _let_others(self, request: Any) -> None:
        """Give other connections their turn, where the next request of this one is here already.

        A client that sends hundreds at once would be answered all of them at a stretch. All such
        clients together have one turn, so what one of them asks is all that others wait for.
        """
        self._in_a_row = (self._in_a_row + 1) % MOST_IN_A_ROW
        if request.unreader.buf.tell():
            with self._insistent:
                _rest()
            # subtle: gevent wakes who waits for it later than this greenlet could have it again.
            gevent.sleep(0)
        elif not self._in_a_row:
            _rest()

    def _skip(self, request: Any, sock: socket.socket) -> None:
        """Read what is left of a refused body, in turns with others, and keep nothing of it.

        Its client comes to read the answer so. Gunicorn would read it all at once. Raises
        StopIteration, which ends the connection, where there is no end to it.
        """
        if request.body.failed:  # where it ends is unknown
            raise StopIteration
        reader = request.body.reader
        length = getattr(reader, "length", None)
        if length is None:
            if getattr(reader, "parser", None) is None:
                return
        elif length <= SCRATCH_BYTES:
            return
        else:
            length = max(0, length - len(request.unreader.take_buffered()))
        if _discard(sock, length, self._scratch):
            raise StopIteration
        reader.length = 0

    def _answered_by(self, attempt: Callable[..., bool], *request: Any) -> bool:
        """Return whether `attempt`, the fast path's, answered the request.

        The last request of a connection is left to gunicorn, which says that it closes. Raises
        StopIteration, at which gunicorn ends a connection, when no other request can follow.
        """
        if not self.alive or self.nr + 1 >= self.max_requests:
            return False
        try:
            answered = attempt(*request)
        except (gevent.GreenletExit, SystemExit):  # killed, perhaps in the middle of a body
            raise StopIteration from None
        self.nr += answered
        return answered

    def _read_next(self, last: Any, sock: socket.socket) -> bytes:
        """Return the bytes behind an answer, none where gunicorn has to skip a body first.

        `last` is the last request that gunicorn parsed. Raises StopIteration when nothing comes.
        """
        if last.body.reader.length:
            return b""
        data: bytes | None = None
        self._idle[sock] = None
        with self.timeout_ctx():
            data = last.unreader.read()
        self._idle.pop(sock, None)
        if not data:
            raise StopIteration
        return data

    def _end_idle_connections(self) -> None:
        """Half-close idle connections: requests that have arrived are read, then the end."""
        for connection in list(self._idle):
            with contextlib.suppress(OSError):
                _end_reading(connection)

    def _has_no_room(self, pool: Pool, listener: socket.socket) -> bool:
        """Tell whether there is none for a connection that waits; then the longest idle one ends.

        subtle: where none waits there is room, else gevent would not look for one any more.
        """
        if not pool.full() or not get_original("select", "select")([listener], [], [], 0)[0]:
            return False
        self._end_longest_idle()
        return True

    def _end_longest_idle(self) -> None:
        longest = next(iter(self._idle), None)
        if longest is not None:
            del self._idle[longest]
            with contextlib.suppress(OSError):
                _end_reading(longest)

    def _close(self, server: StreamServer) -> None:
        """Stop to listen; connections that the kernel had accepted for us are served, not reset."""
        server.stop_accepting()
        until = time.monotonic() + self.cfg.graceful_timeout
        while (accepted := server.do_read()) is not None:
            while server.pool.full() and time.monotonic() < until:
                self.notify()
                self._end_longest_idle()
                gevent.sleep(DRAIN_LOOK_SECONDS)
            server.do_handle(*accepted)
        server.close()

    def _serve(self, listener: socket.socket) -> StreamServer:
        listener.setblocking(True)
        handle = partial(self.handle, Listener(listener.getsockname()))
        pool = Pool(self.worker_connections)
        server = StreamServer(listener, handle=handle, spawn=pool)
        server.full = partial(self._has_no_room, pool, listener)
        # Several processes share clients; in one nobody waits for a hundred new ones' requests.
        server.max_accept = 1 if self.cfg.workers > 1 else MOST_IN_A_ROW
        server.start()
        return server


def _rest() -> None:
    """Have the hub look once at all sockets, and at this greenlet behind those that are ready.

    fast: 7 us, where a timer of nearly no time would wait for a millisecond.
    """
    hub = gevent.get_hub()
    with hub.loop.async_() as signal:
        waiter = Waiter(hub)
        signal.start(waiter.switch, None)
        try:
            signal.send()
            waiter.get()
        finally:
            signal.stop()


def _discard(client: socket.socket, length: int | None, scratch: memoryview) -> bool:
    """Read `length` bytes, or all; tell whether that took too long or had no end."""
    until, timeout = time.monotonic() + DISCARD_SECONDS, client.gettimeout()
    left = length
    try:
        while left != 0 and (seconds := until - time.monotonic()) > 0:
            client.settimeout(seconds)
            count = client.recv_into(scratch[: len(scratch) if left is None else left])
            if not count:
                return True
            left = None if left is None else left - count
            _rest()
    except OSError:
        return True
    finally:
        client.settimeout(timeout)
    return left != 0


def _write_error(
    note: Callable[[Exception], None] | None,
    client: socket.socket,
    status: int,
    reason: str,
    message: str,
) -> None:
    """Answer a request that never came to a route as every error is, `note` it, and close.

    In gunicorn's place, whose answer is a page.
    """
    from shared.errors import BadRequest, FerryError, Unsupported  # noqa: PLC0415  see above

    error = {500: FerryError, 501: Unsupported}.get(status, BadRequest)
    if note is not None:
        note(error(message or reason))
    body = json.dumps({"error": message or reason, "code": error.code}).encode()
    head = [
        f"HTTP/1.1 {status} {reason}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    util.write_nonblock(client, "\r\n".join([*head, "", ""]).encode() + body)


def _logs_requests(config: Any) -> bool:
    """Tell whether somebody wants gunicorn's access log, for which it needs its own objects.

    A logger of another class than gunicorn's, as that for statsd, may count or log as it likes.
    """
    wanted = ("accesslog", "logconfig", "logconfig_dict", "logconfig_json", "syslog")
    return config.logger_class not in (Logger, JsonLogger) or any(
        getattr(config, name) for name in wanted
    )


def _end_reading(connection: socket.socket) -> None:
    """Half-close the connection: its reader gets the bytes that have arrived, then the end.

    subtle: gevent's own `shutdown` raises an error in who is reading, and a TLS socket's forgets
    its keys.
    """
    plain = get_original("socket", "socket")
    with plain(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(socket.SHUT_RD)
