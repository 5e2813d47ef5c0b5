"""Write the model repository entry of `photos`: configuration, class names, ONNX."""

import shutil
from pathlib import Path

import torch

from samples.onnx_file import save_onnx
from samples.photos.architecture import PIXELS
from samples.photos.weights import class_names, load

CONFIG = Path(__file__).with_name("config.pbtxt")


def make(directory: Path) -> None:
    """Write config.pbtxt, labels.txt and 1/model.onnx; PackageMissing before anything is written.

    Nothing is trained. Leaves torch's global random state as it was.
    """
    network, names = load(), class_names()
    version = directory / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CONFIG, directory / CONFIG.name)
    (directory / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    save_onnx(network, torch.zeros(2, 3, PIXELS, PIXELS), version / "model.onnx")
