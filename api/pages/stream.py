"""The stream of the operations page, as server-sent events: one look a second for all pages.

A page that just opened gets everything and the history; from then on what changed since the last
event. One that is too slow for that gets everything anew. Source of the format:
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from threading import Condition, Lock, Thread
from typing import Any

import orjson

from api.pages.operations import Operations, Sections, shown_point
from api.services import Services
from shared.errors import QueueFull, RedisUnavailable

log = logging.getLogger(__name__)

MOST_STREAMS = 32
"""Pages and events of jobs open at one process: each holds one of its FERRY_API_CONNECTIONS."""
PAGES_LOOK_SECONDS = 1.0
QUIET_STREAM_SECONDS = 10.0
"""After so long without news a comment is sent: it tells whether the page is still there."""
RETRY = b"retry: 2000\n\n"


class Streams:
    """The open pages of one process, and the thread that looks for them while there are any."""

    def __init__(self, services: Services, operations: Operations) -> None:
        """Start nothing yet."""
        self._services = services
        self._operations = operations
        self._changed = Condition()
        self._count = self._others = self._number = 0
        self._looks = self._closed = False
        self._sections: Sections = {}
        self._versions: dict[str, Any] = {}
        self._news = b""
        self._whole = (0, b"")
        self._making_whole = Lock()
        self._point_at = 0.0

    def open(self, is_let_in: Callable[[], bool]) -> Iterator[bytes]:
        """Return a page's events, while it is let in; raises QueueFull for one page too many."""
        with self._changed:
            self._check_place()
            self._count += 1
            if not self._looks:
                self._looks = True
                Thread(target=self._look_on, name="ferry-pages", daemon=True).start()
        return _Stream(self._events(), is_let_in, self._leave)

    def share(self, events: Iterator[bytes], is_let_in: Callable[[], bool]) -> Iterator[bytes]:
        """Return events of another's under the same rules, which end when `pause` says so."""
        with self._changed:
            self._check_place()
            self._others += 1
        return _Stream(events, is_let_in, self._leave_shared)

    def pause(self, seconds: float) -> bool:
        """Wait; tell whether the process goes on."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._closed, seconds)

    def _check_place(self) -> None:
        taken = self._count + self._others
        if taken >= MOST_STREAMS or self._closed:
            raise QueueFull(f"{taken} streams are open at this process, no more may be")

    def _leave_shared(self) -> None:
        with self._changed:
            self._others -= 1

    def close(self) -> None:
        """End all streams, for the process stops."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._count -= 1

    def _events(self) -> Iterator[bytes]:
        yield RETRY
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda seen=seen: self._number != seen or self._closed,  # type: ignore[misc]
                    QUIET_STREAM_SECONDS,
                )
                if self._closed:
                    return
                number, news = self._number, self._news
            if number == seen:
                yield b": still here\n\n"
            elif seen and number == seen + 1:
                yield news
            else:
                yield self._everything(number)
            seen = number

    def _everything(self, number: int) -> bytes:
        """Return everything as of a look, made once for all pages that want it then."""
        with self._making_whole:
            if self._whole[0] != number:
                self._whole = (number, self._made_whole())
            return self._whole[1]

    def _made_whole(self) -> bytes:
        recorder = self._services.recorder
        try:
            history = {
                "seconds": [shown_point(each) for each in recorder.seconds()],
                "minutes": [shown_point(each) for each in recorder.minutes()],
            }
        except RedisUnavailable:
            history = {"seconds": [], "minutes": []}
        return _event(
            {"whole": True, "sections": self._sections, "versions": self._versions, **history}
        )

    def _look_on(self) -> None:
        """Look each second while a page is open."""
        due = time.monotonic()
        while not self._is_over():
            try:
                self._services.recorder.watch()
                self._look()
            except RedisUnavailable as error:
                self._tell_of_trouble(str(error))
            except Exception:  # a border: the pages go on with the next look
                log.exception("the pages' figures cannot be read, the next look is in a second")
            due = max(due + PAGES_LOOK_SECONDS, time.monotonic())
            time.sleep(due - time.monotonic())

    def _is_over(self) -> bool:
        with self._changed:
            if self._count and not self._closed:
                return False
            self._looks, self._whole = False, (0, b"")
            return True

    def _look(self) -> None:
        sections, versions = self._operations.look()
        sections["trouble"] = ""
        points = self._services.recorder.seconds(self._point_at, most=5)
        if points:
            self._point_at = points[-1].at
        news: dict[str, Any] = {
            "sections": _differing(self._sections, sections),
            "versions": _differing(self._versions, versions),
            "gone": [key for key in self._versions if key not in versions],
            "points": [shown_point(each) for each in points],
        }
        self._sections, self._versions = sections, versions
        if any(news.values()) or not self._number:
            self._publish(news)

    def _tell_of_trouble(self, trouble: str) -> None:
        if self._sections.get("trouble") != trouble:
            self._sections = {**self._sections, "trouble": trouble}
            self._publish({"sections": {"trouble": trouble}, "versions": {}})

    def _publish(self, news: dict[str, Any]) -> None:
        with self._changed:
            self._news = _event(news)
            self._number += 1
            self._changed.notify_all()


class _Stream:
    """One page's events; `close`, which WSGI calls in any case, gives its place to another.

    Each is for who may know it when it is told: keys are revoked meanwhile.
    """

    def __init__(self, events: Iterator[bytes], is_let_in: Callable[[], bool], leave: Any) -> None:
        self._events = events
        self._is_let_in = is_let_in
        self._leave = leave

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        event = next(self._events)
        if not self._is_let_in():
            raise StopIteration
        return event

    def close(self) -> None:
        self._leave()
        self._leave = _nothing


def _nothing() -> None:
    """Leave once."""


def _differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in now.items() if before.get(name, ...) != value}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(content)
