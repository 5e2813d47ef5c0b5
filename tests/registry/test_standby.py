"""A version that was replaced is seen for as long as it stands by, and its time left is told."""

from __future__ import annotations

import time

import pytest
from registered import SUPERVISOR, spec

from shared.registry.desired_state import ModelReport, Serving, SupervisorReport, VersionReport
from shared.registry.repository_index import repository_index
from shared.registry.snapshot import InstanceRecord, Snapshot, snapshot_of

OLD = spec("m")
NEW = OLD.model_copy(update={"version": "2"})
SERVING = Serving(versions={"2": "m/2"}, default="2")


def seen(serving: Serving = SERVING, **standby: float) -> Snapshot:
    """Return what is seen while both run and the supervisor says so of version 1."""
    wants = ModelReport(versions={"2": VersionReport(key="m/2", state="ready")})
    until = {f"m/{name[1:]}": seconds for name, seconds in standby.items()}
    report = SupervisorReport(models={"m": wants}, running=["m/1", "m/2"], standby=until)
    living = [
        InstanceRecord(
            id=f"m-{version}", supervisor=SUPERVISOR, model="m", version=version, state="ready"
        )
        for version in ("1", "2")
    ]
    return snapshot_of([OLD, NEW], living, {"m": serving}, [report], {})


def reason(snapshot: Snapshot, version: str) -> str:
    (found,) = (each for each in repository_index(snapshot) if each["version"] == version)
    assert found["state"] == "READY"
    return found["reason"]


def test_it_is_seen_and_the_time_it_has_left() -> None:
    snapshot = seen(v1=time.time() + 40.2)

    assert reason(snapshot, "1") == "on standby: answers requests that name it for 40 s more"
    assert reason(snapshot, "2") == ""
    assert snapshot.default_version("m") == "2"


def test_it_is_seen_before_its_supervisor_knows_that_it_was_replaced() -> None:
    assert reason(seen(), "1") == "on standby: answers requests that name it"


def test_it_is_not_seen_once_it_only_finishes_its_work() -> None:
    assert set(seen(v1=0.0).models["m"]) == {"2"}


@pytest.mark.parametrize("version", ["1", "2"])
def test_what_was_replaced_by_other_content_of_its_version_is_not(version: str) -> None:
    serving = Serving(versions={version: f"m/{version}@1"}, default=version)

    assert f"m/{version}" not in seen(serving, v1=time.time() + 40).standby


def test_what_a_later_release_reports_besides_is_no_reason_to_fail() -> None:
    assert SupervisorReport.model_validate_json('{"mode": "poll", "unheard_of": 1}').mode == "poll"
