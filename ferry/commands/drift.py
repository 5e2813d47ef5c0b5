"""`ferry models drift`: how far what versions are asked and answer is from their references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, show
from shared.drift.counts import Counted, DriftCounts
from shared.drift.findings import FEWEST_ROWS, SignalDrift, findings, low_confidence
from shared.drift.reference import Reference, reference_of
from shared.errors import UnknownModel
from shared.model_spec import ModelSpec
from shared.registry.registry import Registry

DRIFT_COLUMNS = (
    Column("model", lambda row: row["model"]),
    Column("version", lambda row: row["version"], is_number=True),
    Column("signal", lambda row: row["signal"] or ""),
    Column("answers", lambda row: "" if row["rows"] is None else row["rows"], is_number=True),
    Column("PSI", lambda row: _number(row["psi"]), is_number=True),
    Column("limit", lambda row: _number(row["limit"]), is_number=True),
    Column("JS", lambda row: _number(row["jensen_shannon"]), is_number=True),
    Column("KS", lambda row: _number(row["kolmogorov_smirnov"]), is_number=True),
    Column("finding", lambda row: row["finding"]),
)
FOOTER = (
    "limit  0.1, or the noise floor of so many answers where that is above: without drift one look "
    "in a thousand finds a PSI above it"
)


class _Version(NamedTuple):
    spec: ModelSpec
    reference: Reference | None


def drift(environ: Mapping[str, str], name: str, hours: int, *, as_json: bool) -> int:
    """Print each signal of a model's versions, or of all models'; raises UnknownModel.

    Of the latest answers, about 500, or of the last `hours` if that is not 0.
    """
    with redis_to_inspect(environ) as (settings, client):
        registry = Registry(client, settings.key_prefix)
        models = registry.snapshot().models
        if name and name not in models:
            raise UnknownModel(f"Request for unknown model: '{name}' is not found")
        references = registry.references()
        versions = [
            _Version(spec, reference_of(references.get(spec.key)))
            for model in ([name] if name else sorted(models))
            for _, spec in sorted(models[model].items(), key=lambda each: int(each[0]))
        ]
        counted = _counted(DriftCounts(client, settings.key_prefix), versions, hours)
    rows = [row for version in versions for row in _rows(version, counted.get(version.spec.key))]
    show(rows, DRIFT_COLUMNS, as_json=as_json, nothing="no models: no worker runs on this Redis",
         footer=FOOTER)  # fmt: skip
    return 0


def _counted(counts: DriftCounts, versions: list[_Version], hours: int) -> dict[str, Counted]:
    known = [(each.spec.key, each.reference) for each in versions if each.reference]
    if hours:
        return {key: counts.hours(key, reference, hours) for key, reference in known}
    found = counts.latest(known)
    return {key: counted for (key, _), counted in zip(known, found, strict=True)}


def _rows(version: _Version, counted: Counted | None) -> Iterator[Row]:
    spec, reference = version
    if reference is None or counted is None:
        yield _row(spec, finding=_without(spec))
        return
    found = findings(reference, counted)
    if not found:
        yield _row(spec, finding="nothing was asked yet")
    low = low_confidence(reference, counted)
    for each in found:
        said = _said(each)
        if each.signal == "confidence" and low and each.is_enough:
            said += f"; least sure tenth {low[1]:.0%} -> {low[0]:.0%}"
        yield _row(spec, each, said)


def _without(spec: ModelSpec) -> str:
    if spec.steps:
        return "an ensemble: the models of its steps are looked at"
    if spec.parameters.get("drift") == "off":
        return "off: its config.pbtxt says so"
    return (
        f"no reference: ferry verify {spec.name} --version {spec.version} --data PATH "
        "--only-reference"
    )


def _said(found: SignalDrift) -> str:
    if not found.is_enough:
        return f"too few answers, {FEWEST_ROWS} are needed"
    return f"{'drift' if found.drifts else 'steady'}: {found.change}"


def _row(spec: ModelSpec, found: SignalDrift | None = None, finding: str = "") -> Row:
    figures = found._asdict() if found else dict.fromkeys(SignalDrift._fields)
    return {
        "model": spec.name,
        "version": spec.version,
        **figures,
        "drifts": found.drifts if found and found.is_enough else None,
        "finding": finding,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
