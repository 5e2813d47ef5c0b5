"""The bodies of the extensions and of version 1, as tools/openapi/schemas.py has those of v2."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from tools.openapi.schemas import Timings, closed

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class IndexBody(TypedDict):
    """Which models to list."""

    ready: NotRequired[Annotated[bool, Field(description="only those that are served")]]


class LoadParameters(TypedDict):
    """How a model is to be loaded."""

    config: NotRequired[
        Annotated[str, Field(description="a configuration as JSON, in the place of config.pbtxt")]
    ]


class LoadBody(TypedDict):
    """How a model is to be loaded; may be left out."""

    parameters: NotRequired[LoadParameters]


class UnloadParameters(TypedDict):
    """What else is to be unloaded."""

    unload_dependents: NotRequired[
        Annotated[bool, Field(description="also the models of an ensemble's steps")]
    ]


class UnloadBody(TypedDict):
    """How a model is to be unloaded; may be left out."""

    parameters: NotRequired[UnloadParameters]


@closed
class Nothing(TypedDict):
    """An empty object: it is done."""


@closed
class IndexEntry(TypedDict):
    """One model version; a model that could not be read has none."""

    name: str
    version: NotRequired[str]
    state: State
    reason: Annotated[str, Field(description="why it is not served")]


@closed
class Duration(TypedDict):
    """How often, and how long altogether."""

    count: int
    ns: int


@closed
class Ended(TypedDict):
    """How requests ended, and what each phase of the answered ones took."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


@closed
class BatchSize(TypedDict):
    """What the batches of one size took."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@closed
class BatchesLeft(TypedDict):
    """How many batches left the queue, by why they did."""

    full: int
    preferred: int
    delay: int
    shape: int
    greedy: int
    retry: int


@closed
class VersionStatistics(TypedDict):
    """What the requests of one model version cost so far."""

    name: str
    version: str
    last_inference: Annotated[int, Field(description="milliseconds since 1970, 0 for never")]
    inference_count: Annotated[int, Field(description="rows")]
    execution_count: Annotated[int, Field(description="batches")]
    inference_stats: Ended
    batch_stats: list[BatchSize]
    memory_usage: Annotated[list[Any], Field(max_length=0)]
    response_stats: Annotated[dict[str, Any], Field(max_length=0)]
    batches_left: BatchesLeft


@closed
class Statistics(TypedDict):
    """The figures of all versions that were asked for."""

    model_stats: list[VersionStatistics]


class LogSwitches(TypedDict):
    """How much is logged, by all processes."""

    log_info: NotRequired[bool]
    log_warning: NotRequired[bool]
    log_error: NotRequired[bool]
    log_verbose_level: NotRequired[
        Annotated[int, Field(ge=0, lt=2**31, description="above 0: everything")]
    ]
    log_file: NotRequired[Literal[""]]
    log_format: NotRequired[Literal["default", "ISO8601"]]


@closed
class ChangeLogging(LogSwitches):
    """What is to be set; the rest stays."""


@closed
class LogSettings(TypedDict):
    """All log settings."""

    log_file: Literal[""]
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int
    log_format: Literal["default", "ISO8601"]


TraceLevels = list[Literal["OFF", "TIMESTAMPS", "TENSORS"]]


@closed
class TraceSettings(TypedDict):
    """All trace settings, which act on nothing yet."""

    trace_file: str
    trace_level: TraceLevels
    trace_rate: str
    trace_count: str
    log_frequency: str
    trace_mode: Literal["triton"]


@closed
class ChangeTraces(TypedDict, total=False):
    """The trace settings to change; null forgets one."""

    trace_level: TraceLevels | None
    trace_rate: str | None
    trace_count: str | None
    log_frequency: str | None


@closed
class OpenaiModel(TypedDict):
    """A model as OpenAI's clients know one; `created` is 0: nobody writes down since when."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


@closed
class V1Models(TypedDict):
    """The names of all models: `models` for KServe's clients, `data` for OpenAI's."""

    models: list[str]
    object: Literal["list"]
    data: list[OpenaiModel]


Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


@closed
class EmbeddingsBody(TypedDict):
    """Texts, or their token ids, for a model."""

    model: Annotated[str, Field(min_length=1, description="its name, or name/version")]
    input: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
    )
    encoding_format: NotRequired[Literal["float", "base64"] | None]
    dimensions: NotRequired[Annotated[int, Field(ge=1)] | None]
    user: NotRequired[str | None]


@closed
class Embedding(TypedDict):
    """The vector of the text with this number, in base64 of little-endian FP32 if asked so."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


@closed
class Usage(TypedDict):
    """The tokens of all texts; 0 for a model of strings."""

    prompt_tokens: int
    total_tokens: int


@closed
class EmbeddingList(TypedDict):
    """A vector for each text, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


@closed
class V1Ready(TypedDict):
    """A model that is served, in KServe's fields and in those of OpenAI's clients."""

    name: str
    ready: Literal[True]
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


@closed
class V1Status(TypedDict):
    """Always that of success."""

    error_code: Literal["OK"]
    error_message: Literal[""]


@closed
class V1State(TypedDict):
    """One version's state."""

    version: str
    state: Literal["AVAILABLE", "LOADING"]
    status: V1Status


@closed
class V1VersionStatus(TypedDict):
    """The state of a version, in TensorFlow Serving's words."""

    model_version_status: list[V1State]


class V1Rows(TypedDict):
    """Rows: of each input's values, or objects of all inputs."""

    instances: Annotated[
        list[Any], Field(min_length=1, description='binary values are {"b64": "..."}')
    ]
    signature_name: NotRequired[Literal["serving_default"]]


class V1Columns(TypedDict):
    """Columns: the one input's values, or an object of all inputs."""

    inputs: Any
    signature_name: NotRequired[Literal["serving_default"]]


@closed
class V1Predictions(TypedDict):
    """One prediction for each row: a single output's values, or an object of all outputs."""

    predictions: list[Any]
    timings: Timings


@closed
class V1Outputs(TypedDict):
    """The one output's values, or an object of all outputs."""

    outputs: Any
    timings: Timings
