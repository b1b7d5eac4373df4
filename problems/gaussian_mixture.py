r"""gaussian-mixture: a common mean seen through noise of two widths, peak and skirt in one.

.. math:: \theta \sim \mathcal U[-10, 10]^2, \qquad
          y \sim \tfrac12 \mathcal N(\theta, I) + \tfrac12 \mathcal N(\theta, 0.01\, I).

The posterior is exact: the same two normals around ``y``, each cut to the box and weighted by what
the cut leaves of it.

Source: Sisson, Fan and Tanaka 2007 (https://doi.org/10.1073/pnas.0607208104), as task T.7 of
Lueckmann et al. 2021 (https://arxiv.org/abs/2101.04653).
"""

from __future__ import annotations

from pyro.distributions import Categorical, MixtureSameFamily, Normal, TorchDistribution
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.boxes import TruncatedNormal, uniform_box

__all__ = ["cut_mixture", "make", "two_widths"]

HALF = 10.0
WIDTHS = (1.0, 0.1)  # standard deviations


def make() -> InverseProblem:
    """Build the problem: ``theta`` ``(2,)``, ``y`` ``(2,)``."""
    return InverseProblem(
        prior=uniform_box(2, HALF),
        likelihood=two_widths,
        reference=cut_mixture,
        units="1",
        obs_units="1",
    )


def two_widths(theta: Tensor) -> TorchDistribution:
    """``p(y | theta)`` for ``theta`` ``(*, 2)``."""
    scale = theta.new_tensor(WIDTHS).unsqueeze(-1)
    normals = Normal(theta.unsqueeze(-2), scale, validate_args=False).to_event(1)
    return _mixture(theta.new_zeros(*theta.shape[:-1], len(WIDTHS)), normals)


def cut_mixture(y: Tensor) -> TorchDistribution:
    """``p(theta | y)`` for ``y`` ``(*, 2)``."""
    scale = y.new_tensor(WIDTHS).unsqueeze(-1)
    normals = TruncatedNormal(y.unsqueeze(-2), scale, -HALF, HALF)
    return _mixture(normals.log_mass.sum(-1).to(y.dtype), normals.to_event(1))


def _mixture(logits: Tensor, components: TorchDistribution) -> TorchDistribution:
    weights = Categorical(logits=logits, validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False)
