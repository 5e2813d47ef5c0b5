"""Variants for ONNX Runtime: the model as one ONNX file, and what is made of that file."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch

from shared.datatypes import Array
from shared.errors import BadModel
from worker.optimise.quiet import first_sentence
from worker.optimise.rows import Batch
from worker.optimise.tuning.files.torch_files import example_of, torch_module
from worker.optimise.tuning.machine import this_machine
from worker.optimise.tuning.task import Task, feeds

OPSETS = (20, 17)
"""Newest first: torch's exporter of TorchScript knows none above 20."""
CALIBRATION_BATCH = 8
LAYERS_OF_TEXTS = ["MatMul", "Gemm", "Gather"]
"""Where no convolution is: all else stays as it is, for its ranges are wide."""
PRUNED_RANK = 2
LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
SMALLEST_NORM = 1e-12
ACTIVATIONS = {"Relu", "Clip"}
"""Which become a part of the layer before them once that is quantised."""


def export_onnx(task: Task, file: Path) -> None:
    """Write the version as an ONNX file; raises BadModel saying why torch cannot."""
    if task.model.config.backend == "onnxruntime":  # --only names what is made of it
        shutil.copyfile(task.model.file, file)
        return
    module, example = torch_module(task), example_of(task)
    spec = task.model.spec
    inputs, outputs = list(example), [each.name for each in spec.outputs]
    free = {each.name: _free(each.dims) for each in (*spec.inputs, *spec.outputs)}
    for opset in OPSETS:
        try:
            torch.onnx.export(
                module, tuple(example.values()), str(file), dynamo=False, opset_version=opset,
                input_names=inputs, output_names=outputs, dynamic_axes=free,
            )  # fmt: skip
        except Exception as error:  # a border: the exporter raises many kinds
            fault = error
        else:
            return
    raise BadModel(f"torch cannot write it as ONNX: {first_sentence(fault)}") from fault


def _free(dims: Sequence[int]) -> dict[int, str]:
    return {0: "batch"} | {at: f"d{at}" for at, size in enumerate(dims, 1) if size == -1}


def static_int8(
    task: Task, base: Path, file: Path, *, per_channel: bool = True, exclude: Sequence[str] = ()
) -> None:
    """Write a file whose layers multiply 8-bit numbers, in ranges learnt from rows.

    The recipe is this processor's: without VNNI weights keep 7 bits, for the sums of two products
    would overflow. Source: the docstring of `onnxruntime.quantization.quantize_static`.
    """
    from onnxruntime.quantization import (  # noqa: PLC0415  slow to import
        QuantFormat,
        QuantType,
        quantize_static,
    )

    machine = this_machine()
    prepared = _prepared(base, file.parent)
    has_convolutions = "Conv" in _operators(prepared)
    quantize_static(
        str(prepared), str(file), _Reader(task, prepared),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        reduce_range=not machine.has_vnni,
        activation_type=QuantType.QInt8 if machine.is_arm else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=None if has_convolutions else LAYERS_OF_TEXTS,
        nodes_to_exclude=list(exclude),
    )  # fmt: skip
    prepared.unlink()


def dynamic_int8(_task: Task, base: Path, file: Path, *, exclude: Sequence[str] = ()) -> None:
    """Write a file whose linear layers multiply 8-bit numbers, in ranges found in each pass."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415  slow

    machine = this_machine()
    prepared = _prepared(base, file.parent)
    quantize_dynamic(
        str(prepared), str(file),
        op_types_to_quantize=["MatMul", "Gemm", "Gather", "Attention"],
        per_channel=True,
        reduce_range=not machine.has_vnni,
        weight_type=QuantType.QInt8,
        # A Gemm becomes a MatMul of this name before the names are looked up.
        nodes_to_exclude=[*exclude, *(f"{name}_MatMul" for name in exclude)],
    )  # fmt: skip
    prepared.unlink()


def without_worst(
    task: Task, base: Path, file: Path, *, make: Callable[..., None], share: float
) -> None:
    """Write what `make` writes, but a share of the layers, those harmed most, stays in FP32."""
    whole = file.parent / "whole.onnx"
    make(task, base, whole)
    prepared = _prepared(base, file.parent)
    batches = (feeds(task, batch) for batch in calibration_batches(task))
    worst = worst_layers(prepared, whole, batches, share)
    whole.unlink()
    make(task, base, file, exclude=worst)


def half_precision(_task: Task, base: Path, file: Path) -> None:
    """Write a file whose weights are FP16, its inputs and outputs as they were."""
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    model = convert_float_to_float16(onnx.load(str(base)), keep_io_types=True)
    onnx.save(model, str(file))


def pruned(_task: Task, base: Path, file: Path, *, sparsity: float) -> None:
    """Write a file in which the smallest weights of each layer are zero, for good."""
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need
    from onnx import numpy_helper  # noqa: PLC0415

    model = onnx.load(str(base))
    for initializer in model.graph.initializer:
        weights = numpy_helper.to_array(initializer)
        if weights.ndim >= PRUNED_RANK and weights.dtype == np.float32:
            sizes = np.abs(weights)
            kept = np.where(sizes < np.quantile(sizes, sparsity), np.float32(0), weights)
            initializer.CopyFrom(numpy_helper.from_array(kept, initializer.name))
    onnx.save(model, str(file))


def _prepared(base: Path, scratch: Path) -> Path:
    """Return the file with its shapes inferred and its graph simplified, as quantising wants it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    file = scratch / "prepared.onnx"
    for skip_symbolic in (False, True):
        with suppress(Exception):  # a border: of either kind of inference either may fail
            quant_pre_process(str(base), str(file), skip_symbolic_shape=skip_symbolic)
            return file
    shutil.copyfile(base, file)
    return file


def _operators(file: Path) -> set[str]:
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    return {node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node}


class _Reader:
    """Feeds the rows of calibration to ONNX Runtime's calibrator."""

    def __init__(self, task: Task, file: Path) -> None:
        """Read the rows as the calibrator asks for them."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        self._names = {each.name for each in session.get_inputs()}
        self._feeds = self._all(task)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch, None behind the last."""
        return next(self._feeds, None)

    def _all(self, task: Task) -> Iterator[dict[str, Array]]:
        for batch in calibration_batches(task):
            arrays = feeds(task, batch)
            yield {name: array for name, array in arrays.items() if name in self._names}


def calibration_batches(task: Task) -> Iterator[Batch]:
    """Yield the rows that ranges are learnt from."""
    size = min(CALIBRATION_BATCH, task.model.spec.batch_rows)
    numbers = iter(task.calibration())
    while chosen := list(itertools.islice(numbers, size)):
        yield task.rows.take(chosen)


class _Layer(NamedTuple):
    name: str
    source: str
    output: str


def worst_layers(
    base: Path, quantised: Path, feeds: Iterable[dict[str, Array]], share: float
) -> list[str]:
    """Return the names of the `share` of layers that 8 bits harm most, at least one; worst first.

    A layer's harm is the growth of the relative error through it: that of its output, less that
    of its input, which the layers before it made.
    """
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    nodes = onnx.load(str(base)).graph.node
    activated = {node.input[0]: node.output[0] for node in nodes if node.op_type in ACTIVATIONS}
    layers = [
        _Layer(node.name, node.input[0], activated.get(node.output[0], node.output[0]))
        for node in nodes
        if node.op_type in LAYERS
    ]
    shown = list(dict.fromkeys(name for each in layers for name in (each.source, each.output)))
    few = list(itertools.islice(feeds, 2))
    errors = _errors(_activations(base, shown, few), _activations(quantised, shown, few))
    harmed = [each for each in layers if each.output in errors]
    harmed.sort(key=lambda each: errors.get(each.source, 0.0) - errors[each.output])
    return [each.name for each in harmed[: max(1, round(share * len(layers)))]]


def _errors(ours: dict[str, Array], theirs: dict[str, Array]) -> dict[str, float]:
    return {
        name: float(
            np.linalg.norm(theirs[name] - array) / max(SMALLEST_NORM, float(np.linalg.norm(array)))
        )
        for name, array in ours.items()
        if name in theirs and theirs[name].shape == array.shape
    }


def _activations(
    file: Path, names: Sequence[str], feeds: Sequence[dict[str, Array]]
) -> dict[str, Array]:
    """Return tensors inside a model, flat, of all rows one after another."""
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    model = onnx.load(str(file))
    there = {name for node in model.graph.node for name in node.output}
    outputs = {each.name for each in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name in there - outputs
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels: Any = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    wanted = [each.name for each in session.get_outputs() if each.name in names]
    takes = {each.name for each in session.get_inputs()}
    answers = [
        session.run(wanted, {name: array for name, array in feed.items() if name in takes})
        for feed in feeds
    ]
    return {
        name: np.concatenate([answer[at].ravel() for answer in answers]).astype(np.float64)
        for at, name in enumerate(wanted)
    }
