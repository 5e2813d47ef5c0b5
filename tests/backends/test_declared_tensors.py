"""A config that can never fit its model's file is refused at load, by tensor, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from loaded import PLAIN, floats, load, spec, tensor
from onnx import TensorProto, helper

from shared.errors import BadModel
from shared.model_spec import TensorSpec
from worker.backends.base import Backend
from worker.repository.describer import describe

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def onnx_file(
    directory: Path,
    x: Sequence[Any],
    y: Sequence[Any] | None,
    *,
    op: str = "Identity",
    types: tuple[int, int] = (FLOAT, FLOAT),
    **attributes: Any,
) -> Path:
    """Write y = op(x) with these shapes, of which strings are symbols."""
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    ends = [helper.make_tensor_value_info("x", types[0], x)]
    results = [helper.make_tensor_value_info("y", types[1], y)]
    graph = helper.make_graph([node], "graph", ends, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, directory / "model.onnx")
    return directory / "model.onnx"


def refusal(backend: str, file: Path, x: TensorSpec, y: TensorSpec, max_batch_size: int = 8) -> str:
    with pytest.raises(BadModel) as caught:
        load(backend, spec([x], [y], max_batch_size), file)
    return caught.value.message


X2, Y2 = tensor("x"), tensor("y")


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (tensor("x", "FP64"), Y2, "input 'x': datatype FP32 in the file, the config"),
        (X2, tensor("y", "INT64"), "output 'y': datatype FP32 in the file, the config"),
        (X2, tensor("y", "BYTES"), "output 'y': datatype FP32 in the file, the config"),
        (
            tensor("x", "FP32", 3),
            Y2,
            "input 'x': shape [-1, 2] in the file, the config declares [-1",
        ),
        (
            tensor("x", "FP32", 2, 1),
            Y2,
            "input 'x': shape [-1, 2] in the file, the config declares",
        ),
        (
            tensor("x", "FP32", -1),
            Y2,
            "input 'x': shape [-1, 2] in the file, the config declares [-",
        ),
        (
            X2,
            tensor("y", "FP32", 3),
            "output 'y': shape [-1, 2] in the file, the config declares [",
        ),
        (
            X2,
            tensor("y", "FP32", 2, 2),
            "output 'y': shape [-1, 2] in the file, the config declares",
        ),
    ],
)
def test_an_onnx_file_of_other_tensors_is_refused(
    tmp_path: Path, x: TensorSpec, y: TensorSpec, said: str
) -> None:
    file = onnx_file(tmp_path, ["rows", 2], ["rows", 2])

    assert refusal("onnxruntime", file, x, y).startswith(said)


@pytest.mark.parametrize(
    ("y", "dims"),
    [
        (["rows", 2], (2,)),
        (["rows", 2], (-1,)),
        (["rows", 2], (1, 2)),
        (["rows", 1, 2, 1], (2,)),
        ([1, 2], (2,)),  # exporters write the rows that they saw
        (["rows", "classes"], (2,)),
        (["rows", "one", 2], (2,)),
        (None, (2,)),
    ],
)
def test_an_output_that_may_fit_is_left_to_the_answers(
    tmp_path: Path, y: Sequence[Any] | None, dims: tuple[int, ...]
) -> None:
    file = onnx_file(tmp_path, ["rows", 2], y)

    assert load("onnxruntime", spec([X2], [tensor("y", "FP32", *dims)]), file)


@pytest.mark.parametrize(
    ("rows", "max_batch_size", "way_out"),
    [(1, 8, "max_batch_size: 1"), (4, 8, "max_batch_size: 0 "), (4, 4, "max_batch_size: 0 ")],
)
def test_a_fixed_number_of_rows_is_refused_with_the_ways_out(
    tmp_path: Path, rows: int, max_batch_size: int, way_out: str
) -> None:
    said = refusal("onnxruntime", onnx_file(tmp_path, [rows, 2], [rows, 2]), X2, Y2, max_batch_size)

    assert said.startswith(
        f"input 'x': the file takes {rows} rows and no other number, max_batch_size is "
        f"{max_batch_size}: export it with a free first dimension, or write {way_out}"
    )


def test_a_fixed_row_of_its_own_is_served(tmp_path: Path) -> None:
    file = onnx_file(tmp_path, [1, 2], [1, 2])

    assert load("onnxruntime", spec([X2], [Y2], 1), file)
    whole = [tensor("x", "FP32", 1, 2)], [tensor("y", "FP32", 1, 2)]
    assert load("onnxruntime", spec(*whole, 0), file)


def zip_map(directory: Path, **classes: Any) -> Path:
    """Write a file that ends as exported classifiers do: probabilities by class, for each row."""
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", **classes)
    key = INT64 if "classlabels_int64s" in classes else TensorProto.STRING
    value = helper.make_tensor_type_proto(FLOAT, [])
    by_class = helper.make_map_type_proto(key, value)
    result = helper.make_value_info("y", helper.make_sequence_type_proto(by_class))
    ends = [helper.make_tensor_value_info("x", FLOAT, ["rows", 3])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "graph", ends, [result])
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), directory / "model.onnx"
    )
    return directory / "model.onnx"


@pytest.mark.parametrize(
    "classes", [{"classlabels_int64s": [0, 1, 2]}, {"classlabels_strings": ["a", "b", "c"]}]
)
def test_probabilities_by_class_are_served_in_the_order_of_the_classes(
    tmp_path: Path, classes: dict[str, Any]
) -> None:
    file = zip_map(tmp_path, **classes)
    x = floats([0.1, 0.2, 0.7], [0.5, 0.25, 0.25])
    described = spec([tensor("x", "FP32", 3)], [tensor("y", "FP32", 3)])

    found = load("onnxruntime", described, file).forward({"x": x}, PLAIN)["y"]

    assert (found.dtype, found.tolist()) == (np.float32, x.tolist())
    assert describe(file).outputs[0][:3] == ("y", "FP32", [-1, -1])


def test_probabilities_by_class_are_no_texts(tmp_path: Path) -> None:
    file = zip_map(tmp_path, classlabels_int64s=[0, 1, 2])
    said = refusal("onnxruntime", file, tensor("x", "FP32", 3), tensor("y", "BYTES", 1))

    assert said == "output 'y': datatype FP32 in the file, the config declares BYTES"


def test_an_output_that_is_a_sequence_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    result = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    ends = [helper.make_tensor_value_info("x", FLOAT, ["rows", 2])]
    graph = helper.make_graph([node], "graph", ends, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")

    said = refusal("onnxruntime", tmp_path / "model.onnx", X2, Y2)

    assert said == "'y' is a seq(tensor(float)) in the file, which no request can carry"


class Best(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x * 2, "best": x.argmax(1)}


def program(directory: Path, *, free: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    exported = torch.export.export(Best(), (torch.ones(3, 2),), dynamic_shapes=shapes)
    torch.export.save(exported, directory / "model.pt2")
    return directory / "model.pt2"


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (
            tensor("x", "INT64"),
            Y2,
            "input 'x': datatype FP32 in the file, the config declares INT64",
        ),
        (
            tensor("x", "FP32", 4),
            Y2,
            "input 'x': shape [-1, 2] in the file, the config declares [-1",
        ),
        (
            X2,
            tensor("best", "FP32", 1),
            "output 'best': datatype INT64 in the file, the config decl",
        ),
        (
            X2,
            tensor("y", "FP32", 4),
            "output 'y': shape [-1, 2] in the file, the config declares [-1",
        ),
        (X2, tensor("z"), "the model returned ['y', 'best'], without ['z']"),
    ],
)
def test_an_exported_program_of_other_tensors_is_refused(
    tmp_path: Path, x: TensorSpec, y: TensorSpec, said: str
) -> None:
    assert refusal("torch_export", program(tmp_path), x, y).startswith(said)


def test_an_exported_program_of_fixed_rows_is_refused(tmp_path: Path) -> None:
    said = refusal("torch_export", program(tmp_path, free=False), X2, Y2)

    assert said.startswith("input 'x': the file takes 3 rows and no other number")


def test_an_exported_program_s_labels_are_served(tmp_path: Path) -> None:
    described = spec([X2], [tensor("best", "INT64", 1)])
    backend: Backend = load("torch_export", described, program(tmp_path))

    assert backend.forward({"x": floats([1, 2], [2, 1])}, PLAIN)["best"].tolist() == [1, 0]
