r"""Whether a prior has amplitudes: a comparison on simulations before any training.

A mixture over amplitudes contains the single Gaussian, but is fitted: it is taken where the energy
score of held-out simulations says so by more than their noise, pair by pair, and by enough to be
worth what a mixture costs at every step of a training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vfm_inverse.gaussian.operator_start import FixedOperatorStart, GaussianStart
from vfm_inverse.gaussian.whitening import DenseWhitening, Whitening
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.scores import energy_score

__all__ = ["better", "may_have_amplitudes", "scores"]

HELD, DRAWS = 128, 16
"""Simulations that both starts are compared on, and draws for each."""

SURE, WORTH = 2.0, 0.02
"""Standard errors of the paired difference, and share of the score, by which the mixture must be
better."""


def may_have_amplitudes(
    problem: InverseProblem, whitening: Whitening, start: GaussianStart
) -> bool:
    """Whether the comparison is worth its time: for fields with a prior that is known by samples
    and a fixed operator, for which an observation costs a mixture little more than a Gaussian."""
    return (
        problem.log_prior is None
        and len(problem.field_shape) > 1
        and isinstance(start, FixedOperatorStart)
        and isinstance(whitening, DenseWhitening)
    )


def better(
    start: GaussianStart,
    other: GaussianStart,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
    max_rank: int,
) -> bool:
    """Fit ``other`` on all but the last :data:`HELD` simulations, and say whether its posteriors
    of these have the better energy score."""
    x, y, params = simulations
    held = min(HELD, len(x) // 2)
    first, last = slice(len(x) - held), slice(len(x) - held, len(x))
    own = rows_of(params, last)
    with seeded(0):  # draws of this comparison are nobody else's
        other.fit(x[first], y[first], rows_of(params, first), max_rank)
        values = [scores(one, whitening, x[last], y[last], own) for one in (start, other)]
    gain = values[0] - values[1]
    needed = max(SURE * float(gain.std()) / held**0.5, WORTH * float(values[0].mean()))
    return float(gain.mean()) > needed


def scores(
    start: GaussianStart,
    whitening: Whitening,
    x: Tensor,
    y: Tensor,
    params: Mapping[str, Tensor],
) -> Tensor:
    """Energy scores ``(n,)`` of the posteriors of observations ``(n, *obs)`` of fields ``(n,
    *event)``."""
    draws = whitening.unwhiten(start(y, params).sample(torch.Size([DRAWS])))
    return energy_score(draws, x)
