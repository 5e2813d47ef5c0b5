"""What a job may be asked for: the fixed table of kinds, and the fields that each takes.

Both ends check an order: the API what a client sends, and the jobs worker what Redis holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import BadRequest, UnknownJob, UnknownRoute
from shared.model_spec import MAX_TOP_K
from shared.names import MODEL_NAME, VERSION

LONGEST_FIELD = 1024
MAX_ITEMS = 64
LONGEST_ORDER = 32 * 1024
"""Bytes as JSON: a thousand of them are listed at once."""
JOB_ID = re.compile(r"[0-9a-f]{32}")

Text = Annotated[str, Field(max_length=LONGEST_FIELD)]
Name = Annotated[str, Field(pattern=rf"^{MODEL_NAME.pattern}$", description="the model")]
OneVersion = Annotated[
    str, Field(pattern=rf"^({VERSION.pattern})?$", description="of the model, else the one that is")
]
InputPath = Annotated[Text, Field(description="a path inside of FERRY_JOB_INPUTS")]
OutputPath = Annotated[Text, Field(description="a path inside of FERRY_JOB_OUTPUTS")]
Callable_ = Annotated[
    str,
    Field(
        max_length=LONGEST_FIELD,
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        description="package.module:callable, of a module in FERRY_JOB_MODULES",
    ),
]
Texts = Annotated[list[Text], Field(max_length=MAX_ITEMS)]
Share = Annotated[float, Field(ge=0, le=1)]


class JobOrder(BaseModel):
    """The options of one job, as the command of the same name has them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PredictJob(JobOrder):
    """`ferry predict`: a model asked for every row of a file, or picture of a folder."""

    model: Name
    input: InputPath = ""
    output: OutputPath = ""
    version: OneVersion = ""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 3
    restart: bool = False
    follow: bool = False


class ExportJob(JobOrder):
    """`ferry export`: a module of torch becomes versions of a model."""

    model: Name
    original: Callable_
    to: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)] = ["onnx"]
    inputs: Annotated[Texts, Field(description="notations, as x:FP32:4")] = []
    output_names: Texts = []
    weights: InputPath = ""
    arguments: dict[str, Any] = {}
    max_batch_size: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    labels: InputPath = ""
    tokenizer: InputPath = ""
    parameters: dict[Text, Text] = {}
    opset: int | None = None


class VerifyJob(JobOrder):
    """`ferry verify`: the verdict whether a version answers as another does."""

    model: Name
    version: OneVersion = ""
    against: Annotated[OneVersion | Callable_, Field(description="a version, or a callable")] = ""
    weights: InputPath = ""
    arguments: dict[str, Any] = {}
    data: InputPath = ""
    label: Text = ""
    precision: Literal["", "FP32", "FP16", "BF16", "INT8"] = ""
    tolerances: dict[Literal["max_relative", "min_cosine", "min_agreement"], float] = {}


class OptimiseJob(JobOrder):
    """`ferry optimise`: a faster version, proved and measured."""

    model: Name
    version: OneVersion = ""
    data: InputPath = ""
    label: Text = ""
    max_accuracy_drop: Share = 0.01
    objective: Literal["throughput", "latency", "size"] = "throughput"
    budget_seconds: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    only: Texts = []
    seed: int = 0
    original: Callable_ | Literal[""] = ""
    weights: InputPath = ""
    arguments: dict[str, Any] = {}


class EdgeJob(JobOrder):
    """`ferry edge`: a version as a bundle for phones and boards."""

    model: Name
    to: Literal["ort", "tflite"]
    version: OneVersion = ""
    platform: Literal["", "arm", "amd64"] = ""
    data: InputPath = ""
    label: Text = ""
    output: OutputPath = ""


class Kind(NamedTuple):
    """One kind of job: its fields, and how often it is begun again after a kill.

    What may have been done already when its process was killed is not begun again by itself.
    """

    order: type[PredictJob | ExportJob | VerifyJob | OptimiseJob | EdgeJob]
    retries: int


KINDS: Mapping[str, Kind] = {
    "predict": Kind(PredictJob, 20),
    "export": Kind(ExportJob, 0),
    "verify": Kind(VerifyJob, 2),
    "optimise": Kind(OptimiseJob, 0),
    "edge": Kind(EdgeJob, 0),
}


def is_id(job_id: str) -> bool:
    """Tell whether a job may be called so."""
    return JOB_ID.fullmatch(job_id) is not None


def checked_id(job_id: str) -> str:
    """Return an id as jobs have it; raises UnknownJob."""
    if not is_id(job_id):
        raise UnknownJob(f"no job {job_id!r}: an id is 32 hexadecimal digits")
    return job_id


def read_order(kind: str, fields: Mapping[str, Any], *, texts: bool = False) -> Any:
    """Return the order of a kind of job; raises BadRequest naming the field that is wrong.

    The values may be `texts` of what they are, as a form's. Raises UnknownRoute for
    a kind that is not in the table.
    """
    if kind not in KINDS:
        raise UnknownRoute(f"no job {kind!r}: there are {', '.join(KINDS)}")
    try:
        order = KINDS[kind].order.model_validate(fields, strict=not texts)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:1]))
        known = ", ".join(KINDS[kind].order.model_fields)
        if first["type"] == "extra_forbidden":
            raise BadRequest(f"{kind} has no field {field!r}, expected of {known}") from error
        raise BadRequest(f"field {field!r}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    length = len(order.model_dump_json(exclude_defaults=True))
    if length > LONGEST_ORDER:
        raise BadRequest(f"the fields are {length} bytes, at most {LONGEST_ORDER} are taken")
    return order
