"""One attack on a running Ferry: who noticed, and what memory it took."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from bench.processes import free_port
from chaos.whole import WholeSystem
from shared.settings import Settings
from siege.attacks import Attack
from siege.honest import HonestClient, Seen

MODELS = ("tiny", "digits", "sentiment")
LOOK_SECONDS = 0.1
REST_SECONDS = 1.0
BOUND_MS = 100.0
FREE_MIB = 64.0
"""Growth of an API process that is no request's."""
MOST_TIMES = 4


class Row(NamedTuple):
    """What an attack came to: `outcomes` are the attacker's, memory is in MiB.

    `load` is the machine's of the last minute: where others work on it as well, times are longer.
    """

    name: str
    seconds: float
    outcomes: Counter[str]
    seen: Seen
    api_mib: float
    grown_mib: float
    readers_mib: float
    most_mib: float
    load: float = 0.0

    def troubles(self, alone: Seen) -> list[str]:
        """Return what must not be; `alone` is what the client sees without an attack."""
        found, most = [], max(BOUND_MS, 3 * alone.p99)
        if self.seen.failed:
            found.append(f"{self.seen.failed} requests failed: {self.seen.failures}")
        if self.seen.p99 > most:
            found.append(f"p99 is {self.seen.p99} ms, at most {most:.0f} are to be")
        if self.grown_mib > self.most_mib:
            found.append(f"an API process grew by {self.grown_mib:.0f} MiB")
        return found


@contextmanager
def besieged(settings: Settings, directory: Path) -> Iterator[WholeSystem]:
    """Run `ferry up` with the models that are attacked, one API process, on ports of its own."""
    models = directory / "models"
    models.mkdir()
    for name in MODELS:
        (models / name).symlink_to((Path(settings.models) / name).resolve())
    settings = replace(
        settings,
        host="127.0.0.1",
        port=free_port(),
        grpc_port=free_port(),
        dashboard_port=free_port(),
        metrics_port=free_port(),
        redis_url="",
        state_dir=str(directory / "state"),
        models=str(models),
        api_processes=1,
    )
    with ExitStack() as stack:
        yield WholeSystem(settings, directory, stack)


def attacked(system: WholeSystem, attack: Attack, client: HonestClient, seconds: float) -> Row:
    """Attack for some seconds beside the honest client."""
    settings, memory = system.settings, Memory(system.pid)
    port = settings.grpc_port if attack.over_grpc else settings.port
    strike, opened_bytes = attack.make()
    client.begin(over_grpc=attack.over_grpc)
    began = time.monotonic()
    with memory.watched():
        outcomes = strike(port, seconds)
    took = time.monotonic() - began
    seen = client.end()
    load = os.getloadavg()[0]
    time.sleep(REST_SECONDS)
    most = FREE_MIB + MOST_TIMES * opened_bytes / 2**20
    peak, grown = memory.api()
    return Row(attack.name, took, outcomes, seen, peak, grown, memory.readers_peak, most, load)


class Memory:
    """The API processes below `pid`, gRPC's too, and the largest of their readers, in MiB."""

    def __init__(self, pid: int) -> None:
        """Look for the first time."""
        self._pid = pid
        self.readers_peak = 0.0
        self._peaks: dict[int, float] = {}
        self._look()
        self._before = dict(self._peaks)

    def api(self) -> tuple[float, float]:
        """Return the largest that one was, and the most that one grew."""
        grown = [peak - self._before.get(pid, 0.0) for pid, peak in self._peaks.items()]
        return max(self._peaks.values()), max(grown)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look again and again until the block ends."""
        ended = Event()

        def watch() -> None:
            while not ended.wait(LOOK_SECONDS):
                self._look()

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        for pid in _descendants(self._pid):
            command, mib = _command(pid), _held_mib(pid)
            if b"api.readers.child" in command:
                self.readers_peak = max(self.readers_peak, mib)
            elif b"api.wsgi" in command or b"api.rpc" in command:
                self._peaks[pid] = max(self._peaks.get(pid, 0.0), mib)


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        parents.setdefault(parent, []).append(int(each.name))
    found, level = [], [pid]
    while level:
        level = [child for parent in level for child in parents.get(parent, [])]
        found += level
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _held_mib(pid: int) -> float:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0.0
    return int(pages) * 4096 / 2**20
