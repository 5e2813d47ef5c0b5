"""Runs one scenario: a Ferry of its own, the load, one blow after the other, the verdict."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, mkdtemp

from chaos import questions
from chaos.load import running_load
from chaos.reference import REFERENCES, WIDE_NAME, make_mortal, make_wide
from chaos.scenarios import Scenario
from chaos.strikes import Strike
from chaos.system import System, running_system
from chaos.verdict import Row, judge
from chaos.whole import WholeSystem, running_whole
from shared.settings import Settings

QUESTIONS = "questions.npz"
SEED = 20
PAUSE_SECONDS = (0.05, 0.25)
"""Shortest and longest time between Ferry's recovery and the next blow."""
REST_SECONDS = (0.1, 2.5)
"""The same where nobody asks meanwhile: what an API process knows is old after two seconds."""
QUICK_SHARE = 10


@dataclass(frozen=True)
class Plan:
    """How long a scenario's blows may take together, and whether a tenth of them is enough."""

    seconds: float = 75.0
    quick: bool = False
    clients: int = 32

    def times(self, scenario: Scenario) -> int:
        """Return how often to strike."""
        return max(1, scenario.times // QUICK_SHARE) if self.quick else scenario.times


def run_scenario(scenario: Scenario, plan: Plan, settings: Settings) -> Row:
    """Start a Ferry, strike it as planned, and return the row; raises BenchError."""
    with TemporaryDirectory(prefix="ferry-chaos-") as name:
        directory = Path(name)
        model = Path(settings.models) / scenario.model
        reference = scenario.model + "-small" * scenario.small_answers
        questions.write(REFERENCES[reference](model), directory / QUESTIONS)
        processes = max(settings.api_process_count, scenario.api_processes)
        settings = replace(settings, api_processes=processes)
        if scenario.mortal:
            models = make_mortal(Path(settings.models), scenario.model, directory)
            settings = replace(settings, models=str(models))
        if scenario.model == WIDE_NAME:
            settings = replace(settings, models=str(make_wide(directory)))
        running = (
            running_whole if scenario.whole else partial(running_system, stores=scenario.stores)
        )
        with running(settings, scenario.model, scenario.instances, directory) as system:
            row = strike(system, scenario, plan)
        if not row.passed:
            _keep_logs(directory)
        return row


def strike(system: System | WholeSystem, scenario: Scenario, plan: Plan) -> Row:
    """Strike a running Ferry as planned; its directory holds the questions."""
    random, blows = Random(SEED), list[Strike]()
    file, log_file = system.directory / QUESTIONS, system.directory / "load.log"
    port = system.settings.port
    with running_load(port, scenario.model, file, log_file, plan.clients) as load:
        until = time.monotonic() + plan.seconds
        while len(blows) < plan.times(scenario) and time.monotonic() < until:
            with load.resting() if scenario.rest else nullcontext():
                time.sleep(random.uniform(*(REST_SECONDS if scenario.rest else PAUSE_SECONDS)))
                if isinstance(system, System):
                    system.note_folders()
                blows.append(scenario.blow(system, random))
        time.sleep(PAUSE_SECONDS[1])
        tally = load.stop()
        if isinstance(system, System) and scenario.model == WIDE_NAME:
            system.wait_cleared()
        return judge(scenario, tally, blows)


def _keep_logs(directory: Path) -> None:
    kept = mkdtemp(prefix="ferry-chaos-logs-")
    for log_file in directory.glob("*.log"):
        shutil.copy(log_file, kept)
    print(f"logs are in {kept}", flush=True)
