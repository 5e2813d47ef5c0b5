"""EfficientNet-Lite0 in plain torch: the network of the paper, made fit for integer arithmetic.

Tan and Le, "EfficientNet" (arXiv:1905.11946), table 1, at the size B0; "Lite" leaves out
squeeze-and-excitation, cuts activations at 6 instead of swish, and keeps the stem's and the head's
widths.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn

CLASS_COUNT = 1000
PIXELS = 224  # height and width of the pictures that the weights were trained on
STEM_WIDTH, HEAD_WIDTH = 32, 1280
EPSILON = 1e-3  # what batch normalisation adds to a variance, as in training


class Stage(NamedTuple):
    """Blocks of one width; the first of them has the stride."""

    expansion: int
    width: int
    block_count: int
    kernel_size: int
    stride: int


STAGES = (
    Stage(expansion=1, width=16, block_count=1, kernel_size=3, stride=1),
    Stage(expansion=6, width=24, block_count=2, kernel_size=3, stride=2),
    Stage(expansion=6, width=40, block_count=2, kernel_size=5, stride=2),
    Stage(expansion=6, width=80, block_count=3, kernel_size=3, stride=2),
    Stage(expansion=6, width=112, block_count=3, kernel_size=5, stride=1),
    Stage(expansion=6, width=192, block_count=4, kernel_size=5, stride=2),
    Stage(expansion=6, width=320, block_count=1, kernel_size=3, stride=1),
)


class Block(nn.Module):
    """Widen, look at each channel's neighbourhood, narrow; added to the input where it fits."""

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        """Build a block of `stage` for inputs of `in_channels`; `stride` 2 halves both sides."""
        super().__init__()
        inner = in_channels * stage.expansion
        self.expand = nn.Identity() if stage.expansion == 1 else _layer(in_channels, inner, 1)
        self.depthwise = _layer(inner, inner, stage.kernel_size, stride, groups=inner)
        self.project = _layer(inner, stage.width, 1, activation=False)
        self.adds_input = stride == 1 and in_channels == stage.width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, h, w] to [batch, width, h / stride, w / stride]."""
        inner: torch.Tensor = self.project(self.depthwise(self.expand(features)))
        return features + inner if self.adds_input else inner


class EfficientNetLite0(nn.Module):
    """The whole network: [batch, 3, 224, 224] normalised RGB to [batch, 1000] logits."""

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.stem = _layer(3, STEM_WIDTH, 3, stride=2)
        blocks, width = [], STEM_WIDTH
        for stage in STAGES:
            for number in range(stage.block_count):
                blocks.append(Block(width, stage, stage.stride if number == 0 else 1))
                width = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.head = _layer(width, HEAD_WIDTH, 1)
        self.classifier = nn.Linear(HEAD_WIDTH, CLASS_COUNT)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 1000] for normalised RGB pictures [batch, 3, 224, 224]."""
        features = self.head(self.blocks(self.stem(pixels)))
        logits: torch.Tensor = self.classifier(features.mean((2, 3)))
        return logits


def _layer(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Return a convolution that keeps or halves the sides, its norm and its activation."""
    layers: dict[str, nn.Module] = {}
    before, after = _padding(kernel_size, stride)
    if before != after:
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
        before = 0
    layers["convolution"] = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, before, groups=groups, bias=False
    )
    layers["norm"] = nn.BatchNorm2d(out_channels, eps=EPSILON)
    if activation:
        layers["activation"] = nn.ReLU6()
    return nn.Sequential(OrderedDict(layers))


def _padding(kernel_size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after each row of an even length: TensorFlow's "same" padding.

    subtle: the weights come from TensorFlow, where stride 2 puts the odd zero after the pixels;
    with as many on both sides every feature map would lie half a pixel off.
    """
    total = kernel_size - stride
    return total // 2, total - total // 2
