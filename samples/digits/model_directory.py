"""Write the model directory of `digits`: configuration, labels and the network, freshly trained.

And what it was trained on as its reference, so that drift of what it is asked is seen.
"""

from pathlib import Path

import numpy as np
import torch

from samples.digits.pictures import resize, training_handwriting
from samples.digits.training import train
from samples.tiny.torchscript import save_torchscript
from shared.settings import Settings
from worker.devices import Placement
from worker.optimise.references import write_reference
from worker.optimise.rows import Rows, array_rows
from worker.optimise.subjects import load_version
from worker.repository.models import read_model

CONFIG = """\
name: "digits"
platform: "pytorch_libtorch"
max_batch_size: 32
input [ { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [1, 32, 32] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" } ]
dynamic_batching { }
# Pictures of any size and polarity. Stretched, since the bars of "pad" would count as paper.
parameters { key: "input_kind" value { string_value: "image" } }
parameters { key: "image_channels" value { string_value: "L" } }
parameters { key: "image_resize" value { string_value: "stretch" } }
parameters { key: "image_interpolation" value { string_value: "bilinear" } }
# value = (pixel * scale - mean) / std; the scale is 1 / 255.
parameters { key: "image_scale" value { string_value: "0.00392156862745098" } }
parameters { key: "image_mean" value { string_value: "0.5" } }
parameters { key: "image_std" value { string_value: "0.5" } }
parameters { key: "output_activation" value { string_value: "softmax" } }
"""


def make(directory: Path) -> None:
    """Train, then write config.pbtxt, labels.txt and 1/model.pt; takes about 20 s on one core."""
    network = train()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    labels = "".join(f"{digit}\n" for digit in range(10))
    (directory / "labels.txt").write_text(labels, encoding="utf-8")
    save_torchscript(network, torch.zeros(2, 1, 32, 32), directory / "1" / "model.pt")
    _write_reference(directory)


def _write_reference(directory: Path) -> None:
    model = read_model(directory.parent, directory.name)
    pictures, _ = training_handwriting()
    pixels = np.stack([resize(picture) for picture in pictures])[..., None]
    take = array_rows({"image": pixels}, model.spec, frozenset({"image"}))
    rows = Rows(len(pixels), take, source="the pictures that it was trained on")
    subject = load_version(model, Settings(), Placement("cpu", 1))  # as it is trained
    write_reference(model, subject, rows)
