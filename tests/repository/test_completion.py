"""What a `config.pbtxt` leaves out is read from the model's own file, where that says it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from google.protobuf.json_format import ParseError
from loaded import own_imports
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from worker.instance.auto_complete import auto_completed
from worker.repository.config.completion import add_declared
from worker.repository.config.description import Described, Description
from worker.repository.describer import describe
from worker.repository.models import model_names, read_model

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
X = TensorSpec(name="x", datatype="FP32", dims=(3,))
Y = TensorSpec(name="y", datatype="FP32", dims=(3,))


class Scores(torch.nn.Module):
    """Two inputs; answers a dictionary, or their sum alone."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.named = named

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> Any:
        scores = self.layer(x) * weight
        return {"scores": scores, "best": scores.argmax(1)} if self.named else scores


def write_onnx(directory: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Write a graph that hands its inputs on, in order; each is (type, shape)."""
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in zip(inputs, outputs, strict=True)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()],
        [helper.make_tensor_value_info(name, *each) for name, each in outputs.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    (directory / "1").mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8),
              directory / "1" / "model.onnx")  # fmt: skip


def write_exported(
    directory: Path, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], batch: Any
) -> None:
    dynamic = tuple({0: batch} for _ in inputs) if batch is not None else None
    (directory / "1").mkdir(parents=True)
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic)
    torch.export.save(program, directory / "1" / "model.pt2")


def spec(directory: Path, config: str | None = None) -> ModelSpec:
    if config is not None:
        (directory / "config.pbtxt").write_text(config)
    return read_model(directory.parent, directory.name).spec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory of a model that is still to be written."""
    return tmp_path / "m"


def test_a_directory_without_a_config_is_a_model_when_a_version_holds_a_known_file(
    tmp_path: Path,
) -> None:
    for name in ("a/1/model.onnx", "b/2/model.pt", "c/1/notes.txt", "d/latest/model.onnx",
                 ".e/1/model.onnx", "f/1/model.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()

    assert model_names(tmp_path) == ["a", "b", "f"]


# ONNX.


@pytest.mark.parametrize("first", ["batch", None])
def test_an_onnx_file_whose_first_dimensions_are_free_gets_batches_of_four(
    model: Path, first: str | None
) -> None:
    write_onnx(model, {"x": (FLOAT, [first, 3])}, {"y": (FLOAT, [first, 3])})

    found = spec(model)

    assert (found.platform, found.max_batch_size) == ("onnxruntime_onnx", 4)
    assert (found.inputs, found.outputs) == ((X,), (Y,))
    assert found.config["dynamic_batching"]["preferred_batch_size"] == [4]


def test_one_tensor_of_fixed_size_is_enough_for_no_batch_dimension(model: Path) -> None:
    write_onnx(
        model,
        {"x": (FLOAT, ["n", 3]), "s": (STRING, [2, "t"])},
        {"y": (FLOAT, ["n", 3]), "t": (STRING, [2, "t"])},
    )

    found = spec(model)

    assert found.max_batch_size == 0
    assert [(each.datatype, each.dims) for each in found.inputs] == [
        ("FP32", (-1, 3)),
        ("BYTES", (2, -1)),
    ]


def test_a_tensor_that_is_only_the_batch_dimension_is_reshaped(model: Path) -> None:
    write_onnx(model, {"x": (INT64, ["n"])}, {"y": (INT64, ["n"])})

    found = spec(model)

    assert found.max_batch_size == 4
    assert found.inputs == (TensorSpec(name="x", datatype="INT64", dims=(1,), reshape=()),)


def test_what_the_config_says_stays_and_only_the_rest_is_filled_in(model: Path) -> None:
    write_onnx(model, {"x": (FLOAT, ["n", "t"])}, {"y": (FLOAT, ["n", "t"])})

    found = spec(model, 'max_batch_size: 16 input [ { name: "x" data_type: TYPE_FP32 dims: [3] } ]')

    assert found.max_batch_size == 16
    assert (found.inputs, found.outputs[0].dims) == ((X,), (-1,))


@pytest.mark.parametrize(("dims", "max_batch_size"), [("[-1, 3]", 0), ("[3]", 4), ("[3, 1]", 0)])
def test_a_max_batch_size_of_0_counts_when_the_dims_hold_all_dimensions(
    model: Path, dims: str, max_batch_size: int
) -> None:
    write_onnx(model, {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])})
    tensors = [
        f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} }} ]'
        for kind, name in (("input", "x"), ("output", "y"))
    ]

    assert spec(model, "\n".join(tensors)).max_batch_size == max_batch_size


def test_batches_of_a_file_without_a_batch_dimension_are_refused(model: Path) -> None:
    write_onnx(model, {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [2, 3])})

    with pytest.raises(BadModel, match=r"max_batch_size 8, but input 'x' has the shape \[2, 3\]"):
        spec(model, "max_batch_size: 8")


def test_a_damaged_file_is_named_with_what_its_reader_said(model: Path) -> None:
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(b"no model")

    with pytest.raises(BadModel, match=r"input and output left out, and .*/1/model.onnx: .*Proto"):
        spec(model)


def test_a_config_that_leaves_nothing_out_needs_no_look_into_the_file(model: Path) -> None:
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(b"no model")
    tensors = (
        'input [ { name: "x" data_type: TYPE_FP32 dims: [3] } ]'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [3] } ]'
    )

    assert spec(model, "max_batch_size: 0 " + tensors).inputs == (X,)


# Exported programs.


def test_an_exported_program_is_read_with_the_range_of_its_batches(model: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    write_exported(model, Scores(named=True), (torch.ones(2, 4), torch.ones(2, 3)), batch)

    found = spec(model)

    assert (found.platform, found.max_batch_size) == ("torch_export", 16)
    assert [(each.name, each.datatype, each.dims) for each in found.inputs] == [
        ("x", "FP32", (4,)),
        ("weight", "FP32", (3,)),
    ]
    assert [(each.name, each.datatype, each.dims) for each in found.outputs] == [
        ("scores", "FP32", (3,)),
        ("best", "INT64", (1,)),
    ]
    assert found.outputs[1].reshape == ()


def test_outputs_without_names_are_numbered_and_a_range_without_end_gives_four(
    model: Path,
) -> None:
    inputs = (torch.ones(2, 4), torch.ones(2, 3))
    write_exported(model, Scores(named=False), inputs, torch.export.Dim.AUTO)

    found = spec(model)

    assert found.max_batch_size == 4
    assert [each.name for each in found.outputs] == ["OUTPUT__0"]


def test_a_program_of_fixed_size_has_no_batch_dimension(model: Path) -> None:
    write_exported(model, Scores(named=False), (torch.ones(2, 4), torch.ones(2, 3)), None)

    found = spec(model)

    assert found.max_batch_size == 0
    assert [each.dims for each in found.inputs] == [(2, 4), (2, 3)]


def test_a_program_that_begins_at_more_rows_than_one_is_refused(model: Path) -> None:
    batch = torch.export.Dim("batch", min=5, max=16)
    write_exported(model, Scores(named=False), (torch.ones(6, 4), torch.ones(6, 3)), batch)

    with pytest.raises(BadModel, match="max_batch_size left out, and the file takes from 5 rows"):
        spec(model)


# Files that do not say it.


def test_a_torchscript_file_does_not_say_enough(model: Path) -> None:
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.pt").write_bytes(b"model")

    with pytest.raises(BadModel) as refusal:
        spec(model)

    assert str(refusal.value) == (
        f"{model}/config.pbtxt (missing): input and output left out, and a file like model.pt "
        "(torchscript) does not say what goes in and out: write max_batch_size, input and output, "
        "each tensor with name, data_type and dims"
    )


def test_an_archive_that_is_no_program_says_so(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/models/model.json", json.dumps({"graph_module": {}}))

    with pytest.raises(ValueError, match=r"model\.pt2: 'signature'"):
        describe(file)


def test_a_reader_that_dies_is_told_apart_from_a_file_that_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")

    with pytest.raises(ValueError, match="the process that read it ended with exit code 1"):
        describe(tmp_path / "model.onnx")


def test_a_description_crosses_the_process_whole(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m", {"x": (INT64, ["n", 2])}, {"y": (INT64, ["n", 2])})

    assert describe(tmp_path / "m" / "1" / "model.onnx") == Description(
        [Described("x", "INT64", [-1, 2])], [Described("y", "INT64", [-1, 2])], (1, 0)
    )


AUTO = """
import triton_python_backend_utils as pb_utils

from .declared import INPUT

print("not the answer")


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config.as_dict()
        if INPUT["name"] not in [each["name"] for each in config["input"]]:
            auto_complete_model_config.add_input(INPUT)
        auto_complete_model_config.add_output(
            {{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}}
        )
        auto_complete_model_config.set_max_batch_size(16)
        auto_complete_model_config.set_dynamic_batching()
        {}
        return auto_complete_model_config

    def execute(self, requests): ...
"""
X_AS_TRITON = "{'name': 'x', 'data_type': 'TYPE_FP32', 'dims': (3,), 'optional': False}"


def auto(repository: Path, config: str = "", more: str = "") -> Path:
    directory = repository / "auto"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(AUTO.format(more))
    (directory / "1" / "declared.py").write_text(f"INPUT = {X_AS_TRITON}\n")
    if config:
        (directory / "config.pbtxt").write_text(config)
    return repository


def test_a_triton_python_model_completes_its_config(tmp_path: Path) -> None:
    model = read_model(auto(tmp_path), "auto")

    assert (model.spec.inputs, model.spec.outputs, model.spec.max_batch_size) == ((X,), (Y,), 16)
    assert "dynamic_batching" in model.spec.config


@pytest.mark.usefixtures("forked")
def test_what_its_config_says_is_not_changed(tmp_path: Path) -> None:
    config = (
        'backend: "python" max_batch_size: 2 input [ { name: "x" data_type: TYPE_FP32 dims: 3 } ]'
    )

    model = read_model(auto(tmp_path, config), "auto")

    assert (model.spec.inputs, model.spec.outputs, model.spec.max_batch_size) == ((X,), (Y,), 2)


@pytest.mark.usefixtures("forked")
def test_why_it_does_not_complete_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"model\.py: exit code 3"):
        read_model(auto(tmp_path, more="import os; os._exit(3)"), "auto")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("raise ValueError('not today')", "not today"),
        ("return None", "must return the ModelConfig"),
        ("auto_complete_model_config.add_input({'name': 'z'})", "data_type is not there"),
        (
            "auto_complete_model_config.add_output({'name': 'y', 'data_type': 'TYPE_FP32', "
            "'dims': [4]})",
            "output 'y': auto_complete_config says",
        ),
        ("config['input'][0]['data_type'] = 'TYPE_NONE'", "TYPE_NONE"),
        (
            "auto_complete_model_config.set_model_transaction_policy({'decoupled': True})",
            "decoupled models are not offered",
        ),
    ],
)
def test_what_it_declares_wrongly_is_said(tmp_path: Path, more: str, said: str) -> None:
    file = auto(tmp_path, more=more) / "auto" / "1" / "model.py"

    with own_imports(), pytest.raises((BadModel, ValueError, ParseError), match=said):
        add_declared(
            model_config_pb2.ModelConfig(), auto_completed(file, {"input": [], "max_batch_size": 0})
        )
