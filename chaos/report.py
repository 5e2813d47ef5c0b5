"""The table that a run prints, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report import aligned
from chaos.verdict import Row

HEADINGS = ("scenario", "what was hit", "measured", "times", "sent", "right", "failed", "wrong",
            "refused", "again", "reconn", "slowest_s", "next_s")  # fmt: skip
WORD_COLUMNS = 3
TROUBLES_SHOWN = 5


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text; `-` where a scenario has no such figure."""
    return aligned([HEADINGS, *(_cells(row) for row in rows)], WORD_COLUMNS)


def troubles(row: Row) -> str:
    """Return the first of a row's failures and wrong answers, one a line."""
    shown = [f"  {row.scenario.name}: {text}" for text in row.troubles[:TROUBLES_SHOWN]]
    rest = len(row.troubles) - len(shown)
    return "\n".join([*shown, *([f"  and {rest} more"] if rest else [])])


def _cells(row: Row) -> tuple[str, ...]:
    scenario, seconds = row.scenario, row.measured_seconds
    times = f"{row.times}" if row.times == scenario.times else f"{row.times}/{scenario.times}"
    return (
        scenario.name,
        scenario.killed,
        "-" if seconds is None else f"{scenario.measures} <= {seconds:.2f} s",
        times,
        *map(str, (row.sent, row.right, row.failed, row.wrong, row.refused, row.again_count)),
        str(row.reconnected),
        f"{row.slowest_seconds:.2f}",
        "-" if row.next_answer_seconds is None else f"{row.next_answer_seconds:.3f}",
    )
