"""A request that kills a real GPU's context fails alone; skipped where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ferry_processes import running_worker
from scripted_models import add_model
from waiting import wait_until
from worker_processes import Served, numbers, seen

from shared.errors import ModelCrashed, ModelFailed
from shared.settings import Settings
from worker.instance.health.device_probe import device_probe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

POISON = 1e7
"""Far beyond the table: an assertion in a kernel, behind which every call of its process fails."""
NEGATIVE = -5e6
"""What the model itself refuses, by an exception that leaves the device as it is."""


class Lookup(torch.nn.Module):
    """Answers 2x, looked up in a table of 4096 values."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4096, dtype=torch.float32) * 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == -5e6).any()):
            raise ValueError("negative")
        return self.table[x.long()]


@pytest.fixture(scope="module")
def lookup(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("gpu-faults")
    group = "instance_group [ { count: 2 kind: KIND_GPU gpus: [0] } ]"
    add_model(repository, Lookup(), more=group, max_batch_size=8)
    settings = Settings(redis_url=redis_url, key_prefix="gpu-faults", models=str(repository))
    with running_worker(settings), seen(settings, "lookup") as served:
        served.wait_ready(2)
        yield served


def test_a_working_gpu_is_said_to_work() -> None:
    probe = device_probe("cuda:0")

    assert [probe() for _ in range(3)] == [""] * 3


def test_an_exception_that_leaves_the_gpu_well_takes_no_instance_out(lookup: Served) -> None:
    before = {record.id for record in lookup.ready()}

    for waiting in [lookup.push(NEGATIVE) for _ in range(20)]:
        with pytest.raises(ModelFailed, match="negative"):
            waiting.wait()

    assert {record.id for record in lookup.ready()} == before


def test_of_200_requests_around_poison_only_the_poisonous_fail(lookup: Served) -> None:
    before = {record.id for record in lookup.wait_ready(2)}
    values = [POISON if number % 67 == 33 else float(number) for number in range(203)]

    asked = [(value, lookup.push(value)) for value in values]

    for value, waiting in asked:
        if value == POISON:
            with pytest.raises(ModelCrashed, match="takes no more work"):
                waiting.wait()
        else:
            assert numbers(waiting.wait()).tolist() == [[2 * value, 2 * value]]
    wait_until(lambda: len(lookup.ready()) == 2, 60, "both instances are back")
    assert {record.id for record in lookup.ready()} != before
