"""The module that a Triton Python model imports as `triton_python_backend_utils`.

Its names are those of Triton's module of this name
(https://github.com/triton-inference-server/python_backend). Tensors are always in the machine's
memory. Calls of other models (BLS) and decoupled answers are not offered, they raise
TritonModelException.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from shared.datatypes import NUMPY_TYPES, Array, datatype_of
from worker.backends.torch_arrays import to_numpy, to_torch

__all__ = [
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "triton_string_to_numpy",
    "using_decoupled_model_transaction_policy",
]

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2

log = logging.getLogger("model")


class TritonModelException(Exception):
    """The error that a model raises on purpose, and that calls not offered here raise."""


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
        self._message, self._code = str(message), code

    def message(self) -> str:
        """Return the sentence."""
        return self._message

    def code(self) -> int:
        """Return the code."""
        return self._code


class TritonTensor:
    """A named array: BYTES are object arrays of bytes."""

    def __init__(self, name: str, numpy_array: Array) -> None:
        """Name an array; it is not copied."""
        if not isinstance(numpy_array, np.ndarray):
            kind = type(numpy_array).__name__
            raise TritonModelException(f"tensor {name!r}: expected a numpy array, not a {kind}")
        self._name, self._array = name, numpy_array

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


class InferenceRequest:
    """One client's request, or one that a model would like to ask another."""

    def __init__(  # noqa: PLR0913, PLR0917  Triton's arguments
        self,
        model_name: str = "",
        requested_output_names: Sequence[str] = (),
        inputs: Sequence[TritonTensor] = (),
        request_id: str = "",
        correlation_id: int = 0,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: Any = None,
        parameters: Mapping[str, Any] | str | None = None,
    ) -> None:
        """Take Triton's arguments; parameters as a mapping or as JSON."""
        self._model_name, self._model_version = model_name, model_version
        self._outputs, self._inputs = list(requested_output_names), list(inputs)
        self._id, self._correlation_id = request_id, correlation_id
        self._flags, self._timeout, self._preferred_memory = flags, timeout, preferred_memory
        text = parameters if isinstance(parameters, str) else json.dumps(dict(parameters or {}))
        self._parameters = text

    def inputs(self) -> list[TritonTensor]:
        """Return the input tensors."""
        return self._inputs

    def requested_output_names(self) -> list[str]:
        """Return the names of the outputs that are wanted."""
        return self._outputs

    def request_id(self) -> str:
        """Return the request's id in Ferry's queue and log."""
        return self._id

    def correlation_id(self) -> int:
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

    def exec(self, *_: Any, **__: Any) -> NoReturn:
        """Raise TritonModelException: a model cannot call another here."""
        raise TritonModelException(
            f"the model asks for {self._model_name!r}: calls of other models (BLS) are not "
            "offered; make an ensemble of them"
        )

    def async_exec(self, *_: Any, **__: Any) -> NoReturn:
        """Raise TritonModelException, as `exec`."""
        self.exec()

    def get_response_sender(self) -> NoReturn:
        """Raise TritonModelException: one request has one answer here."""
        raise TritonModelException("decoupled models are not offered: return one response each")


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    def __init__(
        self,
        output_tensors: Sequence[TritonTensor] = (),
        error: TritonError | None = None,
        parameters: Any = None,
    ) -> None:
        """Take the tensors; with an error they are not looked at."""
        self._tensors, self._error, self._parameters = list(output_tensors), error, parameters

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


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> TritonTensor | None:
    """Return one of a request's inputs, None when it is not there."""
    return _named(request.inputs(), name)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> TritonTensor | None:
    """Return one of a response's outputs, None when it is not there."""
    return _named(response.output_tensors(), name)


def get_input_config_by_name(
    model_config: Mapping[str, Any], name: str
) -> Mapping[str, Any] | None:
    """Return how the configuration declares an input, None when it does not."""
    return _declared(model_config.get("input", ()), name)


def get_output_config_by_name(
    model_config: Mapping[str, Any], name: str
) -> Mapping[str, Any] | None:
    """Return how the configuration declares an output, None when it does not."""
    return _declared(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Tell whether the model is decoupled: it is not, such a one is not loaded."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """Return numpy's type of `TYPE_FP32`; strings are objects. Raises KeyError for others."""
    name = triton_type_string.removeprefix("TYPE_").replace("STRING", "BYTES")
    found: type[Any] = NUMPY_TYPES[name].type
    return found


class Logger:
    """Triton's logger, writing into this instance's log."""

    VERBOSE, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

    @staticmethod
    def log(message: str, level: int = logging.INFO) -> None:
        """Write one line at `level`, one of the constants above."""
        log.log(level, "%s", message)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write one line that DEBUG shows."""
        log.debug("%s", message)

    @staticmethod
    def log_info(message: str) -> None:
        """Write one line that INFO shows."""
        log.info("%s", message)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write one line that WARNING shows."""
        log.warning("%s", message)

    @staticmethod
    def log_error(message: str) -> None:
        """Write one line that ERROR shows."""
        log.error("%s", message)


def _named(tensors: Iterable[TritonTensor], name: str) -> TritonTensor | None:
    return next((tensor for tensor in tensors if tensor.name() == name), None)


def _declared(items: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((item for item in items if item["name"] == name), None)
