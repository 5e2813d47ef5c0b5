"""Writes down the figures of each second and minute, and reads them back.

Every API process has one recorder. It runs while requests come or somebody looks, and ends a
minute after: an idle system has none. Of all that run, a lock of 0.9 s lets one write each second,
whichever it is; what it needs of the last one stands in Redis, so any of them may end.

    asked, or looked at --> runs --> each second: has the turn --> reads all counts, writes a point
                             ^                    '-- another has --> nothing
                             '-- neither for a minute: ends
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from threading import Lock, Thread
from typing import Any

from redis import Redis

from shared.errors import RedisUnavailable
from shared.history.figures import HistoryPoint, Moment, moment_now, point_between
from shared.history.keys import HistoryKeys
from shared.model_spec import ModelSpec
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.wire.client import asking, milliseconds

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
TURN_SECONDS = 0.9
"""Less than a tick: a recorder that ends in its turn is followed by another at the next one."""
SECOND_POINTS, MINUTE_POINTS = 900, 1440
SECONDS_KEPT, DAY_SECONDS = 900.0, 86_400.0
MINUTE = 60.0
LONGEST_STEP_SECONDS = 5.0
"""A point over more than so many seconds would be no second's."""


class Recorder:
    """The history's writer in one process, and its reader."""

    def __init__(self, client: Redis, prefix: str, catalog: Catalog, registry: Registry) -> None:
        """Begin to record when `catalog` is asked for the first time."""
        self._client = client
        self._prefix = prefix
        self._keys = HistoryKeys(prefix)
        self._catalog = catalog
        self._registry = registry
        self._lock = Lock()
        self._runs = False
        self._watched_until = float("-inf")
        itself = weakref.ref(self)
        catalog.on_asked = lambda: _stir(itself)

    def watch(self) -> None:
        """Record for some time more, for somebody looks."""
        self._watched_until = time.monotonic() + MINUTE
        self.stir()

    def stir(self) -> None:
        """Begin to record, unless it does."""
        with self._lock:
            if not self._runs:
                self._runs = True
                arguments = (weakref.ref(self),)
                Thread(target=_record, args=arguments, name="ferry-history", daemon=True).start()

    def tick(self) -> bool:
        """Write this second's point if it is our turn; False when nobody needs that any more."""
        if not self._catalog.asked_lately and time.monotonic() > self._watched_until:
            self._runs = False
            return False
        try:
            self.record()
        except RedisUnavailable:
            pass  # there is nothing to record while it is away
        except Exception:  # a border: requests do not depend on their history
            log.exception("the figures of this second are not recorded, the next ones are")
        return True

    def record(self) -> None:
        """Write this second's point if nobody else does; raises RedisUnavailable."""
        at = self._turn()
        if at is None:
            return
        records, alive = self._registry.instances()
        living = [each for each in records if each.supervisor in alive]
        now = moment_now(self._client, self._prefix, at, self._specs(), living)
        self._write(now)

    def last(self) -> Moment | None:
        """Return the counts as they were last written; raises RedisUnavailable."""
        raw = asking(lambda: self._client.get(self._keys.last))
        return None if raw is None else Moment.decode(raw)

    def seconds(self, since: float = 0.0, most: int = SECOND_POINTS) -> list[HistoryPoint]:
        """Return the newest points of seconds behind a time, the oldest first."""
        return self._points(self._keys.seconds, since, most)

    def minutes(self) -> list[HistoryPoint]:
        """Return the points of the last day's minutes, the oldest first."""
        return self._points(self._keys.minutes, 0.0, MINUTE_POINTS)

    def _points(self, key: str, since: float, most: int) -> list[HistoryPoint]:
        rows: Any = asking(lambda: self._client.lrange(key, 0, most - 1))
        points = [HistoryPoint.decode(row) for row in reversed(rows)]
        return [point for point in points if point.at > since]

    def _turn(self) -> float | None:
        """Return the time of Redis if this second is ours to write, else None."""
        with self._client.pipeline(transaction=False) as opened:
            pipeline: Any = opened
            pipeline.time()
            pipeline.set(self._keys.writer, "", nx=True, px=milliseconds(TURN_SECONDS))
            (seconds, microseconds), is_ours = asking(pipeline.execute)
        return float(seconds + microseconds / 1e6) if is_ours else None

    def _specs(self) -> Sequence[ModelSpec]:
        models = self._catalog.snapshot().models
        return [spec for versions in models.values() for spec in versions.values()]

    def _write(self, now: Moment) -> None:
        keys = self._keys
        before, minute = (
            None if raw is None else Moment.decode(raw)
            for raw in asking(lambda: self._client.mget(keys.last, keys.minute))
        )
        with self._client.pipeline(transaction=True) as opened:
            pipeline: Any = opened
            pipeline.set(keys.last, now.encode(), px=milliseconds(DAY_SECONDS))
            if before is not None and now.at - before.at <= LONGEST_STEP_SECONDS:
                point = point_between(before, now)
                _push(pipeline, keys.seconds, point, SECOND_POINTS, SECONDS_KEPT)
            if minute is None or now.at // MINUTE != minute.at // MINUTE:
                pipeline.set(keys.minute, now.encode(), px=milliseconds(DAY_SECONDS))
                if minute is not None:
                    point = point_between(minute, now)
                    _push(pipeline, keys.minutes, point, MINUTE_POINTS, DAY_SECONDS)
            asking(pipeline.execute)


def _push(pipeline: Any, key: str, point: HistoryPoint, most: int, kept_seconds: float) -> None:
    """Store a point in which something happened, and leave out those that are too old."""
    if point.versions:
        pipeline.lpush(key, point.encode()).ltrim(key, 0, most - 1)
        pipeline.pexpire(key, milliseconds(kept_seconds))


def _stir(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder.stir()


def _record(reference: weakref.ref[Recorder]) -> None:
    """Tick while the recorder is needed and is not gone."""
    due = time.monotonic() + TICK_SECONDS
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due + TICK_SECONDS, time.monotonic())
        recorder = reference()
        if recorder is None or not recorder.tick():
            return
        del recorder
