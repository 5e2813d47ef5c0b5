"""What an instance is told, and how its process begins.

The supervisor imports this and no framework: only the forkserver has torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from shared.model_spec import ModelSpec
from shared.request_queue.commands import Limits
from worker.devices import Placement
from worker.meter import Meter
from worker.repository.config.warmup import WarmupSample


@dataclass(frozen=True)
class InstanceJob:
    """Everything an instance needs to know; travels to the forked process."""

    id: str
    spec: ModelSpec
    backend: str
    file: Path
    placement: Placement
    redis_url: str
    key_prefix: str
    result_ttl_seconds: float
    log_level: str
    limits: Limits = Limits()  # noqa: RUF009, it is frozen
    allow_pickle: bool = False
    warmup: tuple[WarmupSample, ...] = ()


def run_job(job: InstanceJob, reports: Connection, meter: Meter) -> None:
    """Be the instance, in a process that the forkserver made."""
    from worker.instance.process import run_instance  # noqa: PLC0415  torch is there by now

    run_instance(job, reports, meter)
