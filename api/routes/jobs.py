"""/jobs: slow work that the jobs worker does, beside the requests (docs/jobs.md)."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from flask import Blueprint, Response, current_app, request, send_file
from werkzeug.datastructures import FileStorage

from api.infer.answer import OPTIONS
from api.pages.stream import Streams
from api.payloads.v2_json import load_object
from api.routes.door import still_let_in
from api.routes.flask_side import json_response, services
from api.routes.operations import STREAMS
from api.server.body import MAX_ORDER_BYTES, read_body, read_form
from shared.bodies.turns import let_others
from shared.errors import (
    BadRequest,
    FerryError,
    JobNotEnded,
    QueueFull,
    RedisUnavailable,
    UnknownModel,
    Unsupported,
)
from shared.jobs import places
from shared.jobs.orders import (
    EdgeJob,
    ExportJob,
    OptimiseJob,
    PredictJob,
    VerifyJob,
    checked_id,
    read_order,
)
from shared.jobs.store import ENDED, JobStore, checked_limit

blueprint = Blueprint("jobs", __name__)
EVENTS, FORM = "text/event-stream", "multipart/form-data"
NDJSON, PARQUET = "application/x-ndjson", "application/vnd.apache.parquet"
SHOWN_LINES = 20
EVENT_SECONDS = 0.5
LONGEST_STREAM_SECONDS = 3600.0
KEEP_ALIVE_SECONDS = 15.0
UPLOAD_PIECE_BYTES = 256 * 1024
UPLOADS = frozenset({".csv", ".tsv", ".ndjson", ".jsonl", ".parquet", ".zip"})
OUTPUTS = frozenset({".ndjson", ".jsonl", ".parquet"})


@blueprint.before_request
def may_use_jobs() -> None:
    """Stand before every route of this page: who may not use jobs is refused here."""
    settings = services().settings
    if not settings.jobs:
        raise Unsupported("jobs are not offered here: FERRY_JOBS is 0")
    request.max_content_length = settings.job_upload_bytes


@blueprint.post("/jobs/predict")
def predict() -> Response:
    """Have a model asked for every row of a file; the fields are JSON, or a form with the file."""
    return _submit("predict")


@blueprint.post("/jobs/export")
def export() -> Response:
    """Have a module of torch exported."""
    return _submit("export")


@blueprint.post("/jobs/verify")
def verify() -> Response:
    """Have a version compared with another."""
    return _submit("verify")


@blueprint.post("/jobs/optimise")
def optimise() -> Response:
    """Have a faster version made."""
    return _submit("optimise")


@blueprint.post("/jobs/edge")
def edge() -> Response:
    """Have a bundle made for phones and boards."""
    return _submit("edge")


def _submit(kind: str) -> Response:
    """Accept a job with 202, or refuse at once what it would refuse itself."""
    store, job_id = _store(), JobStore.new_id()
    store.check_room()
    fields, file = _fields(kind)
    order = read_order(kind, fields, texts=request.mimetype == FORM)
    ending = "" if file is None else _ending(file.filename or "")
    if isinstance(order, PredictJob):
        _check_predict(order, job_id, has_upload=file is not None)
    elif not isinstance(order, ExportJob):
        _check_model(order)
    _check_paths(order)
    if file is None:
        store.submit(job_id, kind, order)
    else:
        with _kept(file, places.job_folder(services().settings, job_id), ending):
            store.submit(job_id, kind, order, ending)
    return json_response(store.find(job_id), 202, (("Location", f"/jobs/{job_id}"),))


@blueprint.get("/jobs")
def listing() -> Response:
    """Answer the newest jobs, newest first."""
    limit = checked_limit(request.args.get("limit", "100"))
    return json_response({"jobs": _store().all(limit)})


@blueprint.get("/jobs/<string(length=32):job_id>")
def show(job_id: str) -> Response:
    """Answer one job and the tail of its log; as a stream of events where that is asked for.

    503 for one stream too many.
    """
    shown = _shown(checked_id(job_id))
    if EVENTS in request.headers.get("Accept", ""):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        streams: Streams = current_app.extensions[STREAMS]
        events = _events(_store(), job_id, shown, streams.pause)
        return Response(streams.share(events, still_let_in()), content_type=EVENTS, headers=headers)
    return json_response(shown)


@blueprint.get("/jobs/<string(length=32):job_id>/result")
def result(job_id: str) -> Response:
    """Answer what a job made: the file of answers, or its result as JSON.

    Of a job that was cancelled or failed, the answers until then; `Ferry-Job-State` says which.
    """
    job = _store().find(checked_id(job_id))
    if job["state"] not in ENDED:
        raise JobNotEnded(f"job {job_id} is {job['state']}: it has no result yet")
    if job["kind"] == "predict":
        return _answers(job)
    if job["result"] is None:
        raise JobNotEnded(f"job {job_id} has no result: {job['error'] or job['state']}")
    return json_response(job["result"])


@blueprint.delete("/jobs/<string(length=32):job_id>")
def cancel(job_id: str) -> Response:
    """Cancel a job; one that runs ends soon, and keeps what it has done."""
    return json_response(_store().cancel(checked_id(job_id)))


def _store() -> JobStore:
    return JobStore(services().client, services().settings)


def _fields(kind: str) -> tuple[dict[str, Any], Any]:
    """Return a body's fields, and its file if it is a form with one; raises BadRequest."""
    if kind == "predict" and request.mimetype == FORM:
        form, files = read_form()
        if set(files) - {"input"}:
            raise BadRequest(f"the form has a file {sorted(files)[0]!r}, expected `input`")
        return {name: value for name, value in form.items() if value != ""}, files.get("input")
    return load_object(read_body(MAX_ORDER_BYTES) or b"{}", ()), None


@contextmanager
def _kept(file: FileStorage, folder: Path, ending: str) -> Iterator[None]:
    """Keep an upload, unless there is no room for it, or in the block none for its job.

    Where Redis went meanwhile the job may be there: then it has its file.
    """
    try:
        folder.mkdir(parents=True, mode=0o700)
        _save(file, folder / f"{places.UPLOAD}{ending}")
        yield
    except (OSError, QueueFull) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, QueueFull):
            raise
        raise RedisUnavailable(f"the upload cannot be kept: {error.strerror}") from error


def _save(file: FileStorage, path: Path) -> None:
    """Write an upload in pieces: under gevent others have their turn between them."""
    with path.open("wb") as kept:
        while piece := file.stream.read(UPLOAD_PIECE_BYTES):
            kept.write(piece)
            let_others()


def _ending(name: str) -> str:
    ending = Path(name).suffix.lower()
    if ending not in UPLOADS or not places.UPLOAD_ENDING.fullmatch(ending):
        raise BadRequest(f"file {name!r}: expected one that ends in {', '.join(sorted(UPLOADS))}")
    return ending


def _check_predict(order: PredictJob, job_id: str, *, has_upload: bool) -> None:
    settings = services().settings
    services().catalog.serving(order.model, order.version or None)
    if bool(order.input) == has_upload:
        raise BadRequest("expected a field `input`, a path, or a form with a file `input`")
    if order.output and Path(order.output).suffix.lower() not in OUTPUTS:
        raise BadRequest(f"field 'output': {order.output!r}: expected .ndjson or .parquet")
    output = places.answers_file(settings, job_id, order)
    if order.input and output == places.input_file(settings, "input", order.input):
        raise BadRequest(f"field 'output': {order.output!r} is the input, expected another file")
    if output.exists() and not order.restart:
        raise BadRequest(
            f"field 'output': {order.output!r} is there already, \"restart\": true writes it anew"
        )


def _check_model(order: VerifyJob | OptimiseJob | EdgeJob) -> None:
    """Raise UnknownModel for what the repository has not, as far as this process can know.

    It does by its own FERRY_MODELS, and where that is on other machines by what supervisors there
    report. They tell of all models, but not of all versions.
    """
    repository, name = Path(services().settings.models), order.model
    if (repository / name).is_dir():
        wanted = {order.version, order.against if isinstance(order, VerifyJob) else ""}
        for version in sorted(filter(str.isdigit, wanted)):
            if not (repository / name / version).is_dir():
                raise UnknownModel(f"model '{name}' has no version {version} in FERRY_MODELS")
        return
    found = services().catalog.snapshot()
    can_know = repository.is_dir() or (found.supervised and found.is_complete)
    if can_know and name not in found.models.keys() | found.known | found.failures.keys():
        raise UnknownModel(f"no model '{name}' in FERRY_MODELS, and no worker reports one")


def _check_paths(order: Any) -> None:
    """Refuse at once what the job itself would refuse."""
    settings = services().settings
    for field in ("input", "data", "weights", "labels", "tokenizer"):
        if name := getattr(order, field, ""):
            places.input_file(settings, field, name)
    if isinstance(order, EdgeJob):
        places.edge_directory(settings, order)
    for field in ("original", "against"):
        if ":" in (path := getattr(order, field, "")):
            places.check_module(settings, path.partition(":")[0])


def _shown(job_id: str) -> dict[str, Any]:
    store = _store()
    return {**store.find(job_id), "log": store.log(job_id, SHOWN_LINES)}


def _events(
    store: JobStore, job_id: str, shown: dict[str, Any], pause: Callable[[float], bool]
) -> Iterator[bytes]:
    """Yield the job whenever it is another, until it has ended; a comment now and then."""
    until, said_at = time.monotonic() + LONGEST_STREAM_SECONDS, time.monotonic()
    told: dict[str, Any] = {}
    while True:
        if shown != told:
            yield b"event: job\ndata: " + orjson.dumps(shown, option=OPTIONS) + b"\n\n"
            told, said_at = shown, time.monotonic()
        elif time.monotonic() - said_at > KEEP_ALIVE_SECONDS:
            yield b": it goes on\n\n"
            said_at = time.monotonic()
        if shown["state"] in ENDED or time.monotonic() > until:
            return
        if not pause(EVENT_SECONDS):
            return
        try:
            shown = {**store.find(job_id), "log": store.log(job_id, SHOWN_LINES)}
        except RedisUnavailable:
            continue
        except FerryError:
            return


def _answers(job: dict[str, Any]) -> Response:
    settings = services().settings
    order = read_order("predict", job["order"])
    file = places.answers_file(settings, job["id"], order)
    partial = file.with_name(f"{file.name}.partial")
    is_whole = job["state"] == "finished"
    found = file if is_whole else partial
    if not found.is_file():
        reason = job["error"] or f"it has {job['state']}"
        where = f"; {file.name} is not on this machine" if is_whole else ""
        raise JobNotEnded(f"job {job['id']} has no answers to be fetched: {reason}{where}")
    kind = (
        "application/vnd.apache.parquet" if found.suffix == ".parquet" else "application/x-ndjson"
    )
    name = re.sub(r"[^\w.-]", "_", found.name)
    response = send_file(found, mimetype=kind, as_attachment=True, download_name=name)
    response.headers["Ferry-Job-State"] = job["state"]
    return response
