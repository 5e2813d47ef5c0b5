"""Models whose answer tells which version gave it, and the repositories they stand in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 32
input [ {{ name: "x" data_type: TYPE_FP32 dims: [2] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [2] }} ]
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
{more}
"""


def add_model(repository: Path, name: str, *versions: int, count: int = 1, more: str = "") -> Path:
    """Serve `name`, whose version v answers v times what it is given; returns its directory."""
    directory = repository / name
    directory.mkdir(parents=True)
    (directory / "config.pbtxt").write_text(CONFIG.format(count=count, more=more))
    for version in versions:
        add_version(repository, name, version)
    return directory


def add_version(repository: Path, name: str, version: int, factor: float | None = None) -> Path:
    """Put a version beside the others, in one step, as a careful operator does."""
    draft = repository / name / f".{version}.draft"
    draft.mkdir()
    write_model(draft / "model.onnx", float(version) if factor is None else factor)
    return draft.rename(repository / name / str(version))


def add_broken(repository: Path, name: str, version: int) -> Path:
    """Put a version beside the others whose file is none."""
    directory = repository / name / str(version)
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"this is no model")
    return directory


def remove_version(repository: Path, name: str, version: int) -> None:
    shutil.rmtree(repository / name / str(version))


def write_model(path: Path, factor: float) -> None:
    """Write an ONNX model that answers `factor` times x."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "times",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
