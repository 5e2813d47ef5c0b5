"""What variants are made of, and that their kernels are counted where the runtime runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from shared.settings import Settings
from worker.optimise.quiet import quiet
from worker.optimise.subjects import Original
from worker.optimise.tuning.files import onnx_files, program_files, torch_files
from worker.optimise.tuning.kernels import onnx_kernels, torch_kernels
from worker.optimise.tuning.machine import Machine, this_machine
from worker.optimise.tuning.task import Task, feeds
from worker.optimise.tuning.variants import VARIANTS

CONFIG = """
name: "conv"
platform: "pytorch_libtorch"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 16, 16] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [5] } ]
parameters { key: "input_kind" value { string_value: "image" } }
parameters { key: "image_scale" value { string_value: "0.00392156862745098" } }
"""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        found: torch.Tensor = self.last(torch.relu(self.second(x)).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    directory = tmp_path_factory.mktemp("kernels")
    version = directory / "models" / "conv" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    trace: Any = torch.jit.trace
    with quiet():
        trace(Small().eval(), torch.zeros(2, 3, 16, 16)).save(str(version / "model.pt"))
    return Task(directory / "models", "conv", "1", Settings(), directory)


@pytest.fixture(scope="module")
def onnx_file(task: Task) -> Path:
    with quiet():
        onnx_files.export_onnx(task, task.work / "model.onnx")
    return task.work / "model.onnx"


def answers(task: Task, file: Path, backend: str) -> np.typing.NDArray[Any]:
    with quiet():
        return task.subject(file, backend, 1).answer(task.rows.take(range(8)))["y"]


def test_a_program_is_written_of_the_original(task: Task, tmp_path: Path) -> None:
    named = replace(task, made_from=Original("test_kernels:Small"))
    with quiet():
        program_files.exported(named, tmp_path / "model.pt2")

    expected = answers(task, task.model.file, "torchscript")
    assert answers(task, tmp_path / "model.pt2", "torch_export") == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("exported", "torch.export reads no TorchScript: name what it was made from"),
        ("aoti", "FERRY_ALLOW_MACHINE_CODE=1 alone"),
    ],
)
def test_what_a_file_of_torchscript_cannot_be_made_into_says_what_to_name(
    task: Task, variant: str, said: str
) -> None:
    why_not = next(each.why_not for each in VARIANTS if each.name == variant)
    trusting = replace(
        task, settings=Settings(allow_machine_code=True), made_from=Original("test_kernels:Small")
    )

    assert said in why_not(this_machine(), task)
    assert why_not(this_machine(), trusting) == ""


@pytest.mark.parametrize("make", [torch_files.frozen, torch_files.channels_last])
def test_torchscript_variants_answer_the_same(task: Task, tmp_path: Path, make: Any) -> None:
    with quiet():
        make(task, tmp_path / "model.pt")

    expected = answers(task, task.model.file, "torchscript")
    np.testing.assert_allclose(
        answers(task, tmp_path / "model.pt", "torchscript"), expected, atol=1e-5
    )


def test_the_onnx_file_answers_the_same_at_every_size(task: Task, onnx_file: Path) -> None:
    expected = answers(task, task.model.file, "torchscript")

    np.testing.assert_allclose(answers(task, onnx_file, "onnxruntime"), expected, atol=1e-5)
    assert str(onnx_kernels(onnx_file, "INT8")) == "0 of 3 layers INT8"


@pytest.mark.parametrize("per_channel", [True, False])
def test_static_int8_runs_all_layers_in_8_bits(
    task: Task, onnx_file: Path, tmp_path: Path, per_channel: bool
) -> None:
    with quiet():
        onnx_files.static_int8(task, onnx_file, tmp_path / "model.onnx", per_channel=per_channel)

    expected = answers(task, task.model.file, "torchscript")
    found = answers(task, tmp_path / "model.onnx", "onnxruntime")
    assert str(onnx_kernels(tmp_path / "model.onnx", "INT8")) == "3 of 3 layers INT8"
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_excluded_layers_stay_as_they_are_also_between_layers_of_8_bits(
    task: Task, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    base = tmp_path / "base.onnx"
    with quiet():
        torch.onnx.export(
            nn.Sequential(*layers).eval(), (torch.zeros(1, 3, 16, 16),), str(base), dynamo=False,
            input_names=["image"], output_names=["y"], dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    convolutions = [n.name for n in onnx.load(str(base)).graph.node if n.op_type == "Conv"]
    with quiet():
        onnx_files.static_int8(task, base, tmp_path / "model.onnx", exclude=convolutions[1:2])

    assert str(onnx_kernels(tmp_path / "model.onnx", "INT8")) == "2 of 3 layers INT8"


@pytest.mark.parametrize("number", [0, 1])
def test_the_layer_whose_activations_differ_most_is_found(
    task: Task, onnx_file: Path, tmp_path: Path, number: int
) -> None:
    model = onnx.load(str(onnx_file))
    layer = [node for node in model.graph.node if node.op_type == "Conv"][number]
    weight = next(each for each in model.graph.initializer if each.name == layer.input[1])
    coarse = np.round(numpy_helper.to_array(weight) * 4) / 4
    weight.CopyFrom(numpy_helper.from_array(coarse, weight.name))
    onnx.save(model, str(tmp_path / "coarse.onnx"))

    batches = (feeds(task, batch) for batch in onnx_files.calibration_batches(task))
    assert onnx_files.worst_layers(onnx_file, tmp_path / "coarse.onnx", batches, 0.1) == [
        layer.name
    ]


def test_static_int8_without_the_worst_keeps_them_in_fp32(
    task: Task, onnx_file: Path, tmp_path: Path
) -> None:
    with quiet():
        onnx_files.without_worst(
            task, onnx_file, tmp_path / "model.onnx", make=onnx_files.static_int8, share=0.5
        )

    kernels = onnx_kernels(tmp_path / "model.onnx", "INT8")
    assert 0 < kernels.low < kernels.layers
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_dynamic_int8_without_the_worst_leaves_the_layer_that_it_harms(
    task: Task, onnx_file: Path, tmp_path: Path
) -> None:
    with quiet():
        onnx_files.dynamic_int8(task, onnx_file, tmp_path / "dynamic.onnx")
        onnx_files.without_worst(
            task, onnx_file, tmp_path / "model.onnx", make=onnx_files.dynamic_int8, share=0.1
        )

    # It is the only one that 8 bits reach: the convolutions before it are as they were.
    assert onnx_kernels(tmp_path / "dynamic.onnx", "INT8").low == 1
    assert onnx_kernels(tmp_path / "model.onnx", "INT8").low == 0


def test_half_of_the_weights_are_zero_for_good(task: Task, onnx_file: Path, tmp_path: Path) -> None:
    onnx_files.pruned(task, onnx_file, tmp_path / "model.onnx", sparsity=0.5)

    weights = [
        numpy_helper.to_array(each)
        for each in onnx.load(str(tmp_path / "model.onnx")).graph.initializer
        if len(each.dims) >= 2
    ]
    assert len(weights) == 3
    assert all(0.45 < np.mean(each == 0) < 0.55 for each in weights)


@pytest.mark.skipif(not this_machine().has_bf16, reason="this processor has no BF16")
def test_onednn_says_which_layers_ran_in_bf16(task: Task, tmp_path: Path) -> None:
    with quiet():
        torch_files.bfloat16(task, tmp_path / "model.pt")
        subject = task.subject(tmp_path / "model.pt", "torchscript", 1)
        kernels = torch_kernels(lambda: subject.answer(task.rows.take(range(2))), "BF16")

    assert kernels.low == kernels.layers >= 2


def test_a_variant_says_why_it_does_not_apply(task: Task) -> None:
    plain = Machine("p", frozenset({"avx2"}), 2)
    reasons = {each.name: each.why_not(plain, task) for each in VARIANTS}

    assert "no BF16 (avx512_bf16, amx_bf16)" in reasons["torchscript-bf16"]
    assert not reasons["torchscript-frozen"]
    assert not plain.has_vnni
    assert Machine("p", frozenset({"avx512_vnni"}), 2).has_vnni
