"""Places a version's instances on this machine's devices, as many as its instance groups say."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.context import ForkServerContext

from shared.cores import default_cores
from shared.errors import BadModel
from shared.registry.device_report import DeviceReport
from shared.registry.log_settings import LogLevel
from shared.settings import Settings
from worker.devices import (
    CPU_CODE,
    Placement,
    cpu_threads,
    devices_of,
    falls_back,
    gpu_threads,
    why_cpu_only,
)
from worker.meter import MeterBoard
from worker.preflight.own_device import near_cores
from worker.repository.config.parameters import stops_first
from worker.repository.models import ServedModel
from worker.supervisor.deployment import Deployment
from worker.supervisor.devices.device_ledger import DeviceLedger
from worker.supervisor.instance_slot import InstanceSlot, SlotHost

log = logging.getLogger(__name__)

EXCLUSIVE = "EXCLUSIVE_PROCESS"
PROHIBITED = "PROHIBITED"


class Placer:
    """Makes one supervisor's deployments; every slot has a number of its own."""

    def __init__(
        self,
        supervisor: str,
        settings: Settings,
        context: ForkServerContext,
        level: LogLevel,
        devices: Callable[[], DeviceReport],
        starts: AbstractContextManager[None] = nullcontext(),  # noqa: B008  it has no state
    ) -> None:
        """Place on the `devices` that are there by then; `starts` bounds a process's start."""
        self._starts = starts
        self.memory_token = self.store_token = ""
        self._supervisor = supervisor
        self._settings = settings
        self._context = context
        self._level = level
        self.ledger = DeviceLedger()
        self.meters = MeterBoard(context.RawArray)
        self._numbers = itertools.count()
        self._devices = devices

    def place(self, new: ServedModel, models: list[ServedModel]) -> Deployment:
        """Return the empty slots of a new model, which shares this machine with all `models`.

        Raises BadModel when the machine cannot place it.
        """
        devices = self._devices()
        placed, failures = assign(
            models, devices, self._settings.cpu_threads,
            allow_cpu=self._settings.allow_cpu_fallback,
        )  # fmt: skip
        if new.spec.key in failures:
            raise failures[new.spec.key]
        if falls_back(new.config.instance_groups, _numbers(devices)):
            log.warning("%s: KIND_GPU, but there is no GPU: it runs on the CPU", new.spec.key)
        machine = SlotHost(
            self._supervisor,
            self._settings,
            self._context,
            self.ledger,
            self.meters,
            self._starts,
            self.memory_token,
            self.store_token,
        )
        slots = [
            InstanceSlot(model, placement, next(self._numbers), machine)
            for model, placement in placed
            if model is new
        ]
        for slot in slots:
            slot.log_as(self._level)
        return Deployment(new, slots, self._settings.min_ready_share)

    def place_again(self, deployment: Deployment, models: list[ServedModel]) -> None:
        """Move a version that is on the CPU for want of GPUs to those that there are by now.

        Its requests wait meanwhile, as while an instance is replaced.
        """
        if not any(slot.placement.note for slot in deployment.slots):
            return
        try:
            fresh = self.place(deployment.model, models).slots
        except BadModel as error:
            log.warning("%s; it stays where it is", error)
            return
        for slot, wanted in zip(deployment.slots, fresh, strict=False):
            slot.move(wanted.placement)
        deployment.slots += fresh[len(deployment.slots) :]


def assign(
    models: list[ServedModel],
    devices: DeviceReport,
    configured_threads: int,
    *,
    allow_cpu: bool = False,
) -> tuple[list[tuple[ServedModel, Placement]], dict[str, BadModel]]:
    """Return one (model, placement) per instance, and the models that this machine cannot place.

    With `allow_cpu` a machine without GPUs runs on its CPU what asks for GPUs.
    """
    wanted: list[tuple[ServedModel, str]] = []
    failures: dict[str, BadModel] = {}
    for model in models:
        try:
            places = devices_of(
                model.config.instance_groups, _numbers(devices), allow_cpu=allow_cpu,
                cpu_only=why_cpu_only(model.config.backend, devices),
            )  # fmt: skip
            _check_modes(Counter(places), _beside(model, wanted), devices)
        except BadModel as error:
            failures[model.spec.key] = BadModel(f"failed to load '{model.spec.name}', {error}")
            continue
        wanted += [(model, place) for place in places]
    # An ensemble's process computes nothing; its steps do.
    computing = [place for model, place in wanted if not model.spec.steps]
    on_cpu, cores = computing.count("cpu"), default_cores()
    on_gpu = len(computing) - on_cpu
    feeding = gpu_threads(len(computing), cores, configured_threads)
    rest = cpu_threads(on_cpu, cores - on_gpu * feeding, configured_threads)
    return [
        (model, _placement(model, place, rest if place == "cpu" else feeding, devices))
        for model, place in wanted
    ], failures


def _numbers(devices: DeviceReport) -> list[int]:
    return [each.index for each in devices.usable]


def _beside(model: ServedModel, wanted: list[tuple[ServedModel, str]]) -> Counter[str]:
    """Count the instances that run on each device beside a model's own.

    Those of another version of it have left by then where its versions take turns.
    """
    take_turns = stops_first(model.spec.parameters)
    return Counter(
        place for each, place in wanted if not take_turns or each.spec.name != model.spec.name
    )


def _check_modes(new: Counter[str], taken: Counter[str], devices: DeviceReport) -> None:
    """Raise BadModel where a GPU's compute mode does not let so many processes in."""
    for place, count in new.items():
        device = devices.device_of(place)
        mode = device.compute_mode if device else ""
        if mode == PROHIBITED or (mode == EXCLUSIVE and count + taken[place] > 1):
            assert device is not None, "no device has no mode"
            lets = "no process" if mode == PROHIBITED else "one process"
            raise BadModel(
                f"instance_group: {place} ({device.uuid}) is in compute mode {mode}, which lets "
                f"{lets} in, and {count + taken[place]} instances are to run there: ask for "
                f"fewer, or set `nvidia-smi -i {device.uuid} -c DEFAULT`"
            )


def _placement(model: ServedModel, place: str, threads: int, devices: DeviceReport) -> Placement:
    device = devices.device_of(place)
    if device is not None:
        return Placement(place, threads, device.uuid, near_cores(device.bus_id))
    return Placement(place, threads, note=_why_on_cpu(model, devices))


def _why_on_cpu(model: ServedModel, devices: DeviceReport) -> str:
    """Return why a model that would take a GPU runs on the CPU, where there is one."""
    if model.spec.steps or all(group.kind == "cpu" for group in model.config.instance_groups):
        return ""
    why = why_cpu_only(model.config.backend, devices) if devices.usable else devices.reason
    return f"runs on the CPU: {why}" if why and why != CPU_CODE else ""
