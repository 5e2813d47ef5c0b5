"""Ferry and other servers with the same models on the same cores, in interleaved rounds.

    python -m bench.peers PYTHON [pictures numbers] [--clients N N ...] [--only NAME ...]

PYTHON is that of an environment with torch, numpy, Pillow and what is compared: mosec, litserve,
python-multipart, fastapi, uvicorn, uvloop and httptools. `pictures` are JPEGs for `resnet18`, by 32
clients unless said otherwise; `numbers` is `tiny` as JSON, by 64 and 256. Beside the rate stands
the processor time of all of a server's processes, of each answer. Other servers are stopped while
they are not asked: idle ones look for work all the time, LitServe's for a quarter of a core.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench import wrk
from bench.many_models import family_of
from bench.measurements import Measurement
from bench.processes import BenchError, free_port, running
from bench.scenarios import JSON, SCENARIOS, photo_body
from bench.servers import ferry, wait_until_ready
from bench.single_requests import Request
from shared.settings import Settings

BOUNDARY = "a-boundary-that-no-picture-has"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
NUMBERS = b'{"data": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]}'
WARM_UP_SECONDS, WARM_UP_CLIENTS = 3, 8
CLIENTS = {"pictures": [32], "numbers": [64, 256]}
SECONDS = {"pictures": 10, "numbers": 3}


class Peer(NamedTuple):
    """Another server: its command after PYTHON for a port, and what it is asked."""

    command: Callable[[int], list[str]]
    request: Request


PEERS = {
    "pictures": {
        "mosec": Peer(
            lambda port: ["-m", "bench.peers.mosec_server", "resnet18", "--timeout", "20000",
                          "--port", str(port)],
            Request(0, "/inference", "POST", "image/jpeg", photo_body()),
        ),
        "litserve": Peer(
            lambda port: ["-m", "bench.peers.litserve_server", str(port)],
            Request(
                0, "/predict", "POST", FORM,
                f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
                f'name="content"; filename="a.jpg"\r\n\r\n'.encode()
                + photo_body() + f"\r\n--{BOUNDARY}--\r\n".encode(),
            ),
        ),
    },
    "numbers": {
        "fastapi": Peer(
            lambda port: ["-m", "uvicorn", "bench.peers.fastapi_app:app", "--port", str(port),
                          "--log-level", "warning"],
            Request(0, "/predict", "POST", JSON, NUMBERS),
        ),
        "mosec": Peer(
            lambda port: ["-m", "bench.peers.mosec_server", "tiny", "--port", str(port)],
            Request(0, "/inference", "POST", JSON, NUMBERS),
        ),
    },
}  # fmt: skip
MODELS = {"pictures": "resnet18", "numbers": "tiny"}


class Server(NamedTuple):
    """What runs: how it is asked, and the leader of its processes' group if it is to be stopped."""

    request: Request
    group: int = 0

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Have it run for the block."""
        if self.group:
            os.killpg(self.group, signal.SIGCONT)
        yield
        if self.group:
            os.killpg(self.group, signal.SIGSTOP)


class Load(NamedTuple):
    """One measurement; the processor time is all processes', of each answer."""

    per_second: float
    p50_ms: float
    p99_ms: float
    processor_ms: float


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, and print the medians."""
    parser = argparse.ArgumentParser(prog="peers", description=__doc__.partition("\n")[0])
    parser.add_argument("python")
    parser.add_argument("kinds", nargs="*", choices=[*PEERS, []], metavar="KIND")
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--seconds", type=int, help="per measurement [10 and 3]")
    parser.add_argument("--rounds", type=int, default=3, help="whose medians count [3]")
    parser.add_argument("--only", nargs="+", default=[], help="peers [all]")
    parser.add_argument("--ferry", type=Path, nargs="*", default=[], metavar="REPOSITORY",
                        help="more Ferrys, with the models of these repositories")  # fmt: skip
    options = parser.parse_args(arguments)
    for kind in options.kinds or PEERS:
        found = measured(kind, options)
        print(f"\n{kind:12}  clients  answers/s  p50 ms  p99 ms  processor ms")
        for (name, clients), loads in found.items():
            one = Load(*map(median, zip(*loads, strict=True)))
            rates = " ".join(f"{each.per_second:.1f}" for each in loads)
            print(f"{name:12}  {clients:7}  {one.per_second:9.1f}  {one.p50_ms:6.1f}  "
                  f"{one.p99_ms:6.1f}  {one.processor_ms:12.3f}   {rates}")  # fmt: skip
        print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", flush=True)
    return 0


def measured(kind: str, options: argparse.Namespace) -> dict[tuple[str, int], list[Load]]:
    """Return the loads of each server and number of clients; raises BenchError."""
    with TemporaryDirectory(prefix="ferry-peers-") as name, ExitStack() as stack:
        directory = Path(name)
        asked = {"ferry": Server(stack.enter_context(_ferry(kind, directory / "ferry", None)))}
        for at, repository in enumerate(options.ferry, 2):
            place = directory / f"ferry-{at}"
            asked[f"ferry {at}"] = Server(stack.enter_context(_ferry(kind, place, repository)))
        for peer, how in PEERS[kind].items():
            if not options.only or peer in options.only:
                asked[peer] = stack.enter_context(_started(options.python, how, directory / peer))
        for server in asked.values():
            measure(server, WARM_UP_CLIENTS, WARM_UP_SECONDS, directory)
        found: dict[tuple[str, int], list[Load]] = {}
        for _ in range(options.rounds):
            for clients in options.clients or CLIENTS[kind]:
                for peer, server in asked.items():
                    load = measure(server, clients, options.seconds or SECONDS[kind], directory)
                    found.setdefault((peer, clients), []).append(load)
        return found


def measure(server: Server, clients: int, seconds: int, directory: Path) -> Load:
    """Ask for so long; raises BenchError when a request fails."""
    before, request = _processor_seconds(), server.request
    with server.awake():
        one: Measurement = wrk.measure(request, clients, seconds, directory)
    if one.error_count or not one.answer_count:
        raise BenchError(f"{request.path}: {one.error_count} requests failed")
    spent = _processor_seconds() - before
    p50, p99 = (1e3 * (value or 0.0) for value in (one.p50_seconds, one.p99_seconds))
    return Load(one.per_second, p50, p99, 1e3 * spent / one.answer_count)


def _processor_seconds() -> float:
    """Return what all of our processes have taken; who is not asked idles, and wrk has gone."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return sum(sum(family_of(int(child)).values()) for child in children)


@contextmanager
def _ferry(kind: str, directory: Path, repository: Path | None) -> Iterator[Request]:
    directory.mkdir()
    settings, scenario = Settings.from_env(os.environ), SCENARIOS[MODELS[kind]]
    if repository is not None:
        settings = replace(settings, models=str(repository))
    with ferry(scenario.model, settings, directory) as port:
        yield Request(port, scenario.path, "POST", scenario.content_type, scenario.body())


@contextmanager
def _started(python: str, peer: Peer, directory: Path) -> Iterator[Server]:
    directory.mkdir()
    request = replace(peer.request, port=free_port())
    models = str(Path(Settings.from_env(os.environ).models).resolve())
    log_file = directory / "log"
    command = [python, *peer.command(request.port)]
    with running(command, {**os.environ, "MODELS": models}, log_file) as process:
        wait_until_ready(request, [(process, log_file)])
        os.killpg(process.pid, signal.SIGSTOP)
        try:
            yield Server(request, process.pid)
        finally:
            os.killpg(process.pid, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
