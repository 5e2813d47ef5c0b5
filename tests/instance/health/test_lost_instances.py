"""A request on which a device dies fails alone, and takes no other with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ferry_processes import running_worker
from sticky_device import LOST, POISON, SILENT, add_sticky
from waiting import wait_until
from worker_processes import Served, numbers, seen

from shared.errors import FerryError, ModelCrashed, ModelFailed
from shared.operations.dead_letters import DeadLetters
from shared.request_queue.api_end import PendingRequest
from shared.settings import Settings


@pytest.fixture(scope="module")
def serving(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Serve two models on two instances each, of which one does not say that its device died."""
    repository = tmp_path_factory.mktemp("sticky")
    add_sticky(repository, "told", instances=2, seconds=0.002)
    add_sticky(repository, "silent", instances=2, seconds=0.002, probe=SILENT)
    settings = Settings(redis_url=redis_url, key_prefix="sticky", models=str(repository))
    with running_worker(settings):
        yield settings


@pytest.fixture(params=["told", "silent"])
def sticky(request: pytest.FixtureRequest, serving: Settings) -> Iterator[Served]:
    with seen(serving, request.param) as served:
        served.wait_ready(2)
        yield served


def test_only_requests_that_kill_the_device_fail(sticky: Served, serving: Settings) -> None:
    before = {record.id for record in sticky.ready()}
    values = [POISON if number % 20 == 7 else number + 100.0 for number in range(100)]

    asked = [(value, sticky.push(value)) for value in values]

    for value, waiting in asked:
        if value != POISON:
            assert numbers(waiting.wait()).tolist() == [[2 * value, 2 * value]]
            continue
        with pytest.raises(ModelCrashed, match=r"replaced 2 times.*the last time since") as failed:
            waiting.wait()
        assert (LOST in failed.value.message) == (sticky.model == "told")
    dead = DeadLetters(sticky.redis, serving)
    letters = [each for each in dead.all() if each.model_key == f"{sticky.model}/1"]
    assert [each.attempts for each in letters] == [2] * 5
    wait_until(lambda: len(sticky.ready()) == 2, 60, "both instances are back")
    assert before - {record.id for record in sticky.ready()}, "at least one was replaced"


BREAKABLE = """
class Model:
    def load(self, context):
        self.broken = context.directory / "broken"

    def forward(self, inputs):
        if self.broken.exists():
            raise ConnectionError("the feature store is away")
        return {"y": 2 * inputs["x"]}
"""


def test_a_model_that_fails_everywhere_is_not_ready_and_says_why(
    redis_url: str, tmp_path: Path
) -> None:
    file = add_sticky(tmp_path, "breakable", instances=2)
    file.write_text(BREAKABLE)
    settings = Settings(redis_url=redis_url, key_prefix="breakable", models=str(tmp_path))

    with running_worker(settings), seen(settings, "breakable") as served:
        (file.parent / "broken").touch()
        asked = [served.push(float(number)) for number in range(20)]
        said = "it took what is made up to warm it before"
        wait_until(lambda: all(said in r.reason for r in served.records()), 30, "both say why")
        (reason,) = {record.reason for record in served.records()}
        assert not served.registry.snapshot().all_ready()
        (file.parent / "broken").unlink()
        served.wait_ready(2)
        outcomes = [outcome(waiting) for waiting in asked]

    assert "ConnectionError: the feature store is away" in reason
    assert outcomes.count("") >= 16, "all but those that it held, who were told"
    assert set(outcomes) <= {"", "model_crashed"}


def outcome(waiting: PendingRequest) -> str:
    """Return the code of a request's error, empty for an answer."""
    try:
        waiting.wait()
    except FerryError as error:
        return error.code
    return ""


CHOOSY = """
import os


class Model:
    def load(self, context):
        try:
            os.close(os.open(context.directory / "taken", os.O_CREAT | os.O_EXCL))
            self.is_broken = True
        except FileExistsError:
            self.is_broken = False

    def forward(self, inputs):
        if self.is_broken or (inputs["x"] != 2).any():
            raise ValueError("not that")
        return {"y": 2 * inputs["x"]}
"""


def test_one_that_never_answered_is_replaced_while_others_answer(
    redis_url: str, tmp_path: Path
) -> None:
    file = add_sticky(tmp_path, "choosy", instances=2, max_batch_size=1)
    file.write_text(CHOOSY)
    settings = Settings(
        redis_url=redis_url, key_prefix="choosy", models=str(tmp_path), heartbeat_seconds=0.2
    )

    with running_worker(settings), seen(settings, "choosy") as served:
        before = {record.id for record in served.wait_ready(2)}

        def is_replaced() -> bool:
            outcomes = [outcome(waiting) for waiting in [served.push(2.0) for _ in range(30)]]
            assert set(outcomes) <= {"", "model_failed"}
            after = {record.id for record in served.ready()}
            return len(after) == 2 and len(before - after) == 1

        wait_until(is_replaced, 30, "the broken one is replaced")
        assert {outcome(served.push(2.0)) for _ in range(30)} == {""}


def test_a_run_of_bad_requests_takes_no_instance_out(sticky: Served) -> None:
    before = {record.id for record in sticky.wait_ready(2)}

    for waiting in [sticky.push(-1.0) for _ in range(40)]:
        with pytest.raises(ModelFailed, match="negative"):
            waiting.wait()

    assert {record.id for record in sticky.ready()} == before
    assert numbers(sticky.push(1.0).wait()).tolist() == [[2.0, 2.0]]
