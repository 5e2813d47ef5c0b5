"""The bodies that come in and go out, written down for /openapi.json; nothing is checked by them.

Answers are closed: a field that stands here no more, or not yet, fails the contract test.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

closed = with_config(ConfigDict(extra="forbid"))
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Shape = Annotated[
    list[int], Field(description="sizes; -1 stands for any. The first is the batch, if it batches")
]
Parameters = Annotated[
    dict[str, str | float | bool], Field(description="strings, numbers and booleans by name")
]


@closed
class Server(TypedDict):
    """The server itself."""

    name: str
    version: str
    extensions: Annotated[list[str], Field(description="of the protocol, all that work here")]


@closed
class AliveServer(Server):
    """The server itself, for who asks in version 1 whether it is alive."""

    status: Literal["alive"]


@closed
class Live(TypedDict):
    """The process answers."""

    live: Literal[True]


@closed
class Ready(TypedDict):
    """Whether the models are served that FERRY_READINESS wants, and which are not, with why."""

    ready: bool
    reason: NotRequired[str]


@closed
class ModelReady(TypedDict):
    """Whether a model is served."""

    name: str
    ready: bool
    reason: NotRequired[str]


@closed
class TensorMetadata(TypedDict):
    """One input or output as the model declares it."""

    name: str
    datatype: Datatype
    shape: Shape


@closed
class ModelMetadata(TypedDict):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelConfig(TypedDict):
    """A model's configuration: all fields of Triton's `ModelConfig` that were set, or have one."""

    name: str
    max_batch_size: int


class InputTensor(TypedDict):
    """One input: its data here, or as many bytes behind the JSON as a parameter says."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(description="of the whole batch")]
    datatype: Datatype
    data: NotRequired[Annotated[list[Any], Field(description="flat in row-major order, or nested")]]
    parameters: NotRequired[InputParameters]


class InputParameters(TypedDict):
    """How one input is sent."""

    binary_data_size: NotRequired[Annotated[int, Field(ge=0, description="bytes behind the JSON")]]


class WantedOutput(TypedDict):
    """One output that is asked for."""

    name: str
    parameters: NotRequired[WantedParameters]


class WantedParameters(TypedDict):
    """How one output is answered."""

    binary_data: NotRequired[Annotated[bool, Field(description="as bytes behind the JSON")]]
    classification: NotRequired[
        Annotated[int, Field(ge=0, description="so many best classes, as `score:index:label`")]
    ]


class RequestParameters(TypedDict):
    """How the request waits and is answered."""

    timeout: NotRequired[Annotated[int, Field(ge=0, description="microseconds; 0: the default")]]
    priority: NotRequired[
        Annotated[int, Field(ge=0, description="1 is the most urgent; 0: the model's default")]
    ]
    binary_data_output: NotRequired[
        Annotated[bool, Field(description="all outputs as bytes, unless one says otherwise")]
    ]


class InferRequest(TypedDict):
    """Tensors for one model."""

    id: NotRequired[Annotated[str, Field(description="comes back with the answer")]]
    parameters: NotRequired[RequestParameters]
    inputs: list[InputTensor]
    outputs: NotRequired[Annotated[list[WantedOutput], Field(description="all, when absent")]]


@closed
class OutputParameters(TypedDict):
    """How one output was answered."""

    binary_data_size: Annotated[int, Field(ge=0, description="bytes behind the JSON")]


@closed
class OutputTensor(TypedDict):
    """One output; NaN and infinities are null."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: NotRequired[list[float | str | bool | None]]
    parameters: NotRequired[OutputParameters]


@closed
class Timings(TypedDict):
    """What the answer cost."""

    queue_seconds: float
    batch_wait_seconds: float
    compute_seconds: float
    batch_size: Annotated[
        int, Field(ge=0, description="rows of the batch it travelled in, 0 when it is `cached`")
    ]
    attempts: Annotated[int, Field(ge=1, description="above 1 after a crash")]
    instance: Annotated[str, Field(description="the process that ran it")]
    cached: NotRequired[
        Annotated[Literal[True], Field(description="the answer to another that asked the same")]
    ]


@closed
class InferAnswer(TypedDict):
    """What the model made of the tensors."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    outputs: list[OutputTensor]
    timings: Timings
