"""Triton's Python models: a class `TritonPythonModel`, run as Triton's Python backend runs it.

Source of the arguments and the life of a model:
https://github.com/triton-inference-server/python_backend.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shared.datatypes import Array
from shared.errors import (
    BadModel,
    BadModelOutput,
    BadRequest,
    FerryError,
    ModelFailed,
    Unsupported,
    described,
)
from shared.model_spec import ModelSpec
from worker.backends.base import RequestTensors, device_fault
from worker.backends.preprocessing import PixelArrays, own_arrays
from worker.backends.triton_requests import (
    InferenceRequest,
    InferenceResponse,
    TritonError,
    TritonTensor,
)
from worker.devices import Placement

log = logging.getLogger(__name__)

ERRORS = {TritonError.INVALID_ARG: BadRequest, TritonError.UNSUPPORTED: Unsupported}
"""The error that a client gets for a code; for all others `model_failed`."""


class TritonPythonBackend:
    """An initialised `TritonPythonModel`: each request of a batch is one InferenceRequest."""

    def __init__(self, model: Any, spec: ModelSpec, file: Path, placement: Placement) -> None:
        """Make a `model` and initialise it; raises BadModel or the operator's own errors."""
        if not callable(getattr(model, "execute", None)):
            raise BadModel("the class TritonPythonModel has no execute(self, requests)")
        if spec.config.get("model_transaction_policy", {}).get("decoupled"):
            raise BadModel("model_transaction_policy: decoupled models are not offered")
        self._spec = spec
        self._outputs = tuple(tensor.name for tensor in spec.outputs)
        self._pixels = PixelArrays(spec)
        self._loop: EventLoop | None = None
        self._model = model()
        self.device_fault = device_fault(self._model)
        if hasattr(self._model, "initialize"):
            self._done(self._model.initialize(_arguments(spec, file, placement)))

    def answer_each(
        self, requests: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        """Hand a batch to `execute`; see `EachBackend.answer_each`."""
        asked = [self._request(each, pixels) for each in requests]
        responses = self._done(self._model.execute(asked))
        if responses is None and all(one.sender is not None for one in asked):
            responses = [one.sender.response() for one in asked if one.sender is not None]
        if not isinstance(responses, Sequence) or len(responses) != len(requests):
            count = len(responses) if isinstance(responses, Sequence) else responses
            raise BadModelOutput(f"execute returned {count} responses to {len(requests)} requests")
        return [_answer(response) for response in responses]

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one request; see `Backend.forward`. Raises the error that it is answered with."""
        (answer,) = self.answer_each([RequestTensors("", inputs, (), {})], pixels)
        if isinstance(answer, FerryError):
            raise answer
        return answer

    def close(self) -> None:
        """Call the model's `finalize`, where it has one."""
        if hasattr(self._model, "finalize"):
            self._done(self._model.finalize())

    def _done(self, returned: Any) -> Any:
        """Return what a method of the model returned, awaited when it is a coroutine."""
        if not inspect.isawaitable(returned):
            return returned
        self._loop = self._loop or EventLoop()
        return self._loop.run(returned)

    def _request(self, request: RequestTensors, pixels: frozenset[str]) -> InferenceRequest:
        arrays = own_arrays(request.inputs, pixels, self._pixels)
        return InferenceRequest(
            model_name=self._spec.name,
            requested_output_names=request.outputs or self._outputs,
            inputs=[TritonTensor(name, array) for name, array in arrays.items()],
            request_id=request.id,
            model_version=int(self._spec.version),
            parameters=request.parameters,
        )


class EventLoop:
    """The event loop of a model's coroutines, in a thread of its own as in Triton.

    It goes on between batches, so that what a model leaves running there does too.
    """

    def __init__(self) -> None:
        """Start the thread, which ends with its process."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="event loop", daemon=True).start()

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of a coroutine; raises what it raises."""

        async def awaited() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            try:
                self._loop.run_forever()
            except BaseException as error:  # a border: SystemExit leaves a loop; its task has it
                log.warning("a model's coroutine raised %s, the loop goes on", described(error))


def _answer(response: object) -> dict[str, Array] | FerryError:
    if not isinstance(response, InferenceResponse):
        return BadModelOutput(f"execute returned {response!r} for an InferenceResponse")
    error = response.error()
    if error is not None:
        return ERRORS.get(error.code(), ModelFailed)(error.message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def _arguments(spec: ModelSpec, file: Path, placement: Placement) -> dict[str, str]:
    """Return the arguments of `initialize`, all of them text."""
    device, _, number = placement.device.partition(":")
    return {
        "model_config": json.dumps(spec.config),
        "model_instance_kind": "CPU" if device == "cpu" else "GPU",
        "model_instance_name": f"{spec.name}_0",
        "model_instance_device_id": number or "0",
        "model_repository": str(file.parent.parent),
        "model_version": spec.version,
        "model_name": spec.name,
    }
