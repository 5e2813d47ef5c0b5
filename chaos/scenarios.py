"""What is done to which Ferry, and how often. A new scenario is a new line here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from chaos import strikes
from chaos.strikes import Blow


@dataclass(frozen=True)
class Scenario:
    """One row of the table: `times` blows to a Ferry of its own, under steady load.

    `measures` says what a blow's `seconds` are. Where a blow ends what answers requests
    (`ends_answers`), the time until the next answer is shown. A `whole` one strikes `ferry up`.
    Where clients `rest`, nobody asks for a while before and during a blow, and all do at once
    after it. `api_processes` are at least so many. A `mortal` model's device may die. The requests
    of `wide` are large, and lie in as many body `stores`, or without any in shared memory; so are
    its answers, but for `small_answers`. Nothing of them may be left behind.
    """

    name: str
    killed: str
    blow: Blow
    times: int
    model: str = "tiny"
    instances: int = 1
    measures: str = ""
    ends_answers: bool = True
    whole: bool = False
    rest: bool = False
    api_processes: int = 1
    mortal: bool = False
    stores: int = 0
    small_answers: bool = False


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("instance", "the only instance, kill -9 in mid-batch", strikes.kill_instance, 100),
        Scenario(
            "instances", "one of 3 instances, kill -9 in mid-batch", strikes.kill_instance, 100,
            instances=3,
        ),
        Scenario(
            "digits", "the only instance of digits, kill -9", strikes.kill_instance, 20,
            model="digits",
        ),
        Scenario(
            "digits-2", "one of 2 instances of digits, kill -9", strikes.kill_instance, 20,
            model="digits", instances=2,
        ),
        Scenario(
            "poison", "the device of 1 of 2 instances, by a request", strikes.poison, 20,
            instances=2, measures="both are back", mortal=True,
        ),
        Scenario(
            "host", "1 of 2 supervisors and its children, kill -9", strikes.kill_host, 3,
            measures="take-over",
        ),
        Scenario(
            "valkey", "Valkey, kill -9, back with its file",
            partial(strikes.kill_valkey, waiting=False, empty=False), 10,
        ),
        Scenario(
            "valkey-waiting", "the same, while all requests wait",
            partial(strikes.kill_valkey, waiting=True, empty=False), 10,
        ),
        Scenario(
            "empty", "Valkey, kill -9, back empty",
            partial(strikes.kill_valkey, waiting=False, empty=True), 10,
        ),
        Scenario(
            "empty-waiting", "the same, while all requests wait",
            partial(strikes.kill_valkey, waiting=True, empty=True), 10,
        ),
        Scenario(
            "store", "1 of 2 body stores, kill -9, back empty", strikes.kill_store, 20,
            model="wide", ends_answers=False, stores=2,
        ),
        Scenario(
            "store-hangs", "1 of 2 body stores, SIGSTOP", strikes.hang_store, 20,
            model="wide", ends_answers=False, stores=2,
        ),
        Scenario(
            "store-instance", "1 of 2 instances that read stores, kill -9", strikes.kill_instance,
            20, model="wide", instances=2, stores=2,
        ),
        Scenario(
            "memory-instance", "1 of 2 that mapped shared memory, kill -9", strikes.kill_instance,
            20, model="wide", instances=2,
        ),
        Scenario(
            "memory-api", "1 of 2 API processes, with bodies in memory", strikes.kill_api, 10,
            model="wide", ends_answers=False, api_processes=2, small_answers=True,
        ),
        Scenario(
            "worker", "the only supervisor, SIGTERM", strikes.stop_worker, 20, measures="drain"
        ),
        Scenario(
            "api", "gunicorn, SIGTERM beside a new one", strikes.replace_api, 20,
            measures="drain", ends_answers=False, api_processes=2,
        ),
        Scenario(
            "rolling", "every process in turn, SIGTERM and SIGHUP", strikes.roll, 3,
            measures="drain of the worker", ends_answers=False,
        ),
        Scenario(
            "swap", "requests, to a new version", strikes.swap, 20,
            measures="load and change", ends_answers=False,
        ),
        Scenario(
            "rollback", "requests, to the version before", strikes.roll_back, 50,
            measures="change", ends_answers=False,
        ),
        Scenario(
            "rollback-idle", "the same, while nobody asks", strikes.roll_back, 20,
            measures="change", ends_answers=False, rest=True, api_processes=2,
        ),
        Scenario(
            "rollback-still", "the same, 1 of 2 API processes stopped", strikes.roll_back_past_one,
            50, measures="change", ends_answers=False, api_processes=2,
        ),
        Scenario(
            "jobs", "the jobs worker, kill -9 in a bulk job", strikes.kill_jobs_worker, 10,
            measures="job done", ends_answers=False,
        ),
        Scenario(
            "system", "all of `ferry up`, SIGTERM", strikes.restart_all, 20,
            measures="drain of all", whole=True,
        ),
    )
}  # fmt: skip
