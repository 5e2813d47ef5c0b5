"""Runs one scenario: starts everything that is compared, then measures it in interleaved rounds.

Within each round every variant is measured once, one after the other, while the others idle. What
the machine does besides then weighs on all of them alike, and ratios within one run stay true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import wrk
from bench.children.queue_loader import requests_in_flight
from bench.limits import bare_limits
from bench.measurements import Measurement, Row, summarize
from bench.scaling import simulated_devices
from bench.scenarios import Scenario
from bench.servers import constant, ferry, single_model_repository
from bench.single_requests import Request
from shared.settings import Settings

DEFAULT_CLIENTS = (1, 16, 64)
WARM_UP_SECONDS = 1
SIMULATED = "simulated"
SAME_BODY = "constant, same body"


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure; `clients` None means each scenario's own counts."""

    seconds: int = 3
    rounds: int = 3
    clients: tuple[int, ...] | None = None

    def clients_of(self, scenario: Scenario) -> list[int]:
        """Return the numbers of clients to measure `scenario` with, ascending."""
        return sorted(set(self.clients or DEFAULT_CLIENTS + scenario.extra_clients))


@dataclass(frozen=True)
class Variant:
    """One thing that is measured once per round."""

    name: str
    clients: int | None
    measure: Callable[[int], Measurement]


def run_scenario(scenario: Scenario, plan: Plan, settings: Settings) -> list[Row]:
    """Measure Ferry and its limits under one kind of request; raises BenchError."""
    with TemporaryDirectory(prefix="ferry-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        port = stack.enter_context(ferry(scenario.model, settings, directory))
        ours = Request(port, scenario.path, "POST", scenario.content_type, scenario.body())
        loads = {"ferry": ours}
        if scenario.against_constant:
            loads["constant"] = bodyless = stack.enter_context(constant(settings, directory))
            loads[SAME_BODY] = replace(ours, port=bodyless.port, path=bodyless.path)
        limits = stack.enter_context(
            bare_limits(
                scenario.model,
                single_model_repository(scenario.model, settings, directory),
                directory,
                pictures=scenario.pictures,
            )
        )
        clients = plan.clients_of(scenario)
        for load in loads.values():
            wrk.measure(load, clients[-1], WARM_UP_SECONDS, directory)
        variants = [
            Variant(name, count, partial(_loaded, load, count, directory))
            for count in clients
            for name, load in loads.items()
        ]
        variants += [Variant(name, None, measure) for name, measure in limits.items()]
        return run_rounds(scenario.model, variants, plan.rounds, plan.seconds * scenario.slowness)


def run_simulated_devices(plan: Plan) -> list[Row]:
    """Measure throughput with 1, 2 and 4 instances of a simulated device; raises BenchError."""
    with (
        TemporaryDirectory(prefix="ferry-bench-") as name,
        simulated_devices(Path(name)) as devices,
    ):
        variants = [
            Variant(instances(count), requests_in_flight(count), measure)
            for count, measure in devices.items()
        ]
        return run_rounds(SIMULATED, variants, plan.rounds, plan.seconds)


def instances(count: int) -> str:
    """Return a simulated device's name in the table."""
    return f"{count} instance{'s' if count > 1 else ''}"


def run_rounds(scenario: str, variants: Sequence[Variant], rounds: int, seconds: int) -> list[Row]:
    """Measure all variants in each round, and return one row of medians for each variant."""
    measured: list[list[Measurement]] = [[] for _ in variants]
    for number in range(1, rounds + 1):
        for variant, results in zip(variants, measured, strict=True):
            result = variant.measure(seconds)
            results.append(result)
            at = f" @{variant.clients}" if variant.clients else ""
            label = f"{scenario} round {number}/{rounds}: {variant.name}{at}"
            print(f"  {label:50} {result.per_second:9.1f}/s", flush=True)
    return [
        summarize(scenario, variant.name, variant.clients, results)
        for variant, results in zip(variants, measured, strict=True)
    ]


def _loaded(request: Request, clients: int, directory: Path, seconds: int) -> Measurement:
    return wrk.measure(request, clients, seconds, directory)
