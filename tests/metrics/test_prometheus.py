"""A real Prometheus scrapes a real API by our rules, and the dashboard's queries have figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from fake_backend import fake_spec
from ferry_processes import ROOT, free_port, running_gunicorn
from registered import register, spec
from two_ends import TwoEnds
from waiting import wait_until

from shared.drift.counts import DriftCounts
from shared.drift.reference import Reference, histogram
from shared.messages import InferResult
from shared.registry.device_report import Device, DeviceReport
from shared.request_queue.claimed import EncodedResults
from shared.request_queue.model_statistics import Pass, encode_costs
from shared.settings import Settings
from shared.wire.client import connect
from worker.meter import Meter
from worker.supervisor.worker_metrics import serve_metrics

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/ferry.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
GROUPS = DEPLOY / "k8s/groups"
ASLEEP = yaml.safe_load((GROUPS / "to-zero/scaler.yaml").read_text(encoding="utf-8"))[1]["value"]
TRIGGERS = [
    *yaml.safe_load((GROUPS / "sentiment/scaler.yaml").read_text("utf-8"))["spec"]["triggers"],
    ASLEEP,
]
SCALING = [each["metadata"]["query"].replace("sentiment", "m") for each in TRIGGERS]
"""What KEDA asks, of the model that the test has."""
ABSENT = {"ALERTS", "ferry_redis_memory_max_bytes"}
"""What a healthy system without a limit of its Redis has no series of."""
ANSWER = InferResult().encode()
REFERENCE = Reference.of({"confidence": histogram(np.linspace(0, 1, 1000), "confidence")})

needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus") or not shutil.which("promtool"),
    reason="needs Debian's prometheus: apt-get install prometheus",
)


class Prometheus:
    """A running one."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str) -> Any:
        with urlopen(f"{self._url}/{path}", timeout=30) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask(f"query?query={quote(expression)}")["result"]
        return found

    def is_up(self) -> bool:
        try:
            return len(self.query("up == 1")) == 2
        except OSError:
            return False


def slot() -> Any:
    """Return a supervisor's slot with an instance that has answered something."""
    meter = Meter(answered_count=4, row_count=8, batch_count=2, last_batch_seconds=0.5)
    return SimpleNamespace(
        model=SimpleNamespace(spec=fake_spec()), state="ready", meter=meter,
        placement=SimpleNamespace(device="cpu"), instance_id="w-0.1",
    )  # fmt: skip


GPU = Device(
    index=0, uuid="GPU-1", name="A", memory_bytes=100, used_bytes=50, utilisation_percent=25.0,
    power_watts=300.0, temperature_celsius=40.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def system(redis_url: str) -> Iterator[Settings]:
    """An API of two processes, and a worker's figures."""
    settings = Settings(
        redis_url=redis_url, key_prefix="prometheus", port=free_port(), api_processes=2,
        metrics_port=free_port(),
    )  # fmt: skip
    registry = register(settings, spec("m"))
    registry.put_devices("nobody", DeviceReport(host="h", devices=(GPU,)))
    registry.keep_reference("m/1", REFERENCE.encode())
    with connect(redis_url) as client:
        counted = {"confidence": REFERENCE.signals["confidence"].counted(np.ones(300))}
        DriftCounts(client, settings.key_prefix).add("m/1", REFERENCE, 300, counted)
    serving = serve_metrics(settings, lambda: [slot()], lambda: DeviceReport(devices=(GPU,)))
    assert serving is not None
    with running_gunicorn(settings):
        yield settings
    serving[0].shutdown()
    serving[0].server_close()


@pytest.fixture(scope="module")
def prometheus(system: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory, port = tmp_path_factory.mktemp("prometheus"), free_port()
    process = subprocess.Popen(
        ["prometheus", f"--config.file={configured(directory, system)}",
         f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
         "--log.level=warn"],
        cwd=directory,
    )  # fmt: skip
    try:
        found = Prometheus(port)
        wait_until(found.is_up, 30, "both are scraped")
        yield found
    finally:
        process.terminate()
        process.wait(30)


def configured(directory: Path, system: Settings) -> Path:
    """Write our configuration with the test's ports, looking every second."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job, port in zip(config["scrape_configs"], (system.port, system.metrics_port), strict=True):
        assert job["static_configs"][0]["targets"][0].startswith("127.0.0.1:")
        job["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
    shutil.copy(DEPLOY / "prometheus/rules.yml", directory)
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def answer(ends: TwoEnds, count: int) -> None:
    ends.push(count)
    batch = ends.claim(count)
    costs = encode_costs(batch, [Pass(batch, count, 0.001, 0.002, 0.001)], 0.005)
    ends.work.publish(batch, EncodedResults([ANSWER] * count, costs))


def asked(expression: str) -> str:
    """Return a panel's query as Grafana asks it."""
    return expression.replace("$__rate_interval", "1m").replace("$model", ".*")


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [
        "check rules deploy/prometheus/rules.yml",
        "test rules deploy/prometheus/rules_test.yml",
        "check config deploy/prometheus/prometheus.yml",
    ],
)
def test_promtool_finds_nothing_wrong(command: str) -> None:
    ended = subprocess.run(
        ["promtool", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_has_a_test_of_its_own_and_says_what_to_do() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text(encoding="utf-8"))
    tests = (DEPLOY / "prometheus/rules_test.yml").read_text(encoding="utf-8")

    for rule in (each for group in rules["groups"] for each in group["rules"]):
        name = rule.get("alert", rule.get("record"))
        assert name in tests or name == "ferry:predictions:rate5m" or "ratio" in name
        assert "alert" not in rule or set(rule["annotations"]) == {"summary", "action"}


@needs_prometheus
def test_every_query_of_the_dashboard_and_every_rule_has_figures(
    system: Settings, prometheus: Prometheus
) -> None:
    ends = TwoEnds(system)

    def empty() -> set[str]:
        answer(ends, 3)
        wanted = {
            query for query in [*QUERIES, *SCALING] if not any(name in query for name in ABSENT)
        }
        return {query for query in wanted if not prometheus.query(asked(query))}

    wait_until(lambda: not empty(), 30, "all queries have figures")
    for query in QUERIES:
        prometheus.query(asked(query))  # also those without figures are understood
    groups = prometheus.ask("rules")["groups"]
    ends.close()

    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 19
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert not [rule["lastError"] for rule in rules if rule.get("lastError")]


@needs_prometheus
@pytest.mark.parametrize(
    ("series", "is_wanted"),
    [
        ('predictions_total{model="m", outcome="success", instance="a"} 7x30', False),
        ('predictions_total{model="m", outcome="success", instance="a"} 7+1x30', True),
        ('predictions_total{model="n", outcome="success", instance="a"} 7+1x30', False),
        ('ferry_requests_refused_total{reason="unknown_model", instance="a"} 3+1x30', True),
        ('ferry_requests_refused_total{reason="model_not_ready", instance="a"} 3+1x30', True),
        ('ferry_requests_refused_total{reason="bad_request", instance="a"} 3+1x30', False),
    ],
)
def test_a_group_that_sleeps_is_woken_by_who_asks_and_else_sleeps(
    tmp_path: Path, series: str, is_wanted: bool
) -> None:
    name, _, values = series.rpartition(" ")
    expected = {"expr": f"{SCALING[-1]} > bool 0", "eval_time": "20m"}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values}],
        "promql_expr_test": [
            expected | {"exp_samples": [{"labels": "{}", "value": float(is_wanted)}]}
        ],
    }
    file = tmp_path / "sleep.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))

    ended = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_prometheus
def test_what_prometheus_took_is_what_we_count(system: Settings, prometheus: Prometheus) -> None:
    with urlopen(f"http://127.0.0.1:{system.port}/metrics", timeout=30) as response:
        text = cast(bytes, response.read()).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}

    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    known = set(prometheus.ask("label/__name__/values"))
    problems = [line for line in checked.stderr.splitlines() if not line.startswith("nv_")]

    assert not problems
    assert {"predictions_total", "ferry_queue_requests", "nv_gpu_utilization"} <= names & known
    assert "prediction_latency_seconds_bucket" in known
    assert re.search(r"^nv_gpu_utilization\S* 0.25$", text, re.MULTILINE)
