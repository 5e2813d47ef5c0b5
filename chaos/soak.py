"""Twice what the model can do, for minutes: does anything grow? `python -m chaos.soak [MINUTES]`.

A Ferry of its own serves a model whose every batch takes the same time. A line a minute says what
was answered and refused, and what memory Valkey, the API and the workers hold.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from bench.processes import BenchError
from bench.report import aligned
from chaos.offered import Offered, running_offer
from chaos.system import System, running_system
from ferry.errors import CannotStart
from ferry.up.sessions import members
from shared.errors import BadSetting
from shared.settings import Settings
from shared.wire.client import connect

MODEL = "busy"
PATH = f"/v2/models/{MODEL}/infer"
MINUTES = 10
MINUTE_SECONDS = 60.0
WARM_UP_SECONDS = 5.0
SURELY_TOO_MUCH = 600.0
"""Requests per second that are more than the model can do, to see how many it can."""
CONFIG = f"""name: "{MODEL}" platform: "pytorch_libtorch" max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [2] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [2] }} ]
dynamic_batching {{ default_queue_policy {{ max_queue_size: 50 }} }}
"""
HEADINGS = (
    "minute", "offered/s", "answered", "refused", "failed", "refused_p99_ms", "answered_p99_ms",
    "valkey_mb", "api_mb", "workers_mb", "used_memory_mb",
)  # fmt: skip


class Busy(torch.nn.Module):
    """Answers 2x after some 40 ms of matrix products on one core, however many rows there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        work = torch.ones(384, 384)
        for _ in range(16):
            work = work @ work / 384.0
        return x * 2.0 + (work[0, 0] - work[0, 0])


class Minute(NamedTuple):
    """What happened in one minute, and the memory in MiB at its end."""

    number: int
    per_second: float
    offered: Offered
    valkey_mib: float
    api_mib: float
    workers_mib: float
    used_memory_mib: float

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        offered = self.offered
        return (
            str(self.number), f"{self.per_second:.0f}", str(offered.answered),
            str(offered.refused), str(len(offered.failed)), f"{1e3 * offered.refused_p99:.1f}",
            f"{1e3 * offered.answered_p99:.0f}", f"{self.valkey_mib:.1f}", f"{self.api_mib:.1f}",
            f"{self.workers_mib:.1f}", f"{self.used_memory_mib:.2f}",
        )  # fmt: skip


def soak(
    minutes: int, settings: Settings, tell: Callable[[Minute], None] = lambda _: None
) -> list[Minute]:
    """Offer twice the capacity for so many minutes; raises BenchError.

    `tell` is called at the end of each. Ends everything that it started.
    """
    with TemporaryDirectory(prefix="ferry-soak-") as name:
        directory = Path(name)
        write_model(directory / "repository")
        settings = replace(settings, models=str(directory / "repository"), cpu_threads=1)
        found: list[Minute] = []
        with (
            running_system(settings, MODEL, 1, directory) as system,
            running_offer(system.settings.port, PATH, _body(), directory / "offer.log") as offer,
        ):
            capacity = offer.ask(SURELY_TOO_MUCH, WARM_UP_SECONDS).answered / WARM_UP_SECONDS
            for number in range(1, minutes + 1):
                offered = offer.ask(2 * capacity, MINUTE_SECONDS)
                found.append(_measured(number, 2 * capacity, offered, system))
                tell(found[-1])
        return found


def write_model(repository: Path) -> None:
    """Write the model's directory."""
    file = repository / MODEL / "1" / "model.pt"
    file.parent.mkdir(parents=True)
    (repository / MODEL / "config.pbtxt").write_text(CONFIG)
    script: Any = torch.jit.script
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script(Busy()).save(str(file))


def _body() -> str:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    return json.dumps({"inputs": [tensor]})


def _measured(number: int, per_second: float, offered: Offered, system: System) -> Minute:
    workers = [pid for worker in system.workers for pid in members(worker.pid)]
    with connect(system.settings.redis_url) as redis:
        used: int = redis.info("memory")["used_memory"]
    return Minute(
        number, per_second, offered, _rss_mib([system.valkey.server.process.pid]),
        _rss_mib(system.api_processes()), _rss_mib(workers), used / 2**20,
    )  # fmt: skip


def _rss_mib(pids: list[int] | set[int]) -> float:
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    """Soak for as many minutes as the argument says; a line each, then all as a table."""
    minutes = int(sys.argv[1]) if len(sys.argv) > 1 else MINUTES

    def tell(minute: Minute) -> None:
        print(
            " ".join(f"{n}={v}" for n, v in zip(HEADINGS, minute.cells(), strict=True)), flush=True
        )

    try:
        found = soak(minutes, Settings.from_env(os.environ), tell)
    except (BadSetting, BenchError, CannotStart) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    print(f"\n{aligned([HEADINGS, *(minute.cells() for minute in found)], 0)}")
    return 1 if any(minute.offered.failed for minute in found) else 0


if __name__ == "__main__":
    sys.exit(main())
