"""`ferry optimise --serve`: a new version takes over in steps, and goes back when one fails.

pin the version that serves -> shadow the new one, compare -> a tenth of the requests -> all
The pin ends when all requests go to the new version, or when no version was added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ferry.commands.models import Models, operating
from ferry.errors import CannotStart
from shared.errors import LoadFailed
from shared.operations.model_control import PROGRESS_LOOK_SECONDS

SHADOW_REQUESTS, SHADOW_SECONDS = 50, 60.0
CANARY_REQUESTS, CANARY_SECONDS = 50, 30.0
WITHOUT_REQUESTS_SECONDS = 10.0
"""Without a request for so long there is nobody to compare for, and nobody to harm."""
CANARY_SPLIT = (9, 1)


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


def swap_in(
    environ: Mapping[str, str], name: str, old: str, new: str, min_agreement: float
) -> None:
    """Have `new` take the requests of `old`; raises LoadFailed when they went back to it."""
    with operating(environ) as models:
        try:
            models.control.shadow(name, new)
            _check_shadow(models, name, old, new, min_agreement)
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


def _check_shadow(models: Models, name: str, old: str, new: str, min_agreement: float) -> None:
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
    agreement = found.agreed_count / found.row_count
    said = f"version {new} gave the same class for {agreement:.2%} of {found.row_count:.0f} rows"
    if agreement < min_agreement:
        raise LoadFailed(f"{said}, expected at least {min_agreement:.2%}")
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
