"""The report of an optimisation: report.json, and report.md made of it."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from worker.optimise.tuning.choice import CHOSEN, Row, best_setup, gain, is_measured
from worker.optimise.tuning.machine import Machine
from worker.optimise.tuning.measuring import Measured
from worker.optimise.tuning.task import Task

PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "numpy", "torchao")
WITHOUT_DATA = (
    "Without --data all rows are made up: ranges are learnt from noise, no accuracy is known."
)
AGREEMENT = ("agreement", "agreement_interval", "near_ties", "decided_agreement")
REPORT_FILES = ("report.json", "report.md", "report.html")
COLUMNS = (
    "variant", "precision", "size", "latency at 1", "rows/s", "times original", "batch",
    "instances x threads", "load", "memory", "accuracy", "drop", "cosine", "kernels", "verdict",
)  # fmt: skip


def as_json(
    task: Task,
    machine: Machine,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    complete: bool,
) -> dict[str, Any]:
    """Return report.json: what was tried, what it is like, where, and with what."""
    original = rows[0]
    return {
        "model": task.name,
        "version": task.version,
        "complete": complete,
        "settings": dict(settings),
        "variants": [_variant(row, original, str(settings["objective"])) for row in rows],
        "machine": machine.as_json(),
        "versions": versions(),
        "digests": {row.name: row.digest for row in rows if row.digest},
        "seed": task.seed,
        "data": None if task.data is None else str(task.data),
    }


def versions() -> dict[str, str]:
    """Return the versions of what variants are made and run with."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _variant(row: Row, original: Row, objective: str) -> dict[str, Any]:
    figures = row.figures
    return {
        "name": row.name,
        "runtime": row.runtime,
        "precision": row.precision,
        "verdict": row.verdict,
        "chosen": row.verdict == CHOSEN,
        "reason": row.reason,
        "note": row.note,
        "kernels": row.kernels,
        "size_bytes": row.size_bytes or None,
        "compressed_bytes": row.compressed_bytes or None,
        "rows_per_second": None,
        "latency_seconds": None,
        **(_speed(row, original, objective) if is_measured(row) else {}),
        "accuracy": figures.get("accuracy"),
        "accuracy_interval": figures.get("accuracy_interval"),
        "accuracy_drop": figures.get("accuracy_drop"),
        "cosine": figures.get("cosine"),
        **{key: figures.get(key) for key in AGREEMENT},
        "compared_rows": figures.get("rows"),
        "differences": {key: figures[key] for key in ("real", "made_up") if key in figures},
        "digest": row.digest or None,
        "made_seconds": round(row.made_seconds, 2),
        "command": row.command,
    }


def _speed(row: Row, original: Row, objective: str) -> dict[str, Any]:
    measured = row.measured
    assert measured is not None, "the caller has looked"
    setup = best_setup(measured, objective)
    rates = measured.rates[setup.arrangement, setup.batch]
    soonest = min(measured.latencies.values(), key=statistics.median, default=[0.0])
    return {
        "rows_per_second": statistics.median(rates),
        "rows_per_second_spread": [min(rates), max(rates)],
        "latency_seconds": statistics.median(soonest),
        "latency_seconds_spread": [min(soonest), max(soonest)],
        "times_original": gain(row, original, "throughput") if is_measured(original) else None,
        "batch": setup.batch,
        "instances": setup.arrangement.instances,
        "threads": setup.arrangement.threads,
        "rounds": len(rates),
        "load_seconds": statistics.median(measured.load_seconds),
        "peak_memory_bytes": measured.memory_bytes,
        "measurements": _all_rates(measured),
    }


def _all_rates(measured: Measured) -> list[dict[str, Any]]:
    return [
        {
            "instances": arrangement.instances, "threads": arrangement.threads, "batch": batch,
            "rows_per_second": statistics.median(rates),
            "spread": [min(rates), max(rates)],
        }
        for (arrangement, batch), rates in sorted(measured.rates.items())
    ]  # fmt: skip


def cells(variant: Mapping[str, Any]) -> list[str]:
    """Return a variant's row of the table, a text for each of COLUMNS."""
    verdict = variant["verdict"] + (f": {variant['reason']}" if variant["reason"] else "")
    size = _megabytes(variant["size_bytes"])
    if variant["compressed_bytes"]:
        size += f" ({_megabytes(variant['compressed_bytes'])} compressed)"
    has_speed = variant["rows_per_second"] is not None
    return [
        variant["name"],
        variant["precision"],
        size,
        _spread(variant, "latency_seconds", 1000, " ms"),
        _spread(variant, "rows_per_second", 1, ""),
        _number(variant.get("times_original"), 2),
        str(variant["batch"]) if has_speed else "",
        f"{variant['instances']} x {variant['threads']}" if has_speed else "",
        f"{variant['load_seconds']:.2f} s" if has_speed else "",
        _megabytes(variant["peak_memory_bytes"]) if has_speed else "",
        _accuracy(variant),
        _number(variant["accuracy_drop"], 4),
        _number(variant["cosine"], 5),
        variant["kernels"],
        verdict,
    ]


def _spread(variant: Mapping[str, Any], key: str, factor: float, unit: str) -> str:
    if variant[key] is None:
        return ""
    low, high = variant[f"{key}_spread"]
    middle = variant[key]
    half = max(high - middle, middle - low) * factor
    return f"{middle * factor:.4g} ± {half:.2g}{unit}"


def _accuracy(variant: Mapping[str, Any]) -> str:
    if variant["accuracy"] is not None:
        low, high = variant["accuracy_interval"]
        return f"{variant['accuracy']:.4f} ({low:.4f} to {high:.4f})"
    if variant["agreement"] is None:
        return ""
    low, high = variant["agreement_interval"]
    ties = f", {variant['near_ties']} near ties" if variant["near_ties"] else ""
    return f"same class {variant['agreement']:.4f} ({low:.4f} to {high:.4f}{ties})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _megabytes(count: int | None) -> str:
    return "" if not count else f"{count / 1e6:.3g} MB"


def as_text(report: Mapping[str, Any]) -> str:
    """Return report.json's text; null stands for what is not finite."""
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return report.md."""
    lines = [f"# {plain(headline(report))}", "", plain(circumstances(report)), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(map(plain, cells(each)))} |" for each in report["variants"]]
    lines += ["", "## Notes", ""]
    lines += [f"- {plain(v['name'])}: {plain(v['note'])}." for v in report["variants"] if v["note"]]
    lines += ["", "## Again", "", "```sh"]
    lines += [v["command"] for v in report["variants"] if v["command"]]
    lines += ["```", "", "Digests (SHA-256) of the files:", ""]
    lines += [f"- {plain(name)}: `{digest}`" for name, digest in report["digests"].items()]
    return "\n".join(lines) + "\n"


NARROW = (0, 1, 2, 3, 4, 5, 11, 12, 13)
"""The columns that a terminal is wide enough for, the verdict's first word besides."""


def as_table(report: Mapping[str, Any]) -> list[str]:
    """Return the most important columns for a terminal, a line for each variant."""
    rows = [[COLUMNS[at] for at in NARROW] + ["verdict"]]
    for variant in report["variants"]:
        texts = cells(variant)
        rows.append([texts[at].partition(" (")[0] for at in NARROW] + [variant["verdict"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def plain(text: str) -> str:
    """Return a text that is one cell of Markdown, whatever is in it."""
    escaped = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|`*_<>[]":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def headline(report: Mapping[str, Any]) -> str:
    """Return the outcome in one sentence."""
    name = f"{report['model']} version {report['version']}"
    chosen = next((each for each in report["variants"] if each["chosen"]), None)
    if not report["complete"]:
        return f"{name}: not finished, what there is so far"
    if chosen is None or chosen is report["variants"][0]:
        return f"{name}: nothing that was tried is faster within the limits, it stays"
    times = f"{chosen['times_original']:.2f} times the original's rows/s"
    return f"{name}: {chosen['name']} is chosen, {times}"


def circumstances(report: Mapping[str, Any]) -> str:
    """Return on what, with what and how it was measured, in sentences."""
    machine, settings = report["machine"], report["settings"]
    tools = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    data = f"Data: {report['data']}." if report["data"] else WITHOUT_DATA
    return (
        f"{machine['processor']}, {machine['cores']} cores, "
        f"flags {', '.join(machine['flags']) or 'unknown'}. {tools}. Objective "
        f"{settings['objective']}, accuracy may fall by {settings['max_accuracy_drop']:g}, seed "
        f"{report['seed']}. {data} Medians over interleaved rounds, ± the farthest round."
    )
