"""Modules that are exported in tests: plain ones, and such as no export follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Linear(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.linear = nn.Linear(4, width)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(width, 4, generator=generator))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear(x)
        return made


class Trained(_Linear):
    """Dropout and batch normalisation, as a module comes from training."""

    def __init__(self, width: int = 3) -> None:
        super().__init__(width)
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.norm.eval()  # as in fine-tuning: not all parts train

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.drop(self.norm(self.linear(x)))
        return made


class TwoInputs(_Linear):
    """Two outputs, one of a number for each row."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return super().forward(x) + super().forward(y), (x * y).sum(1)


class Named(_Linear):
    def forward(self, x: Tensor) -> Any:
        return {"sum": super().forward(x), "score": x.sum(1)}


class Words(nn.Module):
    """Rows of words, as long as the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.head(self.embed(ids).mean(1))
        return made


class Decides(_Linear):
    """Takes the other way for values that no made-up row is likely to have."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e12:
            return super().forward(x) * 2
        return super().forward(x)


class DecidesByRow(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[: int((x[:, 0] > -9).sum())])


class Scriptable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x * 2
        return x - 1


class ChecksSizes(_Linear):
    """What a trace warns of and follows all the same."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 10**6:
            raise ValueError("too many")
        return super().forward(x)


class OneBatch(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.linear(row) for row in x])


class NeverSteady(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(super().forward(x))


class Counts(_Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class OverTheBatch(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - super().forward(x).mean(0)


class StaysInTraining(_Linear):
    def train(self, mode: bool = True) -> StaysInTraining:
        super().train(True)
        return self


class NoTensor(_Linear):
    def forward(self, x: Tensor) -> Any:
        return (super().forward(x), None)


class NoBatch(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum(0)


def raises() -> nn.Module:
    raise ValueError("no such file: weights")


instance = Trained()


class Pictures(nn.Module):
    """A small convolutional network for pictures of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.layers(image)
        return made


class TakesMedian(_Linear):
    """Has an operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.median(dim=1, keepdim=True).values
