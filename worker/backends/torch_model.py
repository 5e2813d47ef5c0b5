"""Runs a batch on a torch model: tensors find their arguments, answers find their names (stop 8).

The formats of torch's files (`torchscript`, `torch_export`, `torch_state_dict`) only load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from shared.datatypes import Array
from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import named_outputs, not_an_output
from worker.backends.preprocessing import Normaliser
from worker.backends.programs.calls import compiled, frozen, graphed
from worker.backends.torch_arrays import output_array, to_torch, torch_type
from worker.repository.execution import ExecutionPolicy

INDEXED = re.compile(r"__(\d+)$")
HALVES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PICTURES_DIMS = 4


class Argument(NamedTuple):
    """One argument of a model's `forward`."""

    name: str
    has_default: bool = False
    takes_none: bool = False
    is_tensor: bool = False
    """Nothing but a tensor: not the list of texts that a TYPE_STRING input becomes."""


class UndeclaredArguments(BadModel):
    """Raised for arguments of `forward` that no declared input feeds: `names`."""

    def __init__(self, message: str, names: list[str]) -> None:
        """Say `message`, and keep the arguments' names."""
        super().__init__(message)
        self.names = names


class TorchBackend:
    """A torch model on one device, run under `inference_mode`; subclasses load it."""

    def __init__(
        self,
        spec: ModelSpec,
        call: Callable[..., Any],
        arguments: Sequence[Argument] | None,
        device: torch.device,
        module: torch.nn.Module | None = None,
    ) -> None:
        """Match the declared tensors to `arguments`, None when they cannot be known.

        `call` is the `module`'s, unless what it calls is none that could be changed. Raises
        BadModel for an input without an argument, or an argument without an input.
        """
        self._call = call
        self._module = module
        self._dtype: torch.dtype | None = None
        self._channels_last = False
        self._device = device
        self._on_cpu = device.type == "cpu"
        names = [tensor.name for tensor in spec.inputs]
        known = [argument.name for argument in arguments or ()]
        self._inputs = _by_position(names, known)
        # Tensor name -> argument; by position where the arguments cannot be known.
        self._arguments: dict[str, Argument] = {}
        if arguments is not None:
            self._arguments = _matched(self._inputs, arguments)
            _check(spec, self._arguments, arguments)
        leading = [argument.name for argument in self._arguments.values()]
        self._positional = leading == known[: len(leading)]
        self._declared = {tensor.name: tensor for tensor in spec.outputs}
        self._outputs = _by_position([*self._declared], [])
        self._normaliser = Normaliser.of(spec, self._device)

    @property
    def input_names(self) -> list[str]:
        """Return the inputs in the order of the arguments that they feed."""
        return self._inputs

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch on the device (stop 8); see `Backend.forward`.

        Here the way turns: `worker.instance.batch` splits the outputs, the loop publishes them.
        """
        # fast: an instance that serves is in `inference_mode` all along (`serve` in
        # `worker.instance.passes.serving`); a block for each pass is for those of its warming up.
        if torch.is_grad_enabled():
            with torch.inference_mode():
                return self._forward(inputs, pixels)
        return self._forward(inputs, pixels)

    def execute_by(self, policy: ExecutionPolicy) -> None:
        """Compute in another precision, layout or way from now on, outputs as declared.

        Raises BadModel where that cannot be, and whatever the module raises when it is changed.
        """
        if self._module is None:
            raise BadModel(f"{policy}: machine code computes as it was compiled")
        if policy.precision:
            has_tf32 = policy.precision == "tf32"
            torch.set_float32_matmul_precision("high" if has_tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = has_tf32
        if dtype := HALVES.get(policy.precision):
            self._module.to(dtype)
            self._dtype = dtype
        if policy.layout == "channels_last":
            self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._channels_last = True
            if self._normaliser is not None:
                self._normaliser.channels_last = True
        try:
            if policy.is_frozen:
                self._module, self._call = frozen(self._module)
            if policy.is_compiled:
                self._call = compiled(self._call, self._module, self._device)
            if policy.has_graphs:
                self._call = graphed(self._call, self._device)
        except BadModel as error:
            raise BadModel(f"{policy}: {error.message}") from error

    def watch(self, see: Callable[[Any], None]) -> None:
        """Show `see` each answer of the model as it comes, before its outputs are named."""
        call = self._call

        def shown(*tensors: Any, **keywords: Any) -> Any:
            answer = call(*tensors, **keywords)
            see(answer)
            return answer

        self._call = shown

    def _forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Turn arrays into tensors, call the model, turn its tensors into arrays."""
        tensors = {
            name: self._tensor(inputs[name], name in pixels)
            for name in self._inputs
            if name in inputs
        }
        if self._positional and len(tensors) == len(self._inputs):
            answer = self._call(*tensors.values())
        else:  # an input is absent, or stands behind an argument that is left to its default
            answer = self._call(**self._keywords(tensors))
        if isinstance(answer, torch.Tensor) and len(self._outputs) == 1:  # fast: the usual answer
            found: dict[str, Any] = {self._outputs[0]: answer}
        else:
            found = named_outputs(answer, self._outputs)
        return {name: self._output(value, self._declared[name]) for name, value in found.items()}

    def _output(self, value: Any, declared: TensorSpec) -> Array:
        return _array(value if self._dtype is None else _as_declared(value, declared), declared)

    def _keywords(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name: of absent inputs None, unless there is a default."""
        return {
            argument.name: tensors.get(name)
            for name, argument in self._arguments.items()
            if name in tensors or not argument.has_default
        }

    def _tensor(self, array: Array, is_pixels: bool) -> torch.Tensor | list[str]:
        """Return an input as a tensor on the model's device, pictures normalised, texts as str."""
        if is_pixels:
            assert self._normaliser is not None, "pixels are made for image models only"
            return self._changed(self._normaliser(array))
        if array.dtype.hasobject:
            return [text.decode() for text in array.ravel()]
        tensor = to_torch(array)
        return self._changed(tensor if self._on_cpu else tensor.to(self._device, non_blocking=True))

    def _changed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return an input as the module takes it by its policy."""
        if self._dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        if self._channels_last and tensor.dim() == PICTURES_DIMS:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def _as_declared(value: Any, declared: TensorSpec) -> Any:
    """Return floating point numbers in the declared datatype, whatever they were computed in."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    wanted = torch_type(declared.datatype) if declared.datatype != "BYTES" else value.dtype
    return value.to(wanted) if wanted.is_floating_point else value


def _array(value: Any, declared: TensorSpec) -> Array:
    """Return one output of a model as an array: of a tensor, or of the texts of a list."""
    if isinstance(value, torch.Tensor):
        return output_array(value, declared)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return np.array(value, object)
    raise not_an_output(declared, value)


def _by_position(names: list[str], arguments: list[str]) -> list[str]:
    """Order tensor names by argument name, else by `NAME__<index>`, else as the config lists them.

    Source: Triton's naming convention for its PyTorch backend.
    """
    if set(names) <= set(arguments):
        return [name for name in arguments if name in names]
    indexed = {name: INDEXED.search(name) for name in names}
    if all(indexed.values()):
        return sorted(names, key=lambda name: int(indexed[name].group(1)))  # type: ignore[union-attr]
    return names


def _matched(names: list[str], arguments: Sequence[Argument]) -> dict[str, Argument]:
    """Return each ordered tensor name's argument, as far as there are any."""
    by_name = {argument.name: argument for argument in arguments}
    if set(names) <= set(by_name):
        return {name: by_name[name] for name in names}
    return dict(zip(names, arguments, strict=False))


def _check(spec: ModelSpec, matched: dict[str, Argument], arguments: Sequence[Argument]) -> None:
    """Raise BadModel unless inputs and arguments match, but for arguments with a default."""
    declared = [tensor.name for tensor in spec.inputs]
    taken = [argument.name for argument in arguments]
    if len(declared) > len(matched):
        raise BadModel(f"forward takes {taken}, the config declares the inputs {declared}")
    fed = set(matched.values())
    left = [each.name for each in arguments if not each.has_default and each not in fed]
    if left:
        raise UndeclaredArguments(
            f"forward takes {taken}, the config declares no input for {left}", left
        )
    for tensor in spec.inputs:
        argument = matched[tensor.name]
        if tensor.datatype == "BYTES" and argument.is_tensor:
            raise BadModel(
                f"input {tensor.name!r}: TYPE_STRING, but forward's argument {argument.name!r} is "
                "a Tensor, and torch has none of strings"
            )
        if tensor.optional and not argument.has_default and not argument.takes_none:
            raise BadModel(
                f"input {tensor.name!r} is optional, but forward's argument {argument.name!r} has "
                "no default and is not Optional"
            )
