"""`ferry verify`: the verdict whether a version answers as another, or as the original, does."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from shared.errors import BadModel
from shared.settings import Settings
from worker.optimise.data_files import read_data
from worker.optimise.figures import BY_PRECISION, Differences, Tolerances
from worker.optimise.precision import precision_of
from worker.optimise.quiet import quiet
from worker.optimise.references import Signals, write_record, write_reference
from worker.optimise.rows import Rows, made_up_rows
from worker.optimise.sameness import batch_sizes, sized_batches
from worker.optimise.subjects import (
    Original,
    Subject,
    check_held,
    load_version,
    original_subject,
)
from worker.repository.models import ServedModel, read_model, version_numbers
from worker.repository.verified import PASSED, digests

FAILED_VERDICT = "fail"
SEED = 16
EXPORTED_AS = "export.json"


@dataclass(frozen=True)
class VerifyOrder:
    """The options of `ferry verify`; tolerances that were said stand over the precision's.

    With `only_reference` nothing is compared, and what is known of the verdict stays.
    """

    name: str
    version: str = ""
    against: str = ""
    weights: Path | None = None
    arguments: str = "{}"
    data: Path | None = None
    label: str = ""
    precision: str = ""
    tolerances: Mapping[str, float] | None = None
    only_reference: bool = False


def verify(order: VerifyOrder, repository: Path, settings: Settings) -> dict[str, Any]:
    """Compare, write `verify.json` beside the version, and return it; raises BadModel.

    The record says `pass` or `fail`; an error, which is neither, leaves what was there.
    """
    _check_options(order)
    check_held(repository, order.name, order.version, order.against if _is_version(order) else "")
    with quiet():
        model = read_model(repository, order.name, order.version or None)
        candidate = load_version(model, settings)
        if order.only_reference:
            assert order.data is not None, "it was checked"
            rows = read_data(order.data, model.spec, model.asset, order.label)
            return write_reference(model, candidate, rows)
        reference = _reference(order, model, repository, settings)
        _check_alike(reference, candidate)
        record = compare(order, model, reference, candidate)
    write_record(model.file.parent, record)
    return record


def _check_options(order: VerifyOrder) -> None:
    """Raise BadModel for an option that would go unheard."""
    if order.label and order.data is None:
        raise BadModel("--label names a column of --data, which was not given")
    if order.only_reference and order.data is None:
        raise BadModel("--only-reference is made of rows, name them by --data")
    if order.only_reference and order.against:
        raise BadModel("--only-reference compares with nothing, and --against names something")
    has_callable = bool(order.against) and not _is_version(order)
    if not has_callable and (order.weights is not None or order.arguments != "{}"):
        option = "--arguments" if order.weights is None else "--weights"
        raise BadModel(f"{option} is of a callable, name it by --against package.module:callable")


def _is_version(order: VerifyOrder) -> bool:
    return order.against.isascii() and order.against.isdigit()


def _reference(
    order: VerifyOrder, model: ServedModel, repository: Path, settings: Settings
) -> Subject:
    """Return what is compared with: as said, else the exported original, else the version before.

    Raises BadModel when there is none.
    """
    if _is_version(order):
        return load_version(read_model(repository, order.name, order.against), settings)
    if order.against:
        original = Original(order.against, order.weights, order.arguments)
        return original_subject(original, model.spec)
    exported = exported_original(model.file.parent / EXPORTED_AS)
    if exported is not None:
        return original_subject(exported, model.spec)
    before = [
        version
        for version in version_numbers(repository / order.name)
        if int(version) < int(model.spec.version)
    ]
    if not before:
        raise BadModel(
            f"--against: version {model.spec.version} of '{order.name}' is its first, and nothing "
            "says what it was exported from: name a version, or package.module:callable"
        )
    return load_version(read_model(repository, order.name, before[-1]), settings)


def exported_original(record: Path) -> Original | None:
    """Return what a version was exported from, if `ferry export` wrote it down."""
    try:
        found = json.loads(record.read_bytes())
        weights = found["weights"]
        if ":" not in found["original"]:  # a file of another format
            return None
        return Original(
            found["original"], None if weights is None else Path(weights), found["arguments"]
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{record}: {error}: name what to compare with by --against") from error


def _check_alike(reference: Subject, candidate: Subject) -> None:
    """Raise BadModel unless both take the same inputs, and the reference gives all outputs."""
    ours, theirs = (
        [(each.name, each.datatype, each.dims) for each in subject.spec.inputs]
        for subject in (reference, candidate)
    )
    if ours != theirs:
        raise BadModel(
            f"{reference.name} takes {ours}, {candidate.name} {theirs}: they cannot be asked the "
            "same"
        )
    missing = {each.name for each in candidate.spec.outputs} - {
        each.name for each in reference.spec.outputs
    }
    if missing:
        raise BadModel(f"{reference.name} has no output {sorted(missing)[0]!r} to compare with")


def compare(
    order: VerifyOrder, model: ServedModel, reference: Subject, candidate: Subject
) -> dict[str, Any]:
    """Return the record of a comparison; raises BadModel where data or tolerances are wrong."""
    spec = model.spec
    precision = order.precision or precision_of(model)
    allowed = tolerances(precision, order.tolerances or {})
    sizes = batch_sizes(spec)
    made_up = made_up_rows(spec, sum(sizes), SEED, model.asset)
    figures = _added(reference, candidate, made_up)
    reasons = figures.faults(allowed, real=False)
    record: dict[str, Any] = {"verdict": "", "reasons": reasons}
    record |= {
        "model": spec.name, "version": spec.version, "against": reference.name,
        "precision": precision, "tolerances": asdict(allowed), "batches": sizes,
        "made_up_rows": figures.as_json(allowed),
    }  # fmt: skip
    if order.data is not None:
        rows = read_data(order.data, spec, model.asset, order.label)
        signals = Signals(spec)
        real = _added(reference, candidate, rows, signals)
        reasons += real.faults(allowed)
        record["data"] = {"source": rows.source, "rows": rows.count} | real.as_json(allowed)
        record["reference"] = signals.as_json()
    record["verdict"] = FAILED_VERDICT if reasons else PASSED
    return record | {
        "digests": digests(spec, model.file.parent),
        "seed": SEED,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {
            "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
    }  # fmt: skip


def tolerances(precision: str, said: Mapping[str, float]) -> Tolerances:
    """Return a precision's tolerances with those that were said in their place; raises BadModel."""
    if precision not in BY_PRECISION:
        raise BadModel(f"--precision {precision}: expected one of {', '.join(BY_PRECISION)}")
    known = {each.name for each in fields(Tolerances)}
    assert said.keys() <= known, "the command line has an option for each"
    return replace(BY_PRECISION[precision], **said)


def _added(
    reference: Subject, candidate: Subject, rows: Rows, signals: Signals | None = None
) -> Differences:
    """Compare batches of each size, then all rows once; raises BadModel where one raises.

    Accuracy counts each row once: batches of other sizes add their differences alone.
    """
    found, spec = Differences(candidate.spec), candidate.spec
    for _, batch in sized_batches(rows, spec):
        found.add_differences(reference.asked(batch), candidate.asked(batch))
    for numbers, batch in rows.batches(spec.batch_rows):
        labels = None if rows.labels is None else rows.labels[list(numbers)]
        ours, theirs = reference.asked(batch), candidate.asked(batch)
        found.add(ours, theirs, labels)
        if signals is not None:
            signals.add(batch, theirs)
    return found
