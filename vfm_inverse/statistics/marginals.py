r"""What one sort of a scalar's truth and draws tells: rank, density rank, CRPS, moments.

Truth and draws of one scalar form a pool :math:`z_{(0)} \le \dots \le z_{(L)}` of :math:`L + 1`
exchangeable points if the draws come from the posterior.  Any statistic that treats all points
alike then has a uniform rank of the truth's value, at every finite :math:`L`:

* the value itself gives the rank :math:`r` of simulation-based calibration and central intervals;
* the mean spacing around a point, :math:`v_i = (z_{(b)} - z_{(a)}) / (b - a)` with
  :math:`a = \max(i - h, 0)` and :math:`b = \min(i + h, L)`, is the inverse of a nearest-neighbour
  density (Loftsgaarden and Quesenberry 1965, Ann. Math. Statist. 36, 1049).  Sorted by it, the
  points leave the highest-density regions one by one, and the *density rank* is the number of
  points in sparser places than the truth: 0 is outermost.  Regions may be several intervals, as
  those of a posterior with two modes.

The shortest interval that holds a share of the *draws* has no such law: it is chosen because it is
short, and covers too little.

**CRPS.**  With :math:`A = \sum_l |x_l - x|` and the pool's pair sum :math:`P = 2 \sum_i (2i - L)
z_{(i)}`, the draws' own pair sum is :math:`P - 2A`: the sort serves it too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Marginals", "marginals", "sort_last"]


class Marginals(NamedTuple):
    """Statistics of many scalars, each ``(num,)``."""

    rank: Tensor
    """Rank of the truth among the draws, 0 to L, int64."""
    density_rank: Tensor
    """Number of points in sparser places than the truth, 0 to L, int64."""
    crps: Tensor
    """Fair CRPS, in the unit of the scalar."""
    crps_plain: Tensor
    """CRPS of the empirical distribution of the draws."""
    error: Tensor
    """Mean of the draws minus truth."""
    variance: Tensor
    """Variance of the draws, divisor L - 1."""


def marginals(pool: Tensor, uniforms: Tensor) -> Marginals:
    """Statistics of every row of ``pool``.

    Args:
        pool: ``(num, 1 + num_draws)``: the truth, then its draws, at least two. NaN is not
            allowed; infinite values are ranked, and their scores are not finite.
        uniforms: ``(2, num)`` in [0, 1), to place the truth among its equals in both rankings.
    """
    num_draws = pool.shape[1] - 1
    truth, draws = pool[:, :1].contiguous(), pool[:, 1:]
    ordered = sort_last(pool)
    first = torch.searchsorted(ordered, truth)
    ties = torch.searchsorted(ordered, truth, right=True) - first  # the truth itself is one
    rank = first + (uniforms[0][:, None] * ties).long().clamp(max=ties - 1)

    mean = draws.mean(-1, keepdim=True)
    # Two passes: torch's own variance of adjacent memory is fifty times slower on a CPU.
    deviation = torch.linalg.vector_norm(draws - mean, dim=-1)
    # The mean of equal numbers is theirs; rounding would have it miss them.
    same = ordered[:, :1] == ordered[:, -1:]
    mean, deviation = torch.where(same, truth, mean), deviation.masked_fill(same[:, 0], 0)

    # Score and spacings do not change when all move together: centring keeps the sums small.
    ordered = ordered - truth
    weights = torch.arange(-num_draws, num_draws + 1, 2, dtype=pool.dtype, device=pool.device)
    distance = ordered.abs().mean(-1) * ((num_draws + 1) / num_draws)
    # Sum over draws of |x_i - x_j|, divided by 2 L.
    spread = (ordered * (weights / num_draws)).sum(-1) - distance

    spacing = _spacing(ordered)
    own = spacing.gather(1, rank)
    higher, equal = (torch.empty_like(spacing) for _ in range(2))
    # Comparisons that write numbers: summing booleans is ten times slower on a CPU.
    sparser = torch.gt(spacing, own, out=higher).sum(-1, dtype=torch.float64).long()
    level = torch.eq(spacing, own, out=equal).sum(-1, dtype=torch.float64).long()
    place = (uniforms[1] * level).long().clamp(max=level - 1)
    return Marginals(
        rank=rank[:, 0],
        density_rank=sparser + place,
        crps=distance - spread / (num_draws - 1),
        crps_plain=distance - spread / num_draws,
        error=(mean - truth)[:, 0],
        variance=deviation.square() / (num_draws - 1),
    )


def sort_last(values: Tensor) -> Tensor:
    """``values`` in order along the last axis; by NumPy on a CPU, 20 times faster than torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def _spacing(ordered: Tensor) -> Tensor:
    """Mean distance of neighbours around every point of sorted rows, proportionally."""
    last = ordered.shape[1] - 1
    # Half a window: wide enough to be smooth, narrow enough to see modes; n^(4/5) is the rate of
    # the least error (Mack and Rosenblatt 1979, J. Multivar. Anal. 9, 1).
    half = max(1, min(last // 2, round(0.25 * (last + 1) ** 0.8)))
    result = torch.empty_like(ordered)
    torch.sub(ordered[:, 2 * half :], ordered[:, : last + 1 - 2 * half], out=result[:, half:-half])
    # Windows cut short at the ends: scaled to the number of spacings in a whole one.
    cut = torch.arange(half, 2 * half, device=ordered.device)
    share = (2 * half / cut).to(ordered.dtype)
    result[:, :half] = (ordered[:, half : 2 * half] - ordered[:, :1]) * share
    left = ordered[:, last + 1 - 2 * half : last + 1 - half]
    result[:, -half:] = (ordered[:, -1:] - left) * share.flip(0)
    # Infinite values at an end: their differences are the widest, equal ones have none.
    return result if bool(result[:, [0, -1]].isfinite().all()) else result.nan_to_num(0, torch.inf)
