"""The views of jobs, described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from shared import errors
from shared.jobs import orders
from tools.openapi.bodies import BYTES, FORM, JSON
from tools.openapi.operations import BODY_ERRORS, Operation, as_json

OFFERED = (errors.Unsupported, errors.RedisUnavailable)


class JobRecord(TypedDict):
    """One job: what it was asked for, and how far it is."""

    id: str
    kind: str
    model: str
    state: Literal["queued", "started", "cancelling", "finished", "failed", "cancelled"]
    progress: Annotated[float, Field(ge=0, le=1)]
    step: Annotated[str, Field(description="what it does now")]
    submitted_at: str | None
    started_at: str | None
    ended_at: str | None
    starts: Annotated[int, Field(description="how often it was begun")]
    order: Annotated[dict[str, Any], Field(description="the fields that it was asked with")]
    error: Annotated[str | None, Field(description="why it failed")]
    result: dict[str, Any] | None
    log: NotRequired[Annotated[list[str], Field(description="the last lines that it said")]]


class JobList(TypedDict):
    """The newest jobs, newest first."""

    jobs: list[JobRecord]


class UploadForm(TypedDict):
    """A job of predict with its input; the other fields of PredictJob as well."""

    model: str
    input: Annotated[bytes, Field(description="a table, or a .zip of pictures")]
    output: NotRequired[Annotated[str, Field(description="its ending says what is written")]]


NO_JOB = (errors.UnknownJob, errors.UnknownRoute)
SUBMITTED = {202: as_json(JobRecord)}
SUBMITTING = (*BODY_ERRORS, errors.QueueFull, *OFFERED)
OF_MODEL = (*SUBMITTING, errors.UnknownModel)
JOBS_OF_MODELS = frozenset({"jobs.predict", "jobs.verify", "jobs.optimise", "jobs.edge"})
"""The endpoints whose bodies name a model that has to be there."""

JOB_VIEWS: Mapping[tuple[str, str], Operation] = {
    ("jobs.predict", "POST"): Operation(
        "jobs", "Has a model asked for every row of a file, behind everybody else's requests",
        SUBMITTED, (*OF_MODEL, errors.ModelNotReady),
        {JSON: (orders.PredictJob,), FORM: (UploadForm,)},
    ),
    ("jobs.export", "POST"): Operation(
        "jobs", "Has a module of torch exported", SUBMITTED, SUBMITTING, as_json(orders.ExportJob)
    ),
    ("jobs.verify", "POST"): Operation(
        "jobs", "Has a version compared with another, or with what it was made from", SUBMITTED,
        OF_MODEL, as_json(orders.VerifyJob),
    ),
    ("jobs.optimise", "POST"): Operation(
        "jobs", "Has a faster version made, proved and measured", SUBMITTED, OF_MODEL,
        as_json(orders.OptimiseJob),
    ),
    ("jobs.edge", "POST"): Operation(
        "jobs", "Has a bundle made for phones and boards", SUBMITTED, OF_MODEL,
        as_json(orders.EdgeJob),
    ),
    ("jobs.listing", "GET"): Operation(
        "jobs", "The newest jobs", {200: as_json(JobList)}, (errors.BadRequest, *OFFERED),
        parameters=("limit",),
    ),
    ("jobs.show", "GET"): Operation(
        "jobs", "One job, with the tail of its log",
        {200: {JSON: (JobRecord,), "text/event-stream": ()}}, (*NO_JOB, errors.QueueFull, *OFFERED),
        description="With `Accept: text/event-stream` an event for each change, until its end.",
    ),
    ("jobs.cancel", "DELETE"): Operation(
        "jobs", "Cancels a job; one that runs keeps what it has done", {200: as_json(JobRecord)},
        (*NO_JOB, errors.JobEnded, *OFFERED),
    ),
    ("jobs.result", "GET"): Operation(
        "jobs", "What a job made", {200: {JSON: (dict,), BYTES: ()}},
        (*NO_JOB, errors.JobNotEnded, *OFFERED),
        description="The file of answers of `predict`, as far as it is there (the header "
        "`Ferry-Job-State` says what became of the job); else JSON.",
    ),
}  # fmt: skip
