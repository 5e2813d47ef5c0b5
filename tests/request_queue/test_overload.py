"""A full queue answers 503 at once, says when to come back, and serves on."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from threading import local

import pytest
from answers import answer, refusal
from counting_model import CountingModel, counting_model, tensor, v2
from ferry_processes import free_port, running_gunicorn
from flask import Flask
from registered import SUPERVISOR
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from shared.model_spec import QueuePolicy
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings

PREDICT, INFER = "/predict/fake", "/v2/models/fake/infer"
ROWS = {"input_tensor": [[1.0, 1.0]] * 50}
"""A body of 400 bytes of numbers."""


def policies(max_queue_size: int) -> tuple[QueuePolicy, ...]:
    """Return the queue policy of a model without levels that takes so many requests."""
    return (QueuePolicy(max_queue_size=max_queue_size),)


class Crowd:
    """Clients that wait while the model holds the first one's request."""

    def __init__(self, app: Flask, model: CountingModel, pool: ThreadPoolExecutor) -> None:
        self._app, self._model, self.pool = app, model, pool
        self.asked: list[Future[TestResponse]] = []

    def ask(self, body: object, count: int) -> None:
        """Add `count` clients, one after the other."""
        for _ in range(count):
            depth = self._model.depth() + 1
            self.asked.append(self.pool.submit(self._app.test_client().post, PREDICT, json=body))
            wait_until(lambda: self._model.depth() == depth, 5, f"{depth} wait")  # noqa: B023


@contextmanager
def crowd(app: Flask, model: CountingModel) -> Iterator[Crowd]:
    """Keep the model busy; at the end let it go, and see that all are answered."""
    model.gate.clear()
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(app.test_client().post, PREDICT, json=tensor(0.0))
        wait_until(model.busy, 5, "the first is in flight")
        crowd = Crowd(app, model, pool)
        try:
            yield crowd
        finally:
            model.gate.set()
        for each in [first, *crowd.asked]:
            answer(each.result())


def refused(response: TestResponse) -> int:
    """Return when a refused client may come back, in seconds."""
    assert refusal(response, 503, "queue_full") == "Exceeds maximum queue size"
    return int(response.headers["Retry-After"])


@pytest.mark.parametrize("of_model", [True, False], ids=["the model's", "FERRY_MAX_QUEUE_SIZE"])
def test_a_queue_takes_so_many_requests(settings: Settings, of_model: bool) -> None:
    app = create_app(replace(settings, max_queue_size=100 if of_model else 3))
    fields = {"queue_policies": policies(3)} if of_model else {}
    with counting_model(settings, **fields) as model:
        with crowd(app, model) as waiting:
            waiting.ask(tensor(1.0), 3)

            for path, body in ((PREDICT, tensor(2.0)), (INFER, v2(2.0))):
                assert refused(app.test_client().post(path, json=body)) == 1

        answer(app.test_client().post(PREDICT, json=tensor(3.0)))
        assert model.computed == [0.0, 1.0, 1.0, 1.0, 3.0]


def test_a_queue_takes_so_many_bytes(settings: Settings) -> None:
    app = create_app(replace(settings, max_queue_bytes=1024))
    with counting_model(settings, max_batch_size=50) as model:
        with crowd(app, model) as waiting:
            waiting.ask(ROWS, 2)

            refused(app.test_client().post(PREDICT, json=ROWS))
            waiting.ask(tensor(1.0), 1)  # a small one still fits

        assert model.depth() == 0
        assert not model.redis.exists(model.keys.bytes)


def test_a_request_larger_than_all_the_queue_may_hold_waits_alone(settings: Settings) -> None:
    app = create_app(replace(settings, max_queue_bytes=1024))
    large = {"input_tensor": [[1.0, 1.0]] * 200}
    with counting_model(settings, max_batch_size=200) as model, crowd(app, model) as waiting:
        waiting.ask(large, 1)

        refused(app.test_client().post(PREDICT, json=large))


def test_bodies_that_expired_on_the_queue_are_not_counted_for_ever(settings: Settings) -> None:
    app = create_app(replace(settings, max_queue_bytes=1024))
    later = {"Prefer": "respond-async"}
    with counting_model(settings, max_batch_size=50) as model:
        with crowd(app, model):
            for _ in range(2):
                app.test_client().post(PREDICT, json=ROWS, headers=later)
            model.redis.delete(*model.redis.scan_iter(match=model.keys.body + "0000*"))
        wait_until(lambda: model.depth() == 0, 5, "their tickets are dropped")

        with crowd(app, model) as waiting:
            waiting.ask(ROWS, 2)

        assert not model.redis.exists(model.keys.bytes)


def test_a_process_has_so_many_requests_under_way(settings: Settings) -> None:
    app = create_app(replace(settings, max_waiting=3))
    other_process = create_app(settings)
    with counting_model(settings) as model, crowd(app, model) as waiting:
        waiting.ask(tensor(1.0), 2)

        refused(app.test_client().post(PREDICT, json=tensor(2.0)))

        assert model.depth() == 2
        elsewhere = Crowd(other_process, model, waiting.pool)
        elsewhere.ask(tensor(3.0), 1)
        waiting.asked += elsewhere.asked


@pytest.mark.parametrize(
    ("per_second", "seconds"),
    [(0.0, 1), (1.0, 2), (0.5, 4), (0.01, 60), (1000.0, 1)],
)
def test_retry_after_is_when_half_of_the_queue_will_be_gone(
    settings: Settings, per_second: float, seconds: int
) -> None:
    app = create_app(settings)
    with counting_model(settings, queue_policies=policies(4)) as model:
        registry = Registry(model.redis, settings.key_prefix)
        registry.put_instance(
            InstanceRecord(
                id="fake-0", supervisor=SUPERVISOR, model="fake", version="1", state="ready",
                requests_per_second=per_second,
            )
        )  # fmt: skip
        with crowd(app, model) as waiting:
            waiting.ask(tensor(1.0), 4)

            assert refused(app.test_client().post(PREDICT, json=tensor(2.0))) == seconds


def test_at_twice_the_capacity_refusals_are_quick_and_the_accepted_wait_no_longer(
    settings: Settings,
) -> None:
    settings = replace(settings, port=free_port())
    batch_seconds, rows, queue_size, seconds = 0.05, 4, 20, 3.0
    with (
        counting_model(
            settings,
            seconds=batch_seconds,
            max_batch_size=rows,
            queue_policies=policies(queue_size),
        ),
        running_gunicorn(settings),
    ):
        calm = offered(settings.port, rows / batch_seconds, 1.0)
        # On a slow machine it is less than the model could.
        capacity = sum(status == 200 for status, _ in calm) / (1.0 + calm[-1][1])
        results = offered(settings.port, 2 * rows / batch_seconds, seconds)

    refusals = sorted(took for status, took in results if status == 503)
    accepted = sorted(took for status, took in results if status == 200)
    assert {status for status, _ in results} == {200, 503}
    assert len(accepted) > 0.5 * capacity * seconds
    assert len(refusals) > 0.2 * capacity * seconds
    longest_wait = (queue_size + 2 * rows) / capacity
    p99 = statistics.quantiles(refusals, n=100)[98]
    accepted_p99 = statistics.quantiles(accepted, n=100)[98]
    print(
        f"refused {len(refusals)}, 99 % within {1e3 * p99:.1f} ms; accepted {len(accepted)}, "
        f"99 % within {1e3 * accepted_p99:.0f} ms of {1e3 * longest_wait:.0f}"
    )
    # A refusal does not wait its turn. Where the machine stood still it did for both kinds.
    assert statistics.median(refusals) < statistics.median(accepted) / 2
    assert p99 < max(0.5, accepted_p99)
    assert accepted_p99 < 10 * longest_wait


def offered(port: int, per_second: float, seconds: float) -> list[tuple[int, float]]:
    """Send requests at this rate, answered or not; return status and seconds of each."""
    mine, body, opened = local(), json.dumps(v2(1.0)), list[HTTPConnection]()

    def ask(due: float) -> tuple[int, float]:
        if not hasattr(mine, "connection"):
            mine.connection = HTTPConnection("127.0.0.1", port, timeout=60)
            opened.append(mine.connection)
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        mine.connection.request("POST", INFER, body)
        response = mine.connection.getresponse()
        response.read()
        return response.status, time.monotonic() - began

    start = time.monotonic() + 0.1
    with ThreadPoolExecutor(100) as pool:
        dues = [start + number / per_second for number in range(int(per_second * seconds))]
        results = list(pool.map(ask, dues))
    for connection in opened:
        connection.close()
    return results
