"""FERRY_READINESS: which models the whole server's readiness wants, over HTTP and gRPC."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from threading import Event, Semaphore
from types import SimpleNamespace
from typing import Any, cast

import pytest
from registered import register, report_failure, spec
from waiting import wait_until

from api.app import create_app
from api.infer.readiness import Pulse
from api.rpc.health import NOT_SERVING, SERVING, Health, HealthCheckRequest
from api.rpc.service import GRPCInferenceService
from api.services import Services
from shared.errors import RedisUnavailable
from shared.settings import Settings

NONE = cast(Any, SimpleNamespace())


def asked(settings: Settings) -> tuple[int, dict[str, Any]]:
    """Return HTTP's answer, once gRPC says the same by both of its ways."""
    response = create_app(settings).test_client().get("/v2/health/ready")
    services = Services.of(settings)
    ready = response.status_code == 200
    assert GRPCInferenceService(services).ServerReady(NONE, NONE).ready is ready
    health = Health(services.catalog, services.readiness, services.guard)
    found = health.check(HealthCheckRequest(service=""), NONE).status
    assert found == (SERVING if ready else NOT_SERVING)
    return response.status_code, response.get_json()


@pytest.fixture
def one_of_three(settings: Settings) -> Settings:
    """A model that is ready, one that nobody loaded, one whose directory cannot be read."""
    register(settings, spec("good"))
    register(settings, spec("slow"), ready=False)
    report_failure(settings, "bad", "config.pbtxt: x")
    return settings


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("strict", "bad: config.pbtxt: x; slow: no worker has loaded it"),
        ("any", ""),
        ("good", ""),
        ("slow", "slow: no worker has loaded it"),
        ("good, bad", "bad: config.pbtxt: x"),
        ("good,other", "other: no such model"),
    ],
)
def test_one_of_three_models_is_ready(one_of_three: Settings, rule: str, reason: str) -> None:
    status, body = asked(replace(one_of_three, readiness=rule))

    assert body == ({"ready": False, "reason": reason} if reason else {"ready": True})
    assert status == (400 if reason else 200)


@pytest.mark.parametrize("rule", ["strict", "any"])
def test_none_of_two_is_ready(settings: Settings, rule: str) -> None:
    register(settings, spec("a"), spec("b"), ready=False)

    status, body = asked(replace(settings, readiness=rule))

    assert status == 400
    assert body["reason"] == "a: no worker has loaded it; b: no worker has loaded it"


def test_a_server_without_a_worker_is_not_ready(settings: Settings) -> None:
    assert asked(settings) == (400, {"ready": False, "reason": "no worker is there"})


@pytest.mark.parametrize("rule", ["strict", "any"])
def test_a_worker_without_models_is_ready(settings: Settings, rule: str) -> None:
    register(settings)
    report_failure(settings, "x", "")

    assert asked(replace(settings, readiness=rule)) == (200, {"ready": True})


@pytest.mark.parametrize("rule", ["strict", "any", "m"])
def test_without_redis_the_reason_is_that(rule: str) -> None:
    away = Settings(redis_url="redis://127.0.0.1:1/0", readiness=rule)

    status, body = asked(away)

    assert (status, body["ready"]) == (400, False)
    assert "cannot reach Redis" in body["reason"]


def test_a_model_says_why_it_is_not_ready(one_of_three: Settings) -> None:
    client = create_app(one_of_three).test_client()

    assert client.get("/v2/models/good/ready").get_json() == {"name": "good", "ready": True}
    for path, reason in (
        ("slow", "no worker has loaded it"),
        ("slow/versions/1", "no worker has loaded it"),
        ("bad", "config.pbtxt: x"),
    ):
        response = client.get(f"/v2/models/{path}/ready")
        assert response.status_code == 400
        assert response.get_json() == {
            "name": path.partition("/")[0], "ready": False, "reason": reason
        }  # fmt: skip


def test_a_redis_that_hangs_is_waited_for_once_and_by_a_thread_from_then_on() -> None:
    goes_on, answers, asked = Event(), Event(), Semaphore(0)

    def ping() -> None:
        asked.release()
        goes_on.wait(30)
        if not answers.is_set():
            raise RedisUnavailable("it does not answer")

    goes_on.set()
    pulse = Pulse(ping)
    with pytest.raises(RedisUnavailable, match="it does not answer"):
        pulse.check()
    goes_on.clear()  # from now on who asks waits
    assert all(asked.acquire(timeout=30) for _ in range(2))  # the thread does

    with pytest.raises(RedisUnavailable, match="it does not answer"):
        pulse.check()
    assert not asked.acquire(blocking=False)

    answers.set()
    goes_on.set()

    def is_back() -> bool:
        with suppress(RedisUnavailable):
            pulse.check()
            return True
        return False

    wait_until(is_back, 30, "Redis is back")
