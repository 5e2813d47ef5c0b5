"""The network of `digits`: find the ink, bring it to one size in the middle, then convolve."""

import torch
from torch import nn
from torch.nn import functional

PICTURE_SIDE = 32
FRAME_SIDE = 24
# Half the frame, in units of the ink's spread: at 1.8 a straight "1" just fits from top to bottom.
FRAME_SPREADS = 1.8
# Differences from the paper below this share of the strongest one are grain, not ink.
INK_THRESHOLD = 0.25


class DigitNetwork(nn.Module):
    """Map pictures [batch, 1, 32, 32] to logits [batch, 10].

    Dark on white and white on dark, large and small, in the middle and aside all come out of
    `find_ink` and `Frame` alike, so the convolutions need to learn the digits only.
    """

    def __init__(self) -> None:
        """Build with fresh weights, about 61,000 of them."""
        super().__init__()
        self.frame = Frame()
        self.features = nn.Sequential(*_layer(1, 16), *_layer(16, 32), *_layer(32, 64))
        self.classify = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 3 * 3, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits for pictures of any brightness and contrast."""
        logits: torch.Tensor = self.classify(self.features(self.frame(find_ink(pixels))))
        return logits


def find_ink(pixels: torch.Tensor) -> torch.Tensor:
    """Return 0 for paper up to 1 for ink, [batch, 1, height, width] like `pixels`.

    Paper is the median of the picture's edge; ink is what differs from it, to either side.
    """
    rows = [pixels[:, :, 0], pixels[:, :, -1], pixels[..., 0], pixels[..., -1]]
    paper = torch.cat(rows, dim=2).median(dim=2).values[..., None, None]
    difference = (pixels - paper).abs()
    share = difference / (difference.amax(dim=(2, 3), keepdim=True) + 1e-3)
    return functional.relu(share - INK_THRESHOLD) / (1 - INK_THRESHOLD)


class Frame(nn.Module):
    """Cut [batch, 1, 24, 24] out of ink [batch, 1, 32, 32], around its centre of gravity.

    The sides are a multiple of the ink's spread, so every digit comes out about as large.
    """

    places: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        """Hold the coordinates, -1..1, of the picture's and the frame's pixels."""
        super().__init__()
        # subtle: buffers, because tracing would pin tensors made in `forward` to the CPU.
        self.register_buffer("places", torch.linspace(-1, 1, PICTURE_SIDE), persistent=False)
        self.register_buffer("steps", torch.linspace(-1, 1, FRAME_SIDE), persistent=False)

    def forward(self, ink: torch.Tensor) -> torch.Tensor:
        """Return the frames; of a picture without ink, any part, all 0."""
        weight = ink[:, 0] / (ink.sum(dim=(1, 2, 3)) + 1e-3)[:, None, None]
        across, down = weight.sum(dim=1), weight.sum(dim=2)
        x, y = (across @ self.places)[:, None], (down @ self.places)[:, None]
        variance_x = (across * (self.places - x).square()).sum(dim=1)
        variance_y = (down * (self.places - y).square()).sum(dim=1)
        half = FRAME_SPREADS * (variance_x + variance_y + 1e-3).sqrt()[:, None]
        columns = (x + half * self.steps)[:, None, :].expand(-1, FRAME_SIDE, -1)
        rows = (y + half * self.steps)[:, :, None].expand(-1, -1, FRAME_SIDE)
        grid = torch.stack([columns, rows], dim=3)
        return functional.grid_sample(ink, grid, align_corners=True)


def _layer(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
