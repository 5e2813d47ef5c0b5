"""ONNX Runtime gives memory back behind each pass, where a config says so."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from stand_ins import onnx_graph

from worker.devices import Placement
from worker.instance.process import load_backend
from worker.job import InstanceJob
from worker.repository.config.parameters import ARENA_SHRINKAGE
from worker.repository.models import read_model

NO_PIXELS: frozenset[str] = frozenset()
WIDE = 2 * 2**20
"""Numbers of which eight rows are more bytes than the C library keeps when they are freed."""


def job(models: Path, shrinks: str) -> InstanceJob:
    """Return the order of a model that has as much in hand between its nodes as it answers."""
    wish = f'parameters {{ key: "{ARENA_SHRINKAGE}" value {{ string_value: "{shrinks}" }} }}'
    config = f"""
        max_batch_size: 8
        input [ {{ name: "x" data_type: TYPE_FP32 dims: [{WIDE}] }} ]
        output [ {{ name: "y" data_type: TYPE_FP32 dims: [{WIDE}] }} ]
        {wish if shrinks else ""}
    """
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", WIDE]) for end in "xy"]
    nodes = [helper.make_node("Tanh", [a], [b]) for a, b in ("xa", "ay")]
    onnx_graph(models, "m", config, nodes, ends[:1], ends[1:])
    model = read_model(models, "m")
    return InstanceJob(
        "i", model.spec, model.config.backend, model.file, Placement("cpu", 1), "redis://", "x",
        1.0, "INFO",
    )  # fmt: skip


@pytest.mark.parametrize(("shrinks", "is_kept"), [("", True), ("cpu:0", False)])
def test_memory_is_given_back_behind_each_pass_where_the_config_says_so(
    tmp_path: Path, shrinks: str, is_kept: bool
) -> None:
    # In a process of its own: what malloc keeps is a setting of a whole process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        growth = own.submit(growth_in_inputs, tmp_path, shrinks).result()

    # What the answer lies in is kept in either case.
    assert (growth > 1.5) is is_kept


def growth_in_inputs(models: Path, shrinks: str) -> float:
    """Return by how much a process grew in a pass, in its inputs' size."""
    backend = load_backend(job(models, shrinks))
    asked = {"x": np.ones((8, WIDE), np.float32)}
    backend.forward({"x": asked["x"][:1]}, NO_PIXELS)  # ONNX Runtime keeps its first memory
    before = resident_bytes()
    backend.forward(asked, NO_PIXELS)
    return (resident_bytes() - before) / asked["x"].nbytes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
