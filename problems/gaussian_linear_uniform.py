r"""gaussian-linear-uniform: every unknown seen once, and the prior's box cuts the posterior.

.. math:: \theta \sim \mathcal U[-1, 1]^{10}, \qquad y \sim \mathcal N(\theta, 0.1\, I),

0.1 being the variance. The posterior is exact: independent normals around ``y``, cut to the box.

Source: task T.2 of Lueckmann et al. 2021 (https://arxiv.org/abs/2101.04653).
"""

from __future__ import annotations

from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.boxes import TruncatedNormal, uniform_box

__all__ = ["cut_normal", "make", "normal"]

DIM, HALF = 10, 1.0
SIGMA = 0.1**0.5


def make() -> InverseProblem:
    """Build the problem: ``theta`` ``(10,)``, ``y`` ``(10,)``."""
    return InverseProblem(
        prior=uniform_box(DIM, HALF),
        likelihood=normal,
        reference=cut_normal,
        units="1",
        obs_units="1",
    )


def normal(theta: Tensor) -> TorchDistribution:
    """``p(y | theta)`` for ``theta`` ``(*, 10)``."""
    return Normal(theta, SIGMA, validate_args=False).to_event(1)


def cut_normal(y: Tensor) -> TorchDistribution:
    """``p(theta | y)`` for ``y`` ``(*, 10)``."""
    return TruncatedNormal(y, SIGMA, -HALF, HALF).to_event(1)
