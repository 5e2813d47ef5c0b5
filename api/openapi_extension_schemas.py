"""The bodies of the protocol's extensions and of version 1, as api/openapi_schemas.py has v2's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from api.openapi_schemas import Timings, closed

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class IndexBody(TypedDict):
    """Which models to list."""

    ready: NotRequired[Annotated[bool, Field(description="only those that are served")]]


@closed
class IndexEntry(TypedDict):
    """One model version; a model that could not be read has none."""

    name: str
    version: NotRequired[str]
    state: State
    reason: Annotated[str, Field(description="why it is not served")]


class LogSwitches(TypedDict):
    """How much is logged, by all processes."""

    log_info: NotRequired[bool]
    log_warning: NotRequired[bool]
    log_error: NotRequired[bool]
    log_verbose_level: NotRequired[
        Annotated[int, Field(ge=0, lt=2**31, description="above 0: everything")]
    ]
    log_file: NotRequired[Literal[""]]
    log_format: NotRequired[Literal["default"]]


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
    log_format: Literal["default"]


@closed
class V1Models(TypedDict):
    """The names of all models."""

    models: list[str]


@closed
class V1Ready(TypedDict):
    """A model that is served."""

    name: str
    ready: Literal[True]


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
