"""A request that takes its instance down fails alone; a model that cannot start is tried again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ferry_processes import running_worker
from scripted_models import Deadly, Slow, add_model, write_model
from waiting import wait_until
from worker_processes import numbers, seen

from shared.errors import ModelCrashed
from shared.settings import Settings

DEADLY = 13.0
ENDLESS = 10_000_000.0
MAX_BATCH_SECONDS = 0.5
PAIRS = """
name: "pairs" platform: "pytorch_libtorch" max_batch_size: 2
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]
parameters { key: "pipeline_depth" value { string_value: "2" } }
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that dies on one value, one that never ends on another, one that cannot be loaded."""
    models = tmp_path_factory.mktemp("models")
    add_model(models, Deadly(), max_batch_size=8)
    add_model(models, Slow(), max_batch_size=8)
    write_model(models, "pairs", PAIRS, Deadly())
    file = add_model(models, torch.nn.Identity())
    file.rename(file.with_suffix(".good"))
    file.write_bytes(b"no model at all")
    return models


@pytest.fixture(scope="module")
def serving(redis_url: str, models: Path) -> Iterator[Settings]:
    settings = Settings(
        redis_url=redis_url,
        key_prefix="crashing",
        models=str(models),
        max_batch_seconds=MAX_BATCH_SECONDS,
    )
    with running_worker(settings, wait_ready=False):
        yield settings


def test_a_model_whose_file_is_mended_is_served_by_itself(serving: Settings, models: Path) -> None:
    with seen(serving, "identity") as broken, seen(serving, "slow") as slow:
        slow.wait_ready()
        wait_until(lambda: "identity" in broken.registry.snapshot().failures, 30, "it is reported")
        assert numbers(slow.push(1.0).wait()).tolist() == [[2.0, 2.0]]
        file = models / "identity" / "1" / "model.pt"
        file.with_suffix(".good").replace(file)

        broken.wait_ready()

        wait_until(lambda: broken.registry.snapshot().all_ready(), 30, "every model is ready")


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


def test_a_request_that_kills_an_instance_with_two_batches_in_hand_fails_alone_as_well(
    serving: Settings,
) -> None:
    values = [1.0, DEADLY, *(float(number) for number in range(2, 14) if number != DEADLY)]
    with seen(serving, "pairs") as served:
        (instance,) = served.wait_ready()
        served.push(1.0).wait()  # from which it knows how long a batch takes
        os.kill(instance.pid, signal.SIGSTOP)
        asked = [served.push(number) for number in values]
        wait_until(lambda: served.redis.llen(served.keys.queues[0]) >= 10, 10, "they wait")
        os.kill(instance.pid, signal.SIGCONT)

        with pytest.raises(ModelCrashed, match="died 3 times"):
            asked.pop(1).wait()

        values.remove(DEADLY)
        answers = [numbers(waiting.wait())[0, 0] for waiting in asked]
        assert answers == [2.0 * number for number in values]
        wait_until(lambda: not served.holders(), 10, "nothing is left in flight")
