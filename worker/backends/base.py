"""The contract of a backend: a loaded model that runs one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from shared.datatypes import Array
from shared.errors import FerryError
from shared.messages import Parameters


class Backend(Protocol):
    """A model loaded on one device, used by one process and one thread."""

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch (stop 8): arrays [rows, ...] by input name in, by output name out.

        The inputs named in `pixels` are uint8 pictures [rows, height, width, channels] that are
        normalised here, on the device, over the whole batch. May raise anything; the batch is then
        run in halves until the request at fault stands alone.
        """
        ...


def close(backend: Backend) -> None:
    """Close a model that has a `close`, behind its last batch."""
    clean_up = getattr(backend, "close", None)
    if clean_up is not None:
        clean_up()


class RequestTensors(NamedTuple):
    """The inputs of one request of a batch that is not stacked; `outputs` are those wanted."""

    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Parameters


class EachBackend(Backend, Protocol):
    """A backend whose model sees the requests of a batch one by one, and may fail some of them.

    `worker.instance.batch` uses `answer_each` where a backend has it, `forward` only to warm up.
    """

    def answer_each(
        self, requests: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        """Return each request's outputs by name, or the error that it alone is answered with.

        An error that it raises is everybody's: the batch is then run in halves, as for `forward`.
        """
        ...
