"""What `ModelControl` asks of the supervisors' reports: is it done, and if not, can it be?"""

from __future__ import annotations

from shared.errors import BadRequest, LoadFailed
from shared.names import MODEL_NAME
from shared.registry.desired_state import Desired, ModelReport, Serving
from shared.registry.desired_store import ControlState


def check_name(name: str) -> None:
    """Raise BadRequest for what is no model's name."""
    if not MODEL_NAME.fullmatch(name):
        raise BadRequest(f"model name {name!r} must match {MODEL_NAME.pattern}")


def reports_of(name: str, generation: int, state: ControlState) -> list[ModelReport]:
    """Return what every living supervisor says of a model, nothing while one is not so far."""
    found = [report.models.get(name) for report in state.reports.values()]
    up_to_date = [each for each in found if each is not None and each.generation >= generation]
    return up_to_date if len(up_to_date) == len(found) else []


def check_failures(reports: list[ModelReport]) -> None:
    """Raise LoadFailed for the first failure that is reported."""
    for report in reports:
        if report.failure:
            raise LoadFailed(report.failure)


def takes_all(name: str, serving: Serving | None, reports: list[ModelReport]) -> bool:
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
    return serving is not None and set(serving.versions.values()) == keys


def follows(serving: Serving | None, reports: list[ModelReport], wanted: Desired) -> bool:
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
        check_failures([report.only([use]) for report in reports])
    return (
        use in ("", serving.default)
        and serving.split == wanted.split
        and serving.shadow == wanted.shadow
    )


def pin(now: Desired, serving: Serving | None) -> str:
    """Return the version that is to go on serving."""
    return now.use or (serving.default if serving is not None else "")
