"""`ferry dead`: the requests that were given up, after the model's process died under them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, Row, show
from ferry.errors import EXIT_FAILED
from shared.errors import FerryError, RedisUnavailable, UnknownRequest
from shared.messages import Tensor
from shared.operations.dead_letters import DeadLetter, DeadLetters

FIRST_VALUES = 8
LONGEST_TEXT = 60
NOTHING = "no request was given up"
LETTER_COLUMNS = (
    Column("id", lambda row: row["id"]),
    Column("model", lambda row: f"{row['model']}/{row['version']}"),
    Column("rows", lambda row: row["rows"], is_number=True),
    Column("attempts", lambda row: row["attempts"], is_number=True),
    Column("died", lambda row: row["died_at"]),
    Column("last instance", lambda row: row["instance"]),
)
INPUT_COLUMNS = (
    Column("input", lambda row: row["name"]),
    Column("datatype", lambda row: row["datatype"]),
    Column("shape", lambda row: row["shape"]),
    Column("first values", lambda row: " ".join(map(str, row["first_values"]))),
)
REPLAY_COLUMNS = (
    Column("id", lambda row: row["id"]),
    Column("pushed again as", lambda row: row["new_id"]),
    Column("answer, kept for an hour", lambda row: row["location"]),
)
DROP_COLUMNS = (Column("dropped", lambda row: row["id"]),)


def list_dead(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print all dead requests, newest first; return the exit code."""
    with redis_to_inspect(environ) as (settings, client):
        rows = [_as_row(letter) for letter in DeadLetters(client, settings).all()]
    show(rows, LETTER_COLUMNS, as_json=as_json, nothing=NOTHING)
    return 0


def show_dead(environ: Mapping[str, str], request_id: str, *, as_json: bool) -> int:
    """Print one dead request and its inputs; raises UnknownRequest, RequestGone, BadMessage."""
    with redis_to_inspect(environ) as (settings, client):
        dead = DeadLetters(client, settings)
        letter = _find(dead.all(), request_id)
        request = dead.request(letter)
    inputs = [_input(tensor) for tensor in request.inputs]
    row = {**_as_row(letter), "outputs": list(request.outputs), "inputs": inputs}
    show([row], LETTER_COLUMNS, as_json=as_json, nothing=NOTHING)
    if not as_json:
        print()
        show(inputs, INPUT_COLUMNS, as_json=False, nothing="it has no inputs")
    return 0


def replay_dead(environ: Mapping[str, str], ids: Sequence[str], *, as_json: bool) -> int:
    """Push dead requests anew and print under which ids; 1 when one could not be."""

    def replay(dead: DeadLetters, letter: DeadLetter) -> Row:
        new_id = dead.replay(letter)
        return {"id": letter.id, "new_id": new_id, "location": f"/v2/requests/{new_id}"}

    return _for_each(environ, ids, replay, REPLAY_COLUMNS, as_json=as_json)


def drop_dead(environ: Mapping[str, str], ids: Sequence[str], *, as_json: bool) -> int:
    """Forget dead requests and their inputs; 1 when one is not there."""

    def drop(dead: DeadLetters, letter: DeadLetter) -> Row:
        dead.drop(letter)
        return {"id": letter.id}

    return _for_each(environ, ids, drop, DROP_COLUMNS, as_json=as_json)


def _for_each(
    environ: Mapping[str, str],
    ids: Sequence[str],
    act: Callable[[DeadLetters, DeadLetter], Row],
    columns: Sequence[Column],
    *,
    as_json: bool,
) -> int:
    """Act on each request, print the rows, and the reason of each failure."""
    rows: list[Row] = []
    with redis_to_inspect(environ) as (settings, client):
        dead = DeadLetters(client, settings)
        letters = dead.all()
        for request_id in ids:
            try:
                rows.append(act(dead, _find(letters, request_id)))
            except RedisUnavailable:
                raise
            except FerryError as error:
                print(f"ferry: {error}", file=sys.stderr)
    if rows or as_json:
        show(rows, columns, as_json=as_json, nothing=NOTHING)
    return 0 if len(rows) == len(ids) else EXIT_FAILED


def _find(letters: Sequence[DeadLetter], request_id: str) -> DeadLetter:
    for letter in letters:
        if letter.id == request_id:
            return letter
    raise UnknownRequest(f"no request {request_id!r} was given up")


def _as_row(letter: DeadLetter) -> dict[str, Any]:
    model, _, version = letter.model_key.partition("/")
    return {
        "id": letter.id,
        "model": model,
        "version": version,
        "level": letter.level,
        "rows": letter.rows,
        "attempts": letter.attempts,
        "enqueued_at": _when(letter.enqueued),
        "died_at": _when(letter.died),
        "instance": letter.instance,
    }


def _when(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(" ", "seconds")


def _input(tensor: Tensor) -> Row:
    first = tensor.array().ravel()[:FIRST_VALUES].tolist()
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "first_values": [_value(value) for value in first],
    }


def _value(value: object) -> object:
    """Return a value for JSON: bytes as text, cut, and the floats that it lacks as words."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")[:LONGEST_TEXT]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value
