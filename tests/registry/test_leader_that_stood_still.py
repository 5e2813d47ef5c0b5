"""What a supervisor decided by an old look is not written over what came since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from shared.registry.desired_state import (
    Desired,
    ModelReport,
    Serving,
    SupervisorReport,
    VersionReport,
)
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.request_queue.keys import QueueKeys
from shared.request_queue.model_statistics import Outcomes
from shared.settings import Settings
from shared.wire.client import connect
from worker.supervisor.first_answers import MAX_JUDGED_COUNT, FirstAnswers
from worker.supervisor.traffic import CanaryPlan, Traffic

BOTH = Serving(versions={"1": "m/1", "2": "m/2"}, default="1")
SECOND = BOTH.model_copy(update={"default": "2", "replaced": "m/1"})


class Two(NamedTuple):
    """The store of the supervisor that stood still, and what others do to it meanwhile."""

    store: DesiredStore
    gates: Callable[[], list[bytes | None]]

    def report(self, supervisor: str, *versions: str) -> None:
        found = {each: VersionReport(key=f"m/{each}", state="ready") for each in versions}
        running = [each.key for each in found.values()]
        models = {"m": ModelReport(versions=found)}
        self.store.put_report(supervisor, SupervisorReport(running=running, models=models))

    def serve(self, serving: Serving) -> None:
        assert self.store.serve("m", serving, {"m/1", "m/2"}, self.store.changes())


@pytest.fixture
def two(settings: Settings) -> Iterator[Two]:
    """Versions 1 and 2 are ready, and 2 is to take the requests of 1."""
    with connect(settings.redis_url) as redis:
        prefix = settings.key_prefix
        keys = [QueueKeys(prefix, f"m/{version}").elsewhere for version in (1, 2)]
        found = Two(DesiredStore(redis, prefix), lambda: redis.mget(keys))
        for supervisor in ("a", "b"):
            Registry(redis, prefix).beat(supervisor, 60.0)
            found.report(supervisor, "1", "2")
        found.store.change("m", lambda now, _: now.model_copy(update={"use": "2"}))
        found.serve(BOTH)
        yield found


def nothing(_: Two) -> None:
    pass


def another_leader_serves(two: Two) -> None:
    two.serve(BOTH.model_copy(update={"split": {"1": 50, "2": 50}}))


def an_operator_wants_another(two: Two) -> None:
    two.store.change("m", lambda now, _: now.model_copy(update={"use": "1"}))


def an_operator_unloads(two: Two) -> None:
    two.store.forget("m")
    assert two.store.serve("m", None, {"m/1", "m/2"}, two.store.changes())


def a_machine_lost_it(two: Two) -> None:
    two.report("b", "1")


MEANWHILE = [
    another_leader_serves, an_operator_wants_another, an_operator_unloads, a_machine_lost_it,
]  # fmt: skip


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_where_requests_go_is_not_written_by_an_old_look(
    two: Two, meanwhile: Callable[[Two], None]
) -> None:
    traffic, seen = Traffic("a", two.store, CanaryPlan()), two.store.read()
    meanwhile(two)
    before = two.store.read(), two.gates()

    assert not traffic.promote(seen)

    assert (two.store.read(), two.gates()) == before


def test_where_requests_go_is_written_by_a_look_that_nothing_followed(two: Two) -> None:
    assert Traffic("a", two.store, CanaryPlan()).promote(two.store.read())

    assert two.store.read().served == {"m": SECOND}
    assert two.gates() == [b"unnamed", None]


def test_several_models_are_written_by_one_look(two: Two) -> None:
    for supervisor in ("a", "b"):
        versions = {"1": VersionReport(key="other/1", state="ready")}
        models = {"m": ModelReport(versions=versions), "other": ModelReport(versions=versions)}
        two.store.put_report(supervisor, SupervisorReport(running=["other/1"], models=models))

    Traffic("a", two.store, CanaryPlan()).promote(two.store.read())

    assert set(two.store.read().served) == {"m", "other"}


@pytest.mark.parametrize("meanwhile", [nothing, *MEANWHILE])
def test_a_version_is_trusted_by_a_look_that_nothing_followed(
    two: Two, meanwhile: Callable[[Two], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    two.serve(SECOND)
    answers, counted = FirstAnswers(two.store), [Outcomes(0, 0), Outcomes(0, 0)]
    monkeypatch.setattr(two.store, "outcomes", lambda _: counted)
    answers.look(two.store.read())
    counted[0] = Outcomes(MAX_JUDGED_COUNT, 0)
    seen = two.store.read()
    meanwhile(two)
    before = two.store.read().served

    answers.look(seen)

    if meanwhile is nothing:
        before = {"m": SECOND.model_copy(update={"replaced": ""})}
    assert two.store.read().served == before
    assert answers.is_watching is (meanwhile is not nothing)


@pytest.mark.parametrize("meanwhile", [nothing, an_operator_wants_another])
def test_requests_are_not_taken_back_once_an_operator_said_something_else(
    two: Two,
    meanwhile: Callable[[Two], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    two.serve(SECOND)
    answers, counted = FirstAnswers(two.store), [Outcomes(0, 0), Outcomes(0, 0)]
    monkeypatch.setattr(two.store, "outcomes", lambda _: counted)
    answers.look(two.store.read())
    counted[0] = Outcomes(0, 9)
    seen = two.store.read()
    meanwhile(two)

    answers.look(seen)

    desired = two.store.read().desired.get("m", Desired())
    assert bool(desired.taken_back) is (meanwhile is nothing)
    assert ("taken back" in caplog.text) is (meanwhile is nothing)


def test_a_version_that_takes_requests_again_is_not_closed(two: Two) -> None:
    two.serve(SECOND)
    gates = two.gates()

    assert two.store.close("m/1", 1, []) == "served"
    assert two.store.close("m/2", 1, []) == "served"
    assert two.gates() == gates

    two.serve(Serving(versions={"2": "m/2"}, default="2"))
    assert two.store.close("m/1", 1, []) == "closed"
    assert two.store.close("m/2@1", 1, []) == "closed"
    assert two.gates() == [b"all", None]


def test_what_was_desired_last_is_restored_whoever_restores_first(
    settings: Settings,
) -> None:
    with connect(settings.redis_url) as redis:
        store = DesiredStore(redis, settings.key_prefix)
        store.change("m", lambda now, _: now.model_copy(update={"use": "2"}))
        before = store.read()
        store.change("m", lambda now, _: now.model_copy(update={"use": "1"}))
        after = store.read()
        for first, second in ((before, after), (after, before)):
            redis.delete(*redis.keys(f"{settings.key_prefix}:*"))

            store.restore(first)
            store.restore(second)

            assert store.read().desired["m"] == after.desired["m"]
