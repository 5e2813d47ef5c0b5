"""A config written for Triton on a GPU, served as it stands; on a CPU only when that is allowed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from answers import answer
from ferry_processes import running_worker
from flask.testing import FlaskClient
from onnxruntime import get_available_providers
from waiting import wait_until
from worker_processes import seen

from api.app import create_app
from shared.datatypes import Array
from shared.settings import Settings

CONFIG = """\
name: "image_classifier"
platform: "onnxruntime_onnx"
max_batch_size: 32
input [ { name: "input" data_type: TYPE_FP32 dims: [3, 224, 224] } ]
output [ { name: "output" data_type: TYPE_FP32 dims: [1000] } ]
instance_group [ { count: 2 kind: KIND_GPU } ]
dynamic_batching { max_queue_delay_microseconds: 100 }
"""
REQUESTS = 12
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


class Residual(torch.nn.Module):
    """A ResNet in small: strided convolution, one residual block, mean, 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 7, stride=4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.block = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 1000)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(input)))
        x = torch.relu(x + self.block(x))
        return torch.Tensor(self.head(x.mean((2, 3))))


@pytest.fixture(scope="module")
def network() -> Residual:
    torch.manual_seed(3)
    return Residual().eval()


@pytest.fixture(scope="module")
def repository(network: Residual, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    file = models / "image_classifier" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "config.pbtxt").write_text(CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, 224, 224),),
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(file))
    return models


@pytest.fixture(scope="module")
def served_classifier(redis_url: str, repository: Path) -> Iterator[Settings]:
    if torch.cuda.is_available() and "CUDAExecutionProvider" not in get_available_providers():
        pytest.skip("this machine has a GPU, but its ONNX Runtime cannot use it")
    settings = Settings(
        redis_url=redis_url, key_prefix="classifier", models=str(repository),
        allow_cpu_fallback=True,
    )  # fmt: skip
    with running_worker(settings):
        yield settings


def ask(client: FlaskClient, picture: Array) -> Array:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(picture.shape)}
    body = {"inputs": [{**tensor, "data": picture.ravel().tolist()}]}
    outputs = answer(client.post("/v2/models/image_classifier/infer", json=body))["outputs"]
    return np.asarray(outputs[0]["data"], np.float32).reshape(outputs[0]["shape"])


def test_the_config_is_served_unchanged_by_two_instances(served_classifier: Settings) -> None:
    with seen(served_classifier, "image_classifier") as model:
        records = model.wait_ready(2)

    kinds = {"cuda" if torch.cuda.is_available() else "cpu"}
    assert {record.device.partition(":")[0] for record in records} == kinds
    assert len(records) == 2 * max(1, torch.cuda.device_count())


def test_requests_at_once_get_the_original_network_s_answers(
    served_classifier: Settings, network: Residual
) -> None:
    app = create_app(served_classifier)
    random = np.random.default_rng(4)
    pictures = [random.random((1, 3, 224, 224), np.float32) for _ in range(REQUESTS)]

    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda picture: ask(app.test_client(), picture), pictures))

    with torch.inference_mode():
        wanted = network(torch.from_numpy(np.concatenate(pictures))).numpy()
    np.testing.assert_allclose(np.concatenate(answers), wanted, atol=1e-4)


@without_gpu
def test_without_a_gpu_the_model_says_which_setting_lets_it_run_on_the_cpu(
    settings: Settings, repository: Path
) -> None:
    settings = replace(settings, models=str(repository))
    client = create_app(settings).test_client()
    reasons: list[str] = []

    def is_told() -> bool:
        index = answer(client.post("/v2/repository/index"))
        reasons.extend(model["reason"] for model in index if model.get("reason"))
        return bool(reasons)

    with running_worker(settings, wait_ready=False):
        wait_until(is_told, 60, "the reason in the index")

    assert "instance_group: KIND_GPU, but this machine has 0 GPUs" in reasons[0]
    assert "FERRY_ALLOW_CPU_FALLBACK=1 runs it on the CPU" in reasons[0]


@without_gpu
def test_the_log_warns_of_a_model_that_runs_on_the_cpu_instead(
    settings: Settings, repository: Path, tmp_path: Path
) -> None:
    settings = replace(settings, models=str(repository), allow_cpu_fallback=True)

    with running_worker(settings, log_file=tmp_path / "log"):
        pass

    warning = "image_classifier/1: KIND_GPU, but there is no GPU: it runs on the CPU"
    assert warning in (tmp_path / "log").read_text()
