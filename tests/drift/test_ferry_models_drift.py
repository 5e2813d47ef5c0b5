"""`ferry models drift`: what drifts, what does not, and what has no reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ferry_processes import environment
from registered import register, spec

from api.app import create_app
from ferry.cli import main
from shared.drift.counts import DriftCounts
from shared.drift.reference import Reference, class_histogram, histogram
from shared.model_spec import EnsembleStep, TensorSpec
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

RANDOM = np.random.default_rng(2)
REFERENCE = Reference.of(
    {
        "prediction": class_histogram(RANDOM.integers(0, 3, 1000), 3),
        "confidence": histogram(RANDOM.uniform(0.5, 1, 1000), "confidence"),
    }
)
X = TensorSpec(name="x", datatype="FP32", dims=(2,))
SPEC = spec("m", X)


@pytest.fixture(autouse=True)
def registry(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Registry:
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)
    step = EnsembleStep(model="m", input_map={"x": "x"}, output_map={"out": "out"})
    ensemble = spec("both", X).model_copy(update={"steps": (step,)})
    quiet = spec("quiet", X).model_copy(update={"parameters": {"drift": "off"}})
    registry = register(settings, SPEC, spec("n", X), ensemble, quiet)
    registry.keep_reference(SPEC.key, REFERENCE.encode())
    return registry


@pytest.fixture
def counts(settings: Settings) -> Iterator[DriftCounts]:
    with connect(settings.redis_url) as client:
        yield DriftCounts(client, settings.key_prefix)


def answered(counts: DriftCounts, classes: Any, confidences: Any) -> None:
    values = {"prediction": np.asarray(classes), "confidence": np.asarray(confidences)}
    counted = {name: bins.counted(values[name]) for name, bins in REFERENCE.signals.items()}
    counts.add(SPEC.key, REFERENCE, len(classes), counted)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", "drift", *arguments]) == 0
    return capsys.readouterr().out


def test_a_class_that_is_missing_is_named(
    counts: DriftCounts, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(counts, RANDOM.integers(0, 2, 500), RANDOM.uniform(0.5, 1, 500))

    text = printed(capsys, "m")
    assert re.search(r"m +1 +prediction +500 +\S+ +0\.1\d* +\S+ +drift: 2: 3\d% -> 0%", text)
    assert re.search(r"confidence +500 .* steady: .*; least sure tenth 10% -> \d+%", text)
    rows = json.loads(printed(capsys, "m", "--json"))
    assert [row["drifts"] for row in rows] == [True, False]
    assert rows[0]["psi"] > rows[0]["limit"] >= 0.1
    assert json.loads(printed(capsys, "m", "--json", "--hours", "24")) == rows


def test_few_answers_say_nothing_and_none_say_so(
    counts: DriftCounts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing was asked yet" in printed(capsys, "m")

    answered(counts, np.zeros(199, int), np.ones(199))
    assert printed(capsys, "m").count("too few answers, 200 are needed") == 2


def test_a_version_without_a_reference_is_told_the_command_that_makes_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(capsys)

    command = "ferry verify n --version 1 --data PATH --only-reference"
    assert re.search(rf"n +1 +no reference: {command}", text)
    assert re.search(r"both +1 +an ensemble", text)
    assert re.search(r"quiet +1 +off: ", text)
    assert "None" not in text


def test_what_is_no_model_and_no_number_of_hours_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "drift", "nobody"]) == 1
    assert "'nobody' is not found" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["models", "drift", "--hours", "500"])


def test_a_damaged_reference_is_none(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.keep_reference(SPEC.key, "{")

    assert "no reference" in printed(capsys, "m")


def test_prometheus_reads_the_same_figures(counts: DriftCounts, settings: Settings) -> None:
    def value(name: str, *labels: str) -> float | None:
        wanted = "".join(f',signal="{signal}"' for signal in labels)
        found = re.search(rf'^{name}{{model="m"{wanted},version="1"}} (\S+)$', scraped(), re.M)
        return float(found[1]) if found else None

    def scraped() -> str:
        return create_app(settings).test_client().get("/metrics").text

    assert value("ferry_drift_rows") == 0.0 and 'ferry_drift_rows{model="n"' not in scraped()
    answered(counts, np.zeros(150, int), np.full(150, 0.5))
    assert value("ferry_drift_rows") == 150.0 and value("ferry_drift_psi", "prediction") is None

    answered(counts, np.zeros(150, int), np.full(150, 0.5))
    psi, limit = (value(f"ferry_drift_psi{end}", "prediction") for end in ("", "_limit"))
    assert psi is not None and limit is not None and psi > 1 > limit
    assert 0.3 < (value("ferry_drift_jensen_shannon", "prediction") or 0) < 1
    assert value("ferry_drift_kolmogorov_smirnov", "prediction") is None
    assert 0.8 < (value("ferry_drift_kolmogorov_smirnov", "confidence") or 0) <= 1
    assert value("ferry_low_confidence_share") == 1.0
