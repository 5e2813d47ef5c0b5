"""The module that a Triton Python model imports as `triton_python_backend_utils`.

The names are those of Triton's module of this name
(https://github.com/triton-inference-server/python_backend).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from shared.datatypes import NUMPY_TYPES
from worker.backends.triton_requests import (
    InferenceRequest,
    InferenceResponse,
    TritonError,
    TritonModelException,
    TritonTensor,
)

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

Tensor = TritonTensor
log = logging.getLogger("model")


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
