"""Where requests go, decided from what is desired and how far supervisors are."""

from __future__ import annotations

import pytest

from shared.registry.desired_state import (
    Desired,
    ModelReport,
    Serving,
    VersionReport,
    VersionState,
    promoted,
    sent_elsewhere,
)

NOTHING = Desired()


def said(**states: VersionState) -> ModelReport:
    """Return a report; `v2="ready"` is version 2, `v2r1` its revision 1."""
    versions = {}
    for name, state in states.items():
        version, _, revision = name.removeprefix("v").partition("r")
        key = f"m/{version}" + (f"@{revision}" if revision else "")
        versions[version] = VersionReport(key=key, state=state)
    return ModelReport(versions=versions)


def serving(*versions: str, default: str = "", **more: object) -> Serving:
    keys = {version.partition("@")[0]: f"m/{version}" for version in versions}
    return Serving.model_validate(
        {"versions": keys, "default": default or max(keys, key=int)} | more
    )


def test_the_first_versions_take_requests_once_none_is_loading() -> None:
    assert promoted(None, NOTHING, [said(v1="ready", v2="loading")]) is None
    assert promoted(None, NOTHING, [said(v1="ready", v2="ready")]) == serving("1", "2")
    assert promoted(None, NOTHING, [said(v1="ready", v2="failed")]) == serving("1")
    assert promoted(None, NOTHING, [said(v1="failed")]) is None


def test_a_new_version_takes_over_when_it_is_ready_everywhere() -> None:
    now = serving("1")

    assert promoted(now, NOTHING, [said(v2="loading")]) == now
    assert promoted(now, NOTHING, [said(v2="ready"), said(v2="loading")]) == now
    assert promoted(now, NOTHING, [said(v2="ready"), said(v2="ready")]) == serving(
        "2", replaced="m/1"
    )


def test_a_new_version_that_fails_somewhere_changes_nothing() -> None:
    now = serving("1")

    assert promoted(now, NOTHING, [said(v2="ready"), said(v2="failed")]) == now
    assert promoted(now, NOTHING, [ModelReport(reason="config.pbtxt: wrong")]) == now


def test_the_first_time_one_machine_is_enough() -> None:
    assert promoted(None, NOTHING, [said(v1="ready"), said(v1="failed")]) == serving("1")


def test_several_versions_take_requests_as_they_become_ready() -> None:
    now = serving("1", "2")

    assert promoted(now, NOTHING, [said(v2="ready", v3="loading")]) == now
    assert promoted(now, NOTHING, [said(v2="ready", v3="ready")]) == serving(
        "2", "3", replaced="m/2"
    )


def test_a_version_with_other_content_takes_over_from_itself() -> None:
    now = serving("1")

    assert promoted(now, NOTHING, [said(v1r1="loading")]) == now
    assert promoted(now, NOTHING, [said(v1r1="ready")]) == serving("1@1")
    assert promoted(serving("1@1"), NOTHING, [said(v1="ready")]) == serving("1")


def test_content_that_only_some_machines_have_waits_for_the_others() -> None:
    both = [said(v1r1="loading"), said(v1="ready")]

    assert promoted(serving("1"), NOTHING, both) == serving("1")
    both = [said(v1r1="ready"), said(v1="ready")]
    assert promoted(serving("1"), NOTHING, both) == serving("1")


def test_a_model_that_nobody_wants_leaves() -> None:
    assert promoted(serving("1"), NOTHING, [said()]) is None
    assert promoted(serving("1"), NOTHING, [said(), said(v1="ready")]) == serving("1")


def test_the_version_to_use_takes_requests_once_it_is_there() -> None:
    desired, now = Desired(use="1"), serving("2")

    assert promoted(now, desired, [said(v1="loading", v2="ready")]) == now
    ready = [said(v1="ready", v2="ready")]
    assert promoted(now, desired, ready) == serving("1", "2", default="1", replaced="m/2")
    failed = [said(v1="failed", v2="ready")]
    assert promoted(now, desired, failed) == now


def test_a_version_to_use_stays_when_a_higher_one_appears() -> None:
    desired, now = Desired(use="1"), serving("1")

    found = promoted(now, desired, [said(v1="ready", v2="ready")])

    assert found == serving("1", "2", default="1")


def test_a_split_begins_when_all_its_versions_are_there() -> None:
    desired, now = Desired(use="2", split={"2": 90, "3": 10}), serving("2")

    assert promoted(now, desired, [said(v2="ready", v3="loading")]) == now
    found = promoted(now, desired, [said(v2="ready", v3="ready")])
    assert found == serving("2", "3", default="2", split={"2": 90, "3": 10})


def test_what_runs_nowhere_takes_no_requests() -> None:
    desired, now = Desired(use="1"), serving("1")
    reports = [said(v1="failed", v2="ready")]

    assert promoted(now, desired, reports) == serving("1", "2", default="1")
    assert promoted(now, desired, reports, running=set()) == serving("2", replaced="m/1")


def test_versions_do_not_pile_up_while_one_that_is_wanted_fails() -> None:
    desired, now = Desired(use="1"), serving("3", "4", "5", default="3")

    found = promoted(now, desired, [said(v1="failed", v6="ready")])

    assert found == serving("3", "4", "5", "6", default="3")
    again = promoted(found, desired, [said(v1="failed", v7="ready")])
    assert again == serving("3", "5", "6", "7", default="3")


def test_a_shadow_never_takes_the_place_of_what_serves() -> None:
    desired, now = Desired(shadow="3"), serving("2")

    found = promoted(now, desired, [said(v2="ready", v3="ready")])

    assert found == serving("2", "3", default="2", shadow="3")
    assert promoted(now, desired, [said(v2="ready", v3="loading")]) == now


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("m/3", ""),
        ("m/2", "unnamed"),
        ("m/1", "unnamed"),
        ("m/3@1", "all"),
    ],
)
def test_what_does_not_serve_takes_those_that_name_it_unless_it_was_replaced(
    key: str, expected: str
) -> None:
    serving = Serving(versions={"2": "m/2", "3": "m/3"}, default="3")

    assert sent_elsewhere(key, serving) == expected
    assert sent_elsewhere(key, None) == "all"


def test_what_a_split_leaves_out_takes_those_that_name_it() -> None:
    versions = {"1": "m/1", "2": "m/2", "3": "m/3"}
    serving = Serving(versions=versions, default="3", split={"1": 9, "2": 1})

    assert [sent_elsewhere(key, serving) for key in versions.values()] == ["", "", "unnamed"]


def test_what_was_replaced_is_known_until_something_else_is() -> None:
    both = serving("1", "2", replaced="m/1")

    assert promoted(both, NOTHING, [said(v1="ready", v2="ready")]) == both


def test_requests_that_went_back_go_to_a_version_that_comes_later_alone() -> None:
    desired = Desired(use="1", taken_back={"2": "it failed"})
    now = serving("1", "2", default="1", taken_back=desired.taken_back)

    assert promoted(now, desired, [said(v1="ready", v2="ready")]) == now
    later = promoted(now, desired, [said(v1="ready", v3="ready")])
    assert later is not None and later.default == "3"
