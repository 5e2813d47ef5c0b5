"""`ferry verify`: prints the verdict on a version, for people and for CI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry.errors import EXIT_FAILED
from shared.settings import Settings
from worker.optimise.verify import VerifyOrder, verify
from worker.repository.verified import PASSED


@dataclass(frozen=True)
class Verified:
    """The options of the command, as they were written."""

    name: str
    version: str = ""
    against: str = ""
    weights: Path | None = None
    arguments: str = "{}"
    data: Path | None = None
    label: str = ""
    precision: str = ""
    max_relative: float | None = None
    min_cosine: float | None = None
    min_agreement: float | None = None
    max_accuracy_drop: float | None = None


TOLERANCES = ("max_relative", "min_cosine", "min_agreement", "max_accuracy_drop")


def run_verify(environ: Mapping[str, str], options: Verified, *, as_json: bool) -> int:
    """Verify, print what was found; return 1 when the verdict is not `pass`. Raises BadModel."""
    settings = Settings.from_env(environ)
    said = {name: getattr(options, name) for name in TOLERANCES}
    order = VerifyOrder(
        options.name, options.version, options.against, options.weights, options.arguments,
        options.data, options.label, options.precision,
        {name: value for name, value in said.items() if value is not None},
    )  # fmt: skip
    record = verify(order, Path(settings.models), settings)
    print(json.dumps(record) if as_json else _as_text(record), flush=True)
    return 0 if record["verdict"] == PASSED else EXIT_FAILED


def _as_text(record: dict[str, Any]) -> str:
    sizes = ", ".join(map(str, record["batches"]))
    subject = f"{record['model']}/{record['version']}"
    lines = [f"{subject} against {record['against']}, {record['precision']}, in batches of {sizes}"]
    for key in ("made_up_rows", "data"):
        if key in record:
            lines += _figures(record[key])
    lines += [f"  {reason}" for reason in record["reasons"]]
    return "\n".join([*lines, f"verdict: {record['verdict']}"])


def _figures(found: dict[str, Any]) -> list[str]:
    source = found.get("source", "made-up rows")
    lines = []
    for name, each in found["outputs"].items():
        centred = each["min_centred_cosine"]
        cosine = each["min_cosine"] if centred is None else centred
        lines.append(
            f"  {source}: {name}: {each['rows']} answers, largest difference "
            f"{_number(each['max_absolute'])}, relative {_number(each['max_relative'])}, least "
            f"cosine {_number(cosine)}"
        )
    if agreement := found.get("agreement"):
        low, high = agreement["interval"]
        lines.append(
            f"  {source}: same class for {agreement['top1']:.4f} of {agreement['rows']} rows "
            f"(95 %: {low:.4f} to {high:.4f})"
        )
        if "labelled_rows" in agreement:
            was, now = agreement["reference_accuracy"], agreement["candidate_accuracy"]
            low, high = agreement["candidate_accuracy_interval"]
            lines.append(
                f"  {source}: accuracy {now:.4f} (95 %: {low:.4f} to {high:.4f}), {was:.4f} before"
            )
    return lines


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
