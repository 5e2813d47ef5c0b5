"""Exported programs: `torch.export.save`d, files that end with .pt2.

A program is a graph without Python code. Imported by the instances that need it only, for it is
slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from shared.errors import BadModel, BadModelOutput
from shared.model_spec import ModelSpec
from worker.backends.base import named_outputs
from worker.backends.programs.graph_texts import has_plain_guards
from worker.backends.programs.reading import load_program
from worker.backends.torch_arrays import datatype_name
from worker.backends.torch_model import Argument, TorchBackend
from worker.repository.config.description import Described
from worker.repository.config.fitting import check_described


class TorchExportBackend(TorchBackend):
    """An exported program. It has no modes to switch: it computes as it was exported."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file` without unpickling; raises BadModel or torch's own errors."""
        target = torch.device(device)
        program = load_program(file)
        if target.type != "cpu":
            program = move_to_device_pass(program, target)
        names, constants = _leaves(program)
        module = program.module(check_guards=has_plain_guards(program))
        in_spec = program.call_spec.in_spec

        def call(*tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            leaves = [next(given) if name else constants[at] for at, name in enumerate(names)]
            positional, keywords = pytree.tree_unflatten(leaves, in_spec)
            return module(*positional, **keywords)

        arguments = [Argument(name, is_tensor=True) for name in names if name]
        super().__init__(spec, call, arguments, target, module)
        self._check_tensors(spec, program)

    def _check_tensors(self, spec: ModelSpec, program: Any) -> None:
        """Raise BadModel unless the declared tensors are of the program's datatypes and sizes."""
        known = {node.name: node.meta.get("val") for node in program.graph.nodes}
        results = [known.get(name) for name in program.graph_signature.user_outputs]
        answer = pytree.tree_unflatten(results, program.call_spec.out_spec)
        try:
            outputs = named_outputs(answer, self._outputs)
        except BadModelOutput as error:
            raise BadModel(str(error)) from error
        inputs = {name: known.get(argument.name) for name, argument in self._arguments.items()}
        check_described(spec, _described(inputs), _described(outputs))


def _described(tensors: Mapping[str, Any]) -> dict[str, Described]:
    """Describe the tensors that a program computes with, sizes that are symbols as free."""
    return {
        name: Described(
            name,
            datatype_name(tensor.dtype),
            [size if isinstance(size, int) else -1 for size in tensor.shape],
        )
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def _leaves(program: Any) -> tuple[list[str], list[Any]]:
    """Return the name of each tensor that the program takes, and the other leaves' values.

    Leaves are the values in the arguments once lists and dictionaries are taken apart. Those that
    were no tensors when it was exported are part of the program, and have no name here.
    """
    names: list[str] = []
    constants: list[Any] = []
    for leaf in program.graph_signature.input_specs:
        if leaf.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(leaf.arg, TensorArgument):
            names.append(leaf.arg.name)
            constants.append(None)
        elif isinstance(leaf.arg, ConstantArgument):
            names.append("")
            constants.append(leaf.arg.value)
        else:
            raise BadModel(f"the program's input {leaf.arg.name!r} is a number, not a tensor")
    return names, constants
