r"""The classical answer, as the place where training starts.

For linear physics with Gaussian noise it is the posterior under a Gaussian prior with the prior's
mean and covariance, in closed form (:mod:`vfm_inverse.operator_start`). For every other physics
the joint second moments of :math:`(\xi, y)` over simulations, :math:`\xi` the whitened field, give
the linear regression of :math:`\xi` on :math:`y`, the gain of an ensemble Kalman filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from vfm_inverse.bounded import SoftBox
from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.likelihood import Likelihood
from vfm_inverse.operator_start import (
    GRAM_LIMIT,
    FixedOperatorStart,
    GaussianStart,
    SharedBasis,
    TruncatedOperatorStart,
    VaryingOperatorStart,
    noise_level,
)
from vfm_inverse.scaling import center_and_spread, over
from vfm_inverse.whitening import Whitening

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["RegressionStart", "build_start", "fit_start"]


class RegressionStart(SharedBasis):
    """Linear regression of the whitened field on the observation, fitted on simulations."""

    FITTED = ("center", "gain", "basis", "scale")
    LATER = ("spread",)
    center: Tensor
    spread: Tensor
    gain: Tensor
    scale: Tensor

    def fit(self, xi: Tensor, y: Tensor, max_rank: int) -> None:
        """Fit on pairs ``xi (n, d)``, ``y (n, *obs)``."""
        num, like = xi.shape[0], xi
        data = y.flatten(1)
        self.center, self.spread = center_and_spread(data)
        size = int((self.spread > 0).sum())  # data that vary
        deviation = over(data - self.center, self.spread).double() / num**0.5
        left, singular, right = torch.linalg.svd(deviation, full_matrices=False)
        # Directions in which no datum varies would explain something by chance.
        varies = (singular > 1e-12 * singular[0]) | (torch.arange(len(singular)) == 0).to(y.device)
        left, singular, right = left[:, varies], singular[varies], right[varies]
        # Ridge at the size of the sampling error of a correlation.
        filtered = singular / (singular.square() + max(size, 1) / num)
        xi = (xi - xi.mean(0)).double() / num**0.5
        cross = xi.T @ left  # d x m: xi against the whitened data
        directions, strength, mixing = torch.linalg.svd(cross, full_matrices=False)
        # Of the variance that the sample happens to have along a direction, as the strongest have
        # more than one. Chance alone explains a fraction m/n.
        along = xi @ directions
        variance = along.square().sum(0)
        chance = min(size / num, 0.5)
        explained = (strength.square() / variance - chance) / (1 - chance)
        keep = explained > 0
        keep[max_rank:] = False
        if not keep.any():
            keep[0] = True
        self.basis = directions[:, keep].to(like).contiguous()
        to_basis = strength[keep, None] * mixing[keep]
        # What the ridge leaves, times what it leaves less here than of a fresh simulation.
        shrunk = singular * filtered
        left_over = (along[:, keep] - (left * shrunk) @ to_basis.T).square().sum(0)
        fresh = left_over / (1 - shrunk.sum() / num) ** 2
        self.scale = fresh.clamp(1e-6, 1).sqrt().to(like)
        self.gain = ((to_basis * filtered) @ right).to(like)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        coefficients = over(y.flatten(1) - self.center, self.spread) @ self.gain.T
        return ContractedNormal(
            coefficients @ self.basis.T,
            self.basis,
            self.scale.expand(y.shape[0], -1),
            validate_args=False,
        )


def operator_params(physics: Physics, params: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that belong to the operator rather than to its noise model."""
    return params.keys() - physics.noise_model.state_dict().keys()


def build_start(
    problem: InverseProblem, whitening: Whitening, params: Mapping[str, Tensor]
) -> GaussianStart:
    """The kind of start that suits the problem, not yet fitted.

    Args:
        problem: prior, physics and noise.
        whitening: coordinates of the start.
        params: a few draws of the parameters, each ``(n, ...)``.
    """
    physics, likelihood = problem.physics, problem.likelihood
    if not (isinstance(physics, LinearPhysics) and isinstance(likelihood, Likelihood)):
        return RegressionStart()
    # Linear in the field is not linear in the coordinates, unless they are all but the same.
    if problem.transform is not None and not isinstance(problem.transform, SoftBox):
        return RegressionStart()
    if likelihood.noise_scale(**params) is None:
        return RegressionStart()
    per_datum = noise_level(likelihood, params, torch.empty(())).shape[1] > 1
    if per_datum or operator_params(physics, params):
        num_data = problem.observation_shape.numel()
        if num_data > GRAM_LIMIT:
            return TruncatedOperatorStart(physics, likelihood, whitening)
        return VaryingOperatorStart(physics, likelihood, whitening, num_data)
    return FixedOperatorStart(physics, likelihood, whitening)


def fit_start(
    problem: InverseProblem,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
    max_rank: int,
) -> GaussianStart:
    """Fit the Gaussian start of a problem.

    Args:
        problem: prior, physics and noise.
        whitening: coordinates of the start.
        simulations: fields ``(n, *event)``, observations ``(n, *obs)`` and parameters.
        max_rank: most directions kept with many data of a varying operator, and in a regression.
    """
    x, y, params = simulations
    start = build_start(problem, whitening, params).to(x.device)
    if isinstance(start, FixedOperatorStart):
        start.fit(params)
    elif isinstance(start, TruncatedOperatorStart):
        start.fit({name: value[:32] for name, value in params.items()}, max_rank)
    elif isinstance(start, RegressionStart):
        start.fit(whitening.whiten(x), y, max_rank)
    return start
