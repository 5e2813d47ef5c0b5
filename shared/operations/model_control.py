"""Loads, unloads and routes models: writes the desired state and waits for the supervisors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from redis import Redis

from shared.errors import BadRequest, LoadFailed, ModelNotReady
from shared.names import MODEL_NAME, VERSION
from shared.registry.desired_state import Desired, ModelReport, Serving
from shared.registry.desired_store import ControlState, DesiredStore, Update
from shared.registry.registry import Registry

LONGEST_CHANGE_SECONDS = 600.0
PROGRESS_LOOK_SECONDS = 0.03
MISSING_STEP_SECONDS = 2.0
"""Time until a missing step is a failure: it may be about to be loaded too."""
NOBODY_SECONDS = 3.0
"""Time without any worker until it fails: one may have to tell a Redis that forgot everything."""
CONTROL_REFUSED = (
    "explicit model load / unload is not allowed if polling is enabled, nor in the mode none: "
    "the control mode of this server is {mode}, set FERRY_MODEL_CONTROL_MODE=explicit to allow it"
)
"""Begins with Triton's sentence for it, for which people search."""
IsDone = Callable[[Serving | None, list[ModelReport], Desired], bool]


class ModelControl:
    """Operators' changes of models; every method returns when its change is done on every machine.

    Raises LoadFailed saying why it cannot be, ModelNotReady when nobody is there to do it or it
    takes more than ten minutes, and RedisUnavailable.
    """

    def __init__(self, client: Redis, prefix: str, mode: str = "") -> None:
        """Change the desired state in the Redis of `client`, under `prefix`.

        `mode` is FERRY_MODEL_CONTROL_MODE; without it the supervisors are asked for theirs.
        """
        self._store = DesiredStore(client, prefix)
        self._registry = Registry(client, prefix)
        self._mode = mode

    def load(self, name: str, config: str | None = None) -> None:
        """Load a model anew from the repository, by `config` (JSON) instead of its own file.

        A version whose content did not change goes on as it is. Raises BadRequest unless the mode
        is `explicit`.
        """
        self._check_mode()
        _check_name(name)

        def update(now: Desired, _: Serving | None) -> Desired:
            return now.model_copy(update={"loaded": True, "config": config, "failure": ""})

        try:
            self._change(
                name, update, lambda serving, reports, _: _takes_all(name, serving, reports)
            )
            self._wait_for_steps(name)
        except LoadFailed as error:
            if str(error).startswith("failed to load"):
                raise
            raise LoadFailed(f"failed to load '{name}', {error}") from None

    def unload(self, name: str) -> None:
        """Unload a model, and forget which version of it was to be used.

        Raises BadRequest unless the mode is `explicit`.
        """
        self._check_mode()
        _check_name(name)
        state = self._store.read()
        if not any(
            name in report.models and report.models[name].exists
            for report in state.reports.values()
        ):
            raise LoadFailed(f"failed to unload '{name}', no such model in the repository")
        self._change(
            name,
            lambda _now, _: Desired(loaded=False),
            lambda serving, _reports, _: serving is None,
        )

    def use(self, name: str, version: str) -> None:
        """Send the requests that name no version to this one; empty: to the highest again.

        Ends a split, and the shadow of that version.
        """

        def update(now: Desired, _: Serving | None) -> Desired:
            shadow = "" if now.shadow == version else now.shadow
            change = {"use": version, "split": {}, "shadow": shadow, "taken_back": {}}
            return now.model_copy(update=change)

        self._route(name, [version] if version else [], update)

    def split(self, name: str, weights: dict[str, int]) -> None:
        """Share the requests that name no version out by `weights`; empty: end it.

        The version that serves now goes on taking them when the split ends. Ends the shadow of a
        version that gets a share.
        """

        def update(now: Desired, serving: Serving | None) -> Desired:
            shadow = "" if now.shadow in weights else now.shadow
            use = _pin(now, serving)
            change = {"split": weights, "use": use, "shadow": shadow, "taken_back": {}}
            return now.model_copy(update=change)

        self._route(name, list(weights), update)

    def shadow(self, name: str, version: str) -> None:
        """Send a copy of each request to this version, whose answers are compared; empty: end it.

        The version that serves now goes on serving, even when it is not the highest.
        """

        def update(now: Desired, serving: Serving | None) -> Desired:
            if serving is not None and version in (serving.split or {serving.default}):
                raise LoadFailed(f"version {version} of '{name}' serves: it cannot be its shadow")
            change = {"shadow": version, "use": _pin(now, serving), "taken_back": {}}
            return now.model_copy(update=change)

        self._route(name, [version] if version else [], update)

    def _route(self, name: str, versions: list[str], update: Update) -> None:
        """Change where requests go; undo the change when it cannot be."""
        _check_name(name)
        for version in versions:
            if not VERSION.fullmatch(version):
                raise BadRequest(f"version {version!r} must be a whole number from 1")
        self._change(name, update, _follows, versions)

    def _change(
        self, name: str, update: Update, is_done: IsDone, versions: list[str] | None = None
    ) -> None:
        """Change the desired state and wait until it is reached; undo the change when it cannot be.

        The failures of `versions` alone matter, None for all.
        """
        before: list[Desired] = []

        def remembering(now: Desired, serving: Serving | None) -> Desired | None:
            before[:] = [now]
            return update(now, serving)

        wanted = self._store.change(name, remembering)
        try:
            self._wait(name, wanted, is_done, versions)
        except LoadFailed as error:
            if wanted.use == "" != before[0].use:  # "the highest that serves" is possible always
                raise
            undone = before[0].model_copy(update={"failure": str(error)})
            self._store.change(
                name, lambda now, _: undone if now.generation == wanted.generation else None
            )
            self._forget_unknown(name)
            raise

    def _wait(
        self, name: str, wanted: Desired, is_done: IsDone, versions: list[str] | None
    ) -> None:
        deadline = time.monotonic() + LONGEST_CHANGE_SECONDS
        changes, next_read, seen_at = -1, 0.0, time.monotonic()
        while (now := time.monotonic()) < deadline:
            if (seen := self._store.changes()) != changes or now >= next_read:
                # Now and then in any case: of a supervisor that dies nothing is written.
                changes, next_read = seen, now + 1.0
                state = self._store.read()
                if self._is_done(name, wanted, is_done, versions, state):
                    return
                seen_at = now if state.reports else seen_at
            if now - seen_at > NOBODY_SECONDS:
                raise ModelNotReady("no worker runs: nobody can load or unload a model")
            time.sleep(PROGRESS_LOOK_SECONDS)
        raise ModelNotReady(f"'{name}' is still loading after {LONGEST_CHANGE_SECONDS:g} s")

    def _is_done(
        self,
        name: str,
        wanted: Desired,
        is_done: IsDone,
        versions: list[str] | None,
        state: ControlState,
    ) -> bool:
        reports = _reports_of(name, wanted.generation, state)
        looked_at = reports if versions is None else [one.only(versions) for one in reports]
        if reports and all(report.settled for report in looked_at):
            _check_failures(looked_at)
            if is_done(state.served.get(name), reports, wanted):
                return True
        if state.desired.get(name, wanted).generation > wanted.generation:
            raise LoadFailed(f"another change of '{name}' came before this one was done")
        return False

    def _wait_for_steps(self, name: str) -> None:
        """Return once the model is ready to serve: an ensemble waits for its steps."""
        deadline, failed_at = time.monotonic() + LONGEST_CHANGE_SECONDS, math.inf
        while (now := time.monotonic()) < deadline:
            snapshot = self._registry.snapshot()
            if snapshot.is_ready(name):
                return
            reason = snapshot.failures.get(name)
            failed_at = min(failed_at, now) if reason else math.inf
            if reason and now - failed_at > MISSING_STEP_SECONDS:
                raise LoadFailed(reason)
            time.sleep(PROGRESS_LOOK_SECONDS)
        raise ModelNotReady(f"'{name}' is still loading after {LONGEST_CHANGE_SECONDS:g} s")

    def _forget_unknown(self, name: str) -> None:
        """Leave nothing behind of a name that is in no repository."""
        reports = self._store.read().reports.values()
        models = [report.models[name] for report in reports if name in report.models]
        if not any(model.exists for model in models):
            self._store.forget(name)

    def _check_mode(self) -> None:
        modes = {self._mode}
        if not self._mode:
            modes = {report.mode for report in self._store.read().reports.values()}
        for mode in sorted(modes - {"explicit"}):
            raise BadRequest(CONTROL_REFUSED.format(mode=mode))


def _check_name(name: str) -> None:
    """Raise BadRequest unless a model may be called `name`."""
    if not MODEL_NAME.fullmatch(name):
        raise BadRequest(f"model name {name!r} must match {MODEL_NAME.pattern}")


def _reports_of(name: str, generation: int, state: ControlState) -> list[ModelReport]:
    """Return the reports of all living supervisors, none until each has seen `generation`."""
    found = [report.models.get(name) for report in state.reports.values()]
    up_to_date = [each for each in found if each is not None and each.generation >= generation]
    return up_to_date if len(up_to_date) == len(found) else []


def _check_failures(reports: list[ModelReport]) -> None:
    """Raise LoadFailed for the first failure that is reported."""
    for report in reports:
        if report.failure:
            raise LoadFailed(report.failure)


def _takes_all(name: str, serving: Serving | None, reports: list[ModelReport]) -> bool:
    """Tell whether requests go to all that supervisors have."""
    contents = {
        (version, each.key) for report in reports for version, each in report.versions.items()
    }
    if not contents:
        raise LoadFailed(f"failed to load '{name}', no such model in the repository")
    versions = [version for version, _ in contents]
    for version in versions:
        if versions.count(version) > 1:
            raise LoadFailed(f"version {version} of '{name}' has other files on other machines")
    keys = {key for _, key in contents}
    taken = set(serving.versions.values()) if serving is not None else set()
    # What a canary is to replace serves on besides.
    return taken == keys or bool(serving and serving.canary and keys <= taken)


def _follows(serving: Serving | None, reports: list[ModelReport], wanted: Desired) -> bool:
    """Tell whether requests go where they are wanted to; raises LoadFailed when they cannot."""
    if serving is None:
        states = [each.state for report in reports for each in report.versions.values()]
        if not {"loading", "ready"} & set(states):
            raise LoadFailed("no version of this model is served, and none can be loaded")
        return False
    use = wanted.use
    if not use and not wanted.split:
        versions = {version for report in reports for version in report.versions}
        use = max(versions - {wanted.shadow}, key=int, default="")
        _check_failures([report.only([use]) for report in reports])
    if serving.canary and not wanted.use:
        return use in ("", serving.canary) and serving.shadow == wanted.shadow
    return (
        use in ("", serving.default)
        and serving.split == wanted.split
        and serving.shadow == wanted.shadow
    )


def _pin(now: Desired, serving: Serving | None) -> str:
    """Return the version that is to go on serving; it may be another one than was named once."""
    if serving is not None and (now.taken_back or not now.use):
        return serving.default
    return now.use
