"""How a model is executed, as its config says: followed where answers stay, refused elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import Trained
from stand_ins import torchscript

from shared.datatypes import Array
from shared.errors import BadModel
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from worker.backends.programs import calls as programs
from worker.backends.torch_export import TorchExportBackend
from worker.backends.torch_model import Argument, TorchBackend
from worker.backends.torch_state_dict import TorchPickleBackend
from worker.devices import Placement
from worker.instance.execution.buckets import BucketedBackend
from worker.instance.process import WarmBackend, load_backend, warm_backend
from worker.job import InstanceJob
from worker.meter import Meter
from worker.repository.execution import ExecutionPolicy, execution_policy
from worker.repository.models import read_model

NO_PIXELS: frozenset[str] = frozenset()
SPEC = ModelSpec(
    name="m", version="1", platform="p", max_batch_size=8,
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(4,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(3,)),),
)  # fmt: skip
CONFIG = """
max_batch_size: 8
input [ {{ name: "x" data_type: {datatype} dims: {dims} }} ]
output [ {{ name: "y" data_type: {result} dims: {out} }} ]
{parameters}
"""


@pytest.fixture(autouse=True)
def precision_of_this_process() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


class Corner(torch.nn.Module):
    """A convolution over a picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


class WithTable(torch.nn.Module):
    """A plain tensor that is no buffer: it stays in FP32 whatever the module is made."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.table = torch.eye(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(self.linear(x), self.table)


class Largest(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1, keepdim=True)


class OverTheBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def served(
    models: Path, module: torch.nn.Module, *, width: int = 3, result: str = "TYPE_FP32",
    dims: str = "[4]", **parameters: str,
) -> InstanceJob:  # fmt: skip
    written = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    )
    config = CONFIG.format(
        datatype="TYPE_FP32", dims=dims, result=result, out=f"[{width}]", parameters=written
    )
    torchscript(models, "m", module.eval(), config)
    model = read_model(models, "m")
    placement = Placement("cpu", 1)
    return InstanceJob(
        "i", model.spec, model.config.backend, model.file, placement, "redis://", "x", 1.0, "INFO"
    )


def warmed(*arguments: Any, **options: Any) -> WarmBackend:
    return warm_backend(served(*arguments, **options), Meter())


def rows(count: int, *dims: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(2).normal(size=(count, *dims)).astype(np.float32)}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_a_precision_answers_nearly_the_same_in_the_declared_datatype(
    tmp_path: Path, precision: str
) -> None:
    plain = load_backend(served(tmp_path / "plain", Trained()))
    warm = warmed(tmp_path / "other", Trained(), precision=precision)

    expected, found = (each.forward(rows(5, 4), NO_PIXELS)["y"] for each in (plain, warm.backend))

    assert warm.note == ""
    assert found.dtype == np.float32
    off = np.abs(found - expected).max() / np.abs(expected).max()
    assert off <= {"bf16": 5e-2, "fp16": 1e-2}.get(precision, 1e-6)
    assert (off > 0) == (precision in {"bf16", "fp16"}), "it is really computed in that"


def test_whole_numbers_stay_what_they_are_in_any_precision(tmp_path: Path) -> None:
    warm = warmed(tmp_path, Largest(), width=1, result="TYPE_INT64", precision="bf16",
                  execution_tolerance="0.5")  # fmt: skip

    assert warm.backend.forward(rows(5, 4), NO_PIXELS)["y"].dtype == np.int64


def test_what_is_off_by_more_than_its_tolerance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"precision bf16: output 'y' is off by \S+ of its largest"):
        warmed(tmp_path, Trained(), precision="bf16", execution_tolerance="0.00001")


def test_a_module_that_cannot_be_changed_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"precision fp16: a batch of 1 fails: .*dtype"):
        warmed(tmp_path, WithTable(), width=4, precision="fp16")


def test_pictures_and_other_four_dimensions_come_with_channels_last() -> None:
    picture = ImageInput(input="x", channels="RGB", width=5, height=5)
    seen = []

    class Sees(Corner):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    spec = ModelSpec(
        name="m", version="1", platform="p", max_batch_size=8,
        inputs=(TensorSpec(name="x", datatype="FP32", dims=(3, 5, 5)),),
        outputs=(TensorSpec(name="y", datatype="FP32", dims=(4,)),), image=picture,
    )  # fmt: skip
    module = Sees().eval()
    backend = TorchBackend(spec, module, [Argument("x")], torch.device("cpu"), module)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 5, 5, 3), np.uint8)
    asked = [({"x": pixels}, frozenset({"x"})), (rows(2, 3, 5, 5), NO_PIXELS)]
    plain = [backend.forward(*each)["y"] for each in asked]

    backend.execute_by(ExecutionPolicy(layout="channels_last"))

    for each, expected in zip(asked, plain, strict=True):
        np.testing.assert_allclose(backend.forward(*each)["y"], expected, rtol=1e-4)
    assert seen == [False, False, True, True]


def test_channels_last_is_served(tmp_path: Path) -> None:
    warm = warmed(tmp_path, Corner(), width=4, dims="[3, 6, 6]", memory_layout="channels_last")

    assert warm.note == ""
    assert warm.backend.forward(rows(3, 3, 6, 6), NO_PIXELS)["y"].shape == (3, 4)


class Joined(torch.nn.Module):
    """A convolution with a norm behind it, which freezing makes one layer of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        torch.nn.init.uniform_(self.norm.running_mean)
        torch.nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize("others", [{}, {"memory_layout": "channels_last"}, {"precision": "bf16"}])
def test_frozen_torchscript_answers_the_same_in_every_batch(
    tmp_path: Path, others: dict[str, str]
) -> None:
    shape: dict[str, Any] = {"width": 8, "dims": "[3, 9, 9]"}
    plain = warmed(tmp_path / "plain", Joined(), **shape, **others).backend
    frozen = warmed(tmp_path / "frozen", Joined(), **shape, torch_freeze="true", **others)

    assert frozen.note == ""
    for count in (1, 3, 8):
        expected, found = (
            each.forward(rows(count, 3, 9, 9), NO_PIXELS)["y"] for each in (plain, frozen.backend)
        )
        most = 1e-2 if "precision" in others else 1e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=most * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_freezing_joins_layers_of_torchscript_and_of_nothing_else(tmp_path: Path) -> None:
    script = torch.jit.script(Joined().eval())

    assert "batch_norm" in str(script.inlined_graph)
    assert "batch_norm" not in str(programs.frozen(script)[0].inlined_graph)
    pickled(Trained().eval(), tmp_path / "model.pt")
    loaded = TorchPickleBackend(SPEC, tmp_path / "model.pt", "cpu")
    with pytest.raises(BadModel, match="torch_freeze true: torch freezes TorchScript alone"):
        loaded.execute_by(ExecutionPolicy(is_frozen=True))


class Sizes:
    """A backend that writes down how many rows it sees, and doubles them."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def forward(self, inputs: Any, pixels: frozenset[str]) -> dict[str, Array]:
        self.seen.append(len(inputs["x"]))
        return {"y": inputs["x"] * 2}


@pytest.mark.parametrize(
    ("count", "seen"), [(1, 2), (2, 2), (3, 5), (5, 5), (6, 8), (8, 8), (9, 9), (0, 0)]
)
def test_batches_are_filled_up_to_the_next_size(count: int, seen: int) -> None:
    own = Sizes()
    asked = rows(count, 4)

    found = BucketedBackend(own, (2, 5, 8)).forward(asked, NO_PIXELS)

    assert own.seen == [seen]
    np.testing.assert_array_equal(found["y"], asked["x"] * 2)


def test_buckets_are_served_and_what_looks_at_its_neighbours_is_refused(tmp_path: Path) -> None:
    warm = warmed(tmp_path / "good", Trained(), batch_buckets="4")
    plain = load_backend(served(tmp_path / "plain", Trained()))

    assert warm.note == ""
    for count in (1, 3, 7):
        expected, found = (
            each.forward(rows(count, 4), NO_PIXELS)["y"] for each in (plain, warm.backend)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(BadModel, match="batch_buckets 4,8: output 'y' is off by"):
        warmed(tmp_path / "bad", OverTheBatch(), width=4, batch_buckets="4")


@pytest.mark.parametrize(
    ("backend", "parameters", "complaint"),
    [
        ("pytorch", {"precision": "int8"}, "precision 'int8': expected one of fp32, tf32, fp16, b"),
        ("pytorch", {"memory_layout": "NHWC"}, "memory_layout 'NHWC': expected contiguous or chan"),
        ("onnxruntime", {"precision": "bf16"}, "precision 'bf16' is for modules of torch"),
        ("onnxruntime", {"memory_layout": "contiguous"}, "is for modules of torch, this is one of"),
        ("onnxruntime", {"torch_freeze": "true"}, "torch_freeze 'true' is for modules of torch"),
        ("pytorch", {"torch_freeze": "yes"}, "torch_freeze 'yes': expected true or false"),
        ("pytorch", {"batch_buckets": "0,4"}, "batch_buckets '0,4': expected sizes from 1 to 8"),
        ("pytorch", {"batch_buckets": "16"}, "batch_buckets '16': expected sizes from 1 to 8"),
        ("pytorch", {"batch_buckets": "a"}, "batch_buckets 'a': expected ints"),
        ("python", {"batch_buckets": "4"}, "no batches to fill up, it sees each request"),
        ("pytorch", {"execution_tolerance": "-1"}, "execution_tolerance -1.0: expected a number"),
        ("pytorch", {"execution_tolerance": "nan"}, "execution_tolerance nan: expected a number"),
    ],
)
def test_what_nobody_can_follow_is_refused_when_the_config_is_read(
    backend: str, parameters: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        execution_policy(backend, parameters, 8)


def test_without_batches_there_are_no_buckets() -> None:
    with pytest.raises(ValueError, match="max_batch_size is 0"):
        execution_policy("pytorch", {"batch_buckets": "4"}, 0)


def test_the_config_is_refused_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"config\.pbtxt.*precision 'half'"):
        served(tmp_path, Trained(), precision="half")


def exported(module: torch.nn.Module, file: Path) -> None:
    dims = {"x": {0: torch.export.Dim("rows", min=1, max=8)}}
    torch.export.save(torch.export.export(module, (torch.ones(2, 4),), dynamic_shapes=dims), file)


def pickled(module: torch.nn.Module, file: Path) -> None:
    torch.save(module, file)


@pytest.mark.parametrize(
    ("make", "backend", "write"),
    [
        (TorchExportBackend, "model.pt2", exported), (TorchPickleBackend, "model.pt", pickled)
    ],
)  # fmt: skip
def test_all_files_of_modules_are_changed(
    tmp_path: Path, make: Any, backend: str, write: Any
) -> None:
    write(Trained().eval(), tmp_path / backend)
    loaded = make(SPEC, tmp_path / backend, "cpu")
    plain = loaded.forward(rows(3, 4), NO_PIXELS)["y"]

    loaded.execute_by(ExecutionPolicy(precision="bf16", layout="channels_last"))

    found = loaded.forward(rows(3, 4), NO_PIXELS)["y"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - plain).max() < 5e-2 * np.abs(plain).max()


def test_machine_code_computes_as_it_was_compiled() -> None:
    compiled = TorchBackend(SPEC, lambda x: x, None, torch.device("cpu"))

    with pytest.raises(BadModel, match="precision bf16: machine code computes as it was compiled"):
        compiled.execute_by(ExecutionPolicy(precision="bf16"))
