"""Makes the slots of a version: as many as its instance groups say, where this machine has room."""

from __future__ import annotations

import itertools
import logging
from multiprocessing.context import ForkServerContext

from shared.registry.log_settings import LogLevel
from shared.settings import Settings
from worker.devices import falls_back
from worker.repository.models import ServedModel
from worker.supervisor.assignment import assign, gpu_count
from worker.supervisor.deployment import Deployment
from worker.supervisor.instance_slot import Slot

log = logging.getLogger(__name__)


class Deploying:
    """Used by one supervisor; every slot has a number of its own."""

    def __init__(
        self, supervisor: str, settings: Settings, context: ForkServerContext, level: LogLevel
    ) -> None:
        """Ask nobody for the GPUs yet."""
        self._supervisor = supervisor
        self._settings = settings
        self._context = context
        self._level = level
        self._numbers = itertools.count()
        self._gpus: int | None = None

    def deployment(self, new: ServedModel, models: list[ServedModel]) -> Deployment:
        """Return the empty slots of a new model, which shares this machine with all `models`.

        Raises BadModel when the machine cannot place it.
        """
        if self._gpus is None:
            self._gpus = gpu_count(self._context)
        placed, failures = assign(
            models, self._gpus, self._settings.cpu_threads,
            allow_cpu=self._settings.allow_cpu_fallback,
        )  # fmt: skip
        if new.spec.key in failures:
            raise failures[new.spec.key]
        if falls_back(new.config.instance_groups, self._gpus):
            log.warning("%s: KIND_GPU, but there is no GPU: it runs on the CPU", new.spec.key)
        slots = [
            Slot(
                model, placement, next(self._numbers), self._supervisor, self._settings,
                self._context,
            )
            for model, placement in placed
            if model is new
        ]  # fmt: skip
        for slot in slots:
            slot.log_at(self._level.number)
        return Deployment(new, slots)
