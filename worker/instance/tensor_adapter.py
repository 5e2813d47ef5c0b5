"""Reshapes inputs and outputs between client and model shapes, and fills in masks.

Clients and queue know a model by its spec; where its config reshapes tensors, or has masks of
ragged inputs, its backend is loaded by another one, and called through a `TensorAdapter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModelOutput, FerryError
from shared.model_spec import MaskInput, ModelSpec, TensorSpec
from worker.backends.base import Backend, EachBackend, RequestTensors, close, device_fault
from worker.instance.each import answers_each
from worker.instance.outputs import fitted


def backend_spec(spec: ModelSpec) -> ModelSpec:
    """Return the spec that the backend gets: masks among its inputs, `reshape` as its dims."""
    inputs = list(spec.inputs)
    for mask in sorted(spec.masks, key=lambda mask: mask.position):
        inputs.insert(mask.position, mask.tensor)
    return spec.with_changes(
        inputs=tuple(_reshaped_spec(tensor) for tensor in inputs),
        outputs=tuple(_reshaped_spec(tensor) for tensor in spec.outputs),
        masks=(),
    )


def _reshaped_spec(tensor: TensorSpec) -> TensorSpec:
    if tensor.reshape is None:
        return tensor
    return tensor.model_copy(update={"dims": tensor.reshape, "reshape": None})


def adapted(backend: Backend, spec: ModelSpec) -> Backend:
    """Return `backend`, loaded by `backend_spec(spec)`, as one that takes the tensors of `spec`."""
    if not spec.masks and all(each.reshape is None for each in spec.inputs + spec.outputs):
        return backend
    return (
        EachTensorAdapter(backend, spec) if answers_each(backend) else TensorAdapter(backend, spec)
    )


class TensorAdapter:
    """Stands before a backend: reshapes, and fills in the masks that `stack` did not."""

    def __init__(self, backend: Backend, spec: ModelSpec) -> None:
        """Call `backend`, which was loaded by `backend_spec(spec)`."""
        self._backend = backend
        self.device_fault = device_fault(backend)
        self._spec = spec
        masks = [mask.tensor for mask in spec.masks]
        self._inputs = {tensor.name: tensor for tensor in [*spec.inputs, *masks]}
        self._outputs = {each.name: each for each in spec.outputs if each.reshape is not None}

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch as `Backend.forward` does; raises BadModelOutput for another shape."""
        outputs = self._backend.forward(self.model_inputs(inputs, pixels), pixels)
        return self._client_outputs(outputs, inputs)

    def close(self) -> None:
        """Close the model's own backend."""
        close(self._backend)

    def model_inputs(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Return the inputs of clients in the shapes that the model takes, with its masks.

        Pixels are left to who normalises them.
        """
        unpadded = {
            mask.tensor.name: ones(mask, inputs[mask.of], batched=self._spec.batched)
            for mask in self._spec.masks
            if mask.of in inputs and mask.tensor.name not in inputs
        }
        return {
            name: self._reshaped(array, tensor.dims, tensor.reshape)
            if (tensor := self._inputs[name]).reshape is not None and name not in pixels
            else array
            for name, array in {**inputs, **unpadded}.items()
        }

    def _client_outputs(
        self, outputs: dict[str, Array], inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the outputs of the model in the shapes that clients get; raises BadModelOutput."""
        leading = next(iter(inputs.values())).shape[:1] if self._spec.batched else ()
        changed = {}
        for name, tensor in self._outputs.items():
            if name in outputs:
                inside = _reshaped_spec(tensor)
                array = fitted(outputs[name], inside, leading)
                changed[name] = self._reshaped(array, inside.dims, tensor.dims)
        return outputs | changed

    def _reshaped(
        self, array: Array, known: tuple[int, ...], wanted: tuple[int, ...] | None
    ) -> Array:
        """Return `array`, of shape `known`, as `wanted`: each -1 has its counterpart's size."""
        leading = array.shape[:1] if self._spec.batched else ()
        sizes = array.shape[len(leading) :]
        free = iter([size for size, said in zip(sizes, known, strict=True) if said == -1])
        shape = [next(free) if size == -1 else size for size in wanted or ()]
        assert prod(shape) == prod(sizes), "the config's shapes were compared when it was read"
        return array.reshape((*leading, *shape))


class EachTensorAdapter(TensorAdapter):
    """The same before a backend that answers each request on its own."""

    _backend: EachBackend

    def answer_each(
        self, requests: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        """See `EachBackend.answer_each`; an answer of another shape fails its request alone."""
        asked = [
            request._replace(inputs=self.model_inputs(request.inputs, pixels))
            for request in requests
        ]
        answers = self._backend.answer_each(asked, pixels)
        return [self._answer(*each) for each in zip(answers, requests, strict=True)]

    def _answer(
        self, answer: dict[str, Array] | FerryError, request: RequestTensors
    ) -> dict[str, Array] | FerryError:
        if isinstance(answer, FerryError):
            return answer
        try:
            return self._client_outputs(answer, request.inputs)
        except BadModelOutput as error:
            return error


def ones(mask: MaskInput, array: Array, *, batched: bool) -> Array:
    """Return the mask of an input whose rows were not padded."""
    shape = array.shape[: len(mask.tensor.dims) + batched]
    return np.ones(shape, NUMPY_TYPES[mask.tensor.datatype])
