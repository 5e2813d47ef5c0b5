"""Ensembles: several models answer one request, and clients see one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import running_worker
from ensemble_models import (
    Both, PlusOne, Slowly, Step, Twice, add_ensemble, add_small, infer_body, x_to_y
)  # fmt: skip
from flask.testing import FlaskClient

from api.app import create_app
from shared.settings import Settings


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
    add_ensemble(
        models, "nested", [x_to_y("twice", "in", "x2"), Step("chain", {"in": "x2"}, {"out": "out"})]
    )
    return models


@pytest.fixture(scope="module")
def client(redis_url: str, repository: Path) -> Iterator[FlaskClient]:
    settings = Settings(
        redis_url=redis_url, key_prefix="ensembles", models=str(repository),
        request_timeout_seconds=20.0,
    )  # fmt: skip
    with running_worker(settings):
        yield create_app(settings).test_client()


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
