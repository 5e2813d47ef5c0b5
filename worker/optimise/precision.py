"""Tells by a model's file in which precision it computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from worker.repository.models import ServedModel

QUANTISED = re.compile(r"Q(Linear|GEMM|Attention)|.*Quantize|.*Integer|MatMulNBits")


def precision_of(model: ServedModel) -> str:
    """Return FP32, FP16, BF16 or INT8; FP32 for a file that does not tell."""
    try:
        if model.config.backend == "onnxruntime":
            return _of_onnx(model.file)
        if model.config.backend in {"torchscript", "torch_export"}:
            return _of_torch(model.config.backend, model.file)
    except Exception:  # a border: a file that cannot be read so is loaded in another way
        return "FP32"
    return "FP32"


def _of_onnx(file: Path) -> str:
    import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need

    graph: Any = onnx.load(str(file), load_external_data=False).graph
    if any(QUANTISED.match(node.op_type) for node in graph.node):
        return "INT8"
    kinds = [each.data_type for each in graph.initializer]
    for kind, name in ((onnx.TensorProto.FLOAT16, "FP16"), (onnx.TensorProto.BFLOAT16, "BF16")):
        if kind in kinds:
            return name
    return "FP32"


def _of_torch(backend: str, file: Path) -> str:
    import torch  # noqa: PLC0415

    from worker.backends.programs.reading import load_program  # noqa: PLC0415  slow to import

    if backend == "torch_export":
        state = load_program(file).state_dict
    else:
        module: Any = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        if "quantized::" in str(module.inlined_graph):
            return "INT8"
        state = module.state_dict()
    kinds = {tensor.dtype for tensor in state.values() if isinstance(tensor, torch.Tensor)}
    for kind, name in ((torch.float16, "FP16"), (torch.bfloat16, "BF16")):
        if kind in kinds:
            return name
    return "INT8" if kinds & {torch.int8, torch.qint8, torch.quint8} else "FP32"
