"""gaussian-field: kriging. A Matérn field on a grid, seen at random stations.

The prior is a Gaussian field of unit variance on the unit square with a Matérn covariance
(``random_fields``), and an observation reads it at stations, placed at random and then fixed, with
noise ``sigma``.
With ``networks="changing"`` every observation is a table of its own stations: none to
``num_points`` of them, anywhere on the square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import MultivariateNormal, TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import ReshapeTransform
from torch import Tensor

from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.random_fields import matern_covariance
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian
from vfm_inverse.problems.shared.kriging import KrigingNormal
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["draw_networks", "make", "station_labels", "stations"]

NETWORKS = ("fixed", "changing")


def make(
    size: int = 16,
    num_points: int = 24,
    sigma: Sigma = 0.2,
    nu: float = 1.5,
    length_scale: float = 0.25,
    networks: str = "fixed",
    seed: int = 0,
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, observations ``(num_points,)``.

    Args:
        size: nodes along a side of the unit square.
        num_points: number of stations, the largest where it changes.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample, and per
            station where the networks change; the field has 1.
        nu: smoothness of the Matérn covariance.
        length_scale: its length scale, in units of the side.
        networks: ``"fixed"``: the same stations for all observations. ``"changing"``: the
            parameters ``coords`` ``(num_points, 2)`` and ``mask`` ``(num_points,)`` say where they
            are and which rows of the table are stations at all.
        seed: of the fixed stations.

    Raises:
        ValueError: a setting is not positive, or ``networks`` is unknown.
    """
    if networks not in NETWORKS:
        raise ValueError(f"'networks' must be one of {NETWORKS}; got {networks!r}")
    covariance = matern_covariance(size, nu, length_scale)
    points = stations(num_points, seed)
    level, params = noise_level(sigma)
    own = points if networks == "fixed" else None
    physics = PointObservations((1, size, size), own, GaussianNoise(level))
    mean, shape = torch.zeros(size * size), (1, size, size)
    labels = station_labels(size, points)
    reference: Callable[..., TorchDistribution]
    if networks == "changing":
        labels["obs_coords"] = {"station": np.arange(num_points)}
        params = partial(draw_networks, num_points=num_points, noise=params)

        def reference(
            y: Tensor, coords: Tensor, mask: Tensor, sigma: Tensor | float = level
        ) -> TorchDistribution:
            unit = torch.eye(num_points, dtype=torch.float64).repeat(len(y), 1)
            tables = {"coords": coords, "mask": mask}
            rows = {k: v.repeat_interleave(num_points, 0) for k, v in tables.items()}
            operator = physics.A_adjoint(unit.to(y.device), **rows)
            operator = operator.reshape(len(y), num_points, -1)
            prior = mean.to(y.device), covariance.to(y.device)
            return KrigingNormal(*prior, operator, y, sigma, shape)

    else:
        nodes = torch.eye(size * size, dtype=torch.float64).reshape(-1, *shape)
        exact = ConjugateGaussian(mean, covariance, physics.A(nodes).mT, shape)

        def reference(y: Tensor, sigma: Tensor | float = level) -> TorchDistribution:
            return exact.posterior(y, sigma)

    field = MultivariateNormal(torch.zeros(size * size), covariance.to(torch.get_default_dtype()))
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
        **labels,
    )


def draw_networks(
    num: int,
    num_points: int,
    noise: Callable[[int], dict[str, Tensor]] | None = None,
    axes: int = 2,
) -> dict[str, Tensor]:
    """Station tables ``coords (num, num_points, axes)`` and ``mask (num, num_points)``.

    The first rows of a table are its stations, as many as a uniform draw from 0 to
    ``num_points``; ``noise`` adds a ``sigma`` for each row.
    """
    count = torch.randint(num_points + 1, (num, 1))
    tables = {
        "coords": torch.rand(num, num_points, axes),
        "mask": (torch.arange(num_points) < count).to(torch.get_default_dtype()),
    }
    if noise is not None:
        tables["sigma"] = noise(num * num_points)["sigma"].reshape(num, num_points)
    return tables


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
