"""What a repository may hold beyond the plain: served by a real worker, asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import answer, refusal
from echo_models import config, tensors
from ferry_processes import running_worker
from flask import Flask
from flask.testing import FlaskClient
from stand_ins import torchscript
from test_completion import FLOAT, Scores, write_exported, write_onnx
from waiting import wait_until

from api.app import create_app
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

DELAY = "dynamic_batching { max_queue_delay_microseconds: 300000 }\n"


class Mixed(torch.nn.Module):
    """Takes a, and perhaps b: answers a + 10 b, and how many were given."""

    def forward(
        self, a: torch.Tensor, b: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if b is None:
            return a, torch.ones_like(a)
        return a + 10 * b, torch.full_like(a, 2)


class Whatever(torch.nn.Module):
    """Takes a or b or neither: answers how many were given."""

    def forward(self, a: torch.Tensor | None = None, b: torch.Tensor | None = None) -> torch.Tensor:
        return torch.tensor([float(a is not None) + float(b is not None)])


class Mean(torch.nn.Module):
    """Answers the mean of each row's own values, by the mask."""

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return ((x * seen).sum(1) / seen.sum(1)).unsqueeze(1)


class Flat(torch.nn.Module):
    """Wants rows of [2, 3] and a number for each; answers one number for each row."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        assert x.dim() == 3, "rows of two dimensions"
        return x.sum((1, 2)) * scale


class Fussy(torch.nn.Module):
    """Cannot stand a sample of zeros."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 0).all()):
            raise ValueError("nothing but zeros")
        return x


def write_models(models: Path) -> None:
    write_onnx(models / "imported", {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])})
    torch.manual_seed(5)
    inputs = (torch.ones(2, 4), torch.ones(2, 3))
    write_exported(models / "exported", Scores(named=True), inputs, torch.export.Dim.AUTO)
    two = tensors("output", ("sum__0", "FP32", "[2]"), ("count__1", "FP32", "[2]"))
    for name, rows, delay in (("mixed", 8, DELAY), ("alone", 0, "")):
        optional = tensors("input", ("a", "FP32", "[2]"), ("b", "FP32", "[2]"))
        optional = optional.replace('"b"', '"b" optional: true')
        torchscript(models, name, Mixed(), config(rows, optional, two) + delay)
    free = optional.replace('"a"', '"a" optional: true')
    count = tensors("output", ("count", "FP32", "[1]"))
    torchscript(models, "free", Whatever(), config(0, free, count))
    ragged = tensors("input", ("x", "FP32", "[-1]"), ("seen", "FP32", "[-1]"))
    ragged = ragged.replace('"x"', '"x" allow_ragged_batch: true')
    mask = 'parameters { key: "ragged_mask:x" value { string_value: "seen" } }\n'
    mean = tensors("output", ("mean", "FP32", "[1]"))
    torchscript(models, "mean", Mean(), config(8, ragged, mean) + mask + DELAY)
    flat = (
        'input [ { name: "x" data_type: TYPE_FP32 dims: [6] reshape { shape: [2, 3] } },'
        '        { name: "scale" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } } ]'
    )
    number = 'output [ { name: "y" data_type: TYPE_FP32 dims: [1] reshape { } } ]'
    torchscript(models, "flat", Flat(), config(8, flat, number))
    fussy = config(8, *(tensors(kind, ("x", "FP32", "[2]")) for kind in ("input", "output")))
    for name, sample in (("fussy", "zero_data"), ("content", "random_data")):
        x = f'inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: [2] {sample}: true }} }}'
        warmup = f'model_warmup [ {{ name: "{sample}" batch_size: 2 {x} }} ]'
        torchscript(models, name, Fussy(), fussy + warmup)


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    models = tmp_path_factory.mktemp("models")
    write_models(models)
    settings = Settings(redis_url=redis_url, key_prefix="repository", models=str(models))
    good = {path.name for path in models.iterdir()} - {"fussy"}
    registry = Registry(connect(redis_url), "repository")

    def served() -> bool:
        ready = {record.model for record in registry.instances()[0] if record.state == "ready"}
        return good <= ready

    with running_worker(settings, wait_ready=False):
        wait_until(served, 60, "all models but one ready")
        yield create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def tensor(name: str, value: Any) -> dict[str, Any]:
    shape = list(np.asarray(value).shape)
    return {"name": name, "datatype": "FP32", "shape": shape, "data": value}


def infer(client: FlaskClient, model: str, **inputs: Any) -> tuple[dict[str, Any], int]:
    """Return the outputs by name, and the rows of the batch that they left in."""
    body = {"inputs": [tensor(name, value) for name, value in inputs.items()]}
    answered = answer(client.post(f"/v2/models/{model}/infer", json=body))
    outputs = {
        each["name"]: np.reshape(each["data"], each["shape"]) for each in answered["outputs"]
    }
    return outputs, answered["timings"]["batch_size"]


def at_once(app: Flask, model: str, *asked: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda inputs: infer(app.test_client(), model, **inputs), asked))


def test_an_onnx_file_alone_is_a_model(client: FlaskClient) -> None:
    outputs, _ = infer(client, "imported", x=[[1.0, 2.0, 3.0]] * 3)

    assert outputs["y"].tolist() == [[1, 2, 3]] * 3


def test_an_exported_program_alone_is_a_model(client: FlaskClient) -> None:
    torch.manual_seed(5)
    with torch.inference_mode():
        wanted = Scores(named=True)(torch.ones(1, 4), torch.full((1, 3), 2.0))

    outputs, _ = infer(client, "exported", x=[[1.0] * 4], weight=[[2.0] * 3])

    np.testing.assert_allclose(outputs["scores"], wanted["scores"], rtol=1e-5)
    assert outputs["best"].tolist() == [[wanted["best"].item()]]


def test_an_optional_input_may_be_missing(client: FlaskClient) -> None:
    without, _ = infer(client, "mixed", a=[[1.0, 2.0]])
    both, _ = infer(client, "mixed", a=[[1.0, 2.0]], b=[[3.0, 4.0]])

    assert (without["sum__0"].tolist(), without["count__1"].tolist()) == ([[1, 2]], [[1, 1]])
    assert (both["sum__0"].tolist(), both["count__1"].tolist()) == ([[31, 42]], [[2, 2]])


def test_requests_with_and_without_it_share_no_batch(app: Flask) -> None:
    a = {"a": [[1.0, 1.0]]}
    b = {**a, "b": [[1.0, 1.0]]}

    answers = at_once(app, "mixed", a, a, b, b)

    assert [outputs["count__1"][0, 0] for outputs, _ in answers] == [1, 1, 2, 2]
    assert all(rows <= 2 for _, rows in answers)


def test_the_others_must_be_there_and_at_least_one(client: FlaskClient) -> None:
    path = "/v2/models/mixed/infer"

    assert "missing input 'a'" in refusal(
        client.post(path, json={"inputs": [tensor("b", [[1, 1]])]})
    )
    assert "missing input 'a'" in refusal(client.post(path, json={"inputs": []}))


def test_all_may_be_missing_without_a_batch_dimension(client: FlaskClient) -> None:
    assert infer(client, "free")[0]["count"].tolist() == [0]
    assert infer(client, "free", b=[1.0, 1.0])[0]["count"].tolist() == [1]


def test_version_1_s_rows_may_leave_it_out_all_together(client: FlaskClient) -> None:
    path = "/v1/models/mixed:predict"
    row = {"a": [1.0, 2.0]}

    found = answer(client.post(path, json={"instances": [row, row]}))
    mixed = refusal(client.post(path, json={"instances": [row, {**row, "b": [1.0, 1.0]}]}))

    assert found["predictions"] == [{"sum__0": [1, 2], "count__1": [1, 1]}] * 2
    assert mixed == "instances[1] has ['a', 'b'], instances[0] has ['a']"


def test_a_model_without_batches_has_its_dims_and_optional_inputs(client: FlaskClient) -> None:
    metadata = answer(client.get("/v2/models/alone"))
    outputs, rows = infer(client, "alone", a=[1.0, 2.0])

    assert [each["shape"] for each in metadata["inputs"]] == [[2], [2]]
    assert (outputs["sum__0"].tolist(), rows) == ([1, 2], 1)


def test_rows_of_different_length_share_a_batch_and_the_mask_tells_them_apart(app: Flask) -> None:
    rows = [[1.0], [1.0, 3.0], [2.0, 4.0, 9.0]]

    answers = at_once(app, "mean", *({"x": [row]} for row in rows))

    assert [outputs["mean"].tolist() for outputs, _ in answers] == [[[1]], [[2]], [[5]]]
    assert max(rows for _, rows in answers) > 1


def test_clients_do_not_see_the_mask(client: FlaskClient) -> None:
    metadata = answer(client.get("/v2/models/mean"))
    body = {"inputs": [tensor("x", [[1.0]]), tensor("seen", [[1.0]])]}

    assert [each["name"] for each in metadata["inputs"]] == ["x"]
    assert "unknown input 'seen'" in refusal(client.post("/v2/models/mean/infer", json=body))


def test_the_model_gets_its_own_shapes(client: FlaskClient) -> None:
    metadata = answer(client.get("/v2/models/flat"))
    outputs, _ = infer(client, "flat", x=[[1.0] * 6, [2.0] * 6], scale=[[1.0], [10.0]])

    assert [each["shape"] for each in metadata["inputs"]] == [[-1, 6], [-1, 1]]
    assert outputs["y"].tolist() == [[6], [120]]


def test_a_warm_up_sample_that_fails_keeps_only_its_model_unready(client: FlaskClient) -> None:
    def reason() -> str:
        index = {each["name"]: each for each in answer(client.post("/v2/repository/index"))}
        assert index["content"]["state"] == "READY"
        return str(index["fussy"].get("reason", ""))

    wait_until(reason, 30, "the reason in the index")
    assert "failed to load 'fussy'" in reason()
    assert "model_warmup 'zero_data': " in reason()
    assert "nothing but zeros" in reason()
