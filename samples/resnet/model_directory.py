"""Write the model directory of `resnet18` or `resnet50`: configuration, labels, both formats."""

from pathlib import Path
from string import Template

import torch

from samples.onnx_file import save_onnx
from samples.resnet.architecture import CLASS_COUNT
from samples.resnet.weights import load
from samples.tiny.torchscript import save_torchscript

CONFIG = Template("""\
name: "resnet$depth"
# To serve 1/model.onnx, which holds the same network, write "onnxruntime_onnx" here.
platform: "pytorch_libtorch"
max_batch_size: 32
input [ { name: "input" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 224, 224] } ]
output [ { name: "output" data_type: TYPE_FP32 dims: [1000] label_filename: "labels.txt" } ]
dynamic_batching { }
# On a CPU two instances with half of the cores each serve more pictures than one with all of them;
# on a GPU one copies its batch while the other computes.
instance_group [ { count: 2 } ]
# Pictures: shorter side to 256 pixels, the middle 224 x 224, then ImageNet's mean and deviation.
parameters { key: "input_kind" value { string_value: "image" } }
parameters { key: "image_channels" value { string_value: "RGB" } }
parameters { key: "image_resize" value { string_value: "crop" } }
parameters { key: "image_resize_size" value { string_value: "256" } }
parameters { key: "image_interpolation" value { string_value: "bilinear" } }
# value = (pixel * scale - mean) / std; the scale is 1 / 255.
parameters { key: "image_scale" value { string_value: "0.00392156862745098" } }
parameters { key: "image_mean" value { string_value: "0.485,0.456,0.406" } }
parameters { key: "image_std" value { string_value: "0.229,0.224,0.225" } }
parameters { key: "output_activation" value { string_value: "softmax" } }
""")


def make(
    directory: Path, depth: int = 18, weights: Path | None = None, labels: Path | None = None
) -> None:
    """Write config.pbtxt, labels.txt, 1/model.pt and 1/model.onnx of ResNet-`depth`.

    `weights` as in `load`: random without it. `labels` is a text file of 1000 lines, one class
    name each; without it the names are "class 0" to "class 999". Raises ValueError for a file
    that does not fit, before anything is written.
    """
    network = load(depth, weights)
    names = _default_labels() if labels is None else _read_labels(labels)
    version = directory / "1"
    version.mkdir(parents=True, exist_ok=True)
    config = CONFIG.substitute(depth=depth)
    (directory / "config.pbtxt").write_text(config, encoding="utf-8")
    (directory / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    example = torch.zeros(2, 3, 224, 224)
    save_onnx(network, example, version / "model.onnx")
    save_torchscript(network, example, version / "model.pt")


def _default_labels() -> list[str]:
    return [f"class {index}" for index in range(CLASS_COUNT)]


def _read_labels(path: Path) -> list[str]:
    names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != CLASS_COUNT:
        raise ValueError(f"{path}: {len(names)} labels, expected {CLASS_COUNT}, one a line")
    return names
