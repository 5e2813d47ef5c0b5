"""State dicts: weights in a file, the module that takes them made by the operator's own code."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.operator_code import named_callable
from worker.backends.torch_model import Argument, TorchBackend

MAX_NAMED = 8
"""Of the wrong keys that a message names; a wrong architecture has them all wrong."""


class StateDictBackend(TorchBackend):
    """`parameters { architecture }` called, filled with the file's weights, in eval mode."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Make the module and load `file` into it; raises BadModel or the module's own errors."""
        target = torch.device(device)
        weights = load_weights(file)
        module = _made(spec, file)
        _fill(module, weights)
        module = module.eval().to(target)
        super().__init__(spec, module, _arguments(module), target)


def load_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return a state dict on the CPU, without running code; raises BadModel for anything else."""
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadModel(
            "the file is no state dict that torch.load takes with weights_only=True; save "
            f"model.state_dict() ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(found, Mapping):
        raise BadModel(f"the file holds a {type(found).__name__}, not a state dict")
    return dict(found)


def _made(spec: ModelSpec, file: Path) -> torch.nn.Module:
    """Call the architecture with its keyword arguments."""
    path = spec.parameters.get("architecture", "")
    if not path:
        raise BadModel(
            "a state dict has weights only: name the code that makes its module with "
            'parameters { key: "architecture" value { string_value: "package.module:callable" } }'
        )
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


def _fill(module: torch.nn.Module, weights: dict[str, Any]) -> None:
    """Load the weights; raises BadModel naming keys that are missing, unexpected or misshapen."""
    wanted = module.state_dict()
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(repr(name) for name in names[:MAX_NAMED]) + more


def _arguments(module: torch.nn.Module) -> list[Argument] | None:
    """Return the arguments of the module's forward, None when it takes any."""
    found = []
    for each in inspect.signature(module.forward).parameters.values():
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        if each.kind is not inspect.Parameter.VAR_KEYWORD:
            found.append(Argument(each.name, each.default is not each.empty, takes_none=True))
    return found
