"""Which instance of which model runs on which device, with how many threads."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_backend import fake_spec

from shared.cores import default_cores
from shared.errors import BadModel
from shared.registry.device_report import DeviceReport
from worker.devices import cpu_threads, devices_of, falls_back
from worker.repository.model_config import InstanceGroup, ModelConfig
from worker.repository.models import ServedModel
from worker.supervisor.placement import assign


def served(name: str, *groups: InstanceGroup) -> ServedModel:
    spec = fake_spec().model_copy(update={"name": name})
    config = ModelConfig(spec, "torchscript", "model.pt", groups, {})
    return ServedModel(config, spec, Path(name) / "1" / "model.pt")


@pytest.mark.parametrize(
    ("group", "gpu_count", "devices"),
    [
        (InstanceGroup("auto"), 0, ["cpu"]),
        (InstanceGroup("auto", 2), 0, ["cpu", "cpu"]),
        (InstanceGroup("auto"), 2, ["cuda:0", "cuda:1"]),
        (InstanceGroup("cpu", 2), 2, ["cpu", "cpu"]),
        (InstanceGroup("gpu", 2), 2, ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]),
        (InstanceGroup("gpu", 1, (1,)), 2, ["cuda:1"]),
        (InstanceGroup("auto", 1, (1,)), 2, ["cuda:1"]),
    ],
)
def test_a_group_is_placed_as_triton_places_it(
    group: InstanceGroup, gpu_count: int, devices: list[str]
) -> None:
    assert devices_of((group,), range(gpu_count)) == devices


def test_groups_add_up() -> None:
    groups = (InstanceGroup("gpu"), InstanceGroup("cpu", 2))

    assert devices_of(groups, [0]) == ["cuda:0", "cpu", "cpu"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (InstanceGroup("gpu"), "instance_group: KIND_GPU, but this machine has 0 GPUs"),
        (InstanceGroup("gpu", 1, (3,)), r"instance_group: gpus \[3\], but this machine has 0 GPUs"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(group: InstanceGroup, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        devices_of((group,), [])


def test_a_machine_without_gpus_runs_them_on_the_cpu_where_that_is_allowed() -> None:
    groups = (InstanceGroup("gpu", 2, (3,)), InstanceGroup("auto"))

    assert devices_of(groups, [], allow_cpu=True) == ["cpu"] * 3
    assert falls_back(groups, [])


def test_a_machine_with_gpus_never_falls_back() -> None:
    assert devices_of((InstanceGroup("gpu", 2),), [0], allow_cpu=True) == ["cuda:0"] * 2
    assert not falls_back((InstanceGroup("gpu"),), [0])
    with pytest.raises(BadModel, match=r"gpus \[3\], but this machine has 1 GPUs$"):
        devices_of((InstanceGroup("gpu", 1, (3,)),), [0], allow_cpu=True)


def test_models_without_a_gpu_group_are_no_reason_to_warn() -> None:
    assert not falls_back((InstanceGroup("auto"), InstanceGroup("cpu")), [])


@pytest.mark.parametrize(
    ("instances", "cores", "configured", "threads"),
    [(1, 8, 0, 8), (3, 8, 0, 2), (8, 8, 0, 1), (9, 8, 0, 1), (0, 8, 0, 8), (2, 8, 5, 5)],
)
def test_instances_share_the_cores_unless_told_so(
    instances: int, cores: int, configured: int, threads: int
) -> None:
    assert cpu_threads(instances, cores, configured) == threads


def test_the_cores_are_shared_among_the_instances_of_all_models() -> None:
    models = [served("a", InstanceGroup("cpu", 1)), served("b", InstanceGroup("cpu", 3))]

    placed, failures = assign(models, DeviceReport(), 0)

    assert [model.spec.name for model, _ in placed] == ["a", "b", "b", "b"]
    assert {placement.threads for _, placement in placed} == {max(1, default_cores() // 4)}
    assert not failures


def test_a_model_that_cannot_be_placed_leaves_the_others_their_places() -> None:
    models = [served("a", InstanceGroup("gpu")), served("b", InstanceGroup("auto"))]

    placed, failures = assign(models, DeviceReport(), 2)

    assert [(model.spec.name, place.device, place.threads) for model, place in placed] == [
        ("b", "cpu", 2)
    ]
    assert "failed to load 'a'" in str(failures["a/1"])
