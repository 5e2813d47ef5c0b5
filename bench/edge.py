"""The HTTP edge by itself: tensors as JSON against binary data, and what reading JSON costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import torch

from api.payloads.v2_json import parse_infer
from bench import wrk
from bench.comparison import WARM_UP_SECONDS, Plan, Variant, run_rounds
from bench.measurements import Measurement, Row
from bench.servers import ferry
from bench.single_requests import Request
from samples.tiny.torchscript import save_torchscript
from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec
from shared.settings import Settings

EDGE = "edge"
LARGE, SMALL = "3x224x224", "1x16"
PARSE, AT_LEAST = "read 150,528 numbers", "orjson + numpy alone"
CLIENTS = (1, 16)
HEADER = "Inference-Header-Content-Length"
CONFIG = """\
name: "large"
platform: "pytorch_libtorch"
max_batch_size: 8
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [3, 224, 224] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [3] } ]
"""


class Means(torch.nn.Module):
    """The mean of each channel: next to no work, so that the edge is what is timed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3, height, width] -> [rows, 3]."""
        return x.mean(dim=(2, 3))


def run_edge(plan: Plan, settings: Settings) -> list[Row]:
    """Measure both forms of a large and a small tensor; raises BenchError."""
    with TemporaryDirectory(prefix="ferry-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        _write_model(directory / "repository" / "large")
        ours = replace(settings, models=str(directory / "repository"))
        loads = {}
        for size, model, used, shape in (
            (LARGE, "large", ours, (1, 3, 224, 224)),
            (SMALL, "tiny", settings, (1, 16)),
        ):
            (directory / size).mkdir()
            port = stack.enter_context(ferry(model, used, directory / size))
            data = np.random.default_rng(0).normal(size=shape).astype(np.float32).round(4)
            for form, request in _requests(port, model, data).items():
                loads[f"{form} {size}"] = request
                wrk.measure(request, 1, WARM_UP_SECONDS, directory)
        variants = [
            Variant(label, count, partial(_loaded, request, count, directory))
            for count in plan.clients or CLIENTS
            for label, request in loads.items()
        ]
        variants += _reading(loads[f"JSON {LARGE}"].body)
        return run_rounds(EDGE, variants, plan.rounds, plan.seconds)


def _write_model(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    save_torchscript(Means(), torch.zeros(2, 3, 224, 224), directory / "1" / "model.pt")


def _requests(port: int, model: str, data: Array) -> dict[str, Request]:
    """Return the same tensor as JSON, rounded to four digits as people send it, and as binary."""
    path = f"/v2/models/{model}/infer"
    tensor = {"name": "INPUT__0", "datatype": "FP32", "shape": list(data.shape)}
    numbers = data.astype(np.float64).round(4).ravel().tolist()
    text = json.dumps({"inputs": [tensor | {"data": numbers}]}).encode()
    raw = data.tobytes()
    parameters = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [tensor | {"parameters": parameters}]}).encode()
    length = ((HEADER, str(len(head))),)
    return {
        "JSON": Request(port, path, "POST", "application/json", text),
        "binary": Request(port, path, "POST", "application/octet-stream", head + raw, length),
    }


def _reading(body: bytes) -> list[Variant]:
    """Return what reading a large JSON tensor costs here, and what its libraries cost alone."""
    spec = ModelSpec(
        name="large", version="1", platform="pytorch_libtorch", max_batch_size=8,
        inputs=(TensorSpec(name="INPUT__0", datatype="FP32", dims=(3, 224, 224)),),
        outputs=(TensorSpec(name="OUTPUT__0", datatype="FP32", dims=(3,)),),
    )  # fmt: skip

    def alone() -> object:
        return np.asarray(orjson.loads(body)["inputs"][0]["data"])

    return [
        Variant(PARSE, None, partial(_repeated, lambda: parse_infer(body, spec))),
        Variant(AT_LEAST, None, partial(_repeated, alone)),
    ]


def _repeated(work: Callable[[], object], seconds: int) -> Measurement:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work()
        count += 1
    return Measurement(count / (time.perf_counter() - began))


def _loaded(request: Request, clients: int, directory: Path, seconds: int) -> Measurement:
    return wrk.measure(request, clients, seconds, directory)
