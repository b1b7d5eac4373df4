r"""Ranks of truths among posterior draws, and exact tests that they are uniform.

If truth and draws :math:`x_1 \dots x_L` are exchangeable, the rank :math:`r = \#\{l : x_l < x\}`
is uniform on :math:`\{0, \dots, L\}` (Talts et al. 2018, arXiv 1804.06788, theorem 1; ties broken
at random).

**ECDF test.**  Of :math:`N` simulations, :math:`c_k = \#\{r < j_k\}` is binomial with probability
:math:`z_k = j_k/(L+1)`.  The statistic :math:`\gamma = \min_k 2\min\{P(\mathrm{Bin}\le c_k),
P(\mathrm{Bin}\ge c_k)\}` compares the whole empirical distribution with the uniform one
(Säilynoja, Bürkner, Vehtari 2022, Stat. Comput. 32:32, section 2,
https://doi.org/10.1007/s11222-022-10090-6).  Its law is computed without simulation, as in their
recursion: the counts have the law of a Poisson path that ends at :math:`N`, and the probability of
such a path to stay between two boundaries is a chain of truncated convolutions (Moscovich, Nadler
2017, Stat. Probab. Lett. 123, 177).  So p-values are exact, and a curve leaves the band of level
:math:`\alpha` exactly when its p-value is at most :math:`\alpha`.

**Chi-square test.**  Ranks are binned; chi2 / dof is one for uniform ranks and grows with the size
of the misfit times the number of simulations.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

__all__ = [
    "chi2_test",
    "coverage_weight",
    "density_weight",
    "ecdf_band",
    "ecdf_counts",
    "ecdf_p_value",
    "rank_of_truth",
]


def rank_of_truth(draws: Tensor, truth: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Rank of the truth among its draws, from 0 to ``num_draws``.

    Args:
        draws: ``(num_draws, *shape)``.
        truth: ``(*shape)``.
        uniform: ``(*shape)`` in [0, 1): places the truth among the draws equal to it, which keeps
            the ranks uniform when ties occur; the lowest place when missing.

    Returns:
        ``(*shape)``, int64.
    """
    below = (draws < truth).sum(0, dtype=torch.int32).long()  # int32: five times faster on a CPU
    if uniform is None:
        return below
    ties = (draws == truth).sum(0, dtype=torch.int32).long()
    return below + (uniform * (ties + 1)).long().clamp(max=ties)


def coverage_weight(ranks: Tensor, num_draws: int, level: float) -> Tensor:
    """Share of each rank's cell ``[r, r + 1) / (L + 1)`` inside the central interval ``level``.

    The average over uniform ranks is ``level`` exactly, at every number of draws: no rounding of
    the interval to order statistics biases the coverage.

    Returns:
        The shape of ``ranks``, float32, between 0 and 1.
    """
    lower, upper = (0.5 * (1 + sign * level) * (num_draws + 1) for sign in (-1, 1))
    ranks = ranks.float()
    return ((ranks + 1).clamp(max=upper) - ranks.clamp(min=lower)).clamp(0, 1)


def density_weight(ranks: Tensor, num_draws: int, level: float) -> Tensor:
    """Share of each density rank's cell inside the highest-density region that holds ``level``.

    The average over uniform ranks is ``level`` exactly, as with :func:`coverage_weight`.

    Args:
        ranks: of the density, 0 outermost (:mod:`vfm_inverse.statistics.marginals`).
        num_draws: number of draws ``L`` behind each rank.
        level: nominal probability of the region.

    Returns:
        The shape of ``ranks``, float32, between 0 and 1.
    """
    return (ranks.float() + 1 - (1 - level) * (num_draws + 1)).clamp(0, 1)


def ecdf_counts(ranks: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Empirical distribution of ranks ``(num_simulations, ...)`` at up to 100 positions in (0, 1).

    Returns:
        ``positions`` ``(K,)``, the exact probabilities ``j / (L + 1)``, and ``counts``
        ``(K, ...)``, the number of simulations with rank below ``j``.
    """
    num = min(num_draws, 100)
    j = np.unique(np.round(np.arange(1, num + 1) * (num_draws + 1) / (num + 1)).astype(int))
    counts = np.stack([(ranks < cut).sum(0) for cut in j])
    return j / (num_draws + 1), counts


def _inside_probability(
    lower: np.ndarray, upper: np.ndarray, positions: np.ndarray, num: int
) -> float:
    """Probability that ``lower <= c_k <= upper`` at every position, for ``num`` uniform values."""
    state, base, last = np.ones(1), 0, 0.0
    for low, high, z in zip([*lower, num], [*upper, num], [*positions, 1.0], strict=True):
        count, mean = np.arange(high - base + 1), num * (z - last)
        step = np.exp(special.xlogy(count, mean) - mean - special.gammaln(count + 1))
        state = np.convolve(state, step)[low - base : high - base + 1]
        base, last = low, z
    return float(min(state[0] / stats.poisson.pmf(num, num), 1.0))


def _pointwise(positions: np.ndarray, num: int) -> np.ndarray:
    """Two-sided binomial p-value of every count: ``(K, num + 1)``."""
    counts = np.arange(num + 1)
    below = stats.binom.cdf(counts, num, positions[:, None])
    above = stats.binom.sf(counts - 1, num, positions[:, None])
    return np.minimum(2 * np.minimum(below, above), 1.0)


def _band(pointwise: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest count with a pointwise p-value above ``gamma < 1``: two ``(K,)``."""
    inside = pointwise > gamma * (1 + 1e-9)  # equal up to rounding, as at z and 1 - z, is equal
    return inside.argmax(1), inside.shape[1] - 1 - inside[:, ::-1].argmax(1)


def ecdf_band(positions: np.ndarray, num: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous band: counts of ``num`` uniform values leave it with probability ``alpha``.

    Counts are discrete: it is the narrowest band of its family that errs on the safe side.

    Returns:
        ``lower`` and ``upper`` ``(K,)``, both inside the band.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"'alpha' must lie between 0 and 1; got {alpha}")
    pointwise = _pointwise(positions, num)
    attained = np.unique(pointwise[pointwise < 1])

    def outside(gamma: float) -> float:
        return 1 - _inside_probability(*_band(pointwise, gamma), positions, num)

    index = bisect_right(attained, alpha, key=outside)
    return _band(pointwise, attained[index - 1] if index else 0.0)


def ecdf_p_value(counts: np.ndarray, positions: np.ndarray, num: int) -> np.ndarray:
    """Exact p-value of the simultaneous test of every column of ``counts`` ``(K, ...)``."""
    pointwise = _pointwise(positions, num)
    row = np.arange(len(positions)).reshape(-1, *[1] * (counts.ndim - 1))
    gamma = pointwise[row, counts].min(0)

    def tail(value: float) -> float:
        bound = min(1.0, len(positions) * value)  # the union bound, for where 1 - P loses digits
        if bound < 1e-9 or value >= 1:
            return bound
        return min(bound, 1 - _inside_probability(*_band(pointwise, value), positions, num))

    values, where = np.unique(gamma, return_inverse=True)
    return np.array([tail(value) for value in values])[where].reshape(gamma.shape)


def chi2_test(counts: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Chi-square test of binned ranks; ``r`` is in bin ``r * num_bins // (num_draws + 1)``.

    Bins hold unequal numbers of ranks when ``num_draws + 1`` is no multiple of ``num_bins``; the
    expected counts follow them.

    Args:
        counts: ``(num_bins, *shape)``, the simulations in each bin.
        num_draws: number of draws ``L`` behind each rank.

    Returns:
        chi2 / dof and p-value, each ``(*shape)``.
    """
    num_bins = len(counts)
    cells = np.bincount(np.arange(num_draws + 1) * num_bins // (num_draws + 1))
    share = cells.reshape(-1, *[1] * (counts.ndim - 1)) / (num_draws + 1)
    expected = counts.sum(0) * share
    chi2 = ((counts - expected) ** 2 / expected).sum(0)
    return chi2 / (num_bins - 1), stats.chi2.sf(chi2, num_bins - 1)
