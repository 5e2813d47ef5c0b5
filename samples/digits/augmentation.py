"""Vary training digits as strangers' pictures vary: place, size, slant, stroke, blur, polarity."""

import math

import torch
from torch.nn import functional


def augment(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return varied pictures for `ink`, both [batch, 1, 32, 32] in 0..1; `ink` has 1 for ink.

    Half of the result is dark on white, half bright on dark. All randomness is `generator`'s.
    """
    return _expose(_restroke(_transform(ink, generator), generator), generator)


def _transform(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Resize, squeeze, rotate, slant and shift each picture; what comes into view is empty."""
    count = len(ink)
    size = torch.exp(_uniform(count, math.log(0.4), math.log(1.1), generator))
    squeeze = torch.exp(_uniform(count, -0.3, 0.3, generator))
    width, height = size * squeeze, size / squeeze
    angle = _uniform(count, -0.25, 0.25, generator)
    slant = _uniform(count, -0.25, 0.25, generator)
    # How far the middle may move: to the edge for small digits, a little for large ones.
    room_x, room_y = (1 - width).clamp(min=0.1), (1 - height).clamp(min=0.1)
    shift_x = _uniform(count, -0.9, 0.9, generator) * room_x
    shift_y = _uniform(count, -0.9, 0.9, generator) * room_y
    # affine_grid wants the inverse map: a place in the result to its place in the source.
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack(
        [
            torch.stack([(cos + slant * sin) / width, (slant * cos - sin) / width], dim=1),
            torch.stack([sin / height, cos / height], dim=1),
        ],
        dim=1,
    )
    shift = torch.stack([shift_x, shift_y], dim=1).unsqueeze(2)
    theta = torch.cat([matrix, -matrix @ shift], dim=2)
    grid = functional.affine_grid(theta, list(ink.shape), align_corners=False)
    return functional.grid_sample(ink, grid, align_corners=False)


def _restroke(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Thicken a quarter of the pictures, thin some, sharpen half, then blur a quarter."""
    count = len(ink)
    thick = functional.max_pool2d(ink, 3, stride=1, padding=1)
    ink = torch.where(_chance(count, 0.25, generator), thick, ink)
    thin = -functional.max_pool2d(-ink, 2, stride=1, padding=1)[..., :-1, :-1]
    ink = torch.where(_chance(count, 0.15, generator), (thin + ink) / 2, ink)
    steepness = _uniform(count, 4, 14, generator).reshape(-1, 1, 1, 1)
    middle = _uniform(count, 0.3, 0.5, generator).reshape(-1, 1, 1, 1)
    sharp = torch.sigmoid((ink - middle) * steepness)
    ink = torch.where(_chance(count, 0.5, generator), sharp, ink)
    blurred = functional.avg_pool2d(ink, 3, stride=1, padding=1)
    return torch.where(_chance(count, 0.25, generator), blurred, ink)


def _expose(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Give ink and paper their brightness, half of them inverted, with a little grain."""
    count = len(ink)
    paper = _uniform(count, 0, 0.25, generator).reshape(-1, 1, 1, 1)
    contrast = _uniform(count, 0.4, 1, generator).reshape(-1, 1, 1, 1)
    strength = _uniform(count, 0, 0.06, generator).reshape(-1, 1, 1, 1)
    grain = torch.randn(ink.shape, generator=generator) * strength
    bright = (paper + ink * contrast * (1 - paper) + grain).clamp(0, 1)
    return torch.where(_chance(count, 0.5, generator), bright, 1 - bright)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Return [count] numbers in low..high."""
    return torch.rand(count, generator=generator) * (high - low) + low


def _chance(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return a mask [count, 1, 1, 1], true for about `share` of the pictures."""
    return torch.rand(count, 1, 1, 1, generator=generator) < share
