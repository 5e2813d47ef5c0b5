"""Decides for a whole machine which instance of which model runs where."""

from __future__ import annotations

import logging
from multiprocessing.context import ForkServerContext
from typing import Any

from shared.errors import BadModel
from shared.settings import default_cores
from worker.devices import Placement, cpu_threads, devices_of
from worker.repository.models import ServedModel

log = logging.getLogger(__name__)


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
