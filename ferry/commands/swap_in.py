"""`ferry optimise --serve`: a new version takes over in steps, and goes back when one fails.

pin the version that serves -> shadow the new one, compare -> a tenth of the requests -> all
The pin ends when all requests go to the new version, or when no version was added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from ferry.commands.models import Models, operating
from ferry.errors import CannotStart
from shared.errors import LoadFailed
from shared.operations.model_control import PROGRESS_LOOK_SECONDS

SHADOW_REQUESTS, SHADOW_SECONDS = 50, 60.0
CANARY_REQUESTS, CANARY_SECONDS = 50, 30.0
WITHOUT_REQUESTS_SECONDS = 10.0
"""Without a request for so long there is nobody to compare for, and nobody to harm."""
CANARY_SPLIT = (9, 1)
MOST_EXPECTED = 0.95
"""The most that is expected of a shadow's classes where nothing was said."""


class Expected(NamedTuple):
    """The share of rows with the same class that a shadow must come to.

    Where it was `judged` on other rows it is enough that the interval of the shadow's share does:
    what is near ties for the version that serves has no class to agree on.
    """

    share: float
    is_judged: bool = False

    @classmethod
    def of(cls, said: float | None, report: Mapping[str, Any]) -> Expected:
        """Return the share that was said, else the one that the chosen variant was judged with."""
        if said is not None:
            return cls(said)
        chosen = next(each for each in report["variants"] if each["chosen"])
        judged = chosen["agreement"]
        return cls(MOST_EXPECTED if judged is None else min(judged, MOST_EXPECTED), True)

    def is_met(self, agreed: int, rows: int) -> bool:
        """Tell whether a shadow that agreed on so many rows agrees enough."""
        if not self.is_judged:
            return agreed >= self.share * rows
        high: float = import_module("worker.optimise.agreement").wilson(agreed, rows)[1]
        return high >= self.share


def serving_version(environ: Mapping[str, str], name: str) -> str:
    """Return the version that takes all requests; raises CannotStart when there is none."""
    with operating(environ) as models:
        return _serving(models, name)


def _serving(models: Models, name: str) -> str:
    serving = models.store.read().served.get(name)
    if serving is None:
        raise CannotStart(f"--serve: no Ferry that runs here serves '{name}'")
    if serving.split or serving.canary:
        raise CannotStart(
            f"--serve: the requests of '{name}' are shared out: ferry models use {name} VERSION"
        )
    return serving.default


class Pin:
    """Keeps requests where they go now, whatever is added, until it is told otherwise."""

    def __init__(self, environ: Mapping[str, str], name: str) -> None:
        """Name the model; nothing is pinned yet."""
        self._environ, self._name, self._before = environ, name, ""
        self.version = ""

    def hold(self) -> None:
        """Pin the version that serves; raises CannotStart when there is none."""
        with operating(self._environ) as models:
            serving = _serving(models, self._name)
            desired = models.store.read().desired.get(self._name)
            self._before = desired.use if desired else ""
            models.control.use(self._name, serving)
            self.version = serving

    def undo(self) -> None:
        """Pin what was pinned before, if anything; nothing where nothing is held."""
        if self.version:
            with operating(self._environ) as models:
                models.control.use(self._name, self._before)
            self.version = ""


def swap_in(environ: Mapping[str, str], name: str, old: str, new: str, expected: Expected) -> None:
    """Have `new` take the requests of `old`; raises LoadFailed when they went back to it."""
    with operating(environ) as models:
        try:
            models.control.shadow(name, new)
            _check_shadow(models, name, old, new, expected)
            before, after = CANARY_SPLIT
            models.control.split(name, {old: before, new: after})
            _check_canary(models, name, new)
            models.control.use(name, new)
            _check_canary(models, name, new)
        except BaseException as error:
            models.control.shadow(name, "")
            models.control.use(name, old)
            back = f"requests went back to version {old}"
            stay = f"version {new} stays without any: ferry models use {name} {new} tries it again"
            if isinstance(error, LoadFailed):
                raise LoadFailed(f"{back}: {error}; {stay}") from error
            print(f"{name}: {back}; {stay}", flush=True)
            raise
        models.control.use(name, "")
        print(f"{name}: all requests go to version {new}", flush=True)


def _check_shadow(models: Models, name: str, old: str, new: str, expected: Expected) -> None:
    """Compare the answers to requests as they come; raises LoadFailed when too many differ."""
    key = models.store.read().served[name].versions[new]
    models.comparisons.forget(key, old)
    _await(
        lambda: int(models.comparisons.read(key, old).request_count),
        SHADOW_REQUESTS, SHADOW_SECONDS,
    )  # fmt: skip
    found = models.comparisons.read(key, old)
    if found.failed_count:
        raise LoadFailed(
            f"version {new} failed {found.failed_count:.0f} of {found.request_count:.0f} copies"
        )
    if not found.row_count:
        print(f"{name}: nobody asked, so no answers were compared", flush=True)
        return
    rows, agreed = int(found.row_count), int(found.agreed_count)
    said = f"version {new} gave the same class for {agreed / rows:.2%} of {rows} rows"
    if not expected.is_met(agreed, rows):
        raise LoadFailed(f"{said}, expected at least {expected.share:.2%}")
    print(f"{name}: {said}", flush=True)


def _check_canary(models: Models, name: str, new: str) -> None:
    """Watch the requests that a version takes; raises LoadFailed when it fails one."""
    key = models.store.read().served[name].versions[new]
    (first,) = models.store.outcomes([key])

    def answered() -> int:
        (now,) = models.store.outcomes([key])
        reason = models.store.read().served[name].taken_back.get(new)
        if reason or now.failed > first.failed:
            raise LoadFailed(reason or f"version {new} failed {now.failed - first.failed} requests")
        return now.answered - first.answered

    _await(answered, CANARY_REQUESTS, CANARY_SECONDS)


def _await(count: Callable[[], int], enough: int, seconds: float) -> None:
    """Return once `count` is enough, or when nobody asks, or when the time is up."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        found = count()
        if found >= enough or (not found and waited > WITHOUT_REQUESTS_SECONDS):
            return
        time.sleep(PROGRESS_LOOK_SECONDS)
