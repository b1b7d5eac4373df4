"""Noise levels that are fixed, or drawn per sample from a range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Sigma", "noise_level"]

Sigma = float | Sequence[float]


def noise_level(sigma: Sigma) -> tuple[float, Callable[[int], dict[str, Tensor]] | None]:
    """Standard deviation to store in the noise model, and the sampler of the parameter ``sigma``.

    Args:
        sigma: a number (the noise is fixed, the sampler None) or a range ``(low, high)``, from
            which sigma is drawn log-uniformly, as suits a scale; the stored value is then its
            median.

    Raises:
        ValueError: not positive, or the range is empty.
    """
    if isinstance(sigma, int | float):
        if not sigma > 0:
            raise ValueError(f"'sigma' must be positive; got {sigma}")
        return float(sigma), None
    if len(sigma) != 2 or not 0 < sigma[0] < sigma[1]:
        raise ValueError(f"'sigma' must be a number or a range 0 < low < high; got {tuple(sigma)}")
    low, high = (math.log(value) for value in sigma)

    def draw(num: int) -> dict[str, Tensor]:
        return {"sigma": torch.exp(low + (high - low) * torch.rand(num))}

    return math.exp((low + high) / 2), draw
