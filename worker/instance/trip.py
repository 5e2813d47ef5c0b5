"""What the requests of one batch share on their way through an instance, and owe at its end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from shared.datatypes import Array, datatype_of
from shared.errors import BadModelOutput
from shared.messages import InferRequest
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from shared.request_queue.model_statistics import Pass
from worker.backends.base import Backend


class Passenger(NamedTuple):
    """A claimed request whose body could be decoded, with its inputs as arrays."""

    claimed: Claimed
    request: InferRequest
    arrays: Mapping[str, Array]


class Trip(NamedTuple):
    """What the whole batch shares: the model, its backend, when it was claimed, what it did."""

    spec: ModelSpec
    backend: Backend
    instance: str
    claimed_at: float
    decode_seconds: float
    passes: list[Pass]


def check_outputs(
    outputs: Mapping[str, Array], spec: ModelSpec, rows: int, wanted: Collection[str] = ()
) -> None:
    """Raise BadModelOutput unless every declared output is there with one row per input row.

    Only those in `wanted` must be there, when it names any.
    """
    for declared in spec.outputs:
        if wanted and declared.name not in wanted:
            continue
        if declared.name not in outputs:
            raise BadModelOutput(f"output {declared.name!r}: the model did not return it")
        array = outputs[declared.name]
        if spec.batched and (array.ndim == 0 or len(array) != rows):
            raise BadModelOutput(
                f"output {declared.name!r}: shape {list(array.shape)} does not have one row for "
                f"each of the {rows} rows that went in"
            )
        if array.dtype != object and datatype_of(array) != declared.datatype:
            raise BadModelOutput(
                f"output {declared.name!r}: datatype {datatype_of(array)}, "
                f"the config declares {declared.datatype}"
            )
