"""Runs a batch in pieces when the device has not enough memory for it at once.

Pieces are cut by rows, whoever the rows belong to, so a client's large batch is cut as well. How
many rows fitted is kept for a while: the next batches are claimed and run no larger than that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import numpy as np
import torch

from shared.datatypes import Array
from shared.errors import text_of
from shared.model_spec import ModelSpec
from worker.backends.base import Backend, close, device_fault
from worker.instance.batch_parts import Stacked
from worker.instance.outputs import fitted_outputs
from worker.meter import Meter

log = logging.getLogger(__name__)

FULL_SIZE_AGAIN_SECONDS = 60.0
"""Until a full batch is tried again, after one did not fit."""

SIGNS = (
    "out of memory",  # torch.OutOfMemoryError, which TorchScript's interpreter turns into a
    # RuntimeError with its text, and CUDA itself
    "Failed to allocate memory",  # ONNX Runtime's arena
    "can't allocate memory",  # torch on the CPU
    "bad_alloc",  # C++ below ONNX Runtime
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "CUBLAS_STATUS_NOT_INITIALIZED",  # which these say when there is no memory for their handles
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_NOT_INITIALIZED",
    "HOST_ALLOCATION_FAILED",
)
"""The texts of frameworks' errors that mean want of memory, where the class does not say it."""


class PiecewiseBackend:
    """Stands before a model's own backend; for models with a batch dimension.

    `meter.row_limit` says how many rows fitted, 0 while nothing is known of a limit.
    """

    def __init__(self, backend: Backend, spec: ModelSpec, meter: Meter) -> None:
        """Run batches of `spec` by `backend`."""
        self._backend = backend
        self.device_fault = device_fault(backend)
        self._spec = spec
        self._meter = meter
        self._limit = 0
        self._full_size_at = 0.0

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch as `Backend.forward` does, in as many passes as memory asks for.

        Raises the model's own errors; want of memory only for a single row that does not fit. The
        limit stays then: `worker.instance.batch` finds the request at fault.
        """
        if self._limit and time.monotonic() >= self._full_size_at:
            log.info("%s: full batches are tried again", self._spec.key)
            self._set_limit(0)
        if not self._limit:
            try:
                return self._backend.forward(inputs, pixels)
            except Exception as error:  # a border: all but want of memory is raised again
                if _rows(inputs) == 1 or not is_out_of_memory(error):
                    raise
            # subtle: the except block is left first, its traceback would keep the memory.
            pieces = self._halves(_unwritten(inputs), pixels)
        else:
            pieces = self._chunks(_read_only(inputs), pixels)
        self._learn(inputs, pieces)
        names = [declared.name for declared in self._spec.outputs]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}

    def close(self) -> None:
        """Close the model's own backend."""
        close(self._backend)

    def _chunks(
        self, inputs: Mapping[str, Array], pixels: frozenset[str]
    ) -> list[Mapping[str, Array]]:
        pieces: list[Mapping[str, Array]] = []
        for first in range(0, _rows(inputs), self._limit):
            pieces += self._fit(_cut(inputs, first, first + self._limit), pixels)
        return pieces

    def _fit(
        self, inputs: Mapping[str, Array], pixels: frozenset[str]
    ) -> list[Mapping[str, Array]]:
        """Return the outputs of these rows, in one piece or, when they do not fit, in several."""
        try:
            outputs = self._backend.forward(inputs, pixels)
        except Exception as error:  # a border: all but want of memory is raised again
            if _rows(inputs) == 1 or not is_out_of_memory(error):
                raise
        else:
            # Here and not of the whole: two wrong pieces may have the right number together.
            fitting = fitted_outputs(outputs, self._spec, _rows(inputs))
            # Copies: the next piece may be answered in the same buffer of the model's.
            return [{name: np.array(array) for name, array in fitting.items()}]
        return self._halves(inputs, pixels)

    def _halves(
        self, inputs: Mapping[str, Array], pixels: frozenset[str]
    ) -> list[Mapping[str, Array]]:
        rows = _rows(inputs)
        log.warning("%s: no memory for %d rows at once, running halves", self._spec.key, rows)
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
        upper, lower = _cut(inputs, 0, rows // 2), _cut(inputs, rows // 2, rows)
        return self._fit(upper, pixels) + self._fit(lower, pixels)

    def _learn(self, inputs: Mapping[str, Array], pieces: list[Mapping[str, Array]]) -> None:
        """Remember the largest piece that fitted, when one of the size allowed did not."""
        name = self._spec.outputs[0].name
        rows, fitted = _rows(inputs), max(len(piece[name]) for piece in pieces)
        if fitted < min(self._limit or rows, rows):
            log.warning(
                "%s: memory holds %d rows at once; no larger batches for %.0f s",
                self._spec.key, fitted, FULL_SIZE_AGAIN_SECONDS,
            )  # fmt: skip
            self._set_limit(fitted)
            self._full_size_at = time.monotonic() + FULL_SIZE_AGAIN_SECONDS

    def _set_limit(self, rows: int) -> None:
        self._limit = self._meter.row_limit = rows


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception of any framework says that memory is short."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = text_of(error)
    return any(sign in text for sign in SIGNS)


def _unwritten(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return a batch as it was before a pass that failed, which may have written into it."""
    return _read_only(inputs.again() if isinstance(inputs, Stacked) else inputs)


def _read_only(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Have whoever writes into rows of `inputs` make a copy: the same rows may run once more."""
    for array in inputs.values():
        array.flags.writeable = False
    return inputs


def _rows(inputs: Mapping[str, Array]) -> int:
    return len(next(iter(inputs.values())))


def _cut(inputs: Mapping[str, Array], first: int, end: int) -> dict[str, Array]:
    return {name: array[first:end] for name, array in inputs.items()}
