"""ResNet-18 and ResNet-50 in plain torch, with torchvision's parameter names.

He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385). The bottleneck puts
its stride on the 3x3 convolution, as torchvision does ("v1.5"), so torchvision's weights fit.
"""

import torch
from torch import nn

CLASS_COUNT = 1000


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return the projection for a block that changes the shape, None where the input fits as is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        _convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the block of ResNet-18."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Build for inputs of `in_channels`; `stride` 2 halves height and width."""
        super().__init__()
        self.conv1 = _convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, h, w] to [batch, width, h / stride, w / stride]."""
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = self.relu(self.bn1(self.conv1(features)))
        output: torch.Tensor = self.relu(self.bn2(self.conv2(inner)) + shortcut)
        return output


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution around a shortcut; the block of ResNet-50."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Build for inputs of `in_channels`; `stride` 2 halves height and width."""
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, h, w] to [batch, 4 * width, h / stride, w / stride]."""
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        output: torch.Tensor = self.relu(self.bn3(self.conv3(inner)) + shortcut)
        return output


Block = type[BasicBlock] | type[Bottleneck]
# Depth to the kind of block and the number of blocks in each of the four stages.
STAGES: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """The whole network: [batch, 3, 224, 224] normalised RGB to [batch, 1000] logits."""

    def __init__(self, depth: int) -> None:
        """Build ResNet-`depth`; ValueError for a depth other than 18 and 50."""
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth {depth} is unknown, expected one of {sorted(STAGES)}")
        block, counts = STAGES[depth]
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, counts[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, CLASS_COUNT)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 1000] for normalised RGB pictures [batch, 3, 224, 224]."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return logits


def _stage(block: Block, in_channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    """Return `count` blocks; the first one changes the channels and applies the stride."""
    first = block(in_channels, width, stride)
    rest = [block(width * block.expansion, width, 1) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)
