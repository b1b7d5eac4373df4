r"""linear-gaussian: the problem whose posterior is known in any dimension.

.. math:: x \sim \mathcal N(0, C), \qquad y = A x + \sigma \epsilon.

``C = Q diag(c) Q^T`` with a random rotation ``Q`` and eigenvalues spaced geometrically over the
condition number, of unit mean, so that ``x`` has unit variance on average and all its components
are correlated; ``A`` has independent entries ``N(0, 1/d)``. The posterior is ``N(mu, S)``, ``S =
(C^-1 + A^T A / sigma^2)^-1``, ``mu = S A^T y / sigma^2``.
"""

from __future__ import annotations

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import MultivariateNormal
from torch import Tensor

from vfm_inverse.operators import MatrixObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(
    dim: int = 4,
    obs_dim: int = 2,
    sigma: Sigma = 0.3,
    condition: float = 10.0,
    seed: int = 0,
) -> InverseProblem:
    """Build the problem.

    Args:
        dim: length of ``x``.
        obs_dim: length of ``y``.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
        condition: condition number of the prior covariance, at least 1.
        seed: of prior and operator.

    Raises:
        ValueError: a size is not positive, or ``condition`` below 1.
    """
    if dim < 1 or obs_dim < 1:
        raise ValueError(f"'dim' and 'obs_dim' must be positive; got {dim} and {obs_dim}")
    if condition < 1:
        raise ValueError(f"'condition' must be at least 1; got {condition}")
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    spectrum = condition ** -torch.linspace(0, 1, dim, dtype=torch.float64)
    covariance = (rotation * (spectrum / spectrum.mean())) @ rotation.T
    matrix = torch.randn(obs_dim, dim, generator=generator, dtype=torch.float64) / dim**0.5

    level, params = noise_level(sigma)
    exact = ConjugateGaussian(torch.zeros(dim), covariance, matrix)

    def reference(y: Tensor, sigma: Tensor | float = level) -> MultivariateNormal:
        posterior = exact.posterior(y.double(), sigma)
        return MultivariateNormal(posterior.mean.to(y), posterior.covariance_matrix.to(y))

    return InverseProblem(
        prior=MultivariateNormal(torch.zeros(dim), covariance.to(torch.get_default_dtype())),
        physics=MatrixObservations(matrix.to(torch.get_default_dtype()), GaussianNoise(level)),
        params=params,
        reference=reference,
        units="1",
        obs_units="1",
    )
