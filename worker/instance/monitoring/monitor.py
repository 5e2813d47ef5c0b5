"""Counts an instance's rows and answers by the reference's bins, beside its batches.

    batch answered --> offer: kept as it is --> once a second: counted, added in Redis
                          '-- enough of this second --> left out

A thread of its own does the counting, and sleeps while nobody asks. It looks at so many rows and
bytes a second and no more, whatever the load: of a busy instance's rows a part. What is counted is
what clients sent and got, in arrays that no model writes into.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import numpy as np

from shared.datatypes import Array
from shared.drift.counts import DriftCounts
from shared.drift.reference import Reference
from shared.drift.signals import Values, input_signals, output_signals
from shared.errors import RedisUnavailable
from shared.messages import Tensor
from shared.model_spec import ModelSpec
from shared.registry.registry import Registry
from shared.wire.client import connect
from worker.instance.batch_parts import DecodedRequest, Offer
from worker.instance.monitoring.samples import Samples
from worker.job import InstanceJob
from worker.repository.config.parameters import is_monitored
from worker.repository.verified import record_stamp, reference_in

log = logging.getLogger(__name__)

EACH_SECONDS = 1.0
SECOND_ROWS, SECOND_BYTES = 512, 16 * 2**20
"""What is looked at in a second: as many rows, or bytes, or half of each."""
MAX_SHAPES = 64
"""Groups of rows of one shape, each of which is counted at once."""
REFERENCE_LOOK_SECONDS = 2.0
"""Between two looks for a reference, where there is none."""
LAST_COUNT_SECONDS = 2.0


class Seen(NamedTuple):
    """One request and its rows of each output."""

    one: DecodedRequest
    outputs: Sequence[Tensor]


class Monitor:
    """One instance's; `offer` is its own thread's, all else another's."""

    def __init__(
        self, spec: ModelSpec, version: Path, counts: DriftCounts, registry: Registry,
        samples: Samples | None = None,
    ) -> None:  # fmt: skip
        """Count by the reference in the directory `version`; one that comes later is found.

        Where there are `samples`, one of each second's requests is written.
        """
        self._spec = spec
        self._samples = samples
        self._version = version
        self._counts = counts
        self._registry = registry
        self._stamp: tuple[int, int] | None = None
        self._reference: Reference | None = None
        self._taken = deque[tuple[Sequence[DecodedRequest], Mapping[str, Sequence[Tensor]]]]()
        # subtle: each has one thread that writes it, so none is ever lost.
        self._offered = 0.0
        self._look_at = 0.0
        self._pending: dict[str, Array] = {}
        self._pending_rows = 0
        self._look()
        self._allowed = self._allowance()
        self._work, self._closing = Event(), Event()
        self._thread = Thread(target=self._run, name="ferry-monitor", daemon=True)
        self._thread.start()

    def offer(
        self, requests: Sequence[DecodedRequest], outputs: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Have the requests of a pass counted, `outputs` has one tensor for each; never waits."""
        if self._offered >= self._allowed:
            if time.monotonic() >= self._look_at:
                self._work.set()
            return
        size = sum([_bytes_of(one) for one in requests])
        size += sum([len(each.data) for tensors in outputs.values() for each in tensors])
        rows = sum([one.claimed.rows for one in requests])
        self._offered += rows / SECOND_ROWS + size / SECOND_BYTES
        self._taken.append((requests, outputs))
        if not self._work.is_set():
            self._work.set()

    def close(self) -> None:
        """Count what is left, and end."""
        self._closing.set()
        self._work.set()
        self._thread.join(LAST_COUNT_SECONDS)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._work.wait()
            is_last = self._closing.wait(EACH_SECONDS)
            self._work.clear()
            try:
                self._tick()
            except RedisUnavailable as error:
                log.debug("%s: counts wait, Redis fails: %s", self._spec.key, error)
            except Exception:  # a border: answers do not depend on their being counted
                log.exception("%s: rows of a second are not counted", self._spec.key)
            self._look_at = time.monotonic() + REFERENCE_LOOK_SECONDS
            self._allowed = self._allowance()

    def _allowance(self) -> float:
        return self._offered + 1.0 if self._reference or self._samples else -math.inf

    def _tick(self) -> None:
        changed = self._look()
        taken = self._take()
        if self._samples and taken:
            self._sample(random.choice(taken))
        if self._reference is None:
            return
        self._count(taken, self._reference)
        if changed:
            self._registry.keep_reference(self._spec.key, self._reference.encode())
        if self._pending_rows:
            self._counts.add(self._spec.key, self._reference, self._pending_rows, self._pending)
            self._forget()

    def _look(self) -> bool:
        """Read the reference if there is another one; tell whether there is."""
        found = record_stamp(self._version)
        if found == self._stamp:
            return False
        self._stamp = found
        before, self._reference = self._reference, reference_in(self._version)
        if (before and before.digest) == (self._reference and self._reference.digest):
            return False
        self._forget()  # by bins that hold no more
        return self._reference is not None

    def _forget(self) -> None:
        self._pending, self._pending_rows = {}, 0

    def _take(self) -> list[Seen]:
        taken = []
        while self._taken:
            requests, outputs = self._taken.popleft()
            taken += [
                Seen(one, [tensors[index] for tensors in outputs.values()])
                for index, one in enumerate(requests)
            ]
        return taken

    def _sample(self, seen: Seen) -> None:
        assert self._samples is not None, "asked only then"
        try:
            self._samples.write(seen.one, seen.outputs)
        except OSError as error:
            log.warning("%s: no more requests are sampled: %s", self._spec.key, error)
            self._samples = None

    def _count(self, taken: Sequence[Seen], reference: Reference) -> None:
        """Add to the pending counts, all rows of one shape at once."""
        groups = defaultdict[tuple[object, ...], list[Seen]](list)
        for seen in taken:
            groups[self._shape(seen)].append(seen)
        for group in islice(groups.values(), MAX_SHAPES):
            values = self._values(group, reference)
            for name, bins in reference.signals.items():
                if name in values:
                    before = self._pending.get(name, 0)
                    self._pending[name] = before + bins.counted(values[name])
            self._pending_rows += sum([each.one.claimed.rows for each in group])

    def _shape(self, seen: Seen) -> tuple[object, ...]:
        """Return what is equal for requests whose rows can be counted together.

        Texts are counted each by itself, so that their lengths make no groups.
        """
        first = int(self._spec.batched)
        tensors = seen.outputs if self._spec.text else (*seen.one.request.inputs, *seen.outputs)
        return tuple([(each.name, each.pixels, each.shape[first:]) for each in tensors])

    def _values(self, group: Sequence[Seen], reference: Reference) -> Values:
        """Return the signals of rows of one shape, and of their answers."""
        inputs = group[0].one.request.inputs
        pixels = frozenset([each.name for each in inputs if each.pixels])
        if self._spec.text is not None:
            parts = [input_signals(self._spec, seen.one.arrays, pixels) for seen in group]
            asked = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
        else:
            arrays = {
                name: self._stacked([seen.one.arrays[name] for seen in group], name in pixels)
                for name in group[0].one.arrays
            }
            asked = input_signals(self._spec, arrays, pixels)
        answers = {
            output.name: self._stacked([seen.outputs[place].array() for seen in group])
            for place, output in enumerate(group[0].outputs)
        }
        return asked | output_signals(self._spec, answers, reference.centre)

    def _stacked(self, arrays: Sequence[Array], has_rows: bool = False) -> Array:
        """Return the rows of all requests; a model without batches has one in each."""
        joined = np.concatenate if self._spec.batched or has_rows else np.stack
        return joined(arrays)


def _bytes_of(one: DecodedRequest) -> int:
    """Return a request's bytes: pixels are more than the file of which they were decoded."""
    return max(one.claimed.size, sum([array.nbytes for array in one.arrays.values()]))


@contextmanager
def monitored(job: InstanceJob) -> Iterator[Offer | None]:
    """Yield what counts an instance's rows and samples them, None where the config has it off."""
    if not is_monitored(job.spec.parameters):
        yield None
        return
    client, prefix = connect(job.redis_url, job.key_prefix), job.key_prefix
    counts, registry = DriftCounts(client, prefix), Registry(client, prefix)
    monitor = Monitor(job.spec, job.file.parent, counts, registry, Samples.of(job))
    yield monitor.offer
    monitor.close()
