"""An instance's figures for its supervisor while it serves, in shared memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from weakref import ref

WEIGHT_OF_LATEST = 0.5
"""The latest heartbeat's share in the mean rate."""
NEGLIGIBLE_RATE = 0.01
MAX_FAILING_BATCHES = 10
MAX_GUESS_BYTES = 256
PAGE_METERS = 64
FULL_SHARE = 0.75
"""A batch of so large a share of the largest one's rows counts as full."""


class Meter(ctypes.Structure):
    """Written by the instance, one plain store per field; read by the supervisor at any time.

    `log_level` and `iso_times` go the other way: at which level the instance is to log, 0 before
    that is known, and whether its lines begin with times as ISO 8601 has them.

    `busy_since` is when the batch in hand began (monotonic seconds), 0 between batches: a batch
    that runs too long is killed. `untouched_lane` is the number of the lane whose batch no model
    has seen, 0 for none (`worker.instance.passes.lanes`). `making_up_since` is the same for a pass
    of the warm-up over inputs that are made up; `taken_guess` says which a process of this place
    took, empty for none.
    `row_limit` is how many rows at once memory holds, 0 for no limit; `memory_bytes` is what the
    warm model takes of its GPU.
    `failing_batches` are those in a row of which every request failed, where nothing is known that
    the model answers: else the instance finds out by itself whose fault that is.
    The `full_` fields are means of full batches: what the model can do when much is asked of it.
    """

    busy_since: float
    making_up_since: float
    answered_count: int
    row_count: int
    batch_count: int
    last_batch_rows: int
    last_batch_seconds: float
    row_limit: int
    memory_bytes: int
    log_level: int
    iso_times: int
    taken_guess: bytes
    failing_batches: int
    full_rows: int
    full_requests: float
    full_seconds: float
    untouched_lane: int

    _fields_ = (
        ("busy_since", ctypes.c_double),
        ("making_up_since", ctypes.c_double),
        ("answered_count", ctypes.c_uint64),
        ("row_count", ctypes.c_uint64),
        ("batch_count", ctypes.c_uint64),
        ("last_batch_rows", ctypes.c_uint64),
        ("last_batch_seconds", ctypes.c_double),
        ("row_limit", ctypes.c_uint64),
        ("memory_bytes", ctypes.c_uint64),
        ("log_level", ctypes.c_uint64),
        ("iso_times", ctypes.c_uint64),
        ("taken_guess", ctypes.c_char * MAX_GUESS_BYTES),
        ("failing_batches", ctypes.c_uint64),
        ("full_rows", ctypes.c_uint64),
        ("full_requests", ctypes.c_double),
        ("full_seconds", ctypes.c_double),
        ("untouched_lane", ctypes.c_uint64),
    )

    def begin_batch(self) -> None:
        """Start the clock of a batch."""
        self.busy_since = time.monotonic()

    def end_batch(self, requests: int, rows: int) -> None:
        """Count a batch and stop its clock."""
        seconds, self.busy_since = time.monotonic() - self.busy_since, 0.0
        self.count_batch(requests, rows, seconds)

    def count_batch(self, requests: int, rows: int, seconds: float) -> None:
        """Count a batch that took so long."""
        self.last_batch_seconds = seconds
        self.answered_count += requests
        self.row_count += rows
        self.batch_count += 1
        self.last_batch_rows = rows
        if rows >= FULL_SHARE * self.full_rows:
            self._count_full(requests, rows, self.last_batch_seconds)

    def _count_full(self, requests: int, rows: int, seconds: float) -> None:
        """Bring the means up to date; they begin anew with a batch that is much larger."""
        weight = WEIGHT_OF_LATEST if self.full_rows >= FULL_SHARE * rows else 1.0
        self.full_requests += weight * (requests - self.full_requests)
        self.full_seconds += weight * (seconds - self.full_seconds)
        self.full_rows = max(self.full_rows, rows)

    @property
    def is_failing(self) -> bool:
        """Tell whether so many batches failed that the instance is compared with others."""
        return self.failing_batches >= MAX_FAILING_BATCHES

    @property
    def capacity_per_second(self) -> float:
        """Return how many requests are answered in a second of full batches, 0 before the first."""
        return self.full_requests / self.full_seconds if self.full_seconds > 0.0 else 0.0

    def reset(self) -> None:
        """Set everything to 0 for the next process, but how it logs and what the model can do."""
        kept = {name: getattr(self, name) for name in _KEPT}
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        for name, value in kept.items():
            setattr(self, name, value)


_KEPT = ("log_level", "iso_times", "taken_guess", "full_rows", "full_requests", "full_seconds")


class MeterBoard:
    """The meters of one supervisor's slots, side by side: one look tells that none moved.

    A page of them lives as long as a slot that has one of its meters.
    """

    def __init__(self, new_page: Callable[[type[Meter], int], ctypes.Array[Meter]]) -> None:
        """Have none yet; `new_page` makes arrays in memory that processes share."""
        self._new_page = new_page
        self._page: ctypes.Array[Meter] | None = None
        self._used_count = PAGE_METERS
        self._pages: list[ref[ctypes.Array[Meter]]] = []
        self._seen: list[bytes] = []

    def take(self) -> tuple[ctypes.Array[Meter], int]:
        """Return a page and the place in it of a meter that is nobody's yet."""
        if self._page is None or self._used_count == PAGE_METERS:
            self._page, self._used_count = self._new_page(Meter, PAGE_METERS), 0
            self._pages.append(ref(self._page))
        self._used_count += 1
        return self._page, self._used_count - 1

    def has_moved(self) -> bool:
        """Tell whether any meter stands otherwise than at the last call."""
        pages = [page for each in self._pages if (page := each()) is not None]
        if len(pages) < len(self._pages):
            self._pages = [ref(page) for page in pages]
        before, self._seen = self._seen, [bytes(page) for page in pages]
        return before != self._seen


class Rate:
    """Requests per second of one instance: a mean in which each heartbeat weighs half of the next.

    `per_second` is 0 before anything ran and again some heartbeats after the last request. It
    `is_answering` if something was answered within the last one, and not by failures alone.
    """

    def __init__(self, now: float) -> None:
        """Begin to measure at `now` (monotonic seconds), with nothing answered."""
        self.per_second = 0.0
        self.is_answering = False
        self._answered_count = 0
        self._since = now

    def rest_until(self, moment: float) -> None:
        """Note that nothing was answered until then."""
        self._since = max(self._since, moment)

    def update(self, meter: Meter, now: float) -> None:
        """Count the answers since the last call, at a heartbeat."""
        answered_count, busy = meter.answered_count, meter.busy_since > 0.0
        answered, seconds = answered_count - self._answered_count, now - self._since
        if seconds <= 0.0 or (busy and not answered):
            return  # a batch longer than a heartbeat is measured when it ends
        self.is_answering = answered > 0 and not meter.failing_batches
        latest = answered / seconds
        # After a rest the first rate is the mean; half of it would be wrong for several heartbeats.
        before = self.per_second or latest
        mean = before + WEIGHT_OF_LATEST * (latest - before)
        self.per_second = mean if mean >= NEGLIGIBLE_RATE else 0.0
        self._answered_count, self._since = answered_count, now
