"""The bodies of `/predict` and `/v2/requests`, as tools/openapi/schemas.py has those of v2."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict

from tools.openapi.schemas import Timings, closed

BINARY: dict[str, JsonValue] = {"format": "binary"}
TopK = Annotated[list["ClassScore"], Field(description="the best classes, best first")]
Confidence = Annotated[float, Field(description="from 0 to 1 where the model's activation says so")]


class PictureForm(TypedDict):
    """One picture, or several parts of the same name."""

    file: Annotated[list[Annotated[str, Field(json_schema_extra=BINARY)]], Field(min_length=1)]


class TextBody(TypedDict):
    """One text or several."""

    text: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


class TensorBody(TypedDict):
    """Rows of numbers for a model of one input."""

    input_tensor: Annotated[list[Any], Field(description="nested, with the batch dimension")]


@closed
class ClassScore(TypedDict):
    """One class, its label, and how sure the model is."""

    class_: Annotated[int, Field(alias="class")]
    label: str
    confidence: Confidence


@with_config(ConfigDict(json_schema_extra={"additionalProperties": True}))
class Prediction(TypedDict):
    """One row: its best class, under `class` and `label` or the label key, or outputs by name."""

    class_: NotRequired[Annotated[int, Field(alias="class")]]
    label: NotRequired[Any]
    confidence: NotRequired[Confidence]
    top_k: NotRequired[TopK]
    truncated: NotRequired[Annotated[bool, Field(description="the text was cut")]]


class PredictionAnswer(Prediction):
    """One picture or one text."""

    model: str
    version: str
    timings: Timings


@closed
class PredictionsAnswer(TypedDict):
    """Several pictures or texts, in their order."""

    predictions: list[Prediction]
    model: str
    version: str
    timings: Timings


@closed
class TensorAnswer(TypedDict):
    """The rows of the model's first output."""

    prediction: list[Any]
    model: str
    version: str
    timings: Timings


@closed
class Accepted(TypedDict):
    """A request that is answered later."""

    id: str
    status: Literal["waiting", "running"]
    location: Annotated[str, Field(description="the path that will have the answer")]
    position: NotRequired[Annotated[int, Field(ge=0, description="how many are in front of it")]]


@closed
class Cancelled(TypedDict):
    """A request that was taken back."""

    id: str
    status: Literal["cancelled"]
