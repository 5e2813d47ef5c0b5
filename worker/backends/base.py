"""What a backend is: a loaded model that runs one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shared.datatypes import Array


class Backend(Protocol):
    """A model loaded on one device, used by one process and one thread."""

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch (stop 5): arrays [rows, ...] by input name in, by output name out.

        The inputs named in `pixels` are uint8 pictures [rows, height, width, channels] that are
        normalised here, on the device, over the whole batch. May raise anything; the batch is then
        run in halves until the request at fault stands alone.
        """
        ...
