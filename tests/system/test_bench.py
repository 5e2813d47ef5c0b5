"""The benchmarks' arithmetic and their reading of wrk; what they measure is not tested here."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from bench import wrk
from bench.__main__ import parse_arguments
from bench.comparison import SAME_BODY, Plan, Variant, run_rounds
from bench.engine import heads
from bench.floors import Floor, cautions, device_shares, floors
from bench.measurements import Measurement, Row, mean_batch, summarize
from bench.processes import BenchError
from bench.report import save, table
from bench.scenarios import SCENARIOS
from bench.single_requests import Request, batch_size

SUMMARY = (
    'Running 2s test @ http://127.0.0.1:8000/x\n\nbench-summary {"requests": 1005, '
    '"duration": 2000000, "p50": 1500, "p99": 25000, "status": 5, "connect": 1, "read": 2, '
    '"write": 3, "timeout": 4}\n'
)


def row(scenario: str, variant: str, clients: int | None, per_second: float) -> Row:
    return Row(scenario, variant, clients, per_second, 0.001, 0.002, None, 0, 0.0)


def test_wrk_summary_is_read_in_seconds_and_without_failed_answers() -> None:
    measured = wrk.parse(SUMMARY)

    assert measured == Measurement(500.0, 0.0015, 0.025, error_count=15, answer_count=1000)


@pytest.mark.parametrize("output", ["", "Running 2s test", SUMMARY.replace("1005", "0")])
def test_wrk_without_answers_is_an_error_and_not_a_rate(output: str) -> None:
    with pytest.raises(BenchError):
        wrk.parse(output)


class Echo(BaseHTTPRequestHandler):
    """Answers 200 to the right body and type, else 400; keeps its connections."""

    protocol_version = "HTTP/1.1"
    expected = bytes(range(256)) * 300

    traces: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.traces += self.headers.get_all("X-Trace", [])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        right = body == self.expected and self.headers["Content-Type"] == "image/x"
        self.send_response(200 if right else 400)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_wrk_sends_the_body_as_it_is_and_another_number_in_each_head(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed (apt-get install wrk)")
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        headers = (("X-Trace", f"a{wrk.NUMBER}b"),)
        request = Request(port, "/", "POST", "image/x", Echo.expected, headers)

        measured = wrk.measure(request, clients=2, seconds=1, directory=tmp_path)
        server.shutdown()

    assert measured.error_count == 0
    assert measured.per_second > 0
    assert measured.batch_sizes == ()
    numbered = [trace for trace in Echo.traces if re.fullmatch("a[0-9a-f]{8}b", trace)]
    assert len(set(numbered)) == len(numbered) >= measured.answer_count


def test_heads_that_differ_and_many_clients_have_floors() -> None:
    good = {
        (64, heads.REPEATING): heads.Load(1000.0, 200.0, 10.0, 20.0),
        (64, heads.DIFFERING): heads.Load(900.0, 240.0, 10.0, 20.0),
        (256, heads.REPEATING): heads.Load(900.0, 210.0, 50.0, 200.0),
    }
    bad = {case: load._replace(per_second=899.0, p99_ms=201.0) for case, load in good.items()}
    bad[64, heads.REPEATING] = good[64, heads.REPEATING]._replace(api_us=199.0)

    assert [floor.passed for floor in heads.floors(good)] == [True] * 3
    assert [floor.passed for floor in heads.floors(bad)] == [False] * 3
    assert [floor.passed for floor in heads.floors({})] == [None] * 3


def test_rows_hold_medians_and_all_errors() -> None:
    rounds = [
        Measurement(100.0, 0.010, 0.100, (1, 1), 1, 90),
        Measurement(400.0, 0.030, 0.300, (2,), 0, 80),
        Measurement(200.0, 0.020, 0.200, (), 2, 70),
    ]

    summary = summarize("tiny", "ferry", 16, rounds)

    assert summary == Row("tiny", "ferry", 16, 200.0, 0.020, 0.200, 1.2, 3, 1.5, 70)


def test_mean_batch_is_that_of_batches_and_not_of_requests() -> None:
    # 32 requests together and one alone are two batches.
    assert mean_batch([32] * 32 + [1]) == pytest.approx(16.5)
    assert mean_batch([]) is None


def test_batch_size_is_read_from_timings() -> None:
    assert batch_size(b'{"timings": {"batch_size": 7}}') == 7
    assert batch_size(b'{"value": 1}') is None


def test_rounds_are_interleaved(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def variant(name: str, rate: float) -> Variant:
        def measure(seconds: int) -> Measurement:
            order.append(f"{name}{seconds}")
            return Measurement(rate)

        return Variant(name, None, measure)

    rows = run_rounds("tiny", [variant("a", 1.0), variant("b", 2.0)], rounds=2, seconds=3)

    assert order == ["a3", "b3", "a3", "b3"]
    assert [(line.variant, line.per_second) for line in rows] == [("a", 1.0), ("b", 2.0)]
    assert "round 2/2" in capsys.readouterr().out


FULL_RUN = [
    replace(row("tiny", "ferry", 1, 500.0), p50_seconds=0.0035),
    row("tiny", "constant", 1, 1500.0),
    row("tiny", SAME_BODY, 1, 1000.0),
    row("tiny", "ferry", 16, 500.0),
    row("tiny", "constant", 16, 1000.0),
    row("tiny", "ferry", 64, 690.0),
    row("tiny", "constant", 64, 1000.0),
    row("resnet18", "ferry", 32, 70.0),
    row("resnet18", "bare forward", None, 200.0),
    row("resnet18", "bare pictures 1x2", None, 60.0),
    row("resnet18", "bare pictures 2x1", None, 77.0),
    row("edge", "read 150,528 numbers", None, 24.0),
    row("edge", "orjson + numpy alone", None, 40.0),
    row("simulated", "1 instance", 24, 380.0),
    row("simulated", "2 instances", 48, 760.0),
    row("simulated", "4 instances", 96, 1368.0),
]


def test_floors_are_ratios_of_the_right_rows() -> None:
    results = floors(FULL_RUN)

    ratios = [floor.ratio for floor in results]
    assert ratios == pytest.approx([0.69, 0.5, 3.5, 70 / 77, 1.0, 0.9, 0.6, 0.0])
    assert [floor.passed for floor in results] == [
        False, True, False, True, True, False, True, True,
    ]  # fmt: skip


def test_floors_of_rows_that_are_missing_are_not_judged() -> None:
    results = floors(FULL_RUN[2:3])

    assert [floor.passed for floor in results] == [None] * 7 + [True]
    assert str(results[0]).endswith("not measured")


def test_an_error_anywhere_fails_the_run() -> None:
    rows = [replace(row("digits", "ferry", 1, 5.0), error_count=1)]

    assert floors(rows)[-1].passed is False


def test_a_limit_that_is_met_exactly_passes() -> None:
    assert Floor("at least", 0.9, 0.9).passed
    assert Floor("at most", 3.0, 3.0, at_most=True).passed


def test_devices_are_compared_with_what_they_could_do_at_best() -> None:
    # Batches of 8 that take 20 ms: 400 rows a second from each instance.
    assert device_shares(FULL_RUN).endswith("1 instance 0.95, 2 instances 0.95, 4 instances 0.85")
    assert device_shares(FULL_RUN[:1]) == ""


def test_rows_from_few_answers_or_unlike_rounds_are_pointed_out() -> None:
    few = replace(row("resnet18", "ferry", 32, 70.0), answer_count=319)
    unlike = replace(row("tiny", "ferry", 1, 70.0), answer_count=10, spread=0.16)

    assert [line.partition(":")[2][:20] for line in cautions([few, unlike])] == [
        " resnet18 ferry @32:",
        " tiny ferry @1: roun",
    ]
    assert cautions(FULL_RUN) == []


def test_table_lines_up_and_shows_milliseconds() -> None:
    lines = table(
        [row("tiny", "ferry", 64, 1234.5), row("tiny", "bare forward", None, 9.0)]
    ).splitlines()

    assert lines[0].split()[:6] == ["scenario", "variant", "clients", "per_s", "p50_ms", "p99_ms"]
    assert lines[1].split() == ["tiny", "ferry", "64", "1234.5", "1.00", "2.00", "-", "0", "0.00"]
    assert len({len(line) for line in lines}) == 1


def test_results_are_kept_as_tsv_with_the_facts_of_the_run(tmp_path: Path) -> None:
    facts = {"date": "2026-11-21T05:00:00Z", "commit": "abc", "cores": "2"}

    path = save([row("tiny", "ferry", 64, 1234.5)], facts, tmp_path / "results")

    heading, line = (text.split("\t") for text in path.read_text().splitlines())
    cells = dict(zip(heading, line, strict=True))
    assert path.name == "2026-11-21T050000Z.tsv"
    assert cells["commit"] == "abc"
    assert cells["clients"] == "64"
    assert cells["per_s"] == "1234.5"


def test_arguments_choose_scenarios_and_lengths() -> None:
    everything = ["tiny", "digits", "sentiment", "resnet18", "edge", "simulated"]
    assert parse_arguments([]) == (everything, Plan())
    assert parse_arguments(["tiny", "--quick"]) == (["tiny"], Plan(1, 1))
    assert parse_arguments(["--quick", "--rounds", "2", "--clients", "4,8"])[1] == Plan(
        1, 2, (4, 8)
    )


@pytest.mark.parametrize("arguments", [["huge"], ["--rounds", "0"], ["--clients", "1,x"]])
def test_unusable_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)


def test_resnet18_is_also_measured_at_its_floor() -> None:
    assert Plan().clients_of(SCENARIOS["resnet18"]) == [1, 16, 32, 64]
    assert Plan(clients=(8,)).clients_of(SCENARIOS["resnet18"]) == [8]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_has_the_body_its_type_says(name: str) -> None:
    scenario = SCENARIOS[name]
    starts = {"application/json": b"{", "image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8"}

    assert scenario.body().startswith(starts[scenario.content_type])
