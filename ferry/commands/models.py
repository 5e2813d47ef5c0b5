"""`ferry models`: which versions there are, who gets the requests, and how a shadow compares."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, show
from ferry.errors import CannotStart
from shared.errors import BadRequest, LoadFailed, UnknownModel
from shared.operations.model_control import PROGRESS_LOOK_SECONDS, ModelControl
from shared.operations.shadow_comparison import Comparison, Comparisons
from shared.registry.desired_state import Desired
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.registry.repository_index import repository_index
from shared.registry.snapshot import Snapshot

MODEL_COLUMNS = (
    Column("model", lambda row: row["model"]),
    Column("version", lambda row: row["version"], is_number=True),
    Column("state", lambda row: row["state"]),
    Column("requests", lambda row: row["requests"]),
    Column("instances", lambda row: row["instance_count"], is_number=True),
    Column("reason", lambda row: row["reason"]),
)
REQUEST_WORDS = {
    "all": "those that name no version, and those that name this one",
    "named": "those that name this version",
    "copies": "copies of what others answer, and those that name this version",
    "none": "no request",
}
"""What a version gets, as the column `requests` calls it."""
COMPARISON_COLUMNS = (
    Column("model", lambda row: row["model"]),
    Column("served", lambda row: row["version"], is_number=True),
    Column("shadow", lambda row: row["shadow"], is_number=True),
    Column("requests", lambda row: row["request_count"], is_number=True),
    Column("failed", lambda row: row["failed_count"], is_number=True),
    Column("skipped", lambda row: _percent(row["skipped_share"]), is_number=True),
    Column("same top-1", lambda row: _percent(row["agreement"]), is_number=True),
    Column("max abs difference", lambda row: _number(row["max_abs_difference"]), is_number=True),
    Column("served ms", lambda row: _ms(row["served_seconds"]), is_number=True),
    Column("shadow ms", lambda row: _ms(row["shadow_seconds"]), is_number=True),
)


FIRST_ANSWERS_SECONDS, UNUSED_SECONDS = 3.0, 0.3
FIRST_ANSWER_COUNT = 5


class Models(NamedTuple):
    """The models as Redis knows them."""

    registry: Registry
    store: DesiredStore
    control: ModelControl
    comparisons: Comparisons


def list_models(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print every version of every model, and which requests it gets; return the exit code."""
    with operating(environ) as models:
        rows = _rows(models)
    nothing = "no models: no worker runs on this Redis"
    show(rows, MODEL_COLUMNS, as_json=as_json, nothing=nothing, footer=_footer(rows))
    return 0


def _footer(rows: list[Row]) -> str:
    """Explain the words that stand in the column `requests`."""
    shown = {row["requests"] for row in rows}
    parts = [f"{word}: {meaning}" for word, meaning in REQUEST_WORDS.items() if word in shown]
    if any(word.endswith("%") for word in shown):
        parts.append("a share: of those that name no version")
    return f"requests  {'; '.join(parts)}" if parts else ""


def show_model(environ: Mapping[str, str], name: str) -> int:
    """Print all that is known of one model as JSON; raises UnknownModel."""
    with operating(environ) as models:
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
    """Print how a model's shadows compare with the served version; raises LoadFailed for none.

    Those that have ended are shown as well, for a week.
    """
    with operating(environ) as models:
        serving = models.store.read().served.get(name)
        found = models.comparisons.of_model(name)
        if serving is not None and serving.shadow:
            found.setdefault((serving.versions[serving.shadow], serving.default), Comparison())
    if not found:
        raise LoadFailed(f"'{name}' has no shadow: ferry models shadow {name} <version>")
    rows = [_compared(name, *which, comparison) for which, comparison in found.items()]
    show(rows, COMPARISON_COLUMNS, as_json=as_json, nothing="")
    return 0


def _compared(name: str, shadow_key: str, version: str, found: Comparison) -> Row:
    answered = found.request_count - found.failed_count
    came = found.request_count + found.skipped_count
    return {
        "model": name,
        "version": version,
        "shadow": shadow_key.partition("/")[2],
        "request_count": int(found.request_count),
        "failed_count": int(found.failed_count),
        "skipped_count": int(found.skipped_count),
        "skipped_share": found.skipped_count / came if came else None,
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
                "requests": _requests_of(snapshot, name, version),
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


def load_model(environ: Mapping[str, str], name: str, config: Path | None) -> int:
    """Load a model, or load it again; returns when it is ready on every machine."""
    try:
        # Where there is no worker, as in the API's image, all but this works.
        reader = import_module("worker.repository.text_file") if config else None
        text = reader.read_text(config) if reader else None
    except OSError as error:
        raise CannotStart(f"{config}: {error}") from error
    with operating(environ) as models:
        began = time.monotonic()
        models.control.load(name, text)
        _say_where(models, name, began)
        _await_first_answers(models, name)
    return 0


def unload_model(environ: Mapping[str, str], name: str) -> int:
    """Unload a model; returns when no request can reach it."""
    with operating(environ) as models:
        models.control.unload(name)
    print(f"{name}: unloaded")
    return 0


def use_version(environ: Mapping[str, str], name: str, version: str) -> int:
    """Send the requests that name no version to this one, or to the highest (`latest`)."""
    with operating(environ) as models:
        began = time.monotonic()
        models.control.use(name, "" if version == "latest" else version)
        _say_where(models, name, began)
        _await_first_answers(models, name)
    return 0


def split_model(environ: Mapping[str, str], name: str, shares: list[str]) -> int:
    """Share requests out among versions, `VERSION=WEIGHT` each, or no longer (`off`)."""
    pairs = [] if shares == ["off"] else list(map(_share, shares))
    weights = dict(pairs)
    if len(weights) < len(pairs):
        raise BadRequest(f"{' '.join(shares)}: each version may have one share")
    with operating(environ) as models:
        began = time.monotonic()
        models.control.split(name, weights)
        _say_where(models, name, began)
    return 0


def shadow_model(environ: Mapping[str, str], name: str, version: str) -> int:
    """Send a copy of each request to a version, comparing anew, or no longer (`off`)."""
    with operating(environ) as models:
        began = time.monotonic()
        models.control.shadow(name, "" if version == "off" else version)
        serving = models.store.read().served[name]
        if serving.shadow:
            models.comparisons.forget(serving.versions[serving.shadow], serving.default)
        _say_where(models, name, began)
    return 0


def _share(text: str) -> tuple[str, int]:
    version, _, weight = text.partition("=")
    if not weight.isascii() or not weight.isdigit() or int(weight) < 1:
        raise BadRequest(f"{text!r} must be VERSION=WEIGHT with a weight from 1, or off alone")
    return version, int(weight)


def _say_where(models: Models, name: str, began: float) -> None:
    seconds, snapshot = time.monotonic() - began, models.registry.snapshot()
    shares = [
        f"version {version}: {_requests_of(snapshot, name, version)}"
        for version in sorted(snapshot.served[name].versions, key=int)
    ]
    print(f"{name}: after {seconds:.2f} s requests go to {', '.join(shares)}")


def _await_first_answers(models: Models, name: str) -> None:
    """Return once the version that serves has answered a few, or nobody asks it.

    Raises LoadFailed when requests are taken back from it.
    """
    serving = models.store.read().served.get(name)
    if serving is None:  # somebody unloads it
        return
    version = serving.canary or serving.default
    began, first = time.monotonic(), None
    while (waited := time.monotonic() - began) < FIRST_ANSWERS_SECONDS:
        now = models.store.read().served.get(name, serving)
        if reason := now.taken_back.get(version):
            raise LoadFailed(f"version {version} of '{name}' is taken back: {reason}")
        (found,) = models.store.outcomes([serving.versions[version]])
        first = first or found
        nobody_asks = found == first and waited > UNUSED_SECONDS
        if nobody_asks or found.answered - first.answered >= FIRST_ANSWER_COUNT:
            return
        time.sleep(PROGRESS_LOOK_SECONDS)


@contextmanager
def operating(environ: Mapping[str, str]) -> Iterator[Models]:
    """Yield the models; raises BadSetting, and NoRedis when there is none to ask."""
    with redis_to_inspect(environ) as (settings, client):
        yield Models(
            Registry(client, settings.key_prefix),
            DesiredStore(client, settings.key_prefix),
            ModelControl(client, settings.key_prefix),
            Comparisons(client, settings.key_prefix),
        )


def _requests_of(snapshot: Snapshot, name: str, version: str) -> str:
    """Return a version's part of the requests: all, a share, copies, or those that name it."""
    serving = snapshot.served.get(name)
    if serving is None:
        return "none"
    if version not in serving.versions:
        spec = snapshot.models.get(name, {}).get(version)
        return "named" if spec is not None and spec.key in snapshot.standby else "none"
    if serving.split:
        share = serving.split.get(version, 0) / sum(serving.split.values())
        return f"{share:.0%}" if share else "named"
    if version == serving.default:
        return "all"
    return "copies" if version == serving.shadow else "named"
