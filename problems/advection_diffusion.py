r"""advection-diffusion: where a tracer was released, from gauges downstream.

A tracer in a closed basin of 10 km, stirred by a steady gyre with the stream function

.. math:: \psi = \frac{U L}{\pi} \sin\frac{\pi x}{L} \sin\frac{\pi y}{L}

of largest speed ``U`` and spread by turbulence. The concentration at time 0 is a Gaussian anomaly;
gauges read it hours later. What lies upstream of a gauge is seen, and the rest only through the
prior. The initial condition under transport is a standard example of Bayesian inversion (Villa,
Petra and Ghattas 2021, https://doi.org/10.1145/3428447).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from deepinv.physics import GaussianNoise

from vfm_inverse.operators import AdvectionDiffusion, PointObservations, wind_of_stream_function
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.gaussian_field import stations
from vfm_inverse.problems.shared.linear_field import (
    cell_axis,
    cell_covariance,
    linear_field_problem,
)
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]

SIDE = 10_000.0


def make(
    size: int = 16,
    num_points: int = 16,
    times: Sequence[float] = (3600.0, 7200.0, 10800.0),
    sigma: Sigma = 0.1,
    speed: float = 0.5,
    diffusivity: float = 10.0,
    std: float = 1.0,
    nu: float = 1.5,
    length_scale: float = 2500.0,
    seed: int = 0,
) -> InverseProblem:
    """Build the problem: concentrations ``(1, size, size)``, observations ``(times, num_points)``.

    Args:
        size: cells along a side of 10 km.
        num_points: number of gauges, placed at random between the outermost cell centres.
        times: of the observations, in s.
        sigma: noise standard deviation in mg/m^3, or a range ``(low, high)`` drawn per sample.
        speed: largest speed of the gyre, in m/s.
        diffusivity: in m^2/s.
        std: of the initial concentration, in mg/m^3.
        nu, length_scale: of its Matérn covariance; the length in m.
        seed: of the gauges.

    Raises:
        ValueError: a setting is not positive, or the times do not increase.
    """
    if not speed > 0:
        raise ValueError(f"'speed' must be positive; got {speed}")
    covariance = cell_covariance(size, nu, length_scale / SIDE, std)
    points = stations(num_points, seed)
    level, params = noise_level(sigma)
    spacing = SIDE / size
    corner = torch.sin(math.pi * torch.arange(1, size + 1, dtype=torch.float64) / size)
    wind = wind_of_stream_function(speed * SIDE / math.pi * torch.outer(corner, corner), spacing)
    read = PointObservations((len(times), size, size), points, GaussianNoise(level))
    carry = AdvectionDiffusion((1, size, size), times, wind, diffusivity, spacing, "closed")
    place = (0.5 + points.double().numpy() * (size - 1)) * spacing
    time = {"time": ("time", np.asarray(times, dtype=float), {"units": "s"})}
    return linear_field_problem(
        read * carry,
        (1, size, size),
        0.0,
        covariance,
        level,
        params,
        units="mg m-3",
        obs_units="mg m-3",
        long_name="initial concentration anomaly",
        dims=("y", "x"),
        coords={**cell_axis("y", size, spacing, "m"), **cell_axis("x", size, spacing, "m")},
        obs_dims=("time", "station") if len(times) > 1 else ("station",),
        obs_coords={
            **(time if len(times) > 1 else {}),
            "station": np.arange(num_points),
            "station_y": ("station", place[:, 0], {"units": "m"}),
            "station_x": ("station", place[:, 1], {"units": "m"}),
        },
    )
