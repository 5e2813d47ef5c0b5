"""The report: a table, a chart with its Pareto front, and nothing in it that a text could break."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shared.settings import Settings
from worker.optimise.tuning.choice import Row
from worker.optimise.tuning.machine import Machine
from worker.optimise.tuning.measuring import Arrangement, Measured
from worker.optimise.tuning.report import as_json, as_markdown, as_table, as_text
from worker.optimise.tuning.report_page import NAMESPACE, Point, as_chart, as_page, pareto, points
from worker.optimise.tuning.task import Task

HOSTILE = '<script>alert("x")</script>|`&'
MEASURED = Measured(
    load_seconds=[0.25], memory_bytes=5_000_000,
    rates={(Arrangement(2, 1), 8): [90.0, 100.0, 120.0]},
    latencies={Arrangement(1, 2): [0.01, 0.02]},
)  # fmt: skip


def report(name: str = "a", reason: str = "", **figures: Any) -> dict[str, Any]:
    task = Task(Path("models"), "m", "1", Settings(), Path("work"), Path(HOSTILE))
    rows = [
        Row("original", "torch", "FP32", measured=MEASURED, size_bytes=10),
        Row(name, "torch", "INT8", "failed", reason, note=HOSTILE, figures=figures,
            measured=MEASURED, command="ferry optimise m", digest="d"),
        replace(Row("left out", "torch", "BF16"), verdict="not applicable", reason="no BF16"),
    ]  # fmt: skip
    machine = Machine("<b>a processor</b>", frozenset({"avx2"}), 2)
    settings = {"objective": "throughput", "max_accuracy_drop": 0.01}
    return as_json(task, machine, rows, settings, complete=True)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_a_page_escapes_whatever_names_and_reasons_hold() -> None:
    page = as_page(report(HOSTILE, HOSTILE, accuracy_drop=0.01))
    tags = Tags()
    tags.feed(page)

    assert "script" not in tags.found
    assert "b" not in tags.found
    assert not tags.addresses, "the page needs no network"
    assert "http" not in page.replace(NAMESPACE, "")


def test_markdown_keeps_its_columns_whatever_a_text_holds() -> None:
    table = [line for line in as_markdown(report(HOSTILE, HOSTILE)).splitlines() if line[:1] == "|"]
    unescaped = {len(re.findall(r"(?<!\\)\|", line)) for line in table}

    assert len(table) == 5
    assert len(unescaped) == 1


def test_figures_are_medians_with_their_spread() -> None:
    first = report()["variants"][0]

    assert first["rows_per_second"] == 100.0
    assert first["rows_per_second_spread"] == [90.0, 120.0]
    assert first["latency_seconds"] == pytest.approx(0.015)
    assert (first["batch"], first["instances"], first["threads"]) == (8, 2, 1)
    assert "100 ± 20" in as_markdown(report())


def test_a_variant_that_was_left_out_has_its_reason_and_no_figures() -> None:
    left_out = report()["variants"][2]

    assert left_out["reason"] == "no BF16"
    assert left_out["rows_per_second"] is None
    assert left_out["latency_seconds"] is None


def test_json_holds_no_number_that_json_has_not() -> None:
    text = as_text(report(accuracy_drop=math.nan, cosine=math.inf))

    assert json.loads(text, parse_constant=pytest.fail)


def test_the_front_is_of_those_that_nothing_beats_in_both() -> None:
    original, fast, beaten = Point("o", 0.0, 10), Point("f", 0.01, 30), Point("b", 0.02, 20)

    assert pareto([fast, beaten, original]) == [original, fast]


def test_the_chart_takes_what_is_known_of_the_loss() -> None:
    assert points(report(accuracy_drop=0.25))[0] == "fall of accuracy"
    words, found = points(report(cosine=0.75, agreement=1.0, accuracy_drop=0.0))
    assert words == "1 - mean cosine"
    assert found[1].loss == 0.25


def test_the_chart_is_a_file_by_itself_and_its_names_do_not_cover_each_other() -> None:
    chart = as_chart(report(accuracy_drop=0.0))  # as fast and as good as the original
    heights = [float(y) for y in re.findall(r'y="([\d.]+)">[^<]*</text>', chart)][-2:]

    assert chart.startswith(f'<svg xmlns="{NAMESPACE}"')
    assert abs(heights[0] - heights[1]) >= 13


def test_a_terminal_gets_a_line_for_each_variant() -> None:
    lines = as_table(report())

    assert len(lines) == 4
    assert lines[3].split()[-2:] == ["not", "applicable"]
