r"""Phantoms: a random body of ellipses, in the manner of Shepp and Logan.

A body, an ellipse of value 1 about the middle, holds smaller ellipses, each of which adds its own
value (Shepp and Logan 1974, https://doi.org/10.1109/TNS.1974.6499235, have one fixed set of ten).
An ellipse with centre :math:`c`, semi-axes :math:`a` and tilt :math:`R` is the indicator of

.. math:: d(p) = \bigl(\| R^\top (p - c) / a \| - 1\bigr) \min(a) < 0,

a distance close to the edge, smoothed over one pixel as the partial volume of a pixel is. The law
is as far from Gaussian as pictures get: flat pieces and sharp edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["draw_phantoms", "pixel_grid"]

NUM_INSETS = 5
CONTRAST = 0.5


def draw_phantoms(num: int, size: int) -> Tensor:
    """Phantoms ``(num, 1, size, size)``: 0 outside the body, 1 in it, at least 0 everywhere.

    The body's semi-axes lie in [0.65, 0.9] of half the side, its tilt within 0.3 of upright. The
    five ellipses in it have semi-axes in [0.08, 0.35], and values in [-0.5, 0.5].

    Draws come from torch's global generator, on the CPU.
    """
    grid = pixel_grid(size)
    body = _ellipse(
        grid, torch.zeros(num, 2), _between(0.65, 0.9, num, 2), _between(-0.3, 0.3, num)
    )
    picture = body.clone()
    for _ in range(NUM_INSETS):
        angle, radius = _between(0, 2 * math.pi, num), 0.55 * torch.rand(num).sqrt()
        center = radius.unsqueeze(-1) * torch.stack([angle.sin(), angle.cos()], -1)
        inset = _ellipse(grid, center, _between(0.08, 0.35, num, 2), _between(0, math.pi, num))
        picture += _between(-CONTRAST, CONTRAST, num)[:, None, None] * inset * body
    return picture.clamp_min(0).unsqueeze(1)


def pixel_grid(size: int) -> Tensor:
    """Centres of the pixels of the square [-1, 1]^2, ``(size, size, 2)``: down, right."""
    axis = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)


def _ellipse(grid: Tensor, center: Tensor, axes: Tensor, tilt: Tensor) -> Tensor:
    """Indicators ``(num, size, size)`` with an edge one pixel wide."""
    down, right = (grid - center[:, None, None]).unbind(-1)
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    along = torch.stack([cos * down + sin * right, cos * right - sin * down], -1)
    distance = ((along / axes[:, None, None]).norm(dim=-1) - 1) * axes.amin(-1)[:, None, None]
    return (0.5 - distance * len(grid) / 2).clamp(0, 1)


def _between(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape)
