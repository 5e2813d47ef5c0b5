"""ferry_requests_refused_total: what an API refuses by itself, of all processes together."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from registered import register, spec
from waiting import wait_until

from api.app import create_app
from api.metrics.refusals import REFUSAL_CODES
from shared.access.api_key import ApiKey, digest, new_secret
from shared.access.key_store import KeysInRedis, add
from shared.errors import FerryError, ModelFailed, QueueFull, RateLimited, all_errors
from shared.settings import Settings
from shared.wire.client import connect

BAD = {"json": {}}


def counts(client: FlaskClient, **headers: str) -> dict[str, float]:
    text = client.get("/metrics", headers=headers).text
    return {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "ferry_requests_refused"
        for sample in family.samples
    }


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {reason: after[reason] - n for reason, n in before.items() if after[reason] != n}


@pytest.fixture
def clients(settings: Settings) -> list[FlaskClient]:
    """Two processes of an API that knows the model m, which nobody serves, and n."""
    register(settings, spec("n"))
    register(settings, spec("m"), ready=False)
    return [create_app(settings).test_client() for _ in range(2)]


def test_every_reason_is_there_from_the_start(clients: list[FlaskClient]) -> None:
    assert counts(clients[0]) == dict.fromkeys(REFUSAL_CODES, 0.0)
    assert {"bad_request", "unauthorized", "forbidden", "unknown_model"} < REFUSAL_CODES
    assert {"payload_too_large", "rate_limited", "model_not_ready", "queue_full"} < REFUSAL_CODES


@pytest.mark.parametrize(
    ("path", "options", "reason"),
    [
        ("/v2/models/n/infer", BAD, "bad_request"),
        ("/predict/n", {"data": b""}, "bad_request"),
        ("/v2/models/nobody/infer", BAD, "unknown_model"),
        ("/v2/models/m/infer", BAD, "model_not_ready"),
        ("/v1/embeddings", {"json": {"model": "nobody", "input": "x"}}, "unknown_model"),
        ("/nowhere", BAD, "unknown_route"),
        ("/v2/health/live", BAD, "method_not_allowed"),
        ("/v2/models/n/infer", {**BAD, "headers": {"Content-Encoding": "br"}},
         "unsupported_encoding"),
        ("/v2/models/n/infer", {**BAD, "headers": {"Host": "else.example"}}, "unknown_host"),
        ("/v2/models/n/infer", {**BAD, "headers": {"Sec-Fetch-Site": "cross-site"}},
         "foreign_page"),
    ],
)  # fmt: skip
def test_a_refusal_is_counted_once_by_any_process(
    clients: list[FlaskClient], path: str, options: dict[str, Any], reason: str
) -> None:
    one, other = clients
    before = counts(one)
    for client in (one, one, other):
        client.post(path, **options)

    wait_until(lambda: grown(before, counts(one)) == {reason: 3.0}, 10, "all are counted")


def test_keys_refusals_are_counted_and_seen_by_a_key_for_metrics(settings: Settings) -> None:
    register(settings, spec("n"))
    store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
    secrets: dict[str, str] = {}
    wanted: dict[str, dict[str, Any]] = {
        "scraper": {"roles": ("metrics",)},
        "other": {"models": ("x",)},
    }
    for name, fields in wanted.items():
        key_id, secrets[name] = new_secret()
        add(store, ApiKey(id=key_id, name=name, sha256=digest(secrets[name]), **fields))
    client = create_app(settings).test_client()
    scraper = {"X-API-Key": secrets["scraper"]}
    for secret in ("", "wrong", secrets["other"]):
        client.post("/v2/models/n/infer", headers={"X-API-Key": secret}, **BAD)

    found = {reason: n for reason, n in counts(client, **scraper).items() if n}
    assert found == {"unauthorized": 2.0, "forbidden": 1.0}
    lines = client.get("/metrics", headers=scraper).text.splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(set(series)) == len(series), "Prometheus takes no series twice"


def test_what_a_queue_has_counted_is_not_counted_again(clients: list[FlaskClient]) -> None:
    refusals = clients[0].application.extensions["ferry"].refusals
    before = counts(clients[1])

    for error in (QueueFull("full").of_queue(), ModelFailed("raised"), ValueError("a bug")):
        refusals.note(error)
    refusals.note(QueueFull("as many requests as may"))
    refusals.note(RateLimited("used up"))

    assert counts(clients[0])["queue_full"] == before["queue_full"] + 1
    assert grown(before, counts(clients[1])) == {"queue_full": 1.0, "rate_limited": 1.0}


def test_no_reason_is_an_answer_of_a_worker() -> None:
    codes = {error.code for error in all_errors()}

    assert codes > REFUSAL_CODES
    assert not REFUSAL_CODES & {"model_failed", "model_crashed", "request_expired", FerryError.code}
