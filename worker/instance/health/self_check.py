"""Asks an instance, once requests have failed on it, whether it still answers what it can.

After a fault on a GPU, or with anything else broken in its process, an instance fails every request
faster than others answer theirs, so most would come to it. It is to leave before it answers one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from shared.datatypes import Array
from shared.errors import described
from shared.model_spec import ModelSpec
from worker.instance.health.device_probe import Probe, no_device
from worker.instance.health.token_ids import Vocabulary, vocabulary_of
from worker.instance.out_of_memory import is_out_of_memory
from worker.job import ANSWERS_NO_MORE, DEVICE_IS_LOST
from worker.meter import Meter

log = logging.getLogger(__name__)

TRIES = 2
"""Of the pass that is known to work: a model may fail by chance."""


class InstanceLost(Exception):
    """An instance, or its device, has failed for good: nothing that it holds is to be answered.

    `code` is the exit code of its process; `suspects` are the ids of the requests that ran then.
    """

    def __init__(self, code: int, reason: str, suspects: Collection[str]) -> None:
        """Say why."""
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.suspects = frozenset(suspects)


@dataclass
class SelfCheck:
    """One instance's look at itself.

    `known_good` runs something that the model has answered, None as long as nothing is known. Where
    the warm-up found nothing, it `learns` from the first request that is answered. Token ids beyond
    its `vocabulary` are not to reach the device.
    """

    probe: Probe = no_device
    known_good: Callable[[], object] | None = None
    vocabulary: Vocabulary | None = None
    meter: Meter = field(default_factory=Meter)
    learns: bool = True

    def count_failing(self, *, has_failed: bool) -> None:
        """Count a batch for the supervisor, which sees what other instances make of such."""
        if not has_failed:
            self.meter.failing_batches = 0
        else:
            self.meter.failing_batches += 1

    def learn(self, again: Callable[[], object], ran: Collection[str]) -> None:
        """Know the request that `again` runs once more, if the model takes it now; `ran` is its id.

        Of one that refuses it no more is learned: it may remember what it was asked.
        """
        try:
            again()
        except BaseException as error:  # a border: whatever the model raises
            self.look_at_device(ran)
            self.learns = is_out_of_memory(error)
            log.info("what was answered is refused when it is run again: %s", described(error))
        else:
            self.known_good = again

    def look_at_device(self, suspects: Collection[str]) -> None:
        """Raise InstanceLost if the device takes no more work, after `suspects` failed on it."""
        if fault := self.probe():
            reason = f"its device takes no more work: {fault}"
            raise InstanceLost(DEVICE_IS_LOST, reason, suspects)

    def look_at_model(self, suspects: Collection[str]) -> None:
        """Raise InstanceLost if the model fails what it answered before, after `suspects` failed.

        A run of bad requests takes no instance out, since it still answers that.
        """
        if self.known_good is None:
            return
        said = ""
        for _ in range(TRIES):
            try:
                self.known_good()
            except BaseException as error:  # a border: whatever the model raises
                self.look_at_device(suspects)
                if is_out_of_memory(error):
                    return
                said = described(error)
            else:
                return
        reason = f"it fails what it answered before: {said}"
        raise InstanceLost(ANSWERS_NO_MORE, reason, suspects)


def self_check(
    spec: ModelSpec,
    ask: Callable[[Mapping[str, Array]], object],
    make: Callable[[], Mapping[str, Array]] | None,
    probe: Probe,
    meter: Meter,
    *,
    is_torchs: bool,
) -> SelfCheck:
    """Return what an instance knows of itself by rows that its model took, which `make` makes anew.

    Inside of one that `is_torchs` its tables are looked for. `ask` runs the model.
    """
    vocabulary = vocabulary_of(spec, ask, make() if make and is_torchs else {})
    if make is None:
        return SelfCheck(probe, None, vocabulary, meter)
    try:
        ask(make())
    except BaseException as error:  # a border: the model may remember what it was asked
        said = described(error)
        log.info("%s refuses now what warmed it, it is not asked that again: %s", spec.key, said)
        return SelfCheck(probe, None, vocabulary, meter)
    return SelfCheck(probe, lambda: ask(make()), vocabulary, meter)
