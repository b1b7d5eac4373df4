"""travel-time-eikonal: cross-hole tomography. Log-velocity, from the times of first arrivals.

Sources stand along the left edge of a square, receivers along the right one. Waves seek the fast
paths: the rays bend, the times are a non-linear function of the velocity, and slow bodies hide
behind fast ones. The eikonal equation is that of Rawlinson, Pozgay and Fishwick 2010
(https://doi.org/10.1016/j.pepi.2009.10.002, section 2.1). There is no exact posterior.
"""

from __future__ import annotations

import numpy as np
import torch
from deepinv.physics import GaussianNoise

from vfm_inverse.operators import FirstArrivals
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.boreholes import log_velocity
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(
    size: int = 24,
    num_points: int = 8,
    sigma: Sigma = 0.5,
    side: float = 100.0,
    velocity: float = 2.0,
    std: float = 0.3,
    nu: float = 1.5,
    length_scale: float = 0.25,
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, observations ``(num_points^2,)``.

    Args:
        size: nodes along a side of the square.
        num_points: sources, and receivers, evenly spaced along their edges.
        sigma: standard deviation of the noise in milliseconds, or a range ``(low, high)`` drawn
            per sample; the square is crossed in 50.
        side: of the square, in metres.
        velocity: median velocity, in metres per millisecond (kilometres per second).
        std: standard deviation of the log-velocity.
        nu, length_scale: of its Matérn covariance, the scale in units of the side.

    Raises:
        ValueError: a setting is out of range.
    """
    if num_points < 1 or not side > 0 or not velocity > 0:
        raise ValueError(
            "'num_points', 'side' and 'velocity' must be positive; "
            f"got {num_points}, {side} and {velocity}"
        )
    depth = (torch.arange(num_points) + 0.5) / num_points
    sources = torch.stack([depth, torch.zeros(num_points)], -1)
    receivers = torch.stack([depth, torch.ones(num_points)], -1)
    level, params = noise_level(sigma)
    axis = side * np.linspace(0, 1, size)
    meters = side * depth.numpy().astype(float)
    return InverseProblem(
        **log_velocity(axis, velocity, std, nu, length_scale, "m/ms"),
        physics=FirstArrivals(
            (1, size, size),
            sources,
            receivers,
            spacing=side / (size - 1),
            noise_model=GaussianNoise(level),
        ),
        params=params,
        obs_dims=("ray",),
        obs_coords={
            "ray": np.arange(num_points**2),
            "source_z": ("ray", meters.repeat(num_points), {"units": "m"}),
            "receiver_z": ("ray", np.tile(meters, num_points), {"units": "m"}),
        },
        obs_units="ms",
    )
