"""One small model of each format, y = 2x, as tests serve and damage them."""

from __future__ import annotations

from pathlib import Path

import joblib
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from scripted_models import save_scripted
from sklearn.preprocessing import StandardScaler

TENSORS = (
    'input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]\n'
    'output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]\n'
)
ARCHITECTURE = "from torch import nn\n\n\ndef double():\n    return nn.Linear(2, 2, bias=False)\n"
OWN = "class Model:\n    def forward(self, inputs):\n        return {'y': inputs['x'] * 2}\n"
TRITON = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        print("executes")
        doubled = [2 * pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for y in doubled]
"""
PARAMETER = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
ARCHITECTURE_PARAMETER = PARAMETER.format("architecture", "doubling:double")


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


CONFIGS = {
    "torchscript": 'platform: "pytorch_libtorch"\n',
    "torch_export": 'backend: "pytorch"\n',
    "state_dict": f'backend: "pytorch"\n{ARCHITECTURE_PARAMETER}',
    "safetensors": f'backend: "pytorch"\n{ARCHITECTURE_PARAMETER}',
    "torch_pickle": 'backend: "pytorch"\n',
    "onnx": 'platform: "onnxruntime_onnx"\n',
    "joblib": f'backend: "sklearn"\n{PARAMETER.format("methods", "y=transform")}',
    "python": 'backend: "python"\n',
    "triton_python": 'backend: "python"\n',
}
FILES = {
    "torchscript": "model.pt",
    "torch_export": "model.pt2",
    "state_dict": "weights.pt",
    "safetensors": "model.safetensors",
    "torch_pickle": "model.pth",
    "onnx": "model.onnx",
    "joblib": "model.joblib",
    "python": "model.py",
    "triton_python": "model.py",
}


def add_format(repository: Path, kind: str, name: str = "") -> Path:
    """Write a model of a format, called as it or `name`; return its file."""
    directory = repository / (name or kind)
    file = directory / "1" / FILES[kind]
    file.parent.mkdir(parents=True)
    (directory / "config.pbtxt").write_text(f"max_batch_size: 8\n{TENSORS}{CONFIGS[kind]}")
    _save(kind, file)
    return file


def _save(kind: str, file: Path) -> None:
    match kind:
        case "torchscript":
            save_scripted(Double(), file)
        case "torch_export":
            shapes = ({0: torch.export.Dim("batch")},)
            example = (torch.ones(2, 2),)
            program = torch.export.export(Double(), example, dynamic_shapes=shapes)
            torch.export.save(program, file)
        case "state_dict" | "safetensors":
            (file.parent / "doubling.py").write_text(ARCHITECTURE)
            weights = {"weight": 2 * torch.eye(2)}
            torch.save(weights, file) if kind == "state_dict" else save_file(weights, file)
        case "torch_pickle":
            module = torch.nn.Linear(2, 2, bias=False).requires_grad_(requires_grad=False)
            module.weight.copy_(2 * torch.eye(2))
            torch.save(module, file)
        case "onnx":
            onnx.save(_onnx(), file)
        case "joblib":
            # Centre 0, scale 1/2: nothing of ours must be importable to load it.
            scaler = StandardScaler().fit([[0.5, 0.5], [-0.5, -0.5]])
            joblib.dump(scaler, file)
        case "python":
            file.write_text(OWN)
        case "triton_python":
            file.write_text(TRITON)


def _onnx() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "double", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
