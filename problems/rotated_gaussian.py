"""rotated-gaussian: one datum along a direction that no axis shares.

``x ~ N(0, I)`` in the plane, ``y = a . x + sigma eps``, ``a = (cos 36°, sin 36°)``, sigma = 0.1:
along ``a`` the posterior has standard deviation ``sigma / sqrt(1 + sigma^2)`` = 0.0995, across it
1. A mean-field approximation in these axes gives 0.154 across instead of 1 (arXiv 2603.07276),
which makes the problem a test of covariance.
"""

from __future__ import annotations

import math

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import MultivariateNormal
from torch import Tensor

from vfm_inverse.operators import MatrixObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(degrees: float = 36.0, sigma: Sigma = 0.1) -> InverseProblem:
    """Build the problem.

    Args:
        degrees: angle of the measured direction.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
    """
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    level, params = noise_level(sigma)
    exact = ConjugateGaussian(torch.zeros(2), torch.eye(2), matrix)

    def reference(y: Tensor, sigma: Tensor | float = level) -> MultivariateNormal:
        posterior = exact.posterior(y.double(), sigma)
        return MultivariateNormal(posterior.mean.to(y), posterior.covariance_matrix.to(y))

    return InverseProblem(
        prior=MultivariateNormal(torch.zeros(2), torch.eye(2)),
        physics=MatrixObservations(matrix.to(torch.get_default_dtype()), GaussianNoise(level)),
        params=params,
        reference=reference,
        units="1",
        obs_units="1",
    )
