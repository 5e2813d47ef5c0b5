"""Log lines: as text or as JSON, each with the id of the request that it is about.

An id is the client's `X-Request-Id`, or made at the edge; it travels with the request, so that the
lines of the API and of the worker about one request have the same.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from secrets import token_hex
from types import MappingProxyType

from pythonjsonlogger.json import JsonFormatter

access = logging.getLogger("ferry.access")

LOG_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_ID_VARIABLE = "HTTP_X_REQUEST_ID"
"""The header, as WSGI names it."""
REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
"""A client's id that is taken: what stands in a log line cannot be another line."""
IN_HAND: ContextVar[tuple[str, ...]] = ContextVar("IN_HAND", default=())
"""The ids of what this thread, or greenlet, works at; a worker's whole batch."""
SERVED: ContextVar[Mapping[str, object]] = ContextVar("SERVED", default=MappingProxyType({}))
"""The model, version and timings of the answer to what this thread, or greenlet, works at."""
LONGEST_NAMED = 200
"""Characters of a name that a line of the access log has."""
MOST_IDS = 8
"""Ids in one line; of a larger batch the others are left out."""


class RequestIds:
    """Ids for requests that bring none that can be taken."""

    def __init__(self) -> None:
        """Begin with what no other process begins with."""
        # fast: a number costs a sixth of a new random id
        self._prefix, self._numbers = token_hex(4), itertools.count()

    def of(self, given: str | None) -> str:
        """Return a client's id as it is, or a new one."""
        if given is not None and REQUEST_ID.fullmatch(given):
            return given
        return f"{self._prefix}{next(self._numbers):08x}"


class AccessLog:
    """A line for each request, where somebody wants one: FERRY_ACCESS_LOG."""

    def __init__(self, *, is_on: bool) -> None:
        """Be asked nothing while `is_on` is false."""
        self.is_on = is_on

    def write(
        self, client: str, asked: str, status: int | str, began: float, **about: str | None
    ) -> None:
        """Log one request that began at a `time.perf_counter`, with its id as any line has it.

        `about` it are its key's name, its model and version, as far as they are known; who answered
        it, and the timings, are added.
        """
        seconds = time.perf_counter() - began
        known = {name: _in_one_line(value) for name, value in about.items() if value}
        served = {**known, **SERVED.get()}
        asked = _in_one_line(asked)
        first = {"client": client, "asked": asked, "status": status, "seconds": round(seconds, 6)}
        said = "".join([f" {name}={value}" for name, value in served.items()])
        access.info("%s %s %s %.6f s%s", client, asked, status, seconds, said, extra=first | served)
        SERVED.set({})


def _in_one_line(text: str) -> str:
    """Return what a client sent as a line has it: it is no other line."""
    text = text[:LONGEST_NAMED]
    return text if text.isprintable() else text.encode("unicode_escape").decode()


class _TextLines(logging.Formatter):
    """A line of text, with the ids at its end."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = _said(IN_HAND.get())
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")


class _JsonLines(JsonFormatter):
    """A JSON object in one line."""

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "process", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )

    def formatTime(self, record: logging.LogRecord, _: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        ids = _said(IN_HAND.get())
        if ids:
            record.request_id = ids
        return super().format(record)


def _said(ids: tuple[str, ...]) -> str:
    known = [name for name in ids[:MOST_IDS] if name]
    return ",".join([*known, "..."] if len(ids) > MOST_IDS else known)


def lines_of(form: str) -> logging.Formatter:
    """Return the formatter of FERRY_LOG_FORMAT."""
    return _JsonLines() if form == "json" else _TextLines()


def log_as(level: str, form: str, *, force: bool = False) -> None:
    """Log at `level` and above to standard error, unless somebody set another handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(lines_of(form))
    logging.basicConfig(level=level, handlers=[handler], force=force)
