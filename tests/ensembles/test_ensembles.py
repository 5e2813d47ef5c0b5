"""Ensembles: several models answer one request, and clients see one model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ensemble_models import (
    Both,
    PlusOne,
    Step,
    Twice,
    add_ensemble,
    add_small,
    infer_body,
    tensors,
    x_to_y,
)
from ferry_processes import running_worker
from flask.testing import FlaskClient
from PIL import Image
from scripted_models import write_model
from worker_processes import seen

from api.app import create_app
from shared.settings import Settings

GREY = """
parameters { key: "input_kind" value { string_value: "image" } }
parameters { key: "image_channels" value { string_value: "L" } }
parameters { key: "output_activation" value { string_value: "none" } }
"""
HALVES = """
parameters { key: "image_scale" value { string_value: "0.5" } }
parameters { key: "image_mean" value { string_value: "3" } }
"""
SUM_OF = """
class Model:
    def forward(self, inputs):
        return {"y": sum(inputs.values())}
"""


def add_python(repository: Path, name: str, code: str) -> None:
    """Serve a Python model of two inputs, a and perhaps b, and one output y."""
    optional = tensors("input", ["b"]).replace("name:", "optional: true name:")
    config = [
        'backend: "python" max_batch_size: 8',
        tensors("input", ["a"]),
        optional,
        tensors("output", ["y"]),
    ]
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(code)
    (repository / name / "config.pbtxt").write_text("\n".join(config))


class Mean(torch.nn.Module):
    """Answers the mean of each picture, and its negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=[1, 2, 3])
        return torch.stack([mean, -mean], dim=1)


def add_pictures(repository: Path) -> None:
    """Serve `mean`, which takes grey pictures, and `album`, the ensemble of nothing but it."""
    ends = [tensors("input", ["x"], "[1, 4, 4]"), tensors("output", ["y"])]
    config = ['platform: "pytorch_libtorch" max_batch_size: 8', *ends, GREY, HALVES]
    write_model(repository, "mean", "\n".join(config), Mean())
    step = Step("mean", {"x": "in"}, {"y": "out"})
    add_ensemble(repository, "album", [step], input_dims="[1, 4, 4]", more=GREY)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("ensembles")
    add_small(models, "twice", Twice())
    add_small(models, "plus_one", PlusOne())
    add_small(models, "both", Both(), inputs=["a", "b"], outputs=["sum__0", "difference__1"])
    add_ensemble(
        models, "chain", [x_to_y("plus_one", "in", "more"), x_to_y("twice", "more", "out")]
    )
    diamond = [  # in no order: steps run when their inputs are there
        Step("both", {"a": "doubled", "b": "more"}, {"sum__0": "out", "difference__1": "less"}),
        x_to_y("twice", "in", "doubled"),
        x_to_y("plus_one", "in", "more"),
    ]
    add_ensemble(models, "diamond", diamond, outputs=["out", "less", "more"])
    whole = "\n".join(
        ['platform: "pytorch_libtorch" max_batch_size: 0']
        + [tensors(kind, [name], "[-1, 2]") for kind, name in (("input", "x"), ("output", "y"))]
    )
    write_model(models, "whole", whole, Twice())
    through = [x_to_y("whole", "in", "x2"), x_to_y("plus_one", "x2", "out")]
    add_ensemble(models, "through_whole", through)
    add_ensemble(models, "unbatched", [x_to_y("twice", "in", "out")], max_batch_size=0)
    optional = tensors("input", ["maybe"]).replace("name:", "optional: true name:")
    add_pictures(models)
    add_python(models, "sum_of", SUM_OF)
    sum_of = Step("sum_of", {"a": "in", "b": "maybe"}, {"y": "out"})
    add_ensemble(models, "with_optional", [sum_of], more=optional)
    add_ensemble(
        models, "nested", [x_to_y("twice", "in", "x2"), Step("chain", {"in": "x2"}, {"out": "out"})]
    )
    return models


@pytest.fixture(scope="module")
def settings_of_all(redis_url: str, repository: Path) -> Settings:
    return Settings(
        redis_url=redis_url, key_prefix="ensembles", models=str(repository),
        request_timeout_seconds=20.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def client(settings_of_all: Settings) -> Iterator[FlaskClient]:
    with running_worker(settings_of_all):
        yield create_app(settings_of_all).test_client()


def statistics(client: FlaskClient, model: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v2/models/{model}/stats").get_json()["model_stats"][0]
    return found


def ask(client: FlaskClient, model: str, body: dict[str, Any]) -> dict[str, list[float]]:
    response = client.post(f"/v2/models/{model}/infer", json=body)
    assert response.status_code == 200, response.text
    assert response.json is not None
    return {output["name"]: output["data"] for output in response.json["outputs"]}


def test_the_output_of_one_model_is_the_input_of_the_next(client: FlaskClient) -> None:
    assert ask(client, "chain", infer_body(3.0)) == {"out": [8.0, 8.0]}


def test_branches_meet_again_whatever_the_order_of_steps(client: FlaskClient) -> None:
    found = ask(client, "diamond", infer_body(5.0))

    assert found == {"out": [16.0, 16.0], "less": [4.0, 4.0], "more": [6.0, 6.0]}


def test_a_step_may_be_an_ensemble(client: FlaskClient) -> None:
    assert ask(client, "nested", infer_body(3.0)) == {"out": [14.0, 14.0]}


def test_steps_that_nobody_s_answer_needs_do_not_run(client: FlaskClient) -> None:
    before = {name: statistics(client, name)["inference_count"] for name in ("twice", "both")}
    assert ask(client, "diamond", infer_body(5.0, ["more"])) == {"more": [6.0, 6.0]}

    assert {name: statistics(client, name)["inference_count"] for name in before} == before


def test_outputs_come_in_the_order_in_which_they_are_wanted(client: FlaskClient) -> None:
    wanted = ["more", "less", "out"]

    assert list(ask(client, "diamond", infer_body(5.0, wanted))) == wanted


def test_rows_stay_with_their_request(client: FlaskClient) -> None:
    item = {"name": "in", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]}

    assert ask(client, "chain", {"inputs": [item]}) == {"out": [4.0, 6.0, 8.0, 10.0, 12.0, 14.0]}


def test_requests_of_an_ensemble_share_their_steps_batches(client: FlaskClient) -> None:
    before = statistics(client, "twice")
    values = [number + 0.5 for number in range(200)]

    def answer(value: float) -> float:
        return ask(client.application.test_client(), "chain", infer_body(value))["out"][0]

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(answer, values))
    after = statistics(client, "twice")

    assert found == [2.0 * (value + 1) for value in values]
    assert after["inference_count"] - before["inference_count"] == 200
    assert after["execution_count"] - before["execution_count"] < 150


def test_a_model_without_batch_dimension_gets_all_rows_at_once(client: FlaskClient) -> None:
    item = {"name": "in", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}

    assert ask(client, "through_whole", {"inputs": [item]}) == {"out": [3.0, 5.0, 7.0, 9.0]}


def test_an_ensemble_without_batch_dimension_asks_batched_models_for_one_row(
    client: FlaskClient,
) -> None:
    item = {"name": "in", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    response = client.post("/v2/models/unbatched/infer", json={"inputs": [item]})

    assert response.get_json()["outputs"] == [
        {"name": "out", "datatype": "FP32", "shape": [2], "data": [2.0, 4.0]}
    ]


def test_an_optional_input_may_be_missing_in_the_step_too(client: FlaskClient) -> None:
    both = infer_body(1.0)
    both["inputs"].append(both["inputs"][0] | {"name": "maybe"})

    assert ask(client, "with_optional", infer_body(1.0)) == {"out": [1.0, 1.0]}
    assert ask(client, "with_optional", both) == {"out": [2.0, 2.0]}


def test_clients_see_an_ensemble_as_one_model(client: FlaskClient) -> None:
    described = client.get("/v2/models/chain").get_json()
    config = client.get("/v2/models/chain/config").get_json()

    assert described["platform"] == config["platform"] == "ensemble"
    assert described["inputs"] == [{"name": "in", "datatype": "FP32", "shape": [-1, 2]}]
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == [
        "plus_one", "twice"
    ]  # fmt: skip
    assert client.get("/v2/models/chain/ready").status_code == 200


def test_predict_takes_plain_numbers(client: FlaskClient) -> None:
    answer = client.post("/predict/chain", json={"input_tensor": [[1, 2]]}).get_json()

    assert answer["prediction"] == [[4.0, 6.0]]


def test_pixels_are_normalised_by_the_step_that_takes_pictures(client: FlaskClient) -> None:
    encoded = io.BytesIO()
    Image.new("L", (9, 9), 100).save(encoded, "PNG")
    step, whole = (
        client.post(f"/predict/{model}", data=encoded.getvalue()).get_json()["top_k"]
        for model in ("mean", "album")
    )

    assert whole == step
    assert whole[0]["confidence"] == 100 * 0.5 - 3


def test_its_statistics_count_requests_and_the_time_of_all_steps(client: FlaskClient) -> None:
    before = statistics(client, "nested")
    item = {"name": "in", "datatype": "FP32", "shape": [3, 2], "data": [0] * 6}
    ask(client, "nested", {"inputs": [item]})
    after = statistics(client, "nested")

    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    took = {
        name: _mean_seconds(statistics(client, name), "compute_infer")
        for name in ("nested", "chain")
    }
    assert took["nested"] > 0
    assert took["chain"] > _mean_seconds(statistics(client, "plus_one"), "compute_infer")


def test_its_failures_are_counted(client: FlaskClient) -> None:
    before = statistics(client, "chain")["inference_stats"]["fail"]["count"]
    client.post("/v2/models/chain/infer", json=infer_body(13.0))

    assert statistics(client, "chain")["inference_stats"]["fail"]["count"] == before + 1


def _mean_seconds(statistics: dict[str, Any], phase: str) -> float:
    duration = statistics["inference_stats"][phase]
    return float(duration["ns"]) / duration["count"] / 1e9


def test_the_answer_says_what_the_whole_ensemble_took(client: FlaskClient) -> None:
    timings = client.post("/v2/models/chain/infer", json=infer_body(1.0)).get_json()["timings"]

    assert timings["compute_seconds"] > 0
    assert timings["batch_size"] == timings["attempts"] == 1


def test_no_request_is_left_in_flight(client: FlaskClient, settings_of_all: Settings) -> None:
    ask(client, "chain", infer_body(1.0))

    with seen(settings_of_all, "chain") as chain:
        assert chain.holders() == []
