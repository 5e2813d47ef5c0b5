"""`ferry optimise --serve`: a new version takes over in steps, and goes back when one fails.

pin the version that serves -> shadow the new one, compare -> a tenth of the requests -> all
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


def pin_serving(environ: Mapping[str, str], name: str) -> str:
    """Keep requests where they go now, whatever is added; return that version.

    Raises CannotStart when no Ferry serves the model.
    """
    with operating(environ) as models:
        serving = models.store.read().served.get(name)
        if serving is None:
            raise CannotStart(f"--serve: no Ferry that runs here serves '{name}'")
        if serving.split or serving.canary:
            raise CannotStart(
                f"--serve: the requests of '{name}' are shared out: ferry models use {name} VERSION"
            )
        models.control.use(name, serving.default)
        return serving.default


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
            if isinstance(error, LoadFailed):
                raise LoadFailed(f"requests went back to version {old}: {error}") from error
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
