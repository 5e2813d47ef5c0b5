"""Plans models anew, on a thread of its own, when their desired state or their files changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from shared.errors import BadModel
from shared.registry.desired_state import Desired
from shared.settings import Settings
from worker.supervisor.planner import Plan, Planner, Signature

log = logging.getLogger(__name__)


class BackgroundPlanner:
    """The last plan of every model, and those that are being made."""

    def __init__(self, settings: Settings) -> None:
        """Read nothing yet."""
        self.made: dict[str, Plan] = {}
        self.planner = Planner(settings)
        self._thread = ThreadPoolExecutor(1, "ferry-plan")
        self._making: dict[str, Future[Plan]] = {}
        self._listed = False
        self._complaint = ""
        self._looking: Future[dict[str, Signature]] | None = None
        self._unstable: dict[str, Signature] = {}

    @property
    def is_making(self) -> bool:
        """Tell whether a model is being read."""
        return bool(self._making)

    @property
    def goes_on(self) -> bool:
        """Tell whether the other thread has something to do."""
        return self.is_making or self._looking is not None

    @property
    def has_new(self) -> bool:
        """Tell whether a plan is there that was not taken yet."""
        return any(making.done() for making in self._making.values())

    def new(self) -> list[Plan]:
        """Return the plans that were not taken yet; they become `made`."""
        plans = [making.result() for making in self._making.values() if making.done()]
        self.made |= {plan.name: plan for plan in plans}
        return plans

    def acknowledge(self, plans: list[Plan]) -> None:
        """Take these plans off `new`: they were acted upon."""
        for plan in plans:
            del self._making[plan.name]
        if not self._making:
            self._thread.submit(self.planner.rest)

    def plan_again(self, name: str) -> None:
        """Plan a model anew at the next `follow`, whatever is desired."""
        self.made.pop(name, None)

    def follow(self, desired: Mapping[str, Desired], deployed: Iterable[str]) -> None:
        """Plan every model anew whose desired generation changed.

        The repository's models are listed once: later ones come by what is desired, or by `poll`.
        Models that do not exist and are neither desired nor `deployed` are forgotten.
        """
        listed = set[str]()
        if not self._listed:
            try:
                listed, self._listed = set(self.planner.names()), True
                if not listed:
                    log.warning("the repository holds no model: nothing is served")
            except (BadModel, OSError) as error:
                self._complain(error)
        for name in self.made.keys() - {*desired, *deployed}:
            if not self.made[name].exists:
                del self.made[name]
        for name in {*self.made, *listed, *desired} - self._making.keys():
            wanted, plan = desired.get(name, Desired()), self.made.get(name)
            if plan is None or plan.generation != wanted.generation:
                self._make(name, wanted)

    def poll(self, desired: Mapping[str, Desired], *, is_due: bool) -> None:
        """Plan every model anew whose files changed, and stayed as they are for one poll.

        So are models that could not be read and ensembles of which a step changed: what they
        lacked may be there. The files are looked at by the other thread, when it `is_due`; call
        this often.
        """
        if self._looking is None and is_due:
            self._looking = self._thread.submit(self._signatures, list(self.made))
        if self._looking is None or not self._looking.done():
            return
        signatures, self._looking = self._looking.result(), None
        changed = {name for name, signature in signatures.items() if self._settled(name, signature)}
        for name, plan in self.made.items():
            if changed and (plan.reason or plan.failures or plan.steps & changed):
                changed = changed | {name}
        for name in changed - self._making.keys():
            self._make(name, desired.get(name, Desired()))

    def _signatures(self, names: list[str]) -> dict[str, Signature]:
        try:
            found = {name: self.planner.signature(name) for name in {*self.planner.names(), *names}}
        except (BadModel, OSError) as error:
            self._complain(error)
            return {}
        self._complaint = ""
        return found

    def _complain(self, error: Exception) -> None:
        """Say once that the repository cannot be read, until it can."""
        if str(error) != self._complaint:
            log.error("the repository cannot be read, trying again: %s", error)
        self._complaint = str(error)

    def _settled(self, name: str, signature: Signature) -> bool:
        """Tell whether a model's files changed, and then stayed as they are for a poll."""
        plan = self.made.get(name)
        if plan is not None and signature == plan.signature:
            self._unstable.pop(name, None)
            return False
        if self._unstable.get(name) == signature:
            del self._unstable[name]
            return True
        self._unstable[name] = signature
        return False

    def _make(self, name: str, desired: Desired) -> None:
        self._making[name] = self._thread.submit(self.planner.plan, name, desired)
