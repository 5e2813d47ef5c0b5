"""`ferry queue`: the requests that wait for each model version or are with its instances."""

from __future__ import annotations

from collections.abc import Mapping

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, show
from shared.operations.queue_inspection import QueueState, inspect_queues

QUEUE_COLUMNS = (
    Column("model", lambda row: f"{row['model']}/{row['version']}"),
    Column("level", lambda row: row["level"], is_number=True),
    Column("waiting", lambda row: row["depth"], is_number=True),
    Column("bytes", lambda row: row["bytes"], is_number=True),
    Column("oldest s", lambda row: f"{row['oldest_seconds']:.1f}", is_number=True),
    Column("attempts", lambda row: row["highest_attempts"], is_number=True),
    Column("expired", lambda row: row["counts"].get("expired", ""), is_number=True),
    Column("cancelled", lambda row: row["counts"].get("cancelled", ""), is_number=True),
    Column("rejected", lambda row: row["counts"].get("rejected", ""), is_number=True),
    Column("dead", lambda row: row["counts"].get("dead", ""), is_number=True),
    Column("in flight", lambda row: _in_flight(row["in_flight"])),
)


def queues(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print every version's queues; return the exit code.

    JSON has one object for each version, with its levels in it; the table one line for each level.
    Raises BadSetting, and NoRedis when there is none to ask.
    """
    with redis_to_inspect(environ) as (settings, client):
        states = inspect_queues(client, settings.key_prefix)
    rows = [_as_json(state) for state in states] if as_json else _lines(states)
    show(
        rows, QUEUE_COLUMNS, as_json=as_json, nothing="no queues: no model is served on this Redis"
    )
    return 0


def _as_json(state: QueueState) -> Row:
    counts = {f"{name}_count": count for name, count in state.counts.items()}
    levels = [level._asdict() for level in state.levels]
    return {"model": state.model, "version": state.version, "levels": levels} | counts


def _lines(states: list[QueueState]) -> list[Row]:
    """Return a row for each level; a version's counts stand in its first."""
    return [
        {"model": state.model, "version": state.version, "counts": {} if index else state.counts}
        | level._asdict()
        for state in states
        for index, level in enumerate(state.levels)
    ]


def _in_flight(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {instance}" for instance, count in counts.items())
