"""What is left of a run: a table for the eye and a TSV under bench/results/ for later."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.comparison import Plan
from bench.measurements import Row
from bench.processes import PROJECT_ROOT
from shared.cores import default_cores
from shared.settings import Settings

RESULTS = Path(__file__).resolve().parent / "results"
HEADINGS = ("scenario", "variant", "clients", "per_s", "p50_ms", "p99_ms", "batch", "errors",
            "spread")  # fmt: skip
# The first two columns hold words, all others numbers.
WORD_COLUMNS = 2


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text; `-` where a variant has no such figure."""
    return aligned([HEADINGS, *(_cells(row) for row in rows)], WORD_COLUMNS)


def aligned(lines: Sequence[Sequence[str]], word_columns: int) -> str:
    """Return lines of cells as text, the first columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < word_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def tsv(rows: Sequence[Row], run: dict[str, str]) -> str:
    """Return the rows as tab-separated text with a heading; `run` stands before each of them."""
    lines = [[*run, *HEADINGS], *([*run.values(), *_cells(row)] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


def run_facts(plan: Plan, settings: Settings) -> dict[str, str]:
    """Return what must be known to compare this run with another."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(),
        "cores": str(default_cores()),
        "processes": str(settings.api_process_count),
        "connections": str(settings.api_connections),
        "rounds": str(plan.rounds),
        "seconds": str(plan.seconds),
    }


def save(rows: Sequence[Row], run: dict[str, str], directory: Path = RESULTS) -> Path:
    """Write the TSV of one run, named by its date; return its path."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{run['date'].replace(':', '')}.tsv"
    path.write_text(tsv(rows, run))
    return path


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.scenario,
        row.variant,
        "-" if row.clients is None else str(row.clients),
        f"{row.per_second:.1f}",
        _number(row.p50_seconds, 1e3, 2),
        _number(row.p99_seconds, 1e3, 2),
        _number(row.mean_batch, 1, 1),
        str(row.error_count),
        f"{row.spread:.2f}",
    )


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _commit() -> str:
    """Return the checked-out commit, `-dirty` when the tree differs; takes no lock of git's."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
