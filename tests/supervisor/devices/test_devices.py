"""Which instance of which model runs on which device, with how many threads."""

from __future__ import annotations

from multiprocessing import Pipe, get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_backend import fake_spec

from shared.cores import default_cores
from shared.errors import BadModel
from shared.registry.device_report import Device, DeviceReport
from shared.registry.log_settings import LogLevel
from shared.settings import Settings
from worker.devices import Placement, cpu_threads, devices_of, falls_back
from worker.repository.model_config import InstanceGroup, ModelConfig
from worker.repository.models import ServedModel
from worker.supervisor import placement
from worker.supervisor.devices import device_watch
from worker.supervisor.devices.device_watch import DeviceWatch
from worker.supervisor.placement import assign
from worker.supervisor.planner import Plan
from worker.supervisor.rollout import Rollout


def served(name: str, *groups: InstanceGroup, backend: str = "torchscript") -> ServedModel:
    spec = fake_spec().model_copy(update={"name": name})
    config = ModelConfig(spec, backend, "model.pt", groups, {})
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


def gpus(count: int, mode: str = "DEFAULT", **more: object) -> DeviceReport:
    found = [Device(index=i, uuid=f"GPU-{i}", compute_mode=mode) for i in range(count)]
    return DeviceReport(devices=tuple(found)).model_copy(update=more)


def places(placed: list[tuple[ServedModel, Placement]]) -> list[tuple[str, str]]:
    return [(place.device, place.uuid) for _, place in placed]


def test_each_instance_has_the_uuid_of_its_gpu() -> None:
    placed, _ = assign([served("a", InstanceGroup("gpu", 2))], gpus(2), 0)

    assert places(placed) == [
        ("cuda:0", "GPU-0"), ("cuda:0", "GPU-0"), ("cuda:1", "GPU-1"), ("cuda:1", "GPU-1"),
    ]  # fmt: skip


def test_gpus_of_another_worker_are_not_placed_on() -> None:
    devices = gpus(4).devices
    ours = DeviceReport(
        devices=tuple(each.model_copy(update={"used": each.index in {1, 3}}) for each in devices)
    )
    models = [served("a", InstanceGroup("auto")), served("b", InstanceGroup("gpu", 1, (0,)))]

    placed, failures = assign(models, ours, 0)

    assert places(placed) == [("cuda:1", "GPU-1"), ("cuda:3", "GPU-3")]
    assert "gpus [0], but this worker has the GPUs 1, 3" in str(failures["b/1"])


@pytest.mark.parametrize("backend", ["onnxruntime", "joblib"])
def test_what_cannot_use_gpus_is_placed_and_counted_on_the_cpu(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "default_cores", lambda: 192)
    models = [served("a", InstanceGroup("auto", 3), backend=backend)]

    placed, failures = assign(models, gpus(8), 0)

    assert not failures
    assert places(placed) == [("cpu", "")] * 3
    assert {place.threads for _, place in placed} == {64}
    assert ("no CUDA provider" in placed[0][1].note) is (backend == "onnxruntime")


@pytest.mark.parametrize(
    ("backend", "group"),
    [
        ("onnxruntime", InstanceGroup("gpu")),
        ("onnxruntime", InstanceGroup("gpu", 1, (5,))),
        ("joblib", InstanceGroup("gpu")),
    ],
)
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error(
    backend: str, group: InstanceGroup
) -> None:
    _, failures = assign([served("a", group, backend=backend)], gpus(8), 0, allow_cpu=True)

    assert str(failures["a/1"]).startswith("failed to load 'a', instance_group: ")


def test_onnx_runs_on_gpus_where_its_runtime_can() -> None:
    models = [served("a", InstanceGroup("gpu"), backend="onnxruntime")]

    assert places(assign(models, gpus(1, onnxruntime_gpu=True), 0)[0]) == [("cuda:0", "GPU-0")]


def test_instances_on_gpus_have_a_few_threads_and_the_others_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "default_cores", lambda: 192)
    models = [served("a", InstanceGroup("gpu")), served("b", InstanceGroup("cpu", 2))]

    placed, _ = assign(models, gpus(8), 0)

    assert [place.threads for _, place in placed] == [4] * 8 + [80] * 2


@pytest.mark.parametrize(
    ("mode", "count", "said"),
    [
        ("EXCLUSIVE_PROCESS", 2, "lets one process in, and 2 instances are to run there"),
        ("PROHIBITED", 1, "lets no process in"),
    ],
)
def test_a_compute_mode_that_lets_too_few_in_is_named(mode: str, count: int, said: str) -> None:
    _, failures = assign([served("a", InstanceGroup("gpu", count))], gpus(1, mode), 0)

    assert f"cuda:0 (GPU-0) is in compute mode {mode}, which {said}" in str(failures["a/1"])


def test_a_gpu_for_one_process_takes_one_of_all_models() -> None:
    models = [served("a", InstanceGroup("gpu")), served("b", InstanceGroup("gpu"))]

    placed, failures = assign(models, gpus(1, "EXCLUSIVE_PROCESS"), 0)

    assert [model.spec.name for model, _ in placed] == ["a"]
    assert [*failures] == ["b/1"]


def test_versions_that_take_turns_share_a_gpu_for_one_process() -> None:
    old, new = served("a", InstanceGroup("gpu")), served("a", InstanceGroup("gpu"))
    for swap, is_refused in (("overlap", True), ("stop_first", False)):
        spec = new.spec.model_copy(update={"version": "2", "parameters": {"swap": swap}})
        following = ServedModel(new.config, spec, new.file)

        _, failures = assign([old, following], gpus(1, "EXCLUSIVE_PROCESS"), 0)

        assert ("a/2" in failures) is is_refused


def test_a_model_on_the_cpu_of_a_machine_with_a_gpu_says_why() -> None:
    unused = DeviceReport(reason="torch sees no GPU, though there is one: driver 470 is too old")
    models = [served("a", InstanceGroup("auto")), served("b", InstanceGroup("cpu"))]

    placed, _ = assign(models, unused, 0)

    assert [place.note for _, place in placed] == [f"runs on the CPU: {unused.reason}", ""]


def test_a_model_that_went_to_the_cpu_moves_to_gpus_that_are_found_later() -> None:
    now = [DeviceReport(reason="looking at the GPUs failed: the driver does not answer")]
    context = get_context("forkserver")
    level = LogLevel("INFO")
    placer = placement.Placer("s", Settings(), context, level, lambda: now[0])
    models = [served("a", InstanceGroup("auto")), served("b", InstanceGroup("cpu"))]
    moving, staying = (placer.place(model, models) for model in models)
    assert [slot.placement.device for slot in moving.slots] == ["cpu"]

    now[0] = gpus(2)
    for deployment in (moving, staying):
        placer.place_again(deployment, models)

    assert [slot.placement.uuid for slot in moving.slots] == ["GPU-0", "GPU-1"]
    assert [slot.placement.device for slot in staying.slots] == ["cpu"]


class Hanging:
    """A context whose processes never answer, unless they are given one."""

    def __init__(self) -> None:
        self.answer = ""
        self.killed = self.started = 0
        self.hangs = False

    def Pipe(self, duplex: bool) -> Any:
        ours, self.theirs = Pipe(duplex=duplex)
        return ours, self.theirs

    def Process(self, **_: Any) -> Any:
        return self

    def start(self) -> None:
        self.started += 1
        if self.answer:
            self.theirs.send(self.answer)

    def kill(self) -> None:
        self.killed += 1

    def is_alive(self) -> bool:
        return self.hangs


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[Hanging, DeviceWatch]:
    """A watch on a machine with signs of a GPU; each look is due at once, and late at once."""
    monkeypatch.setattr(device_watch, "signs_of_gpus", lambda: (1, 1, "580.1"))
    for name in ("LIMIT_SECONDS", "LOOK_SECONDS", "SLOW_LOOK_SECONDS"):
        monkeypatch.setattr(device_watch, name, 0.0)
    context = Hanging()
    return context, DeviceWatch(cast("Any", context), "")


def test_a_look_that_hangs_is_killed_and_repeated(watched: tuple[Hanging, DeviceWatch]) -> None:
    context, watch = watched

    assert not watch.follow(set())
    assert not watch.is_known
    assert watch.follow(set())

    assert watch.is_known
    assert context.killed == 1
    assert "the driver does not answer" in watch.report.reason

    context.answer = gpus(1).model_dump_json()
    watch.follow(set())
    assert watch.follow(watch.descriptors)
    assert watch.report == gpus(1)
    assert watch.has_others


def test_a_look_that_hangs_in_its_driver_is_the_only_one(
    watched: tuple[Hanging, DeviceWatch],
) -> None:
    context, watch = watched
    context.hangs = True
    for _ in range(10):
        watch.follow(set())
    assert (context.started, context.killed) == (1, 1)

    context.hangs = False
    watch.follow(set())

    assert context.started == 2


def test_a_look_that_fails_leaves_the_devices_that_are_known(
    watched: tuple[Hanging, DeviceWatch],
) -> None:
    context, watch = watched
    context.answer = gpus(2).model_dump_json()
    watch.follow(set())
    watch.follow(watch.descriptors)
    context.answer = ""
    watch.follow(set())
    assert watch.follow(set())

    assert "the driver does not answer" in watch.report.reason
    placed, _ = assign([served("a", InstanceGroup("auto"))], watch.report, 0)
    assert places(placed) == [("cuda:0", "GPU-0"), ("cuda:1", "GPU-1")]


def test_figures_alone_are_no_other_devices(watched: tuple[Hanging, DeviceWatch]) -> None:
    context, watch = watched
    for used in (1, 2):
        busy = gpus(1).devices[0].model_copy(update={"used_bytes": used})
        context.answer = DeviceReport(devices=(busy,)).model_dump_json()
        watch.follow(set())
        assert watch.follow(watch.descriptors)

    assert watch.report.devices[0].used_bytes == 2
    assert not watch.has_others


def test_a_look_whose_process_ends_is_no_answer(watched: tuple[Hanging, DeviceWatch]) -> None:
    context, watch = watched
    watch.follow(set())
    context.theirs.close()

    assert watch.follow(watch.descriptors)
    assert "the process that asks torch ended" in watch.report.reason


def test_what_could_not_be_placed_is_planned_again() -> None:
    rollout = Rollout("s", Settings(), cast("Any", None), cast("Any", None), lambda: True)
    planned: list[str] = []
    rollout._planner = cast("Any", SimpleNamespace(
        plan_again=planned.append,
        made={
            "refused": Plan("refused", 0, failures={"1": "this machine has 0 GPUs"}),
            "unread": Plan("unread", 0, reason="config.pbtxt: damaged"),
            "served": Plan("served", 0),
        },
    ))  # fmt: skip

    rollout.plan_failed_again()

    assert planned == ["refused", "unread"]
