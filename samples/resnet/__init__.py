"""The samples `resnet18` and `resnet50`: the usual ImageNet networks, as TorchScript and ONNX."""

from samples.resnet.model_directory import make
from samples.resnet.weights import load

__all__ = ["load", "make"]
