"""Models to be compared: a served version as its instance has it, or the original in Python."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.datatypes import Array
from shared.errors import BadModel, described
from shared.model_spec import ModelSpec
from shared.names import MODEL_NAME
from shared.settings import Settings
from worker.backends.base import Backend
from worker.backends.operator_code import OURS
from worker.backends.torch_model import TorchBackend
from worker.backends.torch_state_dict import arguments_of, fill, load_weights
from worker.devices import Placement
from worker.instance.outputs import fitted_outputs
from worker.instance.process import load_backend
from worker.instance.tensor_adapter import adapted, backend_spec
from worker.job import InstanceJob
from worker.optimise.quiet import first_sentence
from worker.optimise.rows import Batch
from worker.repository.check import Trial, Tried
from worker.repository.file_kinds import trusted_backends
from worker.repository.models import ServedModel, version_numbers


@dataclass(frozen=True)
class Subject:
    """A loaded model that answers rows as clients send them, after their pre-processing."""

    name: str
    spec: ModelSpec
    backend: Backend

    def answer(self, batch: Batch) -> dict[str, Array]:
        """Return the declared outputs for a batch; raises the model's own errors.

        Input and answer are copies: a model may write into the one and keep the other.
        """
        inputs = {name: np.array(array) for name, array in batch.inputs.items()}
        with torch.inference_mode():
            outputs = self.backend.forward(inputs, batch.pixels)
        fitting = fitted_outputs(outputs, self.spec, batch.rows)
        return {name: np.array(array) for name, array in fitting.items()}

    def asked(self, batch: Batch) -> dict[str, Array]:
        """Return the answer; raises BadModel in one sentence for whatever the model raises."""
        try:
            return self.answer(batch)
        except Exception as error:  # a border: a model may raise anything
            rows = f"a batch of {batch.rows}" if batch.rows > 1 else "one row alone"
            said = first_sentence(error)
            raise BadModel(f"{self.name} raises for {rows}: {said}") from error


def check_held(repository: Path, name: str, *versions: str) -> None:
    """Raise BadModel unless a repository holds a model, and those versions that are not ""."""
    if not MODEL_NAME.fullmatch(name) or not (repository / name).is_dir():
        raise BadModel(f"{repository} holds no model '{name}'")
    held = version_numbers(repository / name)
    for version in filter(None, versions):
        if version not in held:
            raise BadModel(f"the model '{name}' has no version {version}: {', '.join(held)}")


def load_version(
    model: ServedModel, settings: Settings, placement: Placement | None = None
) -> Subject:
    """Load a version with the backend that serves it; see `worker.repository.models.read_model`.

    Without a placement it runs on the CPU, with all of its threads. Raises BadModel naming the
    file, with the framework's own words where it has any.
    """
    job = InstanceJob(
        "optimise", model.spec, model.config.backend, model.file,
        placement or Placement("cpu", torch.get_num_threads()), "", "", 0.0, settings.log_level,
        trusted=trusted_backends(settings),
    )  # fmt: skip
    if model.spec.steps:
        raise BadModel(f"{model.spec.key} is an ensemble: compare the models of its steps")
    try:
        return Subject(model.spec.key, model.spec, load_backend(job))
    except Exception as error:  # a border: whatever a file's own code raises is told
        raise BadModel(f"{model.file}: {described(error)}") from error


def loads_here(settings: Settings) -> Trial:
    """Return a trial that loads a version in this process, for files of our own making."""

    def run(model: ServedModel) -> Tried:
        try:
            load_version(model, settings)
        except BadModel as error:
            return Tried(str(error).removeprefix(f"{model.file}: "))
        return Tried()

    return run


@dataclass(frozen=True)
class Original:
    """A model in Python: "package.module:callable" that makes it, its arguments, its weights."""

    path: str
    weights: Path | None = None
    arguments: str = "{}"

    def make(self) -> nn.Module:
        """Return the module, its weights loaded; raises BadModel saying what is wrong.

        Modules of the current directory are found first.
        """
        made = _called(self.path, _arguments(self.arguments))
        if not isinstance(made, nn.Module):
            raise BadModel(f"{self.path} made a {type(made).__name__}, no torch module")
        if self.weights is not None:
            if not self.weights.is_file():
                raise BadModel(f"--weights {self.weights}: no such file")
            try:
                fill(made, load_weights(self.weights))
            except BadModel as error:
                raise BadModel(f"--weights {self.weights}: {error}") from error
            except Exception as error:  # a border: a damaged file raises what it likes
                raise BadModel(
                    f"--weights {self.weights}: expected a state dict or a safetensors file, and "
                    f"reading it raised {described(error)}"
                ) from error
        return made


def original_subject(original: Original, spec: ModelSpec) -> Subject:
    """Return the original in eval mode, asked as the version of `spec` is asked; raises BadModel.

    Its answers are named as the spec's outputs: by their own names, else in their order.
    """
    module = original.make().eval()
    return Subject(original.path, spec, eager_backend(module, spec))


def eager_backend(module: nn.Module, spec: ModelSpec) -> Backend:
    """Return a module of torch as a backend, on the CPU."""
    inside = backend_spec(spec)
    eager = TorchBackend(inside, module, arguments_of(module), torch.device("cpu"))
    return adapted(eager, spec)


def _arguments(text: str) -> dict[str, Any]:
    try:
        keywords = json.loads(text)
    except ValueError as error:
        raise BadModel(f"--arguments {text!r}: {error}") from error
    if not isinstance(keywords, dict):
        raise BadModel(f"--arguments {text!r}: expected a JSON object")
    return keywords


def _called(path: str, keywords: Mapping[str, Any]) -> Any:
    """Return what the callable makes; a module that is there already is taken as it is."""
    found = _imported(path)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise BadModel(f"{path} is no callable")
    try:
        inspect.signature(found).bind(**keywords)
    except (TypeError, ValueError) as error:
        raise BadModel(f"{path} cannot be called with {dict(keywords)}: {error}") from error
    try:
        return found(**keywords)
    except Exception as error:  # a border: the operator's own code
        raise BadModel(f"{path} raised {described(error)}") from error


def _imported(path: str) -> Any:
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise BadModel(f"{path!r}: expected package.module:callable")
    _see_current_directory(module_name.partition(".")[0])
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BadModel(f"{path}: {error}") from error
    except Exception as error:  # a border: the operator's own code
        raise BadModel(f"{path}: importing {module_name} raised {described(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise BadModel(f"{path}: {module_name} has no {name!r}")
        found = getattr(found, part)
    return found


def _see_current_directory(top: str) -> None:
    """Have modules of the current directory found first; raises BadModel for one of our names."""
    here = Path.cwd()
    is_here = (here / f"{top}.py").is_file() or (here / top).is_dir()
    root = Path(__file__).resolve().parents[2]
    if top in OURS and is_here and here != root:
        raise BadModel(f"{top}: one of Ferry's own packages has that name, give yours another")
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
