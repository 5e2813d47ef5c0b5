"""Starts simulated devices, 1, 2 and 4 instances each on a queue of its own, and their loader.

No HTTP here: one process keeps the queue full, so that the instances and Redis are the limit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.children.simulated_device import model_name
from bench.measurements import Measurement
from bench.processes import Child, running
from ferry.up import embedded_valkey

INSTANCE_COUNTS = (1, 2, 4)
# Before it measures, the loader waits until every instance has answered.
START_TIMEOUT_SECONDS = 60.0


@contextmanager
def simulated_devices(directory: Path) -> Iterator[dict[int, Callable[[float], Measurement]]]:
    """Start all instances; yields how to measure, by instance count: seconds in.

    The instances of the counts that are not being measured wait, which costs nothing.
    """
    with ExitStack() as stack:

        def start(module: str, name: str, *arguments: str, piped: bool = False) -> Child:
            command = [sys.executable, "-m", module, redis_url, *arguments]
            log_file = directory / f"{name}.log"
            process = stack.enter_context(running(command, os.environ, log_file, piped=piped))
            return Child(process, log_file)

        redis_url = stack.enter_context(embedded_valkey.running(directory)).url
        for count in INSTANCE_COUNTS:
            for number in range(count):
                name = f"{model_name(count)}-{number}"
                start("bench.children.simulated_device", name, model_name(count), name)
        loader = start("bench.children.queue_loader", "loader", piped=True)
        loader.answer(START_TIMEOUT_SECONDS)
        yield {count: partial(_measure, loader, count) for count in INSTANCE_COUNTS}


def _measure(loader: Child, instance_count: int, seconds: float) -> Measurement:
    loader.tell(f"{instance_count} {seconds}")
    said = json.loads(loader.answer(seconds + START_TIMEOUT_SECONDS))
    return Measurement(said["per_second"], batch_sizes=tuple(said["batch_sizes"]))
