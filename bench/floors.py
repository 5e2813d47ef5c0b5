"""The floors that Ferry must hold: ratios between rows of one run, so the machine cancels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.children.simulated_device import BATCH_ROWS, BATCH_SECONDS
from bench.comparison import SAME_BODY, SIMULATED, instances
from bench.edge import AT_LEAST, EDGE, PARSE
from bench.measurements import Row
from bench.scaling import INSTANCE_COUNTS

MOST_SPREAD = 0.15
FEWEST_ANSWERS_PER_CLIENT = 10


@dataclass(frozen=True)
class Floor:
    """One ratio and what it must be; `ratio` is None when a row of it was not measured."""

    what: str
    ratio: float | None
    limit: float
    at_most: bool = False

    @property
    def passed(self) -> bool | None:
        """Tell whether the ratio is on the right side of its limit, itself included."""
        if self.ratio is None:
            return None
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit

    def __str__(self) -> str:
        """Return the floor's line under the table."""
        word = {True: "pass", False: "FAIL", None: "not measured"}[self.passed]
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return f"{self.what:58} {'<=' if self.at_most else '>='} {self.limit:<5} {ratio:>6}  {word}"


def floors(rows: Sequence[Row]) -> list[Floor]:
    """Return all floors with the ratios that `rows` give them."""
    tiny = [row for row in rows if row.scenario == "tiny"]
    resnet = [row for row in rows if row.scenario == "resnet18"]
    edge = [row for row in rows if row.scenario == EDGE]
    bare = max((row.per_second for row in resnet if "pictures" in row.variant), default=None)
    return [
        *(
            Floor(
                f"tiny @{clients}: requests/s of the constant route's",
                _ratio(_rate(tiny, "ferry", clients), _rate(tiny, "constant", clients)),
                limit,
            )
            for clients, limit in ((64, 0.7), (16, 0.5))
        ),
        Floor(
            "tiny @1: p50 in p50s of the constant route, same body",
            _ratio(_p50(tiny, "ferry", 1), _p50(tiny, SAME_BODY, 1)),
            3.0,
            at_most=True,
        ),
        Floor(
            "resnet18 @32: pictures/s of bare decode + forward's",
            _ratio(_rate(resnet, "ferry", 32), bare),
            0.9,
        ),
        *_scaling_floors(rows),
        Floor(
            "edge: reads of a large JSON tensor, of orjson + numpy's",
            _ratio(_rate(edge, PARSE), _rate(edge, AT_LEAST)),
            0.5,
        ),
        Floor(
            "errors, in all rows", float(sum(row.error_count for row in rows)), 0.0, at_most=True
        ),
    ]


def _scaling_floors(rows: Sequence[Row]) -> list[Floor]:
    simulated = [row for row in rows if row.scenario == SIMULATED]
    one = _rate(simulated, instances(1))
    return [
        Floor(
            f"simulated device, {instances(count)}: of {count} x 1 instance",
            _ratio(_rate(simulated, instances(count)), one and count * one),
            0.95,
        )
        for count in (2, 4)
    ]


def cautions(rows: Sequence[Row]) -> list[str]:
    """Return why some rows must not be trusted, one line each."""
    lines = []
    for row in rows:
        name = f"{row.scenario} {row.variant}" + (f" @{row.clients}" if row.clients else "")
        if row.spread > MOST_SPREAD:
            lines.append(
                f"caution: {name}: rounds differ by {row.spread:.0%}, is the machine busy?"
            )
        if _is_thin(row):
            lines.append(f"caution: {name}: only {row.answer_count} answers, raise --seconds")
    return lines


def _is_thin(row: Row) -> bool:
    """Tell whether what wrk drops at the end, up to one answer per client, may weigh."""
    if row.answer_count is None or row.clients is None:
        return False
    return row.answer_count < FEWEST_ANSWERS_PER_CLIENT * row.clients


def device_shares(rows: Sequence[Row]) -> str:
    """Return how near the simulated devices came to what they could do at best, as a line."""
    shares = [
        f"{row.variant} {row.per_second / (count * BATCH_ROWS / BATCH_SECONDS):.2f}"
        for count in INSTANCE_COUNTS
        for row in rows
        if row.scenario == SIMULATED and row.variant == instances(count)
    ]
    return f"simulated device, of its own limit: {', '.join(shares)}" if shares else ""


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _rate(rows: Sequence[Row], variant: str, clients: int | None = None) -> float | None:
    row = _find(rows, variant, clients)
    return None if row is None else row.per_second


def _p50(rows: Sequence[Row], variant: str, clients: int) -> float | None:
    row = _find(rows, variant, clients)
    return None if row is None else row.p50_seconds


def _find(rows: Sequence[Row], variant: str, clients: int | None) -> Row | None:
    for row in rows:
        if row.variant == variant and clients in (None, row.clients):
            return row
    return None
