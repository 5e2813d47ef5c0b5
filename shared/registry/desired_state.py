"""The desired versions of each model, those that are there, and those that take requests.

Every supervisor follows `desired` and says in its report how far it is. One of them, the living one
with the lowest id, decides by `promoted` where requests go; API processes follow `served`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from shared.names import VERSION

VersionState = Literal["loading", "ready", "failed"]


class _Frozen(BaseModel):
    # What a later release adds is not known here, and no reason to fail.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Desired(_Frozen):
    """Operators' wishes for one model.

    `generation` is raised by every change. `loaded` None leaves it to the control mode, `config` is
    a whole configuration as JSON instead of the repository's. `use` is the version that takes
    requests without one (empty: the highest), `split` gives versions weights instead, and `shadow`
    is a version that gets a copy of each request. Versions named here are loaded besides those of
    the version policy. `failure` says why the last attempt to load it was undone, `taken_back` why
    requests went back from versions that had taken over.
    """

    generation: int = 0
    loaded: bool | None = None
    config: str | None = None
    use: str = ""
    split: dict[str, int] = {}
    shadow: str = ""
    failure: str = ""
    taken_back: dict[str, str] = {}

    @field_validator("use", "shadow")
    @classmethod
    def _check_version(cls, version: str) -> str:
        return _checked(version) if version else version

    @field_validator("split", "taken_back")
    @classmethod
    def _check_versions(cls, by_version: dict[str, Any]) -> dict[str, Any]:
        return {_checked(version): value for version, value in by_version.items()}

    @property
    def pinned(self) -> frozenset[str]:
        """Return the versions that are named."""
        return frozenset({self.use, self.shadow, *self.split} - {""})


def _checked(version: str) -> str:
    """Return a version; what stands in Redis is no more trusted than a request."""
    if not VERSION.fullmatch(version):
        raise ValueError(f"version {version!r} must be a whole number from 1")
    return version


class VersionReport(_Frozen):
    """One supervisor's progress with one version; `key` names its content (`ModelSpec.key`).

    `digest` is that of its files and configuration. With `stop_first` it is not loaded before what
    it replaces has left.
    """

    key: str
    state: VersionState
    reason: str = ""
    stop_first: bool = False
    digest: str = ""


class ModelReport(_Frozen):
    """One supervisor's progress with one model.

    It has seen the desired state of `generation`; the model `exists` in its repository or not.
    `versions` are those that it wants to serve, none for a model that is not wanted; `reason` says
    why they could not be found out. `note` says why a model that is not wanted is not there.
    """

    generation: int = 0
    exists: bool = True
    versions: dict[str, VersionReport] = {}
    reason: str = ""
    note: str = ""

    @property
    def settled(self) -> bool:
        """Tell whether no version is loading."""
        return all(version.state != "loading" for version in self.versions.values())

    @property
    def failure(self) -> str:
        """Return why something is not served, empty when all is."""
        reasons = [
            version.reason for version in self.versions.values() if version.state == "failed"
        ]
        return self.reason or next(iter(reasons), "")

    def only(self, versions: Iterable[str]) -> ModelReport:
        """Return the report on some of its versions."""
        kept = {version: self.versions[version] for version in versions if version in self.versions}
        return self.model_copy(update={"versions": kept})


class SupervisorReport(_Frozen):
    """One supervisor's progress with every model in its repository; `mode` is its control mode.

    It is `complete` once it has read every model for the first time. `running` are the contents
    (`ModelSpec.key`) that could answer, wanted or not. Those on `standby` were replaced and answer
    who names them, each until a second since the epoch; 0 for those that only finish their work.
    """

    mode: str = "none"
    complete: bool = True
    running: list[str] = []
    standby: dict[str, float] = {}
    models: dict[str, ModelReport] = {}


class Serving(_Frozen):
    """Where one model's requests go: `versions` names the content that each version stands for.

    `default` takes requests without a version, unless `split` says which share each one takes.
    `replaced` is the content that did so before; `taken_back` is as in `Desired`. A `canary` is a
    version that has a share by itself, until a second since the epoch at which it becomes the
    default.
    """

    versions: dict[str, str]
    default: str
    split: dict[str, int] = {}
    shadow: str = ""
    replaced: str = ""
    taken_back: dict[str, str] = {}
    canary: str = ""
    canary_until: float = 0.0


def sent_elsewhere(key: str, serving: Serving | None) -> Literal["", "unnamed", "all"]:
    """Return which requests to a content go elsewhere from now on; `unnamed` name no version.

    One that was replaced stands by for those that name it, unless its version has other content
    now, or the model was unloaded.
    """
    if serving is None:
        return "all"
    version = key.partition("@")[0].rpartition("/")[2]
    if serving.versions.get(version, key) != key:
        return "all"
    takes = set(serving.split) or {serving.default}
    return "" if version in serving.versions and version in takes else "unnamed"


def promoted(
    current: Serving | None,
    desired: Desired,
    reports: Sequence[ModelReport],
    running: Set[str] | None = None,
) -> Serving | None:
    """Return where a model's requests go from now on, None when nobody is to serve it.

    A version takes requests once it is ready on every supervisor that wants it. At the first time
    it is enough that one has it and no other is loading. What is served now stays until all that is
    wanted is ready, so a version that fails to load changes nothing; but not what is no longer
    among the contents `running` anywhere (None: it is not known yet), nor what has to leave first.
    """
    if any(report.reason for report in reports):
        return current
    if current is None and not all(report.settled for report in reports):
        return None
    wanted = {version for report in reports for version in report.versions}
    if not wanted:
        return None
    ready = {
        version: key
        for version in wanted
        if (key := _ready_key(version, reports, everywhere=current is not None)) is not None
    }
    kept = _kept(current, wanted, running) if current is not None else {}
    found = [version for report in reports for version in report.versions.values()]
    takes_turns = any(version.stop_first for version in found)
    if takes_turns:
        kept = {name: key for name, key in kept.items() if key in {each.key for each in found}}
    versions = ready if len(ready) == len(wanted) else kept | ready
    if not versions and not takes_turns:  # what served is gone: what one machine has is something
        versions = {
            version: key
            for version in wanted
            if (key := _ready_key(version, reports, everywhere=False)) is not None
        }
    if not versions:
        return None
    split = {version: weight for version, weight in desired.split.items() if version in versions}
    default = _default(current, desired, versions, wanted)
    return Serving(
        versions=versions,
        default=default,
        split=split if len(split) == len(desired.split) else {},
        shadow=desired.shadow if desired.shadow in versions else "",
        replaced=_replaced(current, default),
        taken_back=desired.taken_back,
    )


def _replaced(current: Serving | None, default: str) -> str:
    """Return the content that took requests before the `default` version does."""
    if current is None:
        return ""
    return current.replaced if current.default == default else current.versions[current.default]


def _kept(current: Serving, wanted: set[str], running: Set[str] | None) -> dict[str, str]:
    """Return the versions that go on serving while not all desired ones are ready.

    Besides those that are in use no more than are wanted, or they would pile up while one fails.
    """
    highest = sorted(current.versions, key=int)[-len(wanted) :]
    needed = {*wanted, *highest, current.default, current.shadow, *current.split}
    return {
        version: key
        for version, key in current.versions.items()
        if version in needed and (running is None or key in running)
    }


def _ready_key(version: str, reports: Sequence[ModelReport], *, everywhere: bool) -> str | None:
    """Return the newest content of a version that is ready `everywhere` it is wanted, or at all."""
    states: dict[str, list[bool]] = {}
    for report in reports:
        if (found := report.versions.get(version)) is not None:
            states.setdefault(found.key, []).append(found.state == "ready")
    if everywhere and len(states) > 1:
        return None  # machines have different files for it
    enough = all if everywhere else any
    ready = [key for key, each in states.items() if enough(each)]
    return max(ready, key=revision_of, default=None)


def _default(
    current: Serving | None, desired: Desired, versions: Mapping[str, str], wanted: set[str]
) -> str:
    """Return the version for requests that name none.

    A version that was asked for and is not there, or that is only shadowed or split to, does not
    take the place of the one that serves.
    """
    if desired.taken_back:
        worst = max(map(int, desired.taken_back))
        if remedies := [version for version in versions if int(version) > worst]:
            return max(remedies, key=int)
    if desired.use in versions:
        return desired.use
    if current is not None and desired.use and current.default in versions:
        return current.default
    aside = ({desired.shadow} | set(desired.split)) - {current.default if current else ""}
    candidates = [version for version in versions if version not in aside] or list(versions)
    return max(candidates, key=int)


def revision_of(key: str) -> int:
    """Return the revision in a `ModelSpec.key`."""
    return int(key.partition("@")[2] or 0)
