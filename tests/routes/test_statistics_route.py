"""`/v2/models/.../stats`: the same figures from every API process, at once and after restarts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from answers import answer, refusal
from counting_model import POISON, CountingModel, counting_model, v2
from ferry_processes import free_port, running_gunicorn
from flask.testing import FlaskClient
from grpc_process import grpc_client, refused, running_grpc
from registered import register, spec
from tritonclient import http

from api.app import create_app
from shared.settings import Settings


@pytest.fixture
def model(settings: Settings) -> Iterator[CountingModel]:
    with counting_model(settings, max_batch_size=4) as model:
        yield model


def api(settings: Settings) -> FlaskClient:
    """Return a client of an API process of its own."""
    return create_app(settings).test_client()


def stats(client: FlaskClient, path: str = "/v2/models/fake/stats") -> Any:
    """Return the figures of the only model version that `path` names."""
    (found,) = answer(client.get(path))["model_stats"]
    return found


def test_an_answer_is_in_the_figures_of_every_api_process_when_its_client_has_it(
    settings: Settings, model: CountingModel
) -> None:
    asked, other = api(settings), api(settings)

    for number in range(1, 6):
        answer(asked.post("/v2/models/fake/infer", json=v2(1.0)))
        assert stats(other)["inference_stats"]["success"]["count"] == number
    refusal(asked.post("/v2/models/fake/infer", json=v2(POISON)), 500, "model_failed")

    assert stats(other)["inference_stats"]["fail"]["count"] == 1
    assert stats(other) == stats(asked)


def test_the_figures_survive_a_restart_of_api_and_workers(settings: Settings) -> None:
    for number in (1, 2):
        with counting_model(settings):
            client = api(settings)
            answer(client.post("/v2/models/fake/infer", json=v2(1.0)))
            assert stats(client)["inference_count"] == number


def test_without_a_name_every_registered_version_is_listed(
    settings: Settings, model: CountingModel
) -> None:
    first = spec("versioned")
    versions = [first.model_copy(update={"version": version}) for version in ("10", "2")]
    register(settings, *versions, ready=False)
    client = api(settings)

    listed = answer(client.get("/v2/models/stats"))["model_stats"]
    versioned = answer(client.get("/v2/models/versioned/stats"))["model_stats"]

    assert [(each["name"], each["version"]) for each in listed] == [
        ("fake", "1"), ("versioned", "2"), ("versioned", "10"),
    ]  # fmt: skip
    assert listed[1:] == versioned
    assert stats(client, "/v2/models/versioned/versions/10/stats") == versioned[1]
    assert all(each["inference_count"] == 0 for each in listed)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nobody/stats", "Request for unknown model: 'nobody' is not found"),
        ("fake/versions/2/stats", "Request for unknown model: 'fake' version 2 is not found"),
        ("fake/versions/x/stats", "version 'x' is not found: a version is a number"),
    ],
)
def test_an_unknown_model_or_version_is_not_found(
    settings: Settings, model: CountingModel, path: str, message: str
) -> None:
    assert refusal(api(settings).get(f"/v2/models/{path}"), 404, "unknown_model") == message


def test_the_server_says_that_it_has_statistics(settings: Settings) -> None:
    assert "statistics" in answer(api(settings).get("/v2"))["extensions"]


def test_tritonclient_reads_the_figures(settings: Settings, model: CountingModel) -> None:
    settings = replace(settings, port=free_port())
    with (
        running_gunicorn(settings),
        http.InferenceServerClient(f"127.0.0.1:{settings.port}") as client,
    ):
        x = http.InferInput("x", [3, 2], "FP32")
        x.set_data_from_numpy(np.ones((3, 2), np.float32), binary_data=False)
        y = http.InferRequestedOutput("y", binary_data=False)
        client.infer("fake", [x], outputs=[y])

        found = [
            client.get_inference_statistics(*names)["model_stats"]
            for names in (("fake",), ("fake", "1"), ())
        ]

    assert found[0] == found[1] == found[2]
    assert found[0][0]["inference_count"] == 3
    assert found[0][0]["batch_stats"][0]["batch_size"] == 3


def test_tritonclient_reads_the_same_over_grpc(settings: Settings, model: CountingModel) -> None:
    settings = replace(settings, grpc_port=free_port())
    answer(api(settings).post("/v2/models/fake/infer", json=v2(1.0)))
    with running_grpc(settings), grpc_client(settings) as client:
        found = [
            client.get_inference_statistics(*names, as_json=True)["model_stats"]
            for names in (("fake",), ("fake", "1"), ())
        ]
        code, _ = refused(client.get_inference_statistics, "nobody")

    assert found[0] == found[1] == found[2]
    assert found[0][0]["inference_stats"]["success"]["count"] == "1"
    assert found[0][0]["batch_stats"][0]["batch_size"] == "1"
    assert code == "NOT_FOUND"
