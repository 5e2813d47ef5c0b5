"""Files of torch.save: weights, whose module the operator's own code makes, and whole modules.

A pickled module runs whatever code is in it when it is loaded. It holds the names of its classes,
not their code: they are imported from what is installed, or found in the .py files beside it.
"""

from __future__ import annotations

import inspect
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.operator_code import NamesBeside, named_callable
from worker.backends.torch_model import Argument, TorchBackend
from worker.repository.config.formats import NO_ARCHITECTURE
from worker.repository.file_kinds import SAFETENSORS, UNKNOWN, FileKind
from worker.repository.sniffer import LEGACY_TORCH, what_is

PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
STORAGE = ("torch.storage", "_load_from_bytes")
MAX_NAMED = 8
"""Of the wrong keys that a message names; a wrong architecture has them all wrong."""


class StateDictBackend(TorchBackend):
    """`parameters { architecture }` called, filled with the file's weights, in eval mode."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Make the module and load `file` into it; raises BadModel or the module's own errors."""
        target = torch.device(device)
        module = filled_module(spec, file).to(target)
        super().__init__(spec, module, arguments_of(module), target, module)


class TorchPickleBackend(TorchBackend):
    """A pickled module in eval mode."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file`, which runs the code in it; raises BadModel or any error of that code."""
        target = torch.device(device)
        module = load_module(file).eval().to(target)
        super().__init__(spec, module, arguments_of(module), target, module)


def load_module(file: Path) -> torch.nn.Module:
    """Return the module in a file, out of what training wrapped it in, on the CPU."""
    kind = what_is(file)
    if kind.backend != "torch_pickle":
        raise BadModel(kind.sentence)
    found = _unpickled(file, kind)
    if kind.key:
        found = found[kind.key]
    if isinstance(found, PARALLEL):
        found = found.module
    found = getattr(found, "_orig_mod", found)  # torch.compile's wrapper
    if not isinstance(found, torch.nn.Module):
        raise BadModel(f"the file holds a {type(found).__name__}, no torch module")
    return found


def _unpickled(file: Path, kind: FileKind) -> Any:
    names = NamesBeside(file, kind)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == STORAGE:  # how tensors lie in a plain pickle
                return _storage_on_the_cpu
            return names.find(super().find_class, module, name)

    def load(stream: Any, **options: Any) -> Any:
        return Unpickler(stream, **options).load()

    by_torch = zipfile.is_zipfile(file)
    with file.open("rb") as stream:
        by_torch = by_torch or stream.read(len(LEGACY_TORCH)) == LEGACY_TORCH
        stream.seek(0)
        if not by_torch:
            return load(stream)
        own: Any = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")
        return torch.load(stream, map_location="cpu", pickle_module=own, weights_only=False)


def _storage_on_the_cpu(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def load_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return a state dict on the CPU, without running code; raises BadModel for anything else."""
    kind = what_is(file)
    if kind == SAFETENSORS:
        return load_file(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if kind == UNKNOWN:
            raise BadModel(kind.sentence) from error
        alone = f"its entry {kind.key!r} alone" if kind.key else "model.state_dict()"
        raise BadModel(
            f"{kind.what}, but with objects that torch.load refuses with weights_only=True: save "
            f"{alone} ({str(error).splitlines()[0]})"
        ) from error
    if kind.key:
        found = found[kind.key]
    if not isinstance(found, Mapping):
        raise BadModel(f"the file holds a {type(found).__name__}, not a state dict")
    return dict(found)


def filled_module(spec: ModelSpec, file: Path) -> torch.nn.Module:
    """Return the module that the config names, with the file's weights, in eval mode."""
    weights = load_weights(file)
    module = _made(spec, file)
    fill(module, weights)
    return module.eval()


def _made(spec: ModelSpec, file: Path) -> torch.nn.Module:
    """Call the architecture with its keyword arguments."""
    path = spec.parameters.get("architecture", "")
    if not path:
        raise BadModel(NO_ARCHITECTURE)
    text = spec.parameters.get("architecture_arguments", "{}")
    try:
        keywords = json.loads(text)
    except ValueError as error:
        raise BadModel(f"architecture_arguments {text!r}: {error}") from error
    if not isinstance(keywords, dict):
        raise BadModel(f"architecture_arguments {text!r}: expected a JSON object")
    module = named_callable(path, file)(**keywords)
    if not isinstance(module, torch.nn.Module):
        raise BadModel(f"architecture {path!r} made a {type(module).__name__}, no torch module")
    return module


def fill(module: torch.nn.Module, weights: Mapping[str, Any]) -> None:
    """Load the weights; raises BadModel naming keys that are missing, unexpected or misshapen."""
    wanted = module.state_dict()
    weights = _without_prefix(weights, wanted)
    # What shares memory with a weight that is there may be missing: safetensors saves it once.
    filled = {tensor.data_ptr() for name, tensor in wanted.items() if name in weights}
    missing = {name for name, tensor in wanted.items() if tensor.data_ptr() not in filled}
    wrong = []
    for what, names in (
        ("missing", missing - weights.keys()),
        ("unexpected", weights.keys() - wanted.keys()),
    ):
        if names:
            wrong.append(f"{what} keys {_listed(sorted(names))}")
    wrong += [
        f"{name!r} has shape {list(weights[name].shape)}, the module's {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if isinstance(weights.get(name), torch.Tensor) and weights[name].shape != tensor.shape
    ][:MAX_NAMED]
    if wrong:
        raise BadModel(f"the weights do not fit the architecture: {'; '.join(wrong)}")
    module.load_state_dict(weights, strict=False)


def _without_prefix(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights without the name of a wrapper, if that is all in which they differ.

    Training puts one in front: `module.` in parallel, `model.` by Lightning, `_orig_mod.` compiled.
    """
    while not weights.keys() & wanted.keys() and weights:
        prefixes = {name.partition(".")[0] for name in weights}
        if len(prefixes) > 1:
            break
        cut = {name.partition(".")[2]: value for name, value in weights.items()}
        if "" in cut:
            break
        weights = cut
    return weights


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(repr(name) for name in names[:MAX_NAMED]) + more


def arguments_of(module: torch.nn.Module) -> list[Argument] | None:
    """Return the arguments of the module's forward, None when it takes any."""
    found = []
    for each in inspect.signature(module.forward).parameters.values():
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        if each.kind is not inspect.Parameter.VAR_KEYWORD:
            found.append(Argument(each.name, each.default is not each.empty, takes_none=True))
    return found
