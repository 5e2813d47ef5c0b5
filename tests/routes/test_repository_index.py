"""/v2/repository: every model with its state, and why none is loaded or unloaded by request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answer, refusal
from ferry_processes import running_worker
from flask.testing import FlaskClient
from registered import SUPERVISOR, register, report_failure, spec
from scripted_models import Slow, Sluggish, add_model
from triton_http import refused, triton_client
from waiting import wait_until

from api.app import create_app
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord, State
from shared.settings import Settings
from shared.wire.client import connect

INDEX = "/v2/repository/index"
NOT_ALLOWED = "explicit model load / unload is not allowed if polling is enabled"


def register_in(settings: Settings, name: str, version: str, state: State, reason: str) -> None:
    """Register one version whose only instance is in `state`."""
    model = spec(name).model_copy(update={"version": version})
    record = InstanceRecord(
        id=f"{model.key}-0", supervisor=SUPERVISOR, model=name, version=version, state=state,
        reason=reason,
    )  # fmt: skip
    register(settings, model, ready=False).put_instance(record)


@pytest.fixture
def every_state(settings: Settings) -> FlaskClient:
    """An API over models in every state that there is."""
    register_in(settings, "serves", "2", "ready", "")
    register_in(settings, "serves", "10", "starting", "")
    register_in(settings, "starts", "1", "starting", "")
    register_in(settings, "fails", "1", "failed", "failed to load 'fails'")
    register_in(settings, "again", "1", "starting", "ended with exit code -9")
    register(settings, spec("orphan"), ready=False)
    report_failure(settings, "unread", "no version")
    return create_app(settings).test_client()


def entry(name: str, version: str, state: str, reason: str = "") -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def test_every_version_is_listed_with_its_state_and_reason(every_state: FlaskClient) -> None:
    assert answer(every_state.post(INDEX)) == [
        entry("again", "1", "UNAVAILABLE", "ended with exit code -9"),
        entry("fails", "1", "UNAVAILABLE", "failed to load 'fails'"),
        entry("orphan", "1", "UNAVAILABLE", "no worker has loaded it"),
        entry("serves", "2", "READY"),
        entry("serves", "10", "LOADING"),
        entry("starts", "1", "LOADING"),
        {"name": "unread", "state": "UNAVAILABLE", "reason": "no version"},
    ]


def test_with_ready_only_what_is_served_is_listed(every_state: FlaskClient) -> None:
    assert answer(every_state.post(INDEX, json={"ready": True})) == [entry("serves", "2", "READY")]
    assert len(answer(every_state.post(INDEX, json={"ready": False}))) == 7


def test_an_instance_whose_supervisor_is_gone_loads_nothing(settings: Settings) -> None:
    register_in(settings, "starts", "1", "starting", "")
    Registry(connect(settings.redis_url), settings.key_prefix).stop_beating(SUPERVISOR)

    index = answer(create_app(settings).test_client().post(INDEX))

    assert index == [entry("starts", "1", "UNAVAILABLE", "no worker has loaded it")]


def test_an_empty_registry_lists_nothing(settings: Settings) -> None:
    assert answer(create_app(settings).test_client().post(INDEX, json={})) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"ready": 1}', '"ready" must be true or false, not 1'),
        (b'{"ready": null}', '"ready" must be true or false'),
        (b"[]", "must be a JSON object"),
        (b"{", "not JSON"),
        (b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper"),
    ],
)
def test_a_wrong_body_is_refused(settings: Settings, body: bytes, message: str) -> None:
    response = create_app(settings).test_client().post(INDEX, data=body)

    assert message in refusal(response)


def test_the_index_is_only_posted_to(settings: Settings) -> None:
    refusal(create_app(settings).test_client().get(INDEX), 405, "method_not_allowed")


# Triton's client, a real worker.


@pytest.fixture(scope="module")
def repository(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A worker over models that are served, still loading, broken and unreadable."""
    models = tmp_path_factory.mktemp("models")
    add_model(models, Slow())
    add_model(models, Sluggish())
    add_model(models, torch.nn.Identity()).write_bytes(b"no model at all")
    (models / "unread" / "1").mkdir(parents=True)
    (models / "unread" / "config.pbtxt").write_text("nonsense")
    settings = Settings(redis_url=redis_url, key_prefix="index", models=str(models))
    registry = Registry(connect(redis_url), settings.key_prefix)
    with running_worker(settings, wait_ready=False):
        wait_until(
            lambda: (seen := registry.snapshot()).ready and "identity" in seen.failures,
            30,
            "slow is ready, identity has failed",
        )
        yield settings


@pytest.fixture(scope="module")
def triton(repository: Settings) -> Iterator[Any]:
    with triton_client(repository) as client:
        yield client


def test_tritons_client_lists_a_real_repository(triton: Any, repository: Settings) -> None:
    index: dict[str, dict[str, str]] = {}

    def reason(name: str) -> str:
        # Between a failed instance's record and its successor's there is none for a moment.
        index.update({item["name"]: item for item in triton.get_model_repository_index()})
        return index[name]["reason"]

    file = Path(repository.models) / "identity" / "1" / "model.pt"
    wait_until(
        lambda: reason("identity").startswith(f"failed to load 'identity', {file}: "), 10, "reason"
    )
    assert set(index) == {"slow", "sluggish", "identity", "unread"}
    assert index["slow"] == entry("slow", "1", "READY")
    assert index["sluggish"] == entry("sluggish", "1", "LOADING")
    assert index["identity"]["state"] == index["unread"]["state"] == "UNAVAILABLE"
    assert "config.pbtxt" in index["unread"]["reason"] and "version" not in index["unread"]


@pytest.mark.parametrize("name", ["slow", "nobody"])
def test_tritons_client_cannot_load_or_unload_any_model(triton: Any, name: str) -> None:
    for control in (triton.load_model, triton.unload_model):
        status, message = refused(control, name)

        assert status == "400"
        assert message.startswith(NOT_ALLOWED)
    assert refused(triton.load_model, name, config='{"max_batch_size": 4}')[0] == "400"
    assert triton.is_model_ready("slow")
