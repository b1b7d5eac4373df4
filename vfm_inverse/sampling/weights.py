r"""Importance weights, smoothed by the law of their largest.

The largest weights are replaced by the quantiles of a generalized Pareto law fitted to them, whose
shape :math:`\hat k` says how far the sample can be trusted: above 0.7 no practical number of draws
suffices (Vehtari et al. 2024, JMLR 25(72), https://arxiv.org/abs/1507.02646; fit by Zhang and
Stephens 2009, Technometrics 51, 316).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["GOOD_SHAPE", "MOST_FOLDED", "fit_pareto", "smooth"]

GOOD_SHAPE = 0.7
"""Largest k-hat with which weights are trusted."""

MOST_FOLDED = 0.01
"""Largest share of draws in folds of the map with which weights are trusted."""


def smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed log-weights ``(num, n)`` and Pareto shapes ``(n,)``.

    Raises:
        ValueError: fewer than 25 draws, too few for a tail.
    """
    num = log_weights.shape[0]
    if num < 25:
        raise ValueError(f"'num_samples' must be at least 25 for a tail to be fitted; got {num}")
    tail = min(num // 5, math.ceil(3 * num**0.5))
    ordered, order = log_weights.sort(0)
    ordered = ordered - ordered[-1]
    cut = ordered[-tail - 1].double().exp()
    excess = ordered[-tail:].double().exp() - cut
    shape, scale = fit_pareto(excess)
    rank = (torch.arange(tail, dtype=excess.dtype, device=excess.device) + 0.5) / tail
    near_zero = shape.abs() < 1e-8
    safe = torch.where(near_zero, 1.0, shape)
    quantiles = torch.where(
        near_zero,
        -scale * torch.log1p(-rank[:, None]),
        scale * torch.expm1(-safe * torch.log1p(-rank[:, None])) / safe,
    )
    # No smoothed weight exceeds the largest raw one.
    tail_weights = (cut + quantiles).clamp(max=1.0).log().to(log_weights)
    sound = torch.isfinite(shape)
    ordered = torch.cat([ordered[:-tail], torch.where(sound, tail_weights, ordered[-tail:])])
    result = torch.empty_like(ordered).scatter_(0, order, ordered)
    return result, torch.where(sound, shape, torch.inf).to(log_weights)


def fit_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale, each ``(n,)``, of generalized Pareto laws of ascending positive numbers
    ``(num, n)``; the shape is shrunk to 1/2 with the weight of ten numbers. Infinite where the
    numbers are not positive or all but the largest vanish."""
    num = excess.shape[0]
    prior, count = 3.0, 30 + int(num**0.5)
    quarter, largest = excess[int(num / 4 + 0.5) - 1], excess[-1]
    bad = ~(quarter > 0) | ~torch.isfinite(largest)
    excess = torch.where(bad, torch.ones_like(excess), excess)
    quarter, largest = excess[int(num / 4 + 0.5) - 1], excess[-1]
    grid = torch.arange(1, count + 1, dtype=excess.dtype, device=excess.device)
    theta = 1 / largest + (1 - (count / (grid[:, None] - 0.5)).sqrt()) / (prior * quarter)
    k = torch.stack([torch.log1p(-row * excess).mean(0) for row in theta])
    log_likelihood = num * ((-theta / k).log() - k - 1)
    weight = log_likelihood.softmax(0)
    mean = (weight * theta).sum(0)
    shape = torch.log1p(-mean * excess).mean(0)
    scale = -shape / mean
    shape = (num * shape + 10 * 0.5) / (num + 10)
    return torch.where(bad, torch.inf, shape), torch.where(bad, 1.0, scale)
