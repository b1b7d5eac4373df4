"""heat: the temperature of an insulated plate some time ago, from thermometers on it now.

Backwards heat conduction, the textbook of ill-posedness (Kaipio and Somersalo 2005, Statistical
and Computational Inverse Problems, https://doi.org/10.1007/b138659): a detail of width ``w`` is
gone after ``w^2 / (pi^2 kappa)``, so at the observation times the data say nothing of the finest
scales and the prior has to.

The plate has sides of 1 m and the diffusivity of copper, 1.1e-4 m^2/s; the initial temperature is
a Gaussian field about the surroundings' with a standard deviation of 10 K.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from deepinv.physics import GaussianNoise

from vfm_inverse.operators import HeatEquation, PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.gaussian_field import stations
from vfm_inverse.problems.shared.linear_field import (
    cell_axis,
    cell_covariance,
    linear_field_problem,
)
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(
    size: int = 16,
    num_points: int = 24,
    times: Sequence[float] = (30.0, 120.0),
    sigma: Sigma = 0.5,
    diffusivity: float = 1.1e-4,
    std: float = 10.0,
    nu: float = 1.5,
    length_scale: float = 0.25,
    seed: int = 0,
) -> InverseProblem:
    """Build the problem: temperatures ``(1, size, size)``, observations ``(times, num_points)``.

    Args:
        size: cells along a side of 1 m.
        num_points: number of thermometers, placed at random between the outermost cell centres.
        times: of the observations, in s.
        sigma: noise standard deviation in K, or a range ``(low, high)`` drawn per sample.
        diffusivity: in m^2/s.
        std: of the initial temperature, in K.
        nu, length_scale: of its Matérn covariance; the length in m.
        seed: of the thermometers.

    Raises:
        ValueError: a setting is not positive, or the times do not increase.
    """
    covariance = cell_covariance(size, nu, length_scale, std)
    points = stations(num_points, seed)
    level, params = noise_level(sigma)
    read = PointObservations((len(times), size, size), points, GaussianNoise(level))
    physics = read * HeatEquation((1, size, size), times, diffusivity, 1 / size)
    place = (0.5 + points.double().numpy() * (size - 1)) / size
    time = {"time": ("time", np.asarray(times, dtype=float), {"units": "s"})}
    return linear_field_problem(
        physics,
        (1, size, size),
        0.0,
        covariance,
        level,
        params,
        units="K",
        obs_units="K",
        long_name="initial temperature anomaly",
        dims=("y", "x"),
        coords={**cell_axis("y", size, 1 / size, "m"), **cell_axis("x", size, 1 / size, "m")},
        obs_dims=("time", "station") if len(times) > 1 else ("station",),
        obs_coords={
            **(time if len(times) > 1 else {}),
            "station": np.arange(num_points),
            "station_y": ("station", place[:, 0], {"units": "m"}),
            "station_x": ("station", place[:, 1], {"units": "m"}),
        },
    )
