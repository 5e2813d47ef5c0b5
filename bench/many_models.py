"""Many small models on one machine: seconds until all are ready, processor and memory when idle.

    python -m bench.many_models [COUNT] [--idle SECONDS] [--broken COUNT]

Starts `ferry up` on files of ONNX alone, without any config.pbtxt, and ends it. What a machine's
other work delays shows in the seconds, and hardly in the processor seconds beside them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from bench.processes import BenchError, free_port, last_lines, running
from bench.single_requests import Request, ask
from ferry.up.up import child_environment
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

READY_TIMEOUT_SECONDS = 900.0
LOOK_SECONDS = 0.1
SETTLE_SECONDS = 15.0
"""Behind the start: an instance counts as idle after ten seconds without a batch."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MIB = 2**20


class Usage(NamedTuple):
    """The use of the machine by a process and its descendants."""

    processes: int
    cpu_seconds: float
    memory_bytes: int
    descriptors: int


def main(arguments: Sequence[str]) -> int:
    """Measure once and print."""
    parser = argparse.ArgumentParser(prog="many_models", description=__doc__.partition("\n")[0])
    parser.add_argument("count", nargs="?", type=int, default=80, help="models [80]")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds to be idle for [60]")
    parser.add_argument("--broken", type=int, default=0, help="of them files that are none [0]")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        directory = Path(name)
        write_models(directory / "models", options.count, options.broken)
        measure(directory, options.count - options.broken, options.idle)
    return 0


def write_models(repository: Path, count: int, broken: int) -> None:
    """Write so many models of 16 numbers to 4, the first ones of them broken."""
    for index in range(count):
        file = repository / f"small{index:03}" / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"no model" if index < broken else _model(index))


def _model(seed: int) -> bytes:
    weights = [((seed + 1) * number) % 7 / 7 for number in range(16 * 4)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [16, 4], weights)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def measure(directory: Path, wanted: int, idle_seconds: float) -> None:
    """Print how long `wanted` models take to be ready, and what they cost after that."""
    settings = replace(
        Settings.from_env(os.environ),
        host="127.0.0.1", port=free_port(), grpc_port=free_port(), dashboard_port=free_port(),
        models=str(directory / "models"), state_dir=str(directory / "state"),
    )  # fmt: skip
    log_file = directory / "ferry.log"
    command = [sys.executable, "-m", "ferry", "up"]
    with running(command, child_environment(settings, os.environ), log_file) as process:
        began = time.monotonic()
        _wait_until_live(settings, process, log_file)
        print(f"the API answers after {time.monotonic() - began:.1f} s", flush=True)
        registry = Registry(connect(f"unix://{settings.state_dir}/valkey.sock"), "ferry")
        ready = _wait_until_ready(registry, wanted, process, log_file)
        usage = usage_of(process.pid)
        print(
            f"{ready} models ready after {time.monotonic() - began:.1f} s and "
            f"{usage.cpu_seconds:.1f} s of processor; {usage.processes} processes, "
            f"{usage.memory_bytes / MIB:.0f} MiB, {usage.descriptors} descriptors",
            flush=True,
        )
        time.sleep(SETTLE_SECONDS)
        before, since = usage_of(process.pid), time.monotonic()
        time.sleep(idle_seconds)
        after, seconds = usage_of(process.pid), time.monotonic() - since
        share = (after.cpu_seconds - before.cpu_seconds) / seconds
        print(f"idle: {100 * share:.2f} % of a core, {after.memory_bytes / MIB:.0f} MiB")
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        print(f"stopped after {time.monotonic() - stopped:.1f} s")


def _wait_until_live(settings: Settings, process: Popen[bytes], log_file: Path) -> None:
    request = Request(settings.port, "/v2/health/live")
    while True:
        try:
            connection = HTTPConnection("127.0.0.1", settings.port, timeout=5.0)
            ask(connection, request)
            return
        except BenchError:
            _check_lives(process, log_file)
        finally:
            connection.close()
        time.sleep(LOOK_SECONDS)


def _wait_until_ready(
    registry: Registry, wanted: int, process: Popen[bytes], log_file: Path
) -> int:
    """Return how many models are ready, once so many as are `wanted` are."""
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while (ready := len(registry.snapshot().ready)) < wanted:
        _check_lives(process, log_file)
        if time.monotonic() > deadline:
            raise BenchError(f"{ready} of {wanted} models are ready: {last_lines(log_file)}")
        time.sleep(LOOK_SECONDS)
    return ready


def _check_lives(process: Popen[bytes], log_file: Path) -> None:
    if process.poll() is not None:
        raise BenchError(f"ferry up ended: {last_lines(log_file)}")


def usage_of(pid: int) -> Usage:
    """Return what a process and its descendants use; those that have ended count as processor."""
    family = family_of(pid)
    return Usage(
        len(family),
        sum(family.values()),
        sum(map(_memory, family)),
        sum(map(_descriptors, family)),
    )


def family_of(pid: int) -> dict[int, float]:
    """Return a process and its descendants: the seconds of processor of each and its ended ones."""
    stats = {int(path.parent.name): _fields(path) for path in Path("/proc").glob("[0-9]*/stat")}
    family = [pid]
    for parent in family:
        family += [child for child, found in stats.items() if found and int(found[1]) == parent]
    return {each: sum(map(int, stats[each][11:15])) / TICKS_PER_SECOND for each in family}


def _fields(stat: Path) -> list[str]:
    """Return the fields behind the program's name: state, parent, ..., none of one that ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _memory(pid: int) -> int:
    """Return a process's share of its memory: of what n processes have together, a n-th each."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
