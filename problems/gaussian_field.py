"""gaussian-field: kriging. A Matérn field on a grid, seen at random stations.

The prior is a Gaussian field of unit variance on the unit square with a Matérn covariance
(``random_fields``), and an observation reads it at stations, placed at random and then fixed, with
noise ``sigma``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import MultivariateNormal, TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import ReshapeTransform
from torch import Tensor

from vfm_inverse.operators import PointObservations
from vfm_inverse.problem import InverseProblem
from vfm_inverse.problems.conjugate import ConjugateGaussian
from vfm_inverse.problems.noise_levels import Sigma, noise_level
from vfm_inverse.random_fields import matern_covariance

__all__ = ["make", "station_labels", "stations"]


def make(
    size: int = 16,
    num_points: int = 24,
    sigma: Sigma = 0.2,
    nu: float = 1.5,
    length_scale: float = 0.25,
    seed: int = 0,
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, observations ``(num_points,)``.

    Args:
        size: nodes along a side of the unit square.
        num_points: number of stations.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample; the field has
            1.
        nu: smoothness of the Matérn covariance.
        length_scale: its length scale, in units of the side.
        seed: of the stations.

    Raises:
        ValueError: a setting is not positive.
    """
    covariance = matern_covariance(size, nu, length_scale)
    points = stations(num_points, seed)
    level, params = noise_level(sigma)
    physics = PointObservations((1, size, size), points, GaussianNoise(level))
    nodes = torch.eye(size * size).reshape(-1, 1, size, size)
    exact = ConjugateGaussian(
        torch.zeros(size * size), covariance, physics.A(nodes.double()).mT, (1, size, size)
    )

    def reference(y: Tensor, sigma: Tensor | float = level) -> TorchDistribution:
        return exact.posterior(y, sigma)

    field = MultivariateNormal(torch.zeros(size * size), covariance.float())
    return InverseProblem(
        prior=TransformedDistribution(
            field, [ReshapeTransform(torch.Size([size * size]), torch.Size([1, size, size]))]
        ),
        physics=physics,
        params=params,
        reference=reference,
        units="1",
        obs_units="1",
        long_name="Gaussian random field",
        **station_labels(size, points),
    )


def stations(num_points: int, seed: int) -> Tensor:
    """Station coordinates ``(num_points, 2)``, uniform on the unit square: down, right."""
    if num_points < 1:
        raise ValueError(f"'num_points' must be positive; got {num_points}")
    return torch.rand(num_points, 2, generator=torch.Generator().manual_seed(seed))


def station_labels(size: int, points: Tensor) -> dict[str, Any]:
    """Dimensions and coordinates of the field and of the stations."""
    axis = np.linspace(0, 1, size)
    return {
        "dims": ("y", "x"),
        "coords": {
            "y": ("y", axis, {"units": "1", "axis": "Y"}),
            "x": ("x", axis, {"units": "1", "axis": "X"}),
        },
        "obs_dims": ("station",),
        "obs_coords": {
            "station": np.arange(len(points)),
            "station_y": ("station", points[:, 0].numpy(), {"units": "1"}),
            "station_x": ("station", points[:, 1].numpy(), {"units": "1"}),
        },
    }
