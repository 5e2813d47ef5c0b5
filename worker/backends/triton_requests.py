"""Requests and responses as a Triton Python model sees them.

Their names are those of `triton_python_backend_utils`, which has them for models to import.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from shared.datatypes import Array, datatype_of
from worker.backends.torch_arrays import to_numpy, to_torch

TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


def as_text(value: object) -> str:
    """Return text for what a model gives as such: Triton takes bytes as well, its own examples do.

    A name that came in a string tensor is bytes.
    """
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class TritonModelException(Exception):
    """The error that a model raises on purpose, and that calls not offered here raise."""

    def message(self) -> str:
        """Return its text."""
        return str(self)


class TritonError:
    """Why one request failed: `InferenceResponse(error=TritonError("..."))`."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        """Take a sentence for the client and one of the codes above."""
        self._message, self._code = as_text(message), code

    def message(self) -> str:
        """Return the sentence."""
        return self._message

    def code(self) -> int:
        """Return the code."""
        return self._code

    def __str__(self) -> str:
        """Return the sentence."""
        return self._message


class TritonTensor:
    """A named array: BYTES are object arrays of bytes."""

    def __init__(self, name: str, numpy_array: Array) -> None:
        """Name an array; it is not copied."""
        if not isinstance(numpy_array, np.ndarray):
            kind = type(numpy_array).__name__
            raise TritonModelException(f"tensor {name!r}: expected a numpy array, not a {kind}")
        self._name, self._array = as_text(name), numpy_array

    def name(self) -> str:
        """Return the name."""
        return self._name

    def as_numpy(self) -> Array:
        """Return the array itself."""
        return self._array

    def shape(self) -> list[int]:
        """Return the sizes of the dimensions."""
        return list(self._array.shape)

    def triton_dtype(self) -> str:
        """Return the datatype as configs write it, `TYPE_FP32`."""
        return "TYPE_" + datatype_of(self._array).replace("BYTES", "STRING")

    def is_cpu(self) -> bool:
        """Return true: tensors are handed over in the machine's memory."""
        return True

    def to_dlpack(self) -> Any:
        """Return a DLPack capsule; raises TritonModelException for BYTES."""
        dlpack: Any = torch.utils.dlpack  # has no types
        return dlpack.to_dlpack(self._torch())

    def __dlpack__(self, **_: Any) -> Any:
        """Return a DLPack capsule, for `torch.from_dlpack` and its like."""
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's name of the CPU."""
        return (1, 0)

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> TritonTensor:
        """Make a tensor from a DLPack capsule, or from whatever has `__dlpack__`."""
        untyped: Any = torch
        return TritonTensor(name, to_numpy(untyped.from_dlpack(tensor)))

    def _torch(self) -> torch.Tensor:
        if self._array.dtype == object:
            raise TritonModelException(f"tensor {self._name!r}: BYTES have no DLPack")
        return to_torch(self._array)


Tensor = TritonTensor
"""The public name, which is Triton's; here a `Tensor` is one in a message (`shared.messages`)."""


_asking: list[Callable[[InferenceRequest], InferenceResponse]] = []
"""The way to other models, of this process."""


def ask_others_by(asks: Callable[[InferenceRequest], InferenceResponse]) -> None:
    """Give the models of this process a way to ask others."""
    _asking[:] = [asks]


class InferenceTrace:
    """The trace of a request."""

    def get_context(self) -> None:
        """Return None: requests carry no context."""


class InferenceRequest:
    """One client's request, or one that a model would like to ask another."""

    def __init__(  # noqa: PLR0913, PLR0917  Triton's arguments
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[TritonTensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: Any = None,
        trace: Any = None,
        parameters: Mapping[str, Any] | str | None = None,
    ) -> None:
        """Take Triton's arguments; parameters as a mapping or as JSON."""
        self._model_name, self._model_version = as_text(model_name), model_version
        self._outputs, self._inputs = [*map(as_text, requested_output_names)], list(inputs)
        self._id, self._correlation_id = as_text(request_id), correlation_id
        self._flags, self._timeout, self._preferred_memory = flags, timeout, preferred_memory
        text = parameters if isinstance(parameters, str) else json.dumps(dict(parameters or {}))
        self._parameters = text
        self._trace = trace or InferenceTrace()
        self.sender: InferenceResponseSender | None = None

    def inputs(self) -> list[TritonTensor]:
        """Return the input tensors."""
        return self._inputs

    def requested_output_names(self) -> list[str]:
        """Return the names of the outputs that are wanted."""
        return self._outputs

    def request_id(self) -> str:
        """Return the request's id in Ferry's queue and log."""
        return self._id

    def correlation_id(self) -> int | str:
        """Return 0: there are no sequences."""
        return self._correlation_id

    def model_name(self) -> str:
        """Return the model's name."""
        return self._model_name

    def model_version(self) -> int:
        """Return the model's version."""
        return self._model_version

    def parameters(self) -> str:
        """Return the client's parameters as JSON."""
        return self._parameters

    def flags(self) -> int:
        """Return the sequence flags."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Set the sequence flags."""
        self._flags = flags

    def timeout(self) -> int:
        """Return the time-out in microseconds that the model set, 0 for none."""
        return self._timeout

    def preferred_memory(self) -> Any:
        """Return the memory that the model set."""
        return self._preferred_memory

    def is_cancelled(self) -> bool:
        """Return false: cancelled requests never get here."""
        return False

    def trace(self) -> InferenceTrace:
        """Return the request's trace, which has no context: there is no tracing."""
        trace: InferenceTrace = self._trace
        return trace

    def exec(self, decoupled: bool = False) -> Any:
        """Ask the other model and return its response; an iterator over it, when `decoupled`.

        An error of that model is in the response. Raises TritonModelException outside of a worker.
        """
        if not _asking:
            raise TritonModelException(
                f"the model asks for {self._model_name!r}: other models are there in a worker only"
            )
        response = _asking[0](self)
        return iter([response]) if decoupled else response

    def async_exec(self, decoupled: bool = False) -> Any:
        """Return an awaitable of what `exec` returns; for coroutines."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, partial(self.exec, decoupled))

    def set_release_flags(self, flags: int) -> None:
        """Take Triton's flags; raises TritonModelException for a request that is to come again."""
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            raise TritonModelException("requests cannot be rescheduled: answer each when it comes")

    def get_response_sender(self) -> InferenceResponseSender:
        """Return the other way to give this request its one response; `execute` returns None."""
        if self.sender is None:
            self.sender = InferenceResponseSender()
        return self.sender


class InferenceResponseSender:
    """Takes the one response to a request, from any thread."""

    def __init__(self) -> None:
        """Wait for the response."""
        self._responses: list[InferenceResponse] = []
        self._is_final = threading.Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Take a response; the last call has Triton's flag, with a response or without.

        Raises TritonModelException for a second response, which only decoupled models give.
        """
        if self._is_final.is_set():
            raise TritonModelException("the response sender has been closed by its final flag")
        if response is not None and self._responses:
            raise TritonModelException("decoupled models are not offered: send one response each")
        self._responses += [response] if response is not None else []
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._is_final.set()

    def is_cancelled(self) -> bool:
        """Return false: cancelled requests never get here."""
        return False

    def response(self) -> InferenceResponse | None:
        """Wait for the final flag, return the response if one came."""
        self._is_final.wait()
        return self._responses[0] if self._responses else None


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    def __init__(
        self,
        output_tensors: Sequence[TritonTensor] | None = (),
        error: TritonError | None = None,
        parameters: Any = None,
    ) -> None:
        """Take the tensors; with an error they are not looked at."""
        self._tensors, self._error, self._parameters = list(output_tensors or ()), error, parameters

    def output_tensors(self) -> list[TritonTensor]:
        """Return the tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Tell whether the request failed."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Return why the request failed."""
        return self._error

    def parameters(self) -> Any:
        """Return the model's parameters; they go nowhere."""
        return self._parameters
