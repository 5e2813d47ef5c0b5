"""A model's description for the API: made by the worker from `config.pbtxt`, kept in the registry.

A spec is complete: with it an API process on a machine without model files checks requests,
prepares pictures and texts, and names the answers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property, lru_cache
from hashlib import blake2b
from math import prod
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.datatypes import NUMPY_TYPES
from shared.errors import BadRequest
from shared.messages import Tensor

MAX_TOP_K = 1000
"""The most classes of a row that are answered."""
ELEMENTS_PARAMETER = "max_elements"
"""The parameter that bounds a row of an input with open dimensions."""
OPEN_ROW_BYTES = 2**25
"""The bound without it: 8 million numbers of 32 bits, a colour picture of 1672 x 1672 pixels."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One input or output as declared: `dims` without the batch dimension, -1 for any size.

    Requests whose `ragged` input differs in its -1 dims still share a batch: the worker pads, with
    `pad`, behind the shorter rows, or before them if `pad_left`. An `optional` input may be
    missing. With `reshape` the model itself takes, or gives, these dims.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    ragged: bool = False
    labels: tuple[str, ...] = ()
    optional: bool = False
    reshape: tuple[int, ...] | None = None
    pad: int = 0
    pad_left: bool = False


class MaskInput(_Frozen):
    """An input that the worker fills in itself: 1 where the rows of the input `of` are not padded.

    `tensor` stands at `position` among the config's inputs; clients do not see it.
    """

    tensor: TensorSpec
    of: str
    position: int


class ImageInput(_Frozen):
    """The way from a picture to the model's input.

    Decoded, resized and cropped to uint8 [height, width, channels], at the API or, as `decode_in`
    says, beside the instance. The worker computes (pixel * scale - mean) / std over the whole batch
    and lays it out as `layout` says. A JPEG is decoded `fast` at an eighth, a quarter or half of
    its size where no smaller one is wanted.
    """

    input: str
    height: int
    width: int
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    resize_size: int = 0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    decode: Literal["exact", "fast"] = "exact"
    decode_in: Literal["api", "worker"] = "api"
    background: tuple[int, ...] = (255, 255, 255)
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def pixel_bytes(self) -> int:
        """Return the bytes of one picture's pixels."""
        return self.height * self.width * len(self.channels)

    def makes_the_same(self, other: ImageInput | None) -> bool:
        """Tell whether another makes the same of a picture, wherever it is decoded."""
        return other is not None and self == other.model_copy(update={"decode_in": self.decode_in})


class TextInput(_Frozen):
    """The way from a text to the model's inputs: ids by a `tokenizers` file kept as an asset.

    Ids are padded to a multiple of `pad_multiple`, as the inputs say; of a text that is too long
    the end is kept if `cut_left`.
    """

    tokenizer: str = Field(description="asset digest of the tokenizer.json")
    max_length: int
    truncate: bool = True
    pad_multiple: int = 1
    cut_left: bool = False


class QueuePolicy(_Frozen):
    """One level's policy for requests that wait too long, and for how many may wait.

    `default_timeout_seconds` 0 is none, `max_queue_size` 0 no bound. Source: ModelQueuePolicy in
    Triton's model_config.proto.
    """

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_seconds: float = 0.0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


class EnsembleStep(_Frozen):
    """One model of an ensemble: which of the ensemble's tensors are its inputs and outputs.

    `version` is empty for whichever is served. Both maps go from the model's own tensor name to the
    ensemble's.
    """

    model: str
    version: str = ""
    input_map: dict[str, str]
    output_map: dict[str, str]


class ModelSpec(_Frozen):
    """One served version of a model.

    `revision` counts how often the content of this version was replaced while it was served.
    `level_floors` has the lowest level of priority that waits on each queue, or is empty where each
    level has a queue of its own. `queue_policies` has one policy for each queue, that of level 1
    first, or is empty when the config has none. `cached` says that answers are kept for the same
    question asked again, `steps` are those of an ensemble. `config` is the whole configuration with
    the field names of Triton's model_config.proto, to be shown: what has an effect stands in the
    other fields. What another release of Ferry stored may have fields that this one does not know.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: str
    platform: str
    max_batch_size: int
    max_queue_delay_seconds: float = 0.0
    priority_levels: int = 0
    default_priority_level: int = 1
    level_floors: tuple[int, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    masks: tuple[MaskInput, ...] = ()
    image: ImageInput | None = None
    text: TextInput | None = None
    output_activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    label_key: str | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    revision: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    queue_policies: tuple[QueuePolicy, ...] = ()
    cached: bool = False
    steps: tuple[EnsembleStep, ...] = ()

    @property
    def key(self) -> str:
        """Return `name/version`, the model version's name in Redis keys and logs.

        What replaced the content of a version has a name of its own, `name/version@revision`: no
        request that was checked against one content is answered by another.
        """
        return f"{self.name}/{self.version}" + (f"@{self.revision}" if self.revision else "")

    @property
    def batched(self) -> bool:
        """Tell whether tensors have a leading batch dimension."""
        return self.max_batch_size > 0

    @property
    def batch_rows(self) -> int:
        """Return the most rows of one forward pass; 1 for models without a batch dimension."""
        return max(1, self.max_batch_size)

    @property
    def levels(self) -> int:
        """Return how many queues there are, one for each level of priority or several of them."""
        return len(self.level_floors) or max(1, self.priority_levels)

    @property
    def bulk_queue(self) -> int:
        """Return the queue behind all levels, on which the requests of bulk jobs wait."""
        return self.levels + 1

    def queue_of(self, level: int) -> int:
        """Return the queue on which a level of priority waits, 1 for the first."""
        return bisect_right(self.level_floors, level) if self.level_floors else level

    def level_of(self, queue: int) -> int:
        """Return the lowest level of priority that waits on a queue."""
        return self.level_floors[queue - 1] if self.level_floors else queue

    @property
    def input_kind(self) -> Literal["image", "text", "tensor"]:
        """Return the kind of input that `/predict` takes besides tensors."""
        if self.image:
            return "image"
        return "text" if self.text or self.string_input else "tensor"

    @property
    def gives_vectors(self) -> bool:
        """Tell whether its config calls its first output a vector, and not scores of classes."""
        return self.parameters.get("output_kind") == "embedding"

    @cached_property
    def string_input(self) -> TensorSpec | None:
        """Return the one input that a request must send, if it is a text for each row; else None.

        A dimension of -1 is taken for 1.
        """
        required = [tensor for tensor in self.inputs if not tensor.optional] or self.inputs
        first = required[0]
        is_one_text = first.datatype == "BYTES" and all(size in (1, -1) for size in first.dims)
        return first if len(required) == 1 and is_one_text else None

    @cached_property
    def inputs_by_name(self) -> dict[str, TensorSpec]:
        """Return the declared inputs by name, in the config's order."""
        return {tensor.name: tensor for tensor in self.inputs}

    @cached_property
    def ragged_names(self) -> frozenset[str]:
        """Return the inputs in which requests of one batch may differ in size."""
        return frozenset(tensor.name for tensor in self.inputs if tensor.ragged)

    def has_rows(self, inputs: tuple[Tensor, ...]) -> bool:
        """Tell whether there is something to compute: a batch of no rows is answered without."""
        return not (self.batched and inputs and inputs[0].shape[0] == 0)

    def no_rows(self, tensors: Iterable[TensorSpec]) -> tuple[Tensor, ...]:
        """Return declared tensors with no rows; a dimension of -1, which nothing decides, is 0."""
        return tuple(
            [
                Tensor(each.name, each.datatype, (0, *[max(0, size) for size in each.dims]), b"")
                for each in tensors
            ]
        )

    def answer_to_no_rows(self, wanted: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Return the outputs in `wanted`, or all of them, for a request of no rows."""
        declared = {tensor.name: tensor for tensor in self.outputs}
        return self.no_rows(declared[name] for name in wanted or declared)

    def with_changes(self, **changes: Any) -> ModelSpec:
        """Return a spec that differs in some fields.

        subtle: pydantic's `model_copy` keeps what was made of the old ones, as `inputs_by_name`.
        """
        fields = {name: getattr(self, name) for name in ModelSpec.model_fields}
        return ModelSpec(**fields | changes)

    def answers_as(self, other: ModelSpec) -> bool:
        """Tell whether a request that was checked against `other` can be put to this one."""
        return (
            (self.inputs, self.text, self.levels, self.level_floors)
            == (other.inputs, other.text, other.levels, other.level_floors)
            and (self.image.makes_the_same(other.image) if self.image else other.image is None)
            and self.max_batch_size >= other.max_batch_size
            and self.batched == other.batched
            and {each.name for each in self.outputs} >= {each.name for each in other.outputs}
        )

    @cached_property
    def open_limits(self) -> dict[str, tuple[int, int]]:
        """Return by input, of those with open dimensions, the largest of these, and of a row.

        A text has no more tokens than its `max_length`, by whichever way it comes.
        """
        return {each.name: self._open_limit(each) for each in self.inputs if -1 in each.dims}

    def _open_limit(self, tensor: TensorSpec) -> tuple[int, int]:
        item_bytes = NUMPY_TYPES[tensor.datatype].itemsize if tensor.datatype != "BYTES" else 4
        usual = OPEN_ROW_BYTES // item_bytes
        largest = int(self.parameters.get(ELEMENTS_PARAMETER, usual))
        if self.text is None or tensor.datatype == "BYTES":
            return largest, largest
        return min(largest, self.text.max_length), largest

    def most_elements(self, tensor: TensorSpec) -> int:
        """Return the most elements of an input's row."""
        if tensor.name not in self.open_limits:
            return prod(tensor.dims)
        longest, largest = self.open_limits[tensor.name]
        return min(largest, prod(longest if dim < 0 else dim for dim in tensor.dims))

    def full_shape(self, tensor: TensorSpec) -> list[int]:
        """Return the declared shape with the batch dimension, as v2 metadata shows it."""
        return ([-1] if self.batched else []) + list(tensor.dims)

    def signature(self, inputs: tuple[Tensor, ...]) -> bytes:
        """Return 8 bytes that are equal for requests that can share a batch.

        Of a ragged input only the number of dimensions counts, of all others the shape per row.
        Pictures have their instance's size by then, whether or not they are decoded yet.
        """
        ragged = self.ragged_names
        return _digest(
            tuple(
                (tensor.name, "pixels")
                if tensor.pixels
                else (
                    tensor.name,
                    tensor.datatype,
                    len(tensor.shape) if tensor.name in ragged else tensor.shape[1:],
                )
                for tensor in inputs
            )
        )


def check_row_count(count: int, spec: ModelSpec) -> None:
    """Raise BadRequest when `count` pictures or texts are more than the rows of a batch."""
    if count > spec.batch_rows:
        raise BadRequest(
            f"inference request batch-size must be <= {spec.batch_rows} for '{spec.name}', "
            f"this one has {count}"
        )


def check_text_count(count: int, spec: ModelSpec) -> None:
    """Raise BadRequest for more texts than rows, unless an open dimension has them in one row."""
    declared = None if spec.text or spec.batched else spec.string_input
    if declared is None or -1 not in declared.dims:
        check_row_count(count, spec)


def fixed_length(inputs: tuple[TensorSpec, ...]) -> int:
    """Return the number of tokens that a text model's inputs must have, 0 for any number."""
    return max([0, *(tensor.dims[-1] for tensor in inputs)])


@lru_cache(maxsize=4096)
def _digest(parts: tuple[object, ...]) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=8).digest()
