"""Loads a model's file with the backend of its format.

The backends that are slow to import are imported by the instances that need them; the others here,
so that the forkserver has them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.backends.onnxruntime import OnnxRuntimeBackend
from worker.backends.python_model import load_python
from worker.backends.torch_compiled import TorchAotiBackend, TorchScriptBackend
from worker.backends.torch_state_dict import StateDictBackend, TorchPickleBackend
from worker.devices import Placement
from worker.repository.file_kinds import RUN_CODE, UNKNOWN, code_refusal
from worker.repository.sniffer import what_is


def load_file(
    backend: str, spec: ModelSpec, file: Path, placement: Placement, *, trusted: Collection[str]
) -> Backend:
    """Return the loaded model; `backend` is a name of `worker.repository.config.formats`.

    Raises BadModel naming the fault of the file, or the framework's own error.
    """
    file = file.absolute()  # a model's code may go to another directory
    if not file.is_file() or file.stat().st_size == 0:
        raise BadModel("the file is missing or empty")
    kind = what_is(file)
    if not kind.backend and kind != UNKNOWN and backend != "python":
        raise BadModel(kind.sentence)
    if backend in RUN_CODE and backend not in trusted:
        raise BadModel(code_refusal(kind))
    try:
        return _loaded(backend, spec, file, placement)
    except (BadModel, MemoryError):
        raise
    except Exception as error:
        if kind != UNKNOWN or backend == "python":
            raise
        # A framework says of such a file what it stumbled over, not what it is.
        raise BadModel(kind.sentence) from error


def _loaded(backend: str, spec: ModelSpec, file: Path, placement: Placement) -> Backend:
    match backend:
        case "onnxruntime":
            return OnnxRuntimeBackend(spec, file, placement)
        case "joblib":
            return _joblib(spec, file, placement)
        case "python":
            return load_python(spec, file, placement)
    return _torch(backend, spec, file, placement.device)


def _torch(backend: str, spec: ModelSpec, file: Path, device: str) -> Backend:
    match backend:
        case "torchscript":
            return TorchScriptBackend(spec, file, device)
        case "torch_export":
            from worker.backends.torch_export import TorchExportBackend  # noqa: PLC0415

            return TorchExportBackend(spec, file, device)
        case "torch_aoti":
            return TorchAotiBackend(spec, file, device)
        case "torch_pickle":
            return TorchPickleBackend(spec, file, device)
        case "torch_state_dict":
            return StateDictBackend(spec, file, device)
    raise BadModel(f"no backend is called {backend!r}")


def _joblib(spec: ModelSpec, file: Path, placement: Placement) -> Backend:
    try:
        from worker.backends.joblib_pipeline import JoblibBackend  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise BadModel(
            f"a joblib file needs {missing.name}, which is not installed: "
            "install Ferry with its extra [sklearn]"
        ) from missing
    return JoblibBackend(spec, file, placement)
