"""`ferry verify` and `ferry edge`: print the verdict on a version, and on each file of a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ferry.commands.progress_bar import progress_bar
from ferry.errors import EXIT_FAILED
from shared.settings import Settings
from worker.optimise.edge.bundle import EdgeOrder, make_bundle
from worker.optimise.verify import VerifyOrder, verify
from worker.repository.verified import PASSED


def run_verify(environ: Mapping[str, str], order: VerifyOrder, *, as_json: bool) -> int:
    """Verify, print what was found; return 1 when the verdict is not `pass`. Raises BadModel."""
    settings = Settings.from_env(environ)
    with progress_bar(order.name) as tell:
        tell(None, "verifying")
        record = verify(order, Path(settings.models), settings)
    subject = f"{record['model']}/{record['version']}"
    as_text = _of_reference if order.only_reference else _as_text
    print(json.dumps(record) if as_json else as_text(record, subject), flush=True)
    if order.only_reference:
        return 0
    return 0 if record["verdict"] == PASSED else EXIT_FAILED


def _of_reference(record: Mapping[str, Any], subject: str) -> str:
    of = record["reference_of"]
    return f"{subject}: reference of {of['rows']} rows of {of['source']}: " + ", ".join(
        record["reference"]
    )


def run_edge(environ: Mapping[str, str], order: EdgeOrder) -> int:
    """Make a bundle, print how each of its files compares. Raises BadModel."""

    def say(line: str) -> None:
        print(line, flush=True)

    with progress_bar(order.name) as tell:
        tell(None, "making files")
        made = make_bundle(order, Path(Settings.from_env(environ).models), environ, say)
    for name, record in made.parity.items():
        say(_as_text(record, name))
    for note in made.notes:
        say(note)
    files = made.manifest["files"]
    sizes = [f"{n} {files[n]['size_bytes'] / 1e6:.1f} MB" for n in made.manifest["model_files"]]
    say(f"{made.directory}: {', '.join(sizes)}")
    return 0


def _as_text(record: Mapping[str, Any], subject: str) -> str:
    sizes = ", ".join(map(str, record["batches"]))
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
