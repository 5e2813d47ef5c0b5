"""Loads and warms up one version of a model, as an instance would, and says whether it could.

    python -m worker.instance.trials.trial_load REPOSITORY NAME VERSION

Prints NOT_LOADED and the reason when it could not. Else LOADED, once only its answers can still
refuse it, and behind that what is wrong with it all the same.
A process of its own, so that a model that takes its process down does no other harm.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from shared.cores import default_cores
from shared.errors import FerryError, described
from shared.registry.device_report import DeviceReport
from shared.settings import Settings
from worker.devices import Placement, cpu_threads, devices_of, why_cpu_only
from worker.instance.process import warm_backend
from worker.job import InstanceJob
from worker.meter import Meter
from worker.preflight import own_device
from worker.preflight.look import devices_here
from worker.repository.check import LOADED, NOT_LOADED
from worker.repository.file_kinds import trusted_backends
from worker.repository.models import ServedModel, read_model


def main(repository: Path, name: str, version: str) -> int:
    """Try one version on the first device that its config names."""
    logging.disable()
    say = partial(print, file=own_output(), flush=True)
    settings = Settings.from_env(os.environ)
    try:
        model = read_model(repository, name, version, trusted=trusted_backends(settings))
        devices = devices_here(os.environ)
        job = InstanceJob(
            "trial", model.spec, model.config.backend, model.file,
            own_device.take(_first_place(model, devices, settings)),
            settings.redis_url, settings.key_prefix, settings.result_ttl_seconds,
            settings.log_level, trusted=trusted_backends(settings), warmup=model.config.warmup,
        )  # fmt: skip
        if not model.spec.steps:
            with torch.inference_mode():
                say(warm_backend(job, Meter(), partial(say, LOADED)).note)
    except FerryError as error:
        say(f"{NOT_LOADED}\n{error.message}")
        return 1
    except BaseException as error:  # a border: whatever the model raises is the answer
        say(f"{NOT_LOADED}\n{described(error)}")
        return 1
    return 0


def _first_place(model: ServedModel, devices: DeviceReport, settings: Settings) -> Placement:
    """Return where a supervisor would place the model's first instance, were it alone."""
    cpu_only = why_cpu_only(model.config.backend, devices)
    numbers = [each.index for each in devices.usable]
    groups, allow_cpu = model.config.instance_groups, settings.allow_cpu_fallback
    place = devices_of(groups, numbers, allow_cpu=allow_cpu, cpu_only=cpu_only)[0]
    device = devices.device_of(place)
    threads = cpu_threads(1, default_cores(), settings.cpu_threads)
    return Placement(place, threads, device.uuid if device else "")


def own_output() -> TextIO:
    """Return the standard output, for us alone: what the model prints goes to the errors."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ours


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
