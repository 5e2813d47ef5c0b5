"""Which requests are traced: by Triton's settings and by their own `traceparent`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from secrets import token_hex
from typing import Any

import pytest
from answers import answer
from flask.testing import FlaskClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from registered import register, spec

from api.app import create_app
from shared.settings import Settings
from shared.tracing import tracer

TRACE, OF_ONE = "/v2/trace/setting", "/v2/models/m/trace/setting"
RECORDED, NOT_RECORDED = "01", "00"


class Traced:
    """APIs whose spans stay in memory; their requests are refused, for want of inputs."""

    def __init__(self, settings: Settings, patch: pytest.MonkeyPatch, **fields: Any) -> None:
        self._exporter = InMemorySpanExporter()
        patch.setattr(tracer, "processor_of", lambda _: SimpleSpanProcessor(self._exporter))
        self._settings = replace(settings, **fields)
        register(settings, spec("m"), spec("n"))
        self.client = self.process()

    def process(self) -> FlaskClient:
        return create_app(self._settings).test_client()

    def set(self, path: str, **wanted: Any) -> dict[str, Any]:
        found: dict[str, Any] = answer(self.client.post(path, json=wanted))
        return found

    def ask(
        self, count: int, model: str = "m", flag: str = "", client: FlaskClient | None = None
    ) -> int:
        """Return how many of so many requests were traced."""
        self._exporter.clear()
        for _ in range(count):
            headers = {"traceparent": f"00-{token_hex(16)}-{token_hex(8)}-{flag}"} if flag else {}
            (client or self.client).post(f"/v2/models/{model}/infer", json={}, headers=headers)
        return len(self._exporter.get_finished_spans())


@pytest.fixture
def traced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    yield Traced(settings, monkeypatch, otel_exporter_otlp_endpoint="http://127.0.0.1:9")


def test_every_request_is_traced_where_a_collector_is_named(traced: Traced) -> None:
    shown = answer(traced.client.get(TRACE))

    assert (shown["trace_level"], shown["trace_rate"]) == (["TIMESTAMPS"], "1")
    assert shown["trace_mode"] == "opentelemetry"
    assert traced.ask(3) == 3


def test_a_share_is_every_so_manieth(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced(
        settings, monkeypatch, otel_exporter_otlp_traces_endpoint="http://127.0.0.1:9/v1/traces",
        otel_traces_sampler_arg=0.25,
    )  # fmt: skip

    assert answer(traced.client.get(TRACE))["trace_rate"] == "4"
    assert traced.ask(8) == 2


@pytest.mark.parametrize(
    ("share", "shown", "of_20"), [(0.4, "2", 8), (0.9, "1", 18), (1e-310, "2147483647", 0)]
)
def test_a_share_is_kept_exactly(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, share: float, shown: str, of_20: int
) -> None:
    named = {"otel_exporter_otlp_endpoint": "http://127.0.0.1:9", "otel_traces_sampler_arg": share}
    traced = Traced(settings, monkeypatch, **named)

    assert answer(traced.client.get(TRACE))["trace_rate"] == shown
    assert traced.ask(20) == of_20
    traced.set(TRACE, trace_rate="2")
    assert traced.ask(4) == 2


def test_off_is_off_even_for_what_clients_record(traced: Traced) -> None:
    traced.set(TRACE, trace_level=["OFF"])
    assert traced.ask(2) == traced.ask(2, flag=RECORDED) == 0

    traced.set(TRACE, trace_level=None)
    assert traced.ask(2) == 2


@pytest.mark.parametrize("rate", [0, 1, 3])
def test_a_rate_traces_every_so_manieth_and_what_clients_record(traced: Traced, rate: int) -> None:
    traced.set(TRACE, trace_rate=str(rate))

    assert traced.ask(6) == (6 // rate if rate else 0)
    assert traced.ask(2, flag=RECORDED) == 2
    assert traced.ask(2, flag=NOT_RECORDED) == 0


def test_a_count_holds_for_all_processes_together_and_shows_what_is_left(traced: Traced) -> None:
    traced.set(TRACE, trace_count="3")
    other = traced.process()

    assert traced.ask(2) == 2
    assert answer(traced.client.get(TRACE))["trace_count"] == "1"
    assert traced.ask(5, client=other) == 1
    assert traced.ask(5) == 0
    assert traced.ask(1, flag=RECORDED) == 1
    assert answer(traced.client.get(TRACE))["trace_count"] == "0"
    assert traced.set(TRACE, trace_count="2")["trace_count"] == "2"
    assert traced.ask(5) == 2


def test_a_models_own_settings_leave_the_others_alone(traced: Traced) -> None:
    traced.set(OF_ONE, trace_level=["OFF"])
    assert (traced.ask(2), traced.ask(2, "n"), traced.ask(2, "nobody")) == (0, 2, 2)

    traced.set(TRACE, trace_level=["OFF"])
    traced.set(OF_ONE, trace_level=["TIMESTAMPS"], trace_count="1")
    assert (traced.ask(2), traced.ask(2, "n")) == (1, 0)


@pytest.mark.parametrize("header", ["", "00-1-2-01", f"00-{'0' * 32}-{'1' * 16}-01", "x" * 5000])
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(traced: Traced, header: str) -> None:
    traced.client.post("/v2/models/m/infer", json={}, headers={"traceparent": header})

    (span,) = traced._exporter.get_finished_spans()
    assert span.parent is None
    assert span.attributes["error.type"] == "bad_request"


def test_without_a_collector_nothing_is_traced_whatever_is_set(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = Traced(settings, monkeypatch)
    traced.set(TRACE, trace_level=["TIMESTAMPS"], trace_rate="1")

    assert traced.ask(2, flag=RECORDED) == 0
