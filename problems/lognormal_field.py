"""lognormal-field: the exponential of a Gaussian field, where the Gaussian answer is wrong.

``x = exp(0.8 g)`` with ``g`` the Matérn field of gaussian-field, seen at random stations with
noise: a positive, skewed field as conductivities and concentrations are. There is no exact
posterior.
"""

from __future__ import annotations

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import MultivariateNormal, TransformedDistribution
from pyro.distributions.transforms import ExpTransform, ReshapeTransform

from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.random_fields import matern_covariance
from vfm_inverse.problems.gaussian_field import station_labels, stations
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(
    size: int = 8,
    num_points: int = 12,
    sigma: Sigma = 0.2,
    nu: float = 1.5,
    length_scale: float = 0.7,
    scale: float = 0.8,
    seed: int = 0,
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, observations ``(num_points,)``.

    Args:
        size, num_points, nu, length_scale, seed: as in gaussian-field.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
        scale: standard deviation of ``log x``.

    Raises:
        ValueError: a setting is not positive.
    """
    if scale <= 0:
        raise ValueError(f"'scale' must be positive; got {scale}")
    covariance = matern_covariance(size, nu, length_scale)
    points = stations(num_points, seed)
    level, params = noise_level(sigma)
    log_field = MultivariateNormal(
        torch.zeros(size * size), scale**2 * covariance.to(torch.get_default_dtype())
    )
    return InverseProblem(
        prior=TransformedDistribution(
            log_field,
            [
                ExpTransform(),
                ReshapeTransform(torch.Size([size * size]), torch.Size([1, size, size])),
            ],
        ),
        physics=PointObservations((1, size, size), points, GaussianNoise(level)),
        params=params,
        units="1",
        obs_units="1",
        long_name="log-normal random field",
        **station_labels(size, points),
    )
