"""travel-time: cross-hole tomography. The slowness between two boreholes from travel times.

Sources down one borehole, receivers down the other, 1 km apart, and every pair a straight ray
(linear in the slowness; Menke 2018, Geophysical Data Analysis,
https://doi.org/10.1016/C2016-0-05203-8). Rays run from left to right: layers are
seen well, and what varies along them hardly.

The slowness is a Gaussian field about 0.4 s/km (2.5 km/s) with a standard deviation of 0.04 s/km.
"""

from __future__ import annotations

import numpy as np
import torch
from deepinv.physics import GaussianNoise

from vfm_inverse.operators import StraightRays
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.linear_field import (
    cell_axis,
    cell_covariance,
    linear_field_problem,
)
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(
    size: int = 16,
    num_sources: int = 8,
    num_receivers: int = 8,
    sigma: Sigma = 0.002,
    mean: float = 0.4,
    std: float = 0.04,
    nu: float = 1.5,
    length_scale: float = 0.25,
) -> InverseProblem:
    """Build the problem: slowness ``(1, size, size)``, travel times ``(sources * receivers,)``.

    Args:
        size: cells along a side of 1 km; depth, then distance.
        num_sources, num_receivers: evenly down the left and the right borehole.
        sigma: noise standard deviation in s, or a range ``(low, high)`` drawn per sample.
        mean, std: of the slowness, in s/km.
        nu, length_scale: of its Matérn covariance; the length in km.

    Raises:
        ValueError: a setting is not positive.
    """
    if num_sources < 1 or num_receivers < 1 or not mean > 0:
        raise ValueError(
            "'num_sources', 'num_receivers' and 'mean' must be positive; "
            f"got {num_sources}, {num_receivers} and {mean}"
        )
    covariance = cell_covariance(size, nu, length_scale, std)
    level, params = noise_level(sigma)
    down = (torch.arange(num_sources, dtype=torch.float64) + 0.5) / num_sources
    up = (torch.arange(num_receivers, dtype=torch.float64) + 0.5) / num_receivers
    depths = torch.cartesian_prod(down, up).reshape(-1, 2)
    sources = torch.stack([depths[:, 0], torch.zeros(len(depths))], 1)
    receivers = torch.stack([depths[:, 1], torch.ones(len(depths))], 1)
    *z, attrs = cell_axis("z", size, 1 / size, "km")["z"]
    return linear_field_problem(
        StraightRays((1, size, size), sources, receivers, 1 / size, GaussianNoise(level)),
        (1, size, size),
        mean,
        covariance,
        level,
        params,
        units="s km-1",
        obs_units="s",
        long_name="slowness",
        dims=("z", "x"),
        coords={"z": (*z, {**attrs, "positive": "down"}), **cell_axis("x", size, 1 / size, "km")},
        obs_dims=("ray",),
        obs_coords={
            "ray": np.arange(len(depths)),
            "source_z": ("ray", depths[:, 0].numpy(), {"units": "km"}),
            "receiver_z": ("ray", depths[:, 1].numpy(), {"units": "km"}),
        },
    )
