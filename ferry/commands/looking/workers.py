"""`ferry workers`: every model instance, its place, its last batch, and whether it lives.

With `--here` it is a container's health check: whether this machine's worker serves what it should.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, show
from ferry.errors import EXIT_FAILED
from shared.registry.desired_state import SupervisorReport
from shared.registry.desired_store import DesiredStore
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


def workers_here(environ: Mapping[str, str]) -> int:
    """Print what this machine's worker does not serve, one line each; return 1 if there is any.

    A worker without a sign of life is one; so is an empty repository, except in mode `explicit`.
    Raises BadSetting and NoRedis.
    """
    with redis_to_inspect(environ) as (settings, client):
        reports = DesiredStore(client, settings.key_prefix).read().reports
        alive = Registry(client, settings.key_prefix).instances()[1]
    here = re.compile(rf"{re.escape(socket.gethostname())}-\d+-[0-9a-f]+")
    mine = [reports[name] for name in reports if name in alive and here.fullmatch(name)]
    faults = [fault for report in mine for fault in _faults(report)]
    if not mine:
        faults = ["no worker of this machine gives a sign of life"]
    for fault in faults:
        print(fault)
    return EXIT_FAILED if faults else 0


def _faults(report: SupervisorReport) -> list[str]:
    if not report.complete:
        return ["the repository is still being read"]
    if not report.models and report.mode != "explicit":
        return ["the repository holds no model"]
    faults = [f"{name}: {model.failure}" for name, model in report.models.items() if model.failure]
    loading = [name for name, model in report.models.items() if not model.settled]
    return faults + [f"{name}: still loading" for name in loading]
