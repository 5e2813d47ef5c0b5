"""Proof that low-precision kernels run: counted in what the runtime really executes.

ONNX Runtime   the nodes of the graph as it optimised it for this machine
torch          the lines that oneDNN writes of each operation that it runs
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch

from worker.backends.onnxruntime import open_session

INTEGER = {
    "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "QAttention",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QMoE", "MatMulNBits",
}  # fmt: skip
FLOATING = {
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm",
    "FusedGemm", "Attention", "MultiHeadAttention", "LSTM", "GRU",
}  # fmt: skip
FLOATS = {1: "FP32", 10: "FP16", 11: "FP64", 16: "BF16"}
"""The numbers of ONNX' datatypes."""
ONEDNN_LAYERS = {"convolution", "inner_product", "matmul", "rnn", "deconvolution"}
ONEDNN_TYPES = {"FP32": "f32", "FP16": "f16", "BF16": "bf16", "INT8": "[us]8"}
"""As oneDNN writes the datatype of what goes into an operation."""


class Kernels(NamedTuple):
    """Of how many layers (convolutions and products with weights) a precision was run."""

    precision: str
    low: int
    layers: int

    def __str__(self) -> str:
        """Say it as reports do."""
        return f"{self.low} of {self.layers} layers {self.precision}"


def onnx_kernels(file: Path, precision: str) -> Kernels:
    """Count the layers of the graph that ONNX Runtime makes of a file on this machine."""
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
        open_session(file, options, ["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    weights = {each.name: each.data_type for each in graph.initializer}
    low = layers = 0
    for node in graph.node:
        if node.op_type in INTEGER:
            layers += 1
            low += precision == "INT8"
        elif node.op_type in FLOATING:
            known = [weights[name] for name in node.input if name in weights]
            if known:  # else it multiplies two activations, which is no layer
                layers += 1
                low += FLOATS.get(known[0]) == precision
    return Kernels(precision, low, layers)


def torch_kernels(run: Callable[[], Any], precision: str) -> Kernels:
    """Count the layers that oneDNN runs when `run` is called once."""
    source = re.compile(rf"src[:_]{ONEDNN_TYPES[precision]}:")
    layers = low = 0
    for line in _said_by_onednn(run):
        fields = line.split(",")
        if not ONEDNN_LAYERS & set(fields):
            continue
        layers += 1
        low += bool(source.search(line))
    return Kernels(precision, low, layers)


def _said_by_onednn(run: Callable[[], Any]) -> list[str]:
    with tempfile.TemporaryFile() as sink:
        verbose: Any = torch.backends.mkldnn.verbose
        with _output_to(sink.fileno()), verbose(torch.backends.mkldnn.VERBOSE_ON):
            run()
        sink.seek(0)
        text = sink.read().decode(errors="replace")
    return [line for line in text.splitlines() if "onednn_verbose" in line and ",exec," in line]


@contextmanager
def _output_to(number: int) -> Iterator[None]:
    """Have what C code prints go to a file; its own buffer is emptied before and after."""
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    library.fflush(None)
    kept = os.dup(1)
    os.dup2(number, 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
