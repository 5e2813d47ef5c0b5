"""Single requests beside the load: is it answered, in which batch, has the queue emptied?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from threading import Event, Thread

from bench.processes import BenchError

REQUEST_TIMEOUT_SECONDS = 10.0
SETTLE_TIMEOUT_SECONDS = 10.0
SAMPLES_PER_RUN = 10


@dataclass(frozen=True)
class Request:
    """One request to a server on this machine."""

    port: int
    path: str
    method: str = "GET"
    content_type: str = "text/plain"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def batch_size(answer: bytes) -> int | None:
    """Return the batch size that an answer says it travelled in; None when it says nothing."""
    timings = json.loads(answer).get("timings")
    return timings and int(timings["batch_size"])


def ask(connection: HTTPConnection, request: Request) -> bytes:
    """Send one request and return the answer's body; raises BenchError unless it is a 200."""
    headers = dict(request.headers)
    if request.body:
        headers["Content-Type"] = request.content_type
    try:
        connection.request(request.method, request.path, request.body or None, headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, HTTPException) as error:
        raise BenchError(f"{request.method} {request.path}: {error!r}") from error
    if response.status != 200:  # noqa: PLR2004
        text = answer[:300].decode(errors="replace")
        raise BenchError(f"{request.method} {request.path}: {response.status} {text}")
    return answer


def settle(request: Request) -> None:
    """Return once a request travels alone: what the last load left behind has been worked off.

    wrk closes its connections and goes; the server still computes what it had accepted.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT_SECONDS
    with _connected(request.port) as connection:
        while (batch_size(ask(connection, request)) or 1) > 1:
            if time.monotonic() > deadline:
                raise BenchError(f"{request.path} is still busy {SETTLE_TIMEOUT_SECONDS} s later")


@contextmanager
def sampled_batches(request: Request, seconds: float) -> Iterator[list[int]]:
    """Send a few requests spread over the next `seconds`; the list fills with their batch sizes.

    A request that fails ends the sampling: wrk counts the failures.
    """
    sizes: list[int] = []
    stop = Event()
    thread = Thread(
        target=_sample, args=(request, sizes, stop, seconds / (SAMPLES_PER_RUN + 1)), daemon=True
    )
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join(REQUEST_TIMEOUT_SECONDS)


def _sample(request: Request, sizes: list[int], stop: Event, interval_seconds: float) -> None:
    with _connected(request.port) as connection:
        while not stop.wait(interval_seconds):
            try:
                size = batch_size(ask(connection, request))
            except BenchError:
                return
            if size is None:
                return
            sizes.append(size)


@contextmanager
def _connected(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_SECONDS)
    try:
        yield connection
    finally:
        connection.close()
