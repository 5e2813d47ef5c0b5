"""Queue policies as clients meet them: a 503 at once, or an answer that comes last."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest
from answers import answer, refusal
from counting_model import CountingModel, counting_model, v2
from flask import Flask
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from shared.errors import RequestExpired
from shared.messages import InferRequest
from shared.model_spec import QueuePolicy
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.settings import Settings
from shared.wire.client import connect

INFER = "/v2/models/fake/infer"
SHORT = 0.2
EXPIRED = "Request timeout expired"
REJECT = QueuePolicy(default_timeout_seconds=SHORT)
DELAY = QueuePolicy(timeout_action="DELAY", default_timeout_seconds=SHORT)
OVERRIDE = QueuePolicy(allow_timeout_override=True)


class Busy:
    """An API over a model that is held in its first pass."""

    def __init__(self, settings: Settings, model: CountingModel, pool: ThreadPoolExecutor) -> None:
        self.app: Flask = create_app(settings)
        self.model = model
        self.pool = pool
        model.gate.clear()
        self.first = self.post(0.0)
        wait_until(model.busy, 5, "the first is in flight")

    def post(self, value: float, **parameters: Any) -> Future[TestResponse]:
        """Have a client ask."""
        body = v2(value, **parameters)
        return self.pool.submit(self.app.test_client().post, INFER, json=body)

    def ask(self, value: float, **parameters: Any) -> Future[TestResponse]:
        """Have a client ask, and return once its request waits."""
        depth = self.model.depth() + 1
        asked = self.post(value, **parameters)
        wait_until(lambda: self.model.depth() == depth, 5, f"{value} waits")
        return asked

    def stats(self) -> dict[str, Any]:
        """Return what the statistics route says of the model."""
        (found,) = answer(self.app.test_client().get("/v2/models/fake/stats"))["model_stats"]
        return dict(found)


def test_a_rejected_client_hears_of_it_while_every_instance_is_busy(settings: Settings) -> None:
    with (
        counting_model(settings, queue_policies=(REJECT,)) as model,
        ThreadPoolExecutor(3) as pool,
    ):
        busy, began = Busy(settings, model, pool), monotonic()

        rejected = busy.ask(1.0).result(timeout=30)

        assert refusal(rejected, 503, "request_expired") == EXPIRED
        assert SHORT <= monotonic() - began < 20.0
        assert (model.depth(), model.count("rejected")) == (0, 1)
        assert busy.stats()["inference_stats"]["fail"]["count"] == 1
        model.gate.set()
        answer(busy.first.result())
    assert model.computed == [0.0]


def test_one_whose_push_came_late_is_rejected_as_soon_as_it_waits(settings: Settings) -> None:
    keys = QueueKeys(settings.key_prefix, "m/1")
    queue = RequestQueue(connect(settings.redis_url), keys, Limits(policies=(REJECT,)))
    asked = queue.hold(InferRequest(queue.new_id(), 1, (), (), 20.0, bytes(8)), lambda: None)
    began = monotonic()
    wait_until(lambda: monotonic() > began + 2 * SHORT, 5, "its time is over")

    queue.release()

    with pytest.raises(RequestExpired, match=EXPIRED):
        asked.wait()
    assert monotonic() - began < 15.0, "it did not wait for its own deadline"


def test_a_delayed_client_is_answered_last(settings: Settings) -> None:
    with (
        counting_model(settings, queue_policies=(DELAY,)) as model,
        ThreadPoolExecutor(4) as pool,
    ):
        busy = Busy(settings, model, pool)
        asked = [busy.ask(1.0)]
        began = monotonic()
        wait_until(lambda: monotonic() > began + SHORT, 5, "its time is over")
        asked.append(busy.ask(2.0))
        model.gate.set()
        for each in [busy.first, *asked]:
            answer(each.result())

    assert model.computed == [0.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("policies", "status"), [((), 503), ((OVERRIDE,), 503), ((QueuePolicy(),), 200)]
)
def test_a_clients_timeout_counts_without_policies_and_where_they_allow_it(
    settings: Settings, policies: tuple[QueuePolicy, ...], status: int
) -> None:
    with counting_model(settings, queue_policies=policies) as model, ThreadPoolExecutor(3) as pool:
        busy = Busy(settings, model, pool)
        asked = busy.ask(1.0, timeout=int(1e6 * SHORT))
        began = monotonic()
        if status == 200:
            wait_until(lambda: monotonic() > began + 3 * SHORT, 5, "its time would be over")
        else:
            wait_until(asked.done, 10, "its time is over")
        model.gate.set()
        found = asked.result()
        answer(busy.first.result())

    assert found.status_code == status
    assert model.computed == ([0.0, 1.0] if status == 200 else [0.0])


def test_a_timeout_on_the_queue_does_not_stop_what_is_being_computed(settings: Settings) -> None:
    with (
        counting_model(settings, queue_policies=(REJECT,), seconds=3 * SHORT) as model,
        ThreadPoolExecutor(1) as pool,
    ):
        app = create_app(settings)
        asked = pool.submit(app.test_client().post, INFER, json=v2(1.0))

        answer(asked.result())

        assert model.count("rejected") == 0


def test_the_header_is_the_deadline_whatever_the_policy(settings: Settings) -> None:
    policy = QueuePolicy(timeout_action="DELAY", allow_timeout_override=True)
    with (
        counting_model(settings, queue_policies=(policy,)) as model,
        ThreadPoolExecutor(2) as pool,
    ):
        busy = Busy(settings, model, pool)
        found = busy.app.test_client().post(
            INFER, json=v2(1.0, timeout=10), headers={"X-Request-Timeout": str(SHORT)}
        )
        model.gate.set()
        answer(busy.first.result())

    assert refusal(found, 503, "request_expired") == EXPIRED
    assert (model.count("expired"), model.count("rejected")) == (1, 0)
