"""The ways in which Ferry is hit: each strikes once and waits until Ferry is whole again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.processes import BenchError
from chaos.questions import FIRST_VERSION, is_right, read
from chaos.reference import POISON
from chaos.system import STOP_TIMEOUT_SECONDS, System, wait_until
from chaos.whole import WholeSystem
from ferry.up.sessions import kill_session, send
from shared.datatypes import Array
from shared.errors import ModelCrashed
from shared.jobs.orders import PredictJob
from shared.jobs.store import ENDED, JobStore
from shared.registry.snapshot import InstanceRecord
from shared.wire.client import connect

FAILED = 500
HOLD_SECONDS = 0.3
"""How long the instances stand still before Valkey is killed: every client then waits."""
LONGEST_OUTAGE_SECONDS = 1.5
STORE_RETURNS_SECONDS = 1.0
"""Longer than a store that is back is left alone: it is used again before the next blow."""
API_RETURNS_SECONDS = 3.0
"""A client asks once more for a connection that it lost, not twice: by then all are answered."""
MID_BATCH_TIMEOUT_SECONDS = 20.0
JOB_ROWS = 4000
JOB_TIMEOUT_SECONDS = 120.0
COME_BACK_SECONDS = 1.5
"""Longer than a client waits that was told, by a Ferry not yet ready, to come back in a second."""


@dataclass(frozen=True)
class Strike:
    """One blow: when it fell (monotonic seconds), and whose answers no longer count as the next.

    `away_until` is when what was away was there again, None when nothing was; it went at
    `away_from`, or with the blow. `seconds` is how long took what the scenario measures, if
    anything. From `changed_at` on `version` takes the requests, where the blow changed that.
    """

    at: float
    victims: frozenset[str] = frozenset()
    away_from: float | None = None
    away_until: float | None = None
    seconds: float | None = None
    changed_at: float = 0.0
    version: str = ""


Blow = Callable[[Any, Random], Strike]
"""Strikes the kind of system that its scenario runs."""


def kill_instance(system: System, random: Random) -> Strike:
    """Kill one instance in mid-batch."""
    ready = system.ready()
    victim = _stopped_in_mid_batch(system, ready, random)
    at = time.monotonic()
    send(victim.pid, signal.SIGKILL)
    wait_until(lambda: victim.id not in _ids(system.records()), STOP_TIMEOUT_SECONDS, "its burial")
    system.wait_ready(len(ready))
    return Strike(at, frozenset([victim.id]))


def poison(system: System, _: Random) -> Strike:
    """Ask what kills the device of whoever answers it; `seconds` until all instances are back.

    It is to fail by itself, for that reason, and raises BenchError if it does not.
    """
    before = system.ready()
    at = time.monotonic()
    status, said = system.ask(POISON)
    if (status, said.get("code")) != (FAILED, ModelCrashed.code):
        raise BenchError(f"the poisonous request was answered with {status} {said}")
    system.wait_ready(len(before))
    after = _ids(system.ready())
    victims = frozenset(_ids(before) - after)
    return Strike(at, victims, seconds=time.monotonic() - at)


def kill_host(system: System, random: Random) -> Strike:
    """Kill a supervisor and all its children at once, with an instance in mid-batch.

    Another one serves beside it, as on a second host; `seconds` is how long it took that one to put
    back what they held.
    """
    host = system.workers.pop(0)
    theirs = system.ready(host)
    versions = [record.version for record in theirs]  # also of one that stands by, here alone
    system.wait_ready(versions.count(max(versions, key=int)), system.start_worker())
    _stopped_in_mid_batch(system, theirs, random)
    at = time.monotonic()
    kill_session(host.pid)
    wait_until(lambda: not system.records(host), STOP_TIMEOUT_SECONDS, "the take-over")
    return Strike(at, _ids(theirs), seconds=time.monotonic() - at)


def kill_valkey(system: System, random: Random, *, waiting: bool, empty: bool) -> Strike:
    """Kill Valkey and start it again, with its append-only file or, if `empty`, without.

    If `waiting`, the instances have stood still before, and every client's request waits.
    """
    ready = system.ready()
    if waiting:
        _signal(ready, signal.SIGSTOP)
        time.sleep(HOLD_SECONDS)
    at = time.monotonic()
    system.valkey.kill()
    if waiting:
        _signal(ready, signal.SIGCONT)
    if empty:
        system.valkey.forget()
    time.sleep(random.uniform(0.1, LONGEST_OUTAGE_SECONDS))
    system.valkey.start()
    away_until = time.monotonic()
    system.wait_serving(len(ready))
    return Strike(at, away_until=away_until)


def kill_store(system: System, random: Random) -> Strike:
    """Kill a body store and start it again, empty."""
    store = random.choice(system.stores)
    return _lose_store(store.kill, store.start, random)


def hang_store(system: System, random: Random) -> Strike:
    """Have a body store stand still for a while."""
    store = random.choice(system.stores)
    return _lose_store(store.hang, store.go_on, random)


def _lose_store(end: Callable[[], None], begin: Callable[[], None], random: Random) -> Strike:
    at = time.monotonic()
    end()
    time.sleep(random.uniform(0.1, LONGEST_OUTAGE_SECONDS))
    begin()
    time.sleep(STORE_RETURNS_SECONDS)
    return Strike(at)


def kill_api(system: System, random: Random) -> Strike:
    """Kill a process of the API; its clients connect again."""
    before = system.api_processes()
    victim = random.choice(sorted(before))
    at = time.monotonic()
    send(victim, signal.SIGKILL)
    wait_until(
        lambda: len(system.api_processes() - {victim}) == len(before), STOP_TIMEOUT_SECONDS,
        "another process of the API",
    )  # fmt: skip
    time.sleep(API_RETURNS_SECONDS)
    return Strike(at)


def stop_worker(system: System, _: Random) -> Strike:
    """Send SIGTERM to the one supervisor, and only then start its successor.

    `seconds` is how long it took to end.
    """
    worker = system.workers.pop(0)
    theirs = system.ready(worker)
    at = time.monotonic()
    worker.terminate()
    system.start_worker()
    worker.wait(STOP_TIMEOUT_SECONDS)
    seconds = time.monotonic() - at
    system.wait_ready(len(theirs))
    return Strike(at, _ids(theirs), seconds=seconds)


def replace_api(system: System, _: Random) -> Strike:
    """Start a second gunicorn on the socket of the first, then send SIGTERM to the first."""
    return Strike(time.monotonic(), seconds=system.replace_api())


def roll(system: System, _: Random) -> Strike:
    """Restart one process after the other: a supervisor (after its successor), the API, Valkey.

    `seconds` is how long it took the old supervisor to end.
    """
    at = time.monotonic()
    old = system.workers.pop(0)
    count = len(system.ready(old))
    system.wait_ready(count, system.start_worker())
    began = time.monotonic()
    old.terminate()
    old.wait(STOP_TIMEOUT_SECONDS)
    seconds = time.monotonic() - began
    system.reload_api()
    away_from = time.monotonic()
    system.valkey.restart()
    away_until = time.monotonic()
    system.wait_serving(count)
    return Strike(at, away_from=away_from, away_until=away_until, seconds=seconds)


def restart_all(system: WholeSystem, _: Random) -> Strike:
    """Send SIGTERM to a whole `ferry up`, which takes `seconds` to end, and start it again."""
    at = time.monotonic()
    seconds = system.stop()
    system.start()
    away_until = time.monotonic()
    time.sleep(COME_BACK_SECONDS)
    return Strike(at, away_until=away_until, seconds=seconds)


def swap(system: System, _: Random) -> Strike:
    """Send requests to a version that is new in the repository, and is loaded first."""
    return _use(system, system.add_version())


def roll_back(system: System, _: Random) -> Strike:
    """Send requests to the version before the newest, every other time to that again."""
    newest = system.versions()[-1]
    if newest == int(FIRST_VERSION):
        newest = system.add_version()
    return _use(system, newest - (system.version == newest))


def roll_back_past_one(system: System, random: Random) -> Strike:
    """Do the same while one process of the API stands still (SIGSTOP)."""
    process = random.choice(sorted(system.api_processes()))
    send(process, signal.SIGSTOP)
    try:
        return roll_back(system, random)
    finally:
        send(process, signal.SIGCONT)


def kill_jobs_worker(system: System, random: Random) -> Strike:
    """Kill the jobs worker in the middle of a job and start the next; `seconds` until it is done.

    Raises BenchError unless the output is complete, in order, each row once, and right.
    """
    number = random.randrange(10**9)
    expected = _write_rows(system.directory, number)
    store = JobStore(connect(system.settings.redis_url), system.settings)
    job_id = store.new_id()
    order = PredictJob(model=system.model, input=f"{number}.ndjson", output=f"{number}-out.ndjson")
    store.submit(job_id, "predict", order)
    worker = system.start_jobs_worker()
    until = random.uniform(0.01, 0.9)
    log_file = system.directory / "jobs.log"
    wait_until(
        lambda: store.find(job_id)["progress"] > until, JOB_TIMEOUT_SECONDS, "its middle", log_file
    )
    at = time.monotonic()
    send(worker.pid, signal.SIGKILL)
    worker.wait()
    after = system.start_jobs_worker()
    wait_until(
        lambda: store.find(job_id)["state"] in ENDED, JOB_TIMEOUT_SECONDS, "its end", log_file
    )
    seconds = time.monotonic() - at
    after.terminate()
    after.wait()
    _check(store.find(job_id), system.directory / f"{number}-out.ndjson", expected)
    return Strike(at, seconds=seconds)


def _use(system: System, version: int) -> Strike:
    at = time.monotonic()
    system.use(version)
    changed_at = time.monotonic()
    seconds = changed_at - at
    return Strike(at, seconds=seconds, changed_at=changed_at, version=str(version))


def _stopped_in_mid_batch(
    system: System, candidates: list[InstanceRecord], random: Random
) -> InstanceRecord:
    """Return an instance that stands still (SIGSTOP) and holds requests that are not answered."""
    deadline = time.monotonic() + MID_BATCH_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        victim = random.choice(candidates)
        send(victim.pid, signal.SIGSTOP)
        if system.holds_work(victim):
            return victim
        send(victim.pid, signal.SIGCONT)
        time.sleep(random.uniform(0.001, 0.005))
    raise BenchError(f"no instance of {len(candidates)} holds work: there is no load")


def _signal(records: list[InstanceRecord], number: int) -> None:
    for record in records:
        send(record.pid, number)


def _ids(records: list[InstanceRecord]) -> frozenset[str]:
    return frozenset(record.id for record in records)


def _write_rows(directory: Path, number: int) -> list[Array]:
    """Write a file of rows, and return what must be answered."""
    questions, random = read(directory / "questions.npz"), np.random.default_rng(number)
    asked = [questions.ask(random) for _ in range(JOB_ROWS)]
    lines = (f"{json.dumps(row[0].tolist())}\n" for row, _ in asked)
    (directory / f"{number}.ndjson").write_text("".join(lines))
    return [expected for _, expected in asked]


def _check(job: dict[str, object], output: Path, expected: list[Array]) -> None:
    if job["state"] != "finished":
        raise BenchError(f"a job has {job['state']}: {job['error']}")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    if [line["index"] for line in lines] != list(range(JOB_ROWS)):
        raise BenchError(f"a job answered {len(lines)} of {JOB_ROWS} rows, or not in order")
    for line, wanted in zip(lines, expected, strict=True):
        if not is_right(next(iter(line.get("prediction", {"": None}).values())), wanted):
            raise BenchError(f"a job's row {line['index']} is wrong: {line}")
