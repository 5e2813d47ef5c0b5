"""The recipes, each as its tool's own documentation has it."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from bench.by_hand.networks import Inputs, Network
from samples.sentiment.model_directory import export
from shared.datatypes import Array

EAGER = "eager FP32"
Run = Callable[[Inputs], Array]


@dataclass(frozen=True)
class Made:
    """What a recipe made: how it is run, and the file that it would be served from."""

    run: Run
    file: Path | None = None


class Recipes:
    """The recipes for one network, each as its tool's own documentation has it."""

    def __init__(self, network: Network, directory: Path, threads: int) -> None:
        """Keep files in the directory; sessions of ONNX Runtime have as many threads."""
        self._network = network
        self._module = network.module
        self._directory = directory
        self._threads = threads

    def all(self) -> dict[str, Callable[[], Made]]:
        """Return how each is made, by its name in the table; what a later one needs is earlier."""
        pictures = next(iter(self._network.asked[0].values())).ndim == 4  # noqa: PLR2004
        return {
            EAGER: lambda: Made(_torch_run(self._module)),
            "TorchScript": self._traced,
            "TorchScript, frozen": self._frozen,
            **({"eager, channels last": self._channels_last} if pictures else {}),
            "ONNX Runtime FP32": lambda: self._session(self._onnx),
            "INT8 static": lambda: self._session(self._static(reduce_range=False)),
            "INT8 static, 7-bit weights": lambda: self._session(self._static(reduce_range=True)),
            "INT8 dynamic": lambda: self._session(self._dynamic()),
        }

    def _traced(self) -> Made:
        return self._script("traced.pt", lambda traced: traced)

    def _frozen(self) -> Made:
        return self._script("frozen.pt", torch.jit.freeze)

    def _script(self, name: str, changed: Callable[[Any], Any]) -> Made:
        file = self._directory / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so each time
            script = changed(torch.jit.trace(self._module, self._example))  # type: ignore[no-untyped-call]
            script.save(str(file))
        return Made(_torch_run(script), file)

    @property
    def _example(self) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, self._network.asked[0].values()))

    def _channels_last(self) -> Made:
        module = copy.deepcopy(self._module)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Made(_torch_run(module, channels_last=True))

    @functools.cached_property
    def _onnx(self) -> Path:
        file = self._directory / "fp32.onnx"
        names = list(self._network.asked[0])
        if len(names) > 1:
            export(self._module, file)
            return file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self._module, self._example, file, input_names=names, output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        return file

    @functools.cached_property
    def _prepared(self) -> Path:
        file = self._directory / "prepared.onnx"
        quant_pre_process(self._onnx, file, skip_symbolic_shape=True)
        return file

    def _static(self, *, reduce_range: bool) -> Path:
        file = self._directory / f"static-{reduce_range}.onnx"
        quantize_static(
            self._prepared, file, _Reader(self._network.calibration), per_channel=True,
            quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, reduce_range=reduce_range,
        )  # fmt: skip
        return file

    def _dynamic(self) -> Path:
        model, file = onnx.load(self._prepared), self._directory / "dynamic.onnx"
        del model.graph.value_info[:]  # it is asked for shapes that a transposed weight has no more
        quantize_dynamic(
            model, file, per_channel=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        )  # fmt: skip
        return file

    def _session(self, file: Path) -> Made:
        return session(file, self._threads)


def session(file: Path, threads: int) -> Made:
    """Return an ONNX file as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Array:
        output: Array = loaded.run(None, dict(inputs))[0]
        return output

    return Made(run, file)


def run_script(file: Path) -> Made:
    """Return a TorchScript file as torch runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so each time
        return Made(_torch_run(torch.jit.load(file).eval()), file)  # type: ignore[no-untyped-call]


def _torch_run(module: nn.Module, *, channels_last: bool = False) -> Run:
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def run(inputs: Inputs) -> Array:
        with torch.inference_mode():
            tensors = [torch.from_numpy(each) for each in inputs.values()]
            if channels_last:
                tensors = [each.contiguous(memory_format=layout) for each in tensors]
            output: Array = module(*tensors).numpy()
            return output

    return run


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the calibration batches one after another."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch, None behind the last."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)
