"""Places a version's instances on this machine's devices, as many as its instance groups say."""

from __future__ import annotations

import itertools
import logging
from multiprocessing.context import ForkServerContext
from typing import Any

from shared.cores import default_cores
from shared.errors import BadModel
from shared.registry.log_settings import LogLevel
from shared.settings import Settings
from worker.devices import Placement, cpu_threads, devices_of, falls_back
from worker.repository.models import ServedModel
from worker.supervisor.deployment import Deployment
from worker.supervisor.instance_slot import InstanceSlot

log = logging.getLogger(__name__)


class Placer:
    """Makes one supervisor's deployments; every slot has a number of its own."""

    def __init__(
        self, supervisor: str, settings: Settings, context: ForkServerContext, level: LogLevel
    ) -> None:
        """Count no GPUs yet."""
        self._supervisor = supervisor
        self._settings = settings
        self._context = context
        self._level = level
        self._numbers = itertools.count()
        self._gpus: int | None = None

    def place(self, new: ServedModel, models: list[ServedModel]) -> Deployment:
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
            InstanceSlot(
                model, placement, next(self._numbers), self._supervisor, self._settings,
                self._context,
            )
            for model, placement in placed
            if model is new
        ]  # fmt: skip
        for slot in slots:
            slot.log_as(self._level)
        return Deployment(new, slots)


def assign(
    models: list[ServedModel], gpus: int, configured_threads: int, *, allow_cpu: bool = False
) -> tuple[list[tuple[ServedModel, Placement]], dict[str, BadModel]]:
    """Return one (model, placement) per instance, and the models that this machine cannot place.

    With `allow_cpu` a machine without GPUs runs on its CPU what asks for GPUs.
    """
    wanted: list[tuple[ServedModel, str]] = []
    failures: dict[str, BadModel] = {}
    for model in models:
        try:
            devices = devices_of(model.config.instance_groups, gpus, allow_cpu=allow_cpu)
        except BadModel as error:
            failures[model.spec.key] = BadModel(f"failed to load '{model.spec.name}', {error}")
            continue
        wanted += [(model, device) for device in devices]
    # An ensemble's process computes nothing; its steps do.
    on_cpu = sum(device == "cpu" and not model.spec.steps for model, device in wanted)
    threads = cpu_threads(on_cpu, default_cores(), configured_threads)
    return [(model, Placement(device, threads)) for model, device in wanted], failures


def gpu_count(context: ForkServerContext) -> int:
    """Count the GPUs in a process of its own, so that the supervisor never touches CUDA."""
    try:
        return _counted(context)
    except (OSError, EOFError) as error:  # the forkserver died: the next start brings another
        log.warning("the GPUs are counted again, no process could be started: %s", error)
        return _counted(context)


def _counted(context: ForkServerContext) -> int:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_count_gpus, args=(theirs,))
    process.start()
    theirs.close()
    try:
        count: int = ours.recv()
    except EOFError:
        log.error("cannot count the GPUs: the process that asks torch ended; models run on the CPU")
        return 0
    finally:
        process.join()
        ours.close()
    return count


def _count_gpus(reports: Any) -> None:
    import torch  # noqa: PLC0415  only in the forked process, which has it already

    reports.send(torch.cuda.device_count() if torch.cuda.is_available() else 0)
