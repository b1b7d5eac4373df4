r"""mixture-linear: linear data that leave several separate modes, in as many dimensions as wanted.

.. math:: x \sim \sum_k w_k\, \mathcal N(m_k, C_k), \qquad y = A x + \sigma \epsilon.

The means lie far apart, but mostly in directions that ``A`` does not see, so that an observation
seldom decides between them. The posterior is a Gaussian mixture again: every component has its
conjugate posterior, and the weights are

.. math:: w_k(y) \propto w_k\, \mathcal N(y;\, A m_k,\, A C_k A^\top + \sigma^2 I).
"""

from __future__ import annotations

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import (
    Categorical,
    MixtureSameFamily,
    MultivariateNormal,
    TorchDistribution,
)
from torch import Tensor

from vfm_inverse.operators import MatrixObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]

SEPARATION = 3.0  # standard deviation of the means in directions that A does not see ...
VISIBLE = 0.15  # ... and in those that it sees
NARROWEST = 0.3  # standard deviation of a component's narrowest direction; its widest has 1


def make(
    dim: int = 16, obs_dim: int = 8, components: int = 4, sigma: Sigma = 0.3, seed: int = 0
) -> InverseProblem:
    """Build the problem.

    Args:
        dim: length of ``x``.
        obs_dim: length of ``y``.
        components: number of components of the prior.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
        seed: of prior and operator.

    Raises:
        ValueError: a size is not positive.
    """
    if min(dim, obs_dim, components) < 1:
        raise ValueError(
            "'dim', 'obs_dim' and 'components' must be positive; "
            f"got {dim}, {obs_dim} and {components}"
        )
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = normal(obs_dim, dim) / dim**0.5
    seen = torch.linalg.pinv(matrix) @ matrix  # projects on the directions that A sees
    hidden = torch.eye(dim, dtype=torch.float64) - seen
    means = normal(components, dim) @ (SEPARATION * hidden + VISIBLE * seen)
    rotations, _ = torch.linalg.qr(normal(components, dim, dim))
    stds = NARROWEST ** torch.linspace(0, 1, dim, dtype=torch.float64)
    covariances = (rotations * stds**2) @ rotations.mT
    weights = 0.5 + torch.rand(components, generator=generator, dtype=torch.float64)
    log_weights = (weights / weights.sum()).log()

    level, params = noise_level(sigma)
    conjugates = [ConjugateGaussian(*law, matrix) for law in zip(means, covariances, strict=True)]
    predicted = means @ matrix.T
    spread = matrix @ covariances @ matrix.T

    def reference(y: Tensor, sigma: Tensor | float = level) -> TorchDistribution:
        laws = [conjugate.posterior(y.double(), sigma) for conjugate in conjugates]
        noise = torch.as_tensor(sigma).double().cpu().reshape(-1, 1, 1, 1) ** 2
        evidence = MultivariateNormal(
            predicted, spread + noise * torch.eye(obs_dim, dtype=torch.float64)
        )
        logits = log_weights + evidence.log_prob(y.double().cpu().unsqueeze(1))
        covariance = torch.stack([law.covariance_matrix for law in laws], 1)
        return _mixture(
            logits.to(y), torch.stack([law.mean for law in laws], 1).to(y), covariance, y
        )

    return InverseProblem(
        prior=_mixture(
            log_weights.to(torch.get_default_dtype()),
            means.to(torch.get_default_dtype()),
            covariances,
            torch.zeros(1),
        ),
        physics=MatrixObservations(matrix.to(torch.get_default_dtype()), GaussianNoise(level)),
        params=params,
        reference=reference,
        units="1",
        obs_units="1",
    )


def _mixture(
    logits: Tensor, means: Tensor, covariances: Tensor, like: Tensor
) -> TorchDistribution:
    roots = torch.linalg.cholesky(covariances.double()).to(like)
    return MixtureSameFamily(
        Categorical(logits=logits), MultivariateNormal(means, scale_tril=roots)
    )
