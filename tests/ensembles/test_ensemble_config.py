"""An ensemble whose steps do not fit together is refused at load, with the step and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ensemble_models import Step, add_ensemble, tensors, x_to_y

from shared.errors import BadModel
from shared.registry.device_report import Device, DeviceReport
from worker.repository.models import ServedModel, read_model
from worker.supervisor.placement import assign

PLAIN = f"{tensors('input', ['x'])}\n{tensors('output', ['y'])}"
CHAIN = [x_to_y("first", "in", "between"), x_to_y("second", "between", "out")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    add_plain(tmp_path, "first")
    add_plain(tmp_path, "second")
    return tmp_path


def add_plain(repository: Path, name: str, body: str = PLAIN, max_batch_size: int = 8) -> None:
    """Write a model that is only read here, never loaded."""
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "1" / "model.pt").write_bytes(b"not looked at")
    (repository / name / "config.pbtxt").write_text(
        f'platform: "pytorch_libtorch" max_batch_size: {max_batch_size}\n{body}'
    )


def refusal(repository: Path, steps: list[Step], **fields: Any) -> str:
    """Write the ensemble `e`; return why it is refused."""
    add_ensemble(repository, "e", steps, **fields)
    with pytest.raises(BadModel) as caught:
        read_model(repository, "e")
    return str(caught.value)


def accepted(repository: Path, steps: list[Step], **fields: Any) -> ServedModel:
    add_ensemble(repository, "e", steps, **fields)
    return read_model(repository, "e")


def test_an_ensemble_needs_no_file_in_its_version(repository: Path) -> None:
    spec = accepted(repository, CHAIN).spec

    assert [step.model for step in spec.steps] == ["first", "second"]
    assert [step.version for step in spec.steps] == ["", ""]
    assert spec.steps[0].output_map == {"y": "between"}
    assert spec.platform == spec.config["platform"] == "ensemble"


def test_a_step_may_have_a_fixed_version(repository: Path) -> None:
    steps = [x_to_y("first", "in", "out", version=1)]

    assert accepted(repository, steps).spec.steps[0].version == "1"


STEPS: dict[str, tuple[list[Step], dict[str, Any], str]] = {
    "unknown model": (
        [x_to_y("third", "in", "out")], {},
        "failed to load 'e', step 1: the repository has no model 'third'",
    ),
    "a path for a model": (
        [x_to_y("../first", "in", "out")], {}, "the repository has no model '../first'"
    ),
    "unknown input": (
        [Step("first", {"z": "in"}, {"y": "out"})], {},
        "step 1 ('first'): input_map names 'z', the model's inputs are ['x']",
    ),
    "unknown output": (
        [Step("first", {"x": "in"}, {"z": "out"})], {},
        "step 1 ('first'): output_map names 'z', the model's outputs are ['y']",
    ),
    "two sources": (
        [x_to_y("first", "in", "out"), x_to_y("second", "in", "out")], {},
        "tensor 'out' comes from several places",
    ),
    "an input as output": (
        [x_to_y("first", "in", "in")], {}, "tensor 'in' comes from several places"
    ),
    "no source": ([x_to_y("first", "nowhere", "out")], {}, "no step gives tensor 'nowhere'"),
    "output that nothing gives": (
        [x_to_y("first", "in", "out")], {"outputs": ["out", "more"]}, "no step gives tensor 'more'"
    ),
    "unused": (
        [*CHAIN, x_to_y("first", "in", "spare")], {}, "tensor 'spare' is not used"
    ),
    "unused input": (
        [x_to_y("first", "in", "out")], {"inputs": ["in", "other"]}, "tensor 'other' is not used"
    ),
    "circle of steps": (
        [Step("first", {"x": "b"}, {"y": "a"}), Step("second", {"x": "a"}, {"y": "b"}),
         x_to_y("first", "in", "out")], {},
        "the steps ['first', 'second'] wait for each other in a circle",
    ),
    "itself": (
        [Step("e", {"in": "in"}, {"out": "out"})], {},
        "failed to load 'e', step 1: the ensemble is a step of itself, e -> e",
    ),
    "no steps": ([], {}, "at least one step must be given"),
    "no maps": ([Step("first", {}, {"y": "out"})], {}, "step 1 has no input_map"),
    "version 0": ([x_to_y("first", "in", "out", version=0)], {}, "step 1: model_version 0"),
    "too many rows": (
        CHAIN, {"max_batch_size": 9},
        "step 1 ('first'): its max_batch_size is 8, the ensemble's is 9",
    ),
    "a GPU": (
        CHAIN, {"more": "instance_group [ { kind: KIND_GPU } ]"},
        "instance_group: an ensemble has KIND_AUTO or KIND_CPU only",
    ),
    "warm-up": (
        CHAIN, {"more": 'model_warmup [ { name: "w" batch_size: 1 } ]'},
        "model_warmup cannot be set for an ensemble",
    ),
    "response cache": (
        CHAIN,
        {"more": "response_cache { enable: true }"},
        "response_cache cannot be enabled for an ensemble",
    ),
    "where pictures are decoded": (
        CHAIN,
        {"more": 'parameters { key: "image_decode_in" value { string_value: "worker" } }'},
        "image_decode_in cannot be set for an ensemble",
    ),
    "pictures for a model that takes none": (
        [x_to_y("first", "in", "out")],
        {"more": 'parameters { key: "input_kind" value { string_value: "image" } }',
         "input_dims": "[3, 4, 4]"},
        "the ensemble has pictures for its input 'x', which takes none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", STEPS)
def test_a_mistake_is_named(repository: Path, mistake: str) -> None:
    steps, fields, said = STEPS[mistake]
    if "input_dims" in fields:
        add_plain(repository, "first", f'{tensors("input", ["x"], "[3, 4, 4]")}\n'
                                       f'{tensors("output", ["y"])}')  # fmt: skip

    assert said in refusal(repository, steps, **fields)


MODELS = {
    "datatype": (
        f"{tensors('input', ['x'], datatype='INT64')}\n{tensors('output', ['y'])}",
        "step 2 ('second'): tensor 'between': datatype FP32 in 'first', INT64 in 'second'",
    ),
    "shape": (
        f"{tensors('input', ['x'], '[3]')}\n{tensors('output', ['y'])}",
        "step 2 ('second'): tensor 'between': shape [-1, 2] in 'first', [-1, 3] in 'second'",
    ),
    "the ensemble's own output": (
        f"{tensors('input', ['x'])}\n{tensors('output', ['y'], '[2, 1]')}",
        "step 2 ('second'): tensor 'out': shape [-1, 2] in 'e', [-1, 2, 1] in 'second'",
    ),
    "an input that nobody gives": (
        f"{tensors('input', ['x', 'w'])}\n{tensors('output', ['y'])}",
        "step 2 ('second'): input_map does not name its input 'w'",
    ),
}


@pytest.mark.parametrize("mistake", MODELS)
def test_a_model_that_does_not_fit_is_named(repository: Path, mistake: str) -> None:
    body, said = MODELS[mistake]
    add_plain(repository, "second", body)

    assert said in refusal(repository, CHAIN)


def test_sizes_that_are_only_known_when_it_runs_fit(repository: Path) -> None:
    add_plain(
        repository, "second", f"{tensors('input', ['x'], '[-1]')}\n{tensors('output', ['y'])}"
    )

    accepted(repository, CHAIN)


def test_a_model_without_batch_dimension_fits_where_its_dims_hold_the_rows(
    repository: Path,
) -> None:
    rows = f"{tensors('input', ['x'], '[-1, 2]')}\n{tensors('output', ['y'], '[-1, 2]')}"
    add_plain(repository, "second", rows, max_batch_size=0)

    accepted(repository, CHAIN)


def test_ensembles_that_are_steps_of_each_other_are_refused(repository: Path) -> None:
    add_ensemble(repository, "other", [Step("e", {"in": "in"}, {"out": "out"})])
    said = refusal(repository, [Step("other", {"in": "in"}, {"out": "out"})])

    assert "failed to load 'other', step 1: the ensemble is a step of itself" in said
    assert "e -> other -> e" in said


def test_an_ensemble_waits_for_a_model_that_cannot_be_read(repository: Path) -> None:
    (repository / "second" / "1" / "model.pt").unlink()

    accepted(repository, CHAIN)


def test_ensemble_scheduling_is_for_ensembles_only(repository: Path) -> None:
    config = add_ensemble(repository, "e", CHAIN)
    config.write_text(config.read_text().replace('"ensemble"', '"pytorch_libtorch"'))

    with pytest.raises(BadModel, match="platform 'pytorch_libtorch': ensemble_scheduling belongs"):
        read_model(repository, "e")


def test_priorities_are_those_of_the_step_with_most_levels(repository: Path) -> None:
    levels = "dynamic_batching { priority_levels: 5 default_priority_level: 4 }"
    add_plain(repository, "second", f"{PLAIN}\n{levels}")
    spec = accepted(repository, CHAIN).spec

    assert (spec.priority_levels, spec.default_priority_level) == (5, 4)


def test_an_ensemble_s_process_takes_neither_a_gpu_nor_cores_from_models(repository: Path) -> None:
    ensemble = accepted(repository, CHAIN, more="instance_group [ { count: 2 } ]")
    models = [read_model(repository, "first"), ensemble]
    none, one = DeviceReport(), DeviceReport(devices=(Device(index=0, uuid="GPU-0"),))
    alone, _ = assign(models[:1], none, 0)
    placed, failures = assign(models, one, 0)

    assert failures == {}
    assert [placement.device for model, placement in placed if model is ensemble] == ["cpu"] * 2
    with_ensemble = [
        placement for model, placement in assign(models, none, 0)[0] if model is models[0]
    ]
    assert with_ensemble == [placement for _, placement in alone]
