"""A request that takes its instance down fails alone, after three attempts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import running_worker
from scripted_models import Deadly, Slow, add_model
from waiting import wait_until
from worker_processes import numbers, seen

from shared.errors import ModelCrashed
from shared.settings import Settings

DEADLY = 13.0
ENDLESS = 10_000_000.0
MAX_BATCH_SECONDS = 0.5


@pytest.fixture(scope="module")
def serving(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A worker with a model that dies on one value and one that never ends on another."""
    models = tmp_path_factory.mktemp("models")
    add_model(models, Deadly(), max_batch_size=8)
    add_model(models, Slow(), max_batch_size=8)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="crashing",
        models=str(models),
        max_batch_seconds=MAX_BATCH_SECONDS,
    )
    with running_worker(settings):
        yield settings


@pytest.mark.parametrize(("model", "value"), [("deadly", DEADLY), ("slow", ENDLESS)])
def test_a_request_that_kills_its_instance_fails_alone_after_three_attempts(
    serving: Settings, model: str, value: float
) -> None:
    values = [1.0, 2.0, 3.0, value, 4.0, 5.0, 6.0, 7.0]
    with seen(serving, model) as served:
        (instance,) = served.wait_ready()
        os.kill(instance.pid, signal.SIGSTOP)
        asked = [served.push(number) for number in values]
        # The first may have been claimed already: the instance had asked before it stood still.
        wait_until(lambda: served.redis.llen(served.keys.queues[0]) >= 7, 10, "all but one wait")
        os.kill(instance.pid, signal.SIGCONT)

        with pytest.raises(ModelCrashed, match="died 3 times") as raised:
            asked.pop(values.index(value)).wait()

        assert raised.value.status == 500
        values.remove(value)
        answers = [waiting.wait() for waiting in asked]
        assert [numbers(answer).tolist() for answer in answers] == [
            [[2.0 * number, 2.0 * number]] for number in values
        ]
        # They shared its first batch; from then on each of them travelled alone.
        assert {answer.timings.attempts for answer in answers[1:]} == {2}
        assert {answer.timings.batch_size for answer in answers} == {1}


def test_a_model_whose_file_is_mended_is_served_by_itself(
    settings: Settings, tmp_path: Path
) -> None:
    add_model(tmp_path, Slow())
    good = add_model(tmp_path, torch.nn.Identity())
    content = good.read_bytes()
    good.write_bytes(b"no model at all")
    settings = replace(settings, models=str(tmp_path), heartbeat_seconds=0.3)

    with (
        running_worker(settings, wait_ready=False),
        seen(settings, "identity") as broken,
        seen(settings, "slow") as slow,
    ):
        wait_until(lambda: "identity" in broken.registry.snapshot().failures, 30, "it is reported")
        assert numbers(slow.push(1.0).wait()).tolist() == [[2.0, 2.0]]
        good.write_bytes(content)

        broken.wait_ready()

        assert broken.registry.snapshot().all_ready()
