"""A model whose pictures are decoded beside its instance, and one of which the API decodes them."""

from __future__ import annotations

import io
import os
import signal
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answer
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from picture_bytes import encoded
from PIL import Image
from stand_ins import torchscript
from worker_processes import descendants

from api.app import create_app
from shared.settings import Settings

CONFIG = """
max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [3, 64, 64] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [3] }} ]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "input_kind" value {{ string_value: "image" }} }}
parameters {{ key: "image_scale" value {{ string_value: "0.01" }} }}
parameters {{ key: "output_kind" value {{ string_value: "embedding" }} }}
{more}
"""
BESIDE = """
parameters { key: "image_decode_in" value { string_value: "worker" } }
parameters { key: "pipeline_depth" value { string_value: "2" } }
"""


class Means(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Flask, int]]:
    """The API over two models that differ in where their pictures are decoded, and the worker."""
    models = tmp_path_factory.mktemp("pictures")
    torchscript(models, "here", Means(), CONFIG.format(more=""))
    torchscript(models, "beside", Means(), CONFIG.format(more=BESIDE))
    settings = Settings(
        redis_url=redis_url, key_prefix="beside", models=str(models), request_timeout_seconds=30.0
    )
    with running_worker(settings) as worker:
        yield create_app(settings), worker.pid


def photo(number: int) -> bytes:
    colour = (number * 30 % 256, 255 - number * 7 % 256, number)
    picture = Image.effect_mandelbrot((96, 80), (-2, -1.5, 1, 1.5), 20 + number).convert("RGB")
    return encoded(Image.blend(picture, Image.new("RGB", picture.size, colour), 0.5), "JPEG")


def decoders(worker: int) -> list[int]:
    """Return the ids of the worker's processes that decode pictures."""
    return [
        pid
        for pid in descendants(worker)
        if b"worker.instance.decoding.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def asked(app: Flask, model: str, *files: bytes) -> Any:
    parts = [(io.BytesIO(data), f"{index}.jpg") for index, data in enumerate(files)]
    return app.test_client().post(f"/predict/{model}", data={"file": parts})


def vectors(body: Any) -> list[Any]:
    return [each["y"] for each in body.get("predictions", [body])]


def test_many_at_once_get_what_the_api_s_model_answers(served: tuple[Flask, int]) -> None:
    app, worker = served
    files = [photo(number) for number in range(24)]
    files[5] = files[5][:700]
    groups = [[file] for file in files] + [files[:3], files[4:7]]
    with ThreadPoolExecutor(16) as pool:
        beside = list(pool.map(lambda group: asked(app, "beside", *group), groups))
    here = [asked(app, "here", *group) for group in groups]

    assert decoders(worker), "they were decoded there"
    assert [each.status_code for each in beside] == [each.status_code for each in here]
    for one, other in zip(beside, here, strict=True):
        if one.status_code == 400:
            assert one.json == other.json and "cannot be decoded as JPEG" in one.json["error"]
        else:
            assert vectors(one.json) == vectors(other.json)
    assert sum(each.status_code == 400 for each in beside) == 2


def test_version_1_and_numbers_travel_beside_pictures(served: tuple[Flask, int]) -> None:
    client: FlaskClient = served[0].test_client()
    body = {"instances": [{"b64": b64encode(photo(n)).decode()} for n in range(3)]}
    zeros = {"input_tensor": torch.zeros(1, 3, 64, 64).tolist()}

    found, here = (client.post(f"/v1/models/{m}:predict", json=body) for m in ("beside", "here"))
    numbers = answer(client.post("/predict/beside", json=zeros))

    assert answer(found)["predictions"] == answer(here)["predictions"]
    assert numbers["prediction"] == [[0.0, 0.0, 0.0]]


def test_decoders_that_are_killed_are_replaced(served: tuple[Flask, int]) -> None:
    app, worker = served
    answer(asked(app, "beside", photo(1)))
    before = decoders(worker)
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    found = answer(asked(app, "beside", photo(1), photo(2)))

    assert vectors(found) == vectors(answer(asked(app, "here", photo(1), photo(2))))
    assert set(decoders(worker)).isdisjoint(before)
