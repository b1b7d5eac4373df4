r"""Recalibration on held-out simulations, for maps whose posterior has no density to correct with.

* :func:`conformal`: intervals whose coverage is guaranteed. With bounds :math:`l, h` and spread
  :math:`s` of the draws, every simulation scores :math:`E = \max(l - x, x - h) / s`; the interval
  :math:`[l - Q s, h + Q s]` with Q the :math:`\lceil (n + 1) \alpha \rceil`-th smallest score
  covers a fresh truth with probability at least :math:`\alpha`, element by element, however wrong
  the draws are (Romano, Patterson and Candès 2019, https://arxiv.org/abs/1905.03222, Theorem 1).
  On average over simulations: not for each observation.
* :func:`temperature`: one factor on the width of the noise, that of the best energy score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm_inverse.gaussian.frames import standardize, unstandardize
from vfm_inverse.posterior.push_forward import PushForward
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.splits import Split
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.scores import energy_score

__all__ = ["Intervals", "Tempered", "conformal", "temperature"]

BATCH = 64
"""Simulations answered at once."""


@dataclass(frozen=True)
class Intervals:
    """Intervals ``[lower, upper]`` with guaranteed coverage, element by element.

    Attributes:
        vfm: the map (or a tempered one) whose draws they are made from.
        level: probability that they cover.
        margin: ``(*event)``, by how many standard deviations of the draws the draws' own interval
            is moved out (in, where negative).
        num_draws: draws for one interval.
        seed: of the draws.
    """

    vfm: VariationalFlowMap | Tempered
    level: float
    margin: Tensor
    num_draws: int
    seed: int

    @torch.no_grad()
    def __call__(self, y: Tensor, **params: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds ``(n, *event)`` each, for observations ``(n, *obs)``, or one without a batch."""
        with seeded(self.seed):
            lower, upper, std = bounds(self.vfm(y, **params), self.num_draws, self.level)
        return lower - self.margin * std, upper + self.margin * std

    @torch.no_grad()
    def coverage(
        self, problem: InverseProblem, num_simulations: int = 1000, seed: int = 1
    ) -> Tensor:
        """Share of fresh held-out simulations that are covered, ``(*event)``."""
        x, y, params = problem.simulate(num_simulations, split="test", seed=seed)
        covered = torch.zeros_like(self.margin)
        for rows in torch.arange(num_simulations, device=x.device).split(BATCH):
            part = rows_of(params, rows)
            lower, upper = self(y[rows], **part)
            covered += ((lower <= x[rows]) & (x[rows] <= upper)).to(covered).sum(0)
        return covered / num_simulations


@checked("correction", vfm=("VariationalFlowMap", "Tempered"), problem="InverseProblem")
@torch.no_grad()
def conformal(
    vfm: VariationalFlowMap | Tempered,
    problem: InverseProblem,
    level: float = 0.9,
    *,
    num_simulations: int = 1000,
    num_draws: int = 200,
    seed: int = 0,
) -> Intervals:
    """Fit intervals on held-out simulations.

    Args:
        vfm: the map.
        problem: where the simulations come from (its test split).
        level: wanted coverage, between 0 and 1.
        num_simulations: more make the coverage less random: its standard deviation over fits is
            about ``sqrt(level (1 - level) / num_simulations)``.
        num_draws: draws for one interval.
        seed: of simulations and draws.

    Raises:
        ValueError: too few simulations for the level.
    """
    if not 0 < level < 1:
        raise ValueError(f"'level' must lie between 0 and 1; got {level}")
    rank = math.ceil((num_simulations + 1) * level)
    if rank > num_simulations:
        needed = math.ceil(level / (1 - level))
        raise ValueError(
            f"'num_simulations' must be at least {needed} for the level {level}; got "
            f"{num_simulations}"
        )
    x, y, params = problem.simulate(num_simulations, split="test", seed=seed)
    scores = torch.empty_like(x)
    with seeded(seed):
        for rows in torch.arange(num_simulations, device=x.device).split(BATCH):
            part = rows_of(params, rows)
            lower, upper, std = bounds(vfm(y[rows], **part), num_draws, level)
            scores[rows] = torch.maximum(lower - x[rows], x[rows] - upper) / std
    return Intervals(vfm, level, scores.kthvalue(rank, 0).values, num_draws, seed)


def bounds(posterior: PushForward, num_draws: int, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """Central interval and standard deviation of a posterior's draws."""
    draws = posterior.raw.sample((num_draws,))
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype, device=draws.device)
    lower, upper = draws.quantile(tail, 0)
    return lower, upper, draws.std(0).clamp_min(torch.finfo(draws.dtype).tiny)


@dataclass(frozen=True)
class Tempered:
    """A map whose noise is wider or narrower by one factor.

    Attributes:
        vfm: the map.
        factor: of the noise's standard coordinates.
    """

    vfm: VariationalFlowMap
    factor: float

    def __call__(self, y: Tensor, **params: Tensor) -> PushForward:
        """The posterior, as ``vfm(y, **params)`` gives it, with the width changed."""
        vfm = self.vfm
        y, params, batched = vfm.batch(y, params)
        answer = vfm.answer(vfm.condition(y, params))

        def decode(z: Tensor) -> Tensor:
            u = self.factor * standardize(answer.noise, z)
            u[..., vfm.whitening.dim :] = z[..., vfm.whitening.dim :]  # whose class it is
            return vfm.decode(unstandardize(answer.noise, u), answer)

        return PushForward(answer.noise, decode, vfm.event_shape, batched)


@checked("correction", vfm=("VariationalFlowMap", "Tempered"), problem="InverseProblem")
@torch.no_grad()
def temperature(
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    *,
    num_simulations: int = 500,
    num_draws: int = 64,
    largest: float = 2.0,
    split: Split = "test",
    seed: int = 0,
) -> Tempered:
    """Fit the factor of the best energy score on simulations of a split, between ``1 / largest``
    and ``largest``, by golden section with the same draws at every trial.

    Raises:
        ValueError: ``largest`` leaves no room.
    """
    if not largest > 1:
        raise ValueError(f"'largest' must exceed 1; got {largest}")
    x, y, params = problem.simulate(num_simulations, split=split, seed=seed)

    def score(log_factor: float) -> float:
        tempered, total = Tempered(vfm, math.exp(log_factor)), 0.0
        with seeded(seed):
            for rows in torch.arange(num_simulations, device=x.device).split(BATCH):
                part = rows_of(params, rows)
                draws = tempered(y[rows], **part).sample((num_draws,))
                total += float(energy_score(draws, x[rows]).sum())
        return total / num_simulations

    ratio = (5**0.5 - 1) / 2
    low, high = -math.log(largest), math.log(largest)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = score(left), score(right)
    while high - low > 0.02:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = score(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = score(right)
    return Tempered(vfm, math.exp((low + high) / 2))
