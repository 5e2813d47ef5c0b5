"""`ferry models list | show | compare`: which versions there are, and how two of them compare."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from ferry.commands.model_access import Models, models_of, requests_of
from ferry.commands.tables import Column, Row, show
from shared.errors import LoadFailed, UnknownModel
from shared.operations.shadow_comparison import Comparison
from shared.registry.desired_state import Desired
from shared.registry.repository_index import repository_index

COLUMNS = (
    Column("model", lambda row: row["model"]),
    Column("version", lambda row: row["version"], is_number=True),
    Column("state", lambda row: row["state"]),
    Column("requests", lambda row: row["requests"]),
    Column("instances", lambda row: row["instance_count"], is_number=True),
    Column("reason", lambda row: row["reason"]),
)
COMPARED = (
    Column("model", lambda row: row["model"]),
    Column("served", lambda row: row["version"], is_number=True),
    Column("shadow", lambda row: row["shadow"], is_number=True),
    Column("requests", lambda row: row["request_count"], is_number=True),
    Column("failed", lambda row: row["failed_count"], is_number=True),
    Column("skipped", lambda row: row["skipped_count"], is_number=True),
    Column("same top-1", lambda row: _percent(row["agreement"]), is_number=True),
    Column("max abs difference", lambda row: _number(row["max_abs_difference"]), is_number=True),
    Column("served ms", lambda row: _ms(row["served_seconds"]), is_number=True),
    Column("shadow ms", lambda row: _ms(row["shadow_seconds"]), is_number=True),
)


def list_models(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print every version of every model, and which requests it gets; return the exit code."""
    with models_of(environ) as models:
        rows = _rows(models)
    show(rows, COLUMNS, as_json=as_json, nothing="no models: no worker runs on this Redis")
    return 0


def show_model(environ: Mapping[str, str], name: str) -> int:
    """Print all that is known of one model as JSON; raises UnknownModel."""
    with models_of(environ) as models:
        rows = [row for row in _rows(models) if row["model"] == name]
        desired = models.store.read().desired.get(name, Desired())
        specs = models.registry.snapshot().models.get(name, {})
    if not rows:
        raise UnknownModel(f"Request for unknown model: '{name}' is not found")
    shown = {
        "model": name,
        "versions": [{key: row[key] for key in row if key != "model"} for row in rows],
        "desired": desired.model_dump(),
        "configs": {version: spec.config for version, spec in specs.items()},
    }
    print(json.dumps(shown, indent=2))
    return 0


def compare_model(environ: Mapping[str, str], name: str, *, as_json: bool) -> int:
    """Print how a model's shadows compared with what was answered; raises LoadFailed for none.

    Those that have ended are shown as well, for a week.
    """
    with models_of(environ) as models:
        serving = models.store.read().served.get(name)
        found = models.comparisons.of_model(name)
        if serving is not None and serving.shadow:
            found.setdefault((serving.versions[serving.shadow], serving.default), Comparison())
    if not found:
        raise LoadFailed(f"'{name}' has no shadow: ferry models shadow {name} <version>")
    rows = [_compared(name, *which, comparison) for which, comparison in found.items()]
    show(rows, COMPARED, as_json=as_json, nothing="")
    return 0


def _compared(name: str, shadow_key: str, version: str, found: Comparison) -> Row:
    answered = found.request_count - found.failed_count
    return {
        "model": name,
        "version": version,
        "shadow": shadow_key.partition("/")[2],
        "request_count": int(found.request_count),
        "failed_count": int(found.failed_count),
        "skipped_count": int(found.skipped_count),
        "row_count": int(found.row_count),
        "agreement": found.agreed_count / found.row_count if found.row_count else None,
        "max_abs_difference": _finite(found.max_abs_difference),
        "served_seconds": found.served_seconds / answered if answered else None,
        "shadow_seconds": found.shadow_seconds / answered if answered else None,
    }


def _rows(models: Models) -> list[Row]:
    snapshot = models.registry.snapshot()
    records, alive = models.registry.instances()
    ready = [r.model_key for r in records if r.state == "ready" and r.supervisor in alive]
    rows = list[Row]()
    for entry in repository_index(snapshot):
        name, version = entry["name"], entry.get("version", "")
        spec = snapshot.models.get(name, {}).get(version)
        rows.append(
            {
                "model": name,
                "version": version,
                "state": entry["state"],
                "requests": requests_of(snapshot, name, version),
                "instance_count": ready.count(spec.key) if spec else 0,
                "reason": entry["reason"],
            }
        )
    return rows


def _finite(value: float) -> float | str:
    return "infinite" if math.isinf(value) else value  # JSON has no infinity


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"
