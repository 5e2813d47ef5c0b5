"""One content of one model version on this machine: its instances, from start to leave."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Set

from shared.registry.desired_state import VersionReport, VersionState
from shared.registry.desired_store import Content
from worker.repository.config.parameters import stops_first
from worker.repository.models import ServedModel
from worker.supervisor.instance_slot import InstanceSlot


class Deployment:
    """The slots of one `ModelSpec.key`; they are started by the supervisor's ticks."""

    def __init__(
        self, model: ServedModel, slots: list[InstanceSlot], min_ready_share: float = 0.0
    ) -> None:
        """Hold slots that are empty yet, of which a share is enough to serve, or one."""
        self.model = model
        self.content = Content(model.spec.name, model.spec.version, "")
        self.slots = slots
        self.leaving = False
        self._min_ready_count = max(1, math.ceil(min_ready_share * len(slots)))
        self._was_ready = False
        self.retired_at = 0.0
        self._leave_at = self._leaves_at = 0.0
        self._kill_at = 0.0

    @property
    def key(self) -> str:
        """Return the name of the content, `ModelSpec.key`."""
        return self.model.spec.key

    @property
    def report(self) -> VersionReport:
        """Return its progress: ready once enough were, whatever became of them since.

        That is once each instance is ready or has failed: one bad device of eight keeps no version
        from serving.
        """
        ready_count = sum(slot.state == "ready" for slot in self.slots)
        is_settled = all(slot.had_chance for slot in self.slots)
        self._was_ready |= is_settled and ready_count >= self._min_ready_count
        if self.leaving:
            return VersionReport(key=self.key, state="loading")
        failed = [slot for slot in self.slots if slot.state != "ready" and slot.reason]
        is_failed = is_settled and bool(failed)
        state: VersionState = "ready" if self._was_ready else "failed" if is_failed else "loading"
        reason = failed[0].reason if state == "failed" else ""
        return VersionReport(key=self.key, state=state, reason=reason)

    def must_wait(self, deployments: Iterable[Deployment], wanted: Set[str]) -> bool:
        """Tell whether others of its model are to leave before it starts, for both do not fit.

        Those that are `wanted` as well are not in its way: who wants both has room for them.
        """
        return stops_first(self.model.spec.parameters) and any(
            each.model.spec.name == self.model.spec.name and each.key not in wanted
            for each in deployments
            if each is not self
        )

    def start_after(self, seconds: float) -> None:
        """Have no instance start for so long."""
        for slot in self.slots:
            slot.start_at = max(slot.start_at, time.monotonic() + seconds)

    def replace_failing(self) -> None:
        """Replace the instances that fail all that they are asked while others answer."""
        answering = sum(slot.is_answering for slot in self.slots)
        for slot in self.slots:
            if answering and slot.is_failing:
                slot.replace(f"all of its last batches failed, while {answering} others answered")

    def want(self) -> None:
        """Keep it: it is wanted, or takes requests."""
        self.retired_at = 0.0

    def retire_after(self, seconds: float) -> None:
        """Set how long after it was last wanted it is to leave."""
        assert self.retired_at, "it is retired before"
        if self._leave_at != self.retired_at + seconds:
            self._leave_at = self.retired_at + seconds
            self._leaves_at = time.time() + self._leave_at - time.monotonic()

    @property
    def standby_until(self) -> float:
        """Return the second since the epoch at which it is to leave, 0 from then on."""
        return 0.0 if self.is_due or self.leaving else self._leaves_at

    @property
    def is_due(self) -> bool:
        """Tell whether it is to leave now, and does not yet."""
        return bool(self.retired_at) and not self.leaving and time.monotonic() >= self._leave_at

    @property
    def due_at(self) -> float:
        """Return when it is next to be looked after, though none of its processes stirs."""
        if self.leaving:
            return 0.0
        leave_at = self._leave_at if self.retired_at else math.inf
        return min([leave_at, *(slot.due_at for slot in self.slots)])

    def leave(self, longest_batch_seconds: float) -> None:
        """Begin to end all instances, each after its batch; nothing is started any more."""
        self.leaving = True
        self._kill_at = time.monotonic() + longest_batch_seconds

    def stop(self) -> bool:
        """Ask those that still run to end, or kill them once they had the time for a batch.

        One that is just being forked does not hear SIGTERM yet, so it is asked again. Returns
        whether one was killed.
        """
        overdue = time.monotonic() >= self._kill_at
        running = [slot for slot in self.slots if slot.process]
        for slot in running:
            slot.stop(kill=overdue)
        return overdue and bool(running)

    @property
    def is_empty(self) -> bool:
        """Tell whether no process is left."""
        return not any(slot.process for slot in self.slots)
