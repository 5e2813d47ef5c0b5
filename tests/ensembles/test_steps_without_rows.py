"""A step that gets no rows answers at once with none, and asks its model nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answer
from ensemble_models import PlusOne, Step, add_ensemble, add_small, tensors, x_to_y
from ferry_processes import running_worker
from flask.testing import FlaskClient
from scripted_models import write_model
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from shared.settings import Settings

TIMEOUT_SECONDS = 5.0
LATER = {"Prefer": "respond-async"}


class Finder(torch.nn.Module):
    """Finds as many rows of two as the sum of its input, as a detector finds things."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full([int(x.sum().item()), 2], 3.0)


class Widen(torch.nn.Module):
    """Answers rows of two, declared as of any size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1.0


class Fragile(torch.nn.Module):
    """Doubles, and dies of a batch of nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.size(0) > 0, "nothing to do"
        return x * 2.0


def add_finder(repository: Path) -> None:
    config = 'platform: "pytorch_libtorch" max_batch_size: 0\n'
    config += tensors("input", ["x"]) + "\n" + tensors("output", ["y"], "[-1, 2]")
    write_model(repository, "finder", config, Finder())


def add_chain(repository: Path, name: str, *models: str) -> None:
    """Serve an ensemble without a batch: what is found goes through `models`."""
    between = [f"t{index}" for index in range(len(models))]
    steps: list[Step] = [x_to_y("finder", "in", between[0])]
    steps += map(x_to_y, models, between, [*between[1:], "out"])
    config = add_ensemble(repository, name, steps, max_batch_size=0)
    head, _, tail = config.read_text().partition("output [")
    config.write_text(head + "output [" + tail.replace("dims: [2]", "dims: [-1, 2]", 1))


@pytest.fixture(scope="module")
def client(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    models = tmp_path_factory.mktemp("models")
    add_finder(models)
    add_small(models, "twice", Fragile())
    add_small(models, "plus_one", PlusOne())
    config = add_small(models, "widen", Widen()).parent.parent / "config.pbtxt"
    head, _, tail = config.read_text().partition("output [")
    config.write_text(head + "output [" + tail.replace("[2]", "[-1]"))
    add_chain(models, "chain", "twice", "plus_one")
    add_chain(models, "free", "widen", "twice")
    steps = [x_to_y("twice", "in", "between"), x_to_y("plus_one", "between", "out")]
    add_ensemble(models, "batched", steps)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="no-rows-steps",
        models=str(models),
        request_timeout_seconds=TIMEOUT_SECONDS,
    )
    with running_worker(settings):
        yield create_app(settings).test_client()


def body(name: str, *rows: list[float], shape: tuple[int, ...]) -> dict[str, Any]:
    data = [value for row in rows for value in row]
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": list(shape), "data": data}]}


def found(client: FlaskClient, ensemble: str, *row: float) -> tuple[list[int], list[float]]:
    asked = body("in", list(row), shape=(2,))
    [output] = answer(client.post(f"/v2/models/{ensemble}/infer", json=asked))["outputs"]
    return output["shape"], output["data"]


@pytest.mark.parametrize("ensemble", ["chain", "free"])
def test_nothing_found_is_an_empty_answer(client: FlaskClient, ensemble: str) -> None:
    assert found(client, ensemble, 0.0, 0.0) == ([0, 2], [])


@pytest.mark.parametrize(("ensemble", "value"), [("chain", 7.0), ("free", 8.0)])
def test_what_is_found_goes_through_the_steps(
    client: FlaskClient, ensemble: str, value: float
) -> None:
    assert found(client, ensemble, 1.0, 2.0) == ([3, 2], [value] * 6)


@pytest.mark.parametrize(("model", "name"), [("twice", "x"), ("batched", "in")])
@pytest.mark.parametrize("headers", [{}, LATER, {"Idempotency-Key": "no rows"}])
def test_a_request_of_no_rows_is_answered_now_or_later(
    client: FlaskClient, model: str, name: str, headers: dict[str, str]
) -> None:
    asked = body(name, shape=(0, 2))
    response = client.post(f"/v2/models/{model}/infer", json=asked, headers=headers)
    if headers == LATER:
        response = later(client, response)

    [output] = answer(response)["outputs"]

    assert (output["shape"], output["data"]) == ([0, 2], [])


def test_it_is_no_failure_and_no_row_in_the_statistics(client: FlaskClient) -> None:
    before = statistics(client)
    later(
        client, client.post("/v2/models/twice/infer", json=body("x", shape=(0, 2)), headers=LATER)
    )
    after = statistics(client)

    assert after["inference_count"] == before["inference_count"]
    assert after["inference_stats"]["fail"] == before["inference_stats"]["fail"]
    counts = [each["inference_stats"]["success"]["count"] for each in (before, after)]
    assert counts[1] == counts[0] + 1


def later(client: FlaskClient, accepted: TestResponse) -> TestResponse:
    """Return the answer to a request that was accepted, once it is there."""
    location = accepted.headers["Location"]
    wait_until(lambda: client.get(location).status_code == 200, 5, "the answer is there")
    return client.get(location)


def statistics(client: FlaskClient) -> Any:
    [found] = answer(client.get("/v2/models/twice/stats"))["model_stats"]
    return found
