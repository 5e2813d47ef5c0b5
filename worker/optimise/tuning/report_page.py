"""The report as one page: report.html, which needs no network, with a chart drawn in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from worker.optimise.tuning.report import COLUMNS, cells, circumstances, headline

NAMESPACE = "http://www.w3.org/2000/svg"
"""By which a file of its own is known as SVG; nothing is fetched from there."""
WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 760, 360, 70, 50, 20
STYLE = """
:root { color-scheme: light dark; --line: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px;
 padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .3em .6em; text-align: left; }
tr.chosen { font-weight: 600; } tr.failed, tr.not { opacity: .7; }
svg { max-width: 100%; height: auto; } pre { overflow-x: auto; }
"""
CHART_STYLE = """
svg { font: 12px system-ui, sans-serif; fill: #777; } .axis { stroke: #777; fill: none; }
.front { stroke: #1a9f6a; fill: none; } circle.on { fill: #1a9f6a; }
"""
"""Grey and green are legible on light and on dark, wherever the chart stands by itself."""
LABEL_HEIGHT = 13.0
MEASURES = (
    ("accuracy_drop", "fall of accuracy"),
    ("agreement", "share of rows with another class"),
    ("cosine", "1 - mean cosine"),
)


class Point(NamedTuple):
    """A variant in the chart: what it loses, how fast it is."""

    name: str
    loss: float
    rate: float


def as_page(report: Mapping[str, Any]) -> str:
    """Return report.html; every text in it is escaped."""
    head = "".join(f"<th>{escape(each)}</th>" for each in COLUMNS)
    body = "".join(_row(each) for each in report["variants"])
    commands = "\n".join(each["command"] for each in report["variants"] if each["command"])
    notes = "".join(
        f"<li>{escape(each['name'])}: {escape(each['note'])}.</li>"
        for each in report["variants"]
        if each["note"]
    )
    digests = "".join(
        f"<li>{escape(name)} <code>{escape(digest)}</code></li>"
        for name, digest in report["digests"].items()
    )
    title = escape(headline(report))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(circumstances(report))}</p>{as_chart(report)}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<h2>Notes</h2><ul>{notes}</ul><h2>Again</h2><pre>{escape(commands)}</pre>"
        f"<h2>Digests (SHA-256)</h2><ul>{digests}</ul></body></html>\n"
    )


def _row(variant: Mapping[str, Any]) -> str:
    kind = escape(variant["verdict"].split()[0], quote=True)
    return f'<tr class="{kind}">{"".join(f"<td>{escape(c)}</td>" for c in cells(variant))}</tr>'


def points(report: Mapping[str, Any]) -> tuple[str, list[Point]]:
    """Return what is lost, in words, and each measured variant's place in the chart.

    Of what is known the first counts by which they differ.
    """
    measured = [each for each in report["variants"] if each["rows_per_second"] is not None]
    for key, words in MEASURES:
        found = [
            Point(each["name"], _loss(each[key], key), each["rows_per_second"]) for each in measured
        ]
        if any(each.loss for each in found):
            return words, found
    return MEASURES[-1][1], found


def _loss(value: float | None, key: str) -> float:
    if value is None:  # the original
        return 0.0
    return value if key == "accuracy_drop" else 1 - value


def pareto(found: Sequence[Point]) -> list[Point]:
    """Return the points that no other is both as fast as and as faithful as, slowest first."""
    front = [
        point
        for point in found
        if not any(
            other.rate >= point.rate and other.loss <= point.loss and other[1:] != point[1:]
            for other in found
        )
    ]
    return sorted(front, key=lambda each: each.rate)


def as_chart(report: Mapping[str, Any]) -> str:
    """Return the chart of a report as SVG, which may stand in a page or in a file of its own."""
    words, found = points(report)
    if not found:
        return ""
    low = min(0.0, *(each.loss for each in found))
    high = max(*(each.loss for each in found), low + 1e-6)
    top = max(each.rate for each in found) * 1.1
    front = pareto(found)

    def at(point: Point) -> tuple[float, float]:
        x = LEFT + (point.loss - low) / (high - low) * (WIDTH - LEFT - 9 * EDGE)
        return x, HEIGHT - BOTTOM - point.rate / top * (HEIGHT - BOTTOM - EDGE)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, front))
    marks, below = "", HEIGHT + LABEL_HEIGHT
    for point in sorted(found, key=lambda each: each.rate):  # from below, so that labels move up
        x, y = at(point)
        below = min(y + 4, below - LABEL_HEIGHT)
        marks += _mark(point, (x, y), below, point in front)
    floor = HEIGHT - BOTTOM
    return (
        f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Speed against {words}"><style>{CHART_STYLE}</style>'
        f'<path class="axis" d="M{LEFT} {EDGE}V{floor}H{WIDTH - EDGE}"/>'
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{escape(words)}: {low:.4g} to {high:.4g}; '
        f"the line is the Pareto front</text>"
        f'<text x="4" y="{EDGE + 4}">{top:.4g}</text><text x="4" y="{floor}">0</text>'
        f'<text x="4" y="{HEIGHT // 2}">rows/s</text>'
        f'<polyline class="front" points="{line}"/>{marks}</svg>'
    )


def _mark(point: Point, place: tuple[float, float], label: float, is_on_front: bool) -> str:
    x, y = place
    kind = ' class="on"' if is_on_front else ""
    return (
        f'<circle{kind} cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        f'<text x="{x + 8:.1f}" y="{label:.1f}">{escape(point.name)}</text>'
    )
