"""`ferry workers`: every model instance, its place, its last batch, and whether it lives."""

from __future__ import annotations

from collections.abc import Mapping

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, show
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord

INSTANCE_COLUMNS = (
    Column("host", lambda row: row["host"]),
    Column("pid", lambda row: row["pid"] or "", is_number=True),
    Column("device", lambda row: row["device"]),
    Column("model", lambda row: f"{row['model']}/{row['version']}"),
    Column("state", lambda row: row["state"]),
    Column("last rows", lambda row: row["last_batch_rows"], is_number=True),
    Column("last ms", lambda row: f"{1000 * row['last_batch_seconds']:.1f}", is_number=True),
    Column("requests/s", lambda row: f"{row['requests_per_second']:.1f}", is_number=True),
    Column("row limit", lambda row: row["row_limit"] or "", is_number=True),
    Column("supervisor", lambda row: "lives" if row["supervisor_lives"] else "gone"),
    Column("reason", lambda row: row["reason"]),
)


def workers(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print all instances as the registry has them; return the exit code.

    Raises BadSetting, and NoRedis when there is none to ask.
    """
    with redis_to_inspect(environ) as (settings, client):
        records, alive = Registry(client, settings.key_prefix).instances()
    records.sort(key=lambda record: (record.host, record.model_key, record.pid, record.id))
    rows = [_row(record, alive) for record in records]
    show(
        rows,
        INSTANCE_COLUMNS,
        as_json=as_json,
        nothing="no instances: no worker runs on this Redis",
    )
    return 0


def _row(record: InstanceRecord, alive: set[str]) -> Row:
    return record.model_dump() | {"supervisor_lives": record.supervisor in alive}
