"""/metrics: what Prometheus reads of each version's requests, queue and instances."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from registered import SUPERVISOR, register, spec
from two_ends import TwoEnds, free

from api.app import create_app
from shared.errors import QueueFull
from shared.messages import InferRequest, InferResult
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.limits import Limits
from shared.request_queue.model_statistics import Pass, encode_costs
from shared.request_queue.recovery import recover
from shared.settings import Settings

ANSWER = InferResult().encode()
Scrape = Callable[[], str]


@pytest.fixture
def api(settings: Settings) -> FlaskClient:
    register(settings, spec("m"))
    return create_app(settings).test_client()


@pytest.fixture
def scrape(api: FlaskClient) -> Scrape:
    def scrape() -> str:
        response = api.get("/metrics")
        assert response.status_code == 200
        return response.text

    return scrape


def series(text: str) -> set[str]:
    """Return the series without their values."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def of_models(text: str) -> list[str]:
    """Return the lines without those about Redis, whose memory changes by itself."""
    return [line for line in text.splitlines() if not line.startswith("ferry_redis_")]


def value(text: str, name: str) -> float:
    """Return the value of a series, written as it stands in the text."""
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found)


def passed(batch: list[Claimed], *, seconds: float) -> EncodedResults:
    """Return answers of one pass whose requests waited no time and were computed for a while."""
    at_once = [item._replace(queue_seconds=0.0) for item in batch]
    costs = encode_costs(at_once, [Pass(at_once, len(batch), 0.25, 0.5, 0.25)], seconds)
    return EncodedResults([ANSWER] * len(batch), costs)


def test_each_reason_and_outcome_is_there_before_the_first_request(scrape: Scrape) -> None:
    text = scrape()

    for reason in ("BACKEND", "CANCELED", "OTHER", "REJECTED"):
        assert f'nv_inference_request_failure{{model="m",reason="{reason}",version="1"}} 0' in text
    for reason in ("full", "preferred", "delay", "shape", "greedy", "retry"):
        assert f'ferry_batches_left_total{{model="m",reason="{reason}",version="1"}} 0' in text
    for outcome in ("success", "failed", "crashed", "expired", "cancelled", "queue_full"):
        assert f'predictions_total{{model="m",outcome="{outcome}",version="1"}} 0' in text
    assert 'nv_inference_request_success{model="m",version="1"} 0' in text
    assert 'prediction_latency_seconds_bucket{le="+Inf",model="m",version="1"} 0' in text
    assert 'ferry_instances{model="m",state="failed",version="1"} 0' in text
    assert 'ferry_instances{model="m",state="ready",version="1"} 1' in text


def test_answers_are_counted_by_their_latency_and_their_batch(
    scrape: Scrape, ends: TwoEnds
) -> None:
    for size, seconds in ((3, 0.004), (2, 0.2), (1, 99.0)):
        ends.push(size)
        batch = ends.claim(size)
        ends.work.publish(batch, passed(batch, seconds=seconds))
    text, of_m = scrape(), '{model="m",version="1"}'
    bucket = 'prediction_latency_seconds_bucket{{le="{}",model="m",version="1"}}'

    assert value(text, 'predictions_total{model="m",outcome="success",version="1"}') == 6
    assert value(text, f"nv_inference_exec_count{of_m}") == 3
    assert value(text, f"nv_inference_compute_infer_duration_us{of_m}") == 6 * 500_000
    assert value(text, bucket.format("0.003")) == 0
    assert value(text, bucket.format("0.005")) == 3
    assert value(text, bucket.format("0.15")) == 3
    assert value(text, bucket.format("0.25")) == 5
    assert value(text, bucket.format("30.0")) == 5
    assert value(text, bucket.format("+Inf")) == 6
    assert value(text, f"prediction_latency_seconds_count{of_m}") == 6
    assert value(text, f"prediction_latency_seconds_sum{of_m}") == pytest.approx(99.412)
    assert value(text, 'ferry_batch_rows_bucket{le="1",model="m",version="1"}') == 1
    assert value(text, 'ferry_batch_rows_bucket{le="2",model="m",version="1"}') == 2
    assert value(text, 'ferry_batch_rows_bucket{le="4",model="m",version="1"}') == 3
    assert value(text, f"ferry_batch_rows_sum{of_m}") == 6
    assert value(text, 'ferry_request_seconds_total{model="m",phase="compute",version="1"}') == 3


def test_a_request_answered_before_is_in_no_latency(scrape: Scrape, ends: TwoEnds) -> None:
    ends.push(2)
    batch = ends.claim(2)
    ends.redis.delete(ends.keys.body + batch[0].id)
    assert ends.work.publish(batch, passed(batch, seconds=0.004)) == 1

    assert value(scrape(), 'prediction_latency_seconds_count{model="m",version="1"}') == 1


def test_a_request_that_failed_is_in_no_latency(scrape: Scrape, ends: TwoEnds) -> None:
    ends.push(3)
    batch = ends.claim(3)
    passes = [Pass(batch[:1], 1, 0.0, 0.0, 0.0)]
    answers = EncodedResults([ANSWER] * 3, encode_costs(batch, passes, 0.004))
    ends.work.publish(batch, answers)
    text = scrape()

    assert value(text, 'prediction_latency_seconds_count{model="m",version="1"}') == 1
    assert value(text, 'predictions_total{model="m",outcome="failed",version="1"}') == 2
    assert f'_request_failure{{model="m",reason="BACKEND",version="1"}} {2}' in text


def test_what_waits_is_in_flight_or_was_refused_is_told(scrape: Scrape, ends: TwoEnds) -> None:
    held_by = InstanceRecord(id="i", supervisor=SUPERVISOR, model="m", version="1", state="ready")
    Registry(ends.redis, ends.prefix).put_instance(held_by)
    ends.push(3)
    ends.work.claim(1, 0.0)
    narrow = RequestQueue(ends.redis, ends.keys, Limits(2))
    refused = narrow.push(InferRequest(narrow.new_id(), 1, (), (), 20.0, bytes(8)))
    with pytest.raises(QueueFull):
        refused.wait()
    text, of_m = scrape(), '{model="m",version="1"}'

    assert value(text, f"ferry_queue_requests{of_m}") == 2
    assert value(text, f"ferry_requests_in_flight{of_m}") == 1
    assert value(text, f"nv_inference_pending_request_count{of_m}") == 2
    assert value(text, f"ferry_queue_oldest_seconds{of_m}") > 0
    assert value(text, f"ferry_queue_bytes{of_m}") > 0
    rejected = 'ferry_requests_rejected_total{model="m",reason="queue_full",version="1"}'
    assert value(text, rejected) == 1
    assert f'_request_failure{{model="m",reason="REJECTED",version="1"}} {1}' in text


def test_what_instances_died_under_is_retried_and_given_up(scrape: Scrape, ends: TwoEnds) -> None:
    ends.push(1)
    of_m = '{model="m",version="1"}'
    for _ in range(3):
        ends.claim(1)
        recover(ends.wire, ends.keys, "i", crashed=True, result_ttl_seconds=60.0)
    text = scrape()

    assert value(text, f"ferry_requests_retried_total{of_m}") == 2
    assert value(text, f"ferry_requests_dead_total{of_m}") == 1
    assert value(text, f"ferry_dead_letters{of_m}") == 1
    assert value(text, 'predictions_total{model="m",outcome="crashed",version="1"}') == 1


def test_requests_of_what_does_not_exist_make_no_series(api: FlaskClient, scrape: Scrape) -> None:
    before = series(scrape())

    for name in ("a", "b", "c" * 500, 'd"}\n'):
        api.post(f"/v2/models/{name}/infer", json={"inputs": []})
        api.get(f"/{name}")
        api.open(f"/v2/models/{name}", method="BREW", headers={"X-Request-Id": f"{len(name)}"})
    api.post("/v2/models/m/versions/77/infer", json={})

    assert series(scrape()) == before


def test_every_process_says_the_same_and_a_new_one_too(
    settings: Settings, scrape: Scrape, ends: TwoEnds
) -> None:
    ends.push(2)
    batch = ends.claim(2)
    ends.work.publish(batch, free([ANSWER] * 2, batch))
    other = create_app(settings).test_client().get("/metrics").text

    assert of_models(other) == of_models(scrape())


def test_scrapers_choose_a_format_and_some_of_the_names(api: FlaskClient) -> None:
    om = api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    some = api.get("/metrics?name[]=predictions_total&name[]=ferry_model_ready").text

    families = {family.name for family in openmetrics.text_string_to_metric_families(om.text)}
    assert {"predictions", "nv_inference_request_failure", "ferry_queue_requests"} <= families
    assert {family.name for family in text_string_to_metric_families(some)} == {
        "predictions",
        "ferry_model_ready",
    }
