"""The module that a Triton Python model imports as `triton_python_backend_utils`.

Its names are those of Triton's module of this name
(https://github.com/triton-inference-server/python_backend). Tensors are always in the machine's
memory. Loading other models and decoupled answers are not offered, they raise
TritonModelException. Custom metrics are counted, and go nowhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from shared.datatypes import NUMPY_TYPES
from worker.backends.triton_requests import (
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    Tensor,
    TritonError,
    TritonModelException,
    TritonTensor,
)

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "triton_string_to_numpy",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU = 0, 2
TRITON_STRING_TO_NUMPY = {
    f"TYPE_{name.replace('BYTES', 'STRING')}": found.type
    for name, found in NUMPY_TYPES.items()
    if name != "BF16"
}
_model_dir: list[Path] = []
"""The version's directory, of the one model in this process."""

log = logging.getLogger("model")


class TritonModelConfig:
    """The configuration that `auto_complete_config` adds to, and returns."""

    def __init__(self, model_config: Mapping[str, Any]) -> None:
        """Begin with the configuration as it is written."""
        self._model_config: dict[str, Any] = json.loads(json.dumps(model_config))

    def as_dict(self) -> dict[str, Any]:
        """Return it with the names of Triton's proto."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set it, where the configuration has none."""
        self._model_config["max_batch_size"] = (
            self._model_config.get("max_batch_size") or max_batch_size
        )

    def set_dynamic_batching(self) -> None:
        """Batch by the defaults, where the configuration does not say how."""
        if not {"sequence_batching", "ensemble_scheduling"} & self._model_config.keys():
            self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Set whether it is decoupled."""
        self._model_config["model_transaction_policy"] = dict(transaction_policy_dict)

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Declare an input; raises ValueError when it is declared otherwise."""
        self._add("input", input)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Declare an output; raises ValueError when it is declared otherwise."""
        self._add("output", output)

    def _add(self, kind: str, tensor: Mapping[str, Any]) -> None:
        if missing := {"name", "data_type", "dims"} - tensor.keys():
            raise ValueError(f"{kind} {dict(tensor)}: {sorted(missing)[0]} is not there")
        declared = self._model_config.setdefault(kind, [])
        wanted = (tensor["data_type"], list(tensor["dims"]))
        for known in declared:
            if known["name"] == tensor["name"]:
                if (known["data_type"], list(known["dims"])) != wanted:
                    raise ValueError(
                        f"{kind} {tensor['name']!r}: auto_complete_config says {wanted}, "
                        f"the config {(known['data_type'], list(known['dims']))}"
                    )
                return
        declared.append({**tensor, "dims": list(tensor["dims"])})


ModelConfig = TritonModelConfig
"""The public name, which is Triton's; here a `ModelConfig` is a config file's content."""


class PreferredMemory(NamedTuple):
    """Where a model would like to have the tensors of another model's answer."""

    preferred_memory_type: int
    preferred_device_id: int = 0


class MetricFamily:
    """Custom metrics: a model may count as it likes, nobody sees it."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str = "", kind: str = COUNTER) -> None:
        """Take Triton's arguments, and say once what becomes of it."""
        log.warning("the model's metric %r goes nowhere: custom metrics are not offered", name)

    def Metric(self, labels: Any = None, buckets: Any = None) -> Metric:
        """Return a metric of the family."""
        return Metric()


class Metric:
    """One number of a model's own."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._value = 0.0

    def increment(self, value: float) -> None:
        """Add to it."""
        self._value += value

    def set(self, value: float) -> None:
        """Set it."""
        self._value = value

    observe = increment

    def value(self) -> float:
        """Return it."""
        return self._value


def is_model_ready(model_name: str, *_: Any, **__: Any) -> NoReturn:
    """Raise TritonModelException: a model knows of no other here."""
    raise TritonModelException(
        f"the model looks at {model_name!r}: models cannot load, unload or look at others; "
        "an operator does, by `ferry models` or the repository's routes"
    )


load_model = unload_model = is_model_ready


def set_model_dir(directory: Path) -> None:
    """Tell `get_model_dir`'s answer, before the model is made."""
    _model_dir[:] = [directory]


def get_model_dir() -> str:
    """Return the directory of the model's version, as Triton does."""
    return str(_model_dir[0])


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
