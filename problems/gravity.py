"""gravity: a buried layer's density contrast from the gravity anomaly above it.

A layer of prisms between two depths, stations above the middle of every one. The field falls off
with depth, so that the anomaly is a smooth picture of the layer: what is narrower than the layer
is deep hardly shows (Blakely 1995, Potential Theory in Gravity and Magnetic Applications,
https://doi.org/10.1017/CBO9780511549816, chapter 9).

The contrast is a Gaussian field with a standard deviation of 100 kg/m^3 over 3.2 km.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepinv.physics import GaussianNoise

from vfm_inverse.operators import GravityAnomaly
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.linear_field import (
    cell_axis,
    cell_covariance,
    linear_field_problem,
)
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]

SIDE = 3200.0


def make(
    size: int = 16,
    depths: Sequence[float] = (200.0, 500.0),
    sigma: Sigma = 0.05,
    std: float = 100.0,
    nu: float = 1.5,
    length_scale: float = 800.0,
) -> InverseProblem:
    """Build the problem: density contrast and anomaly, both ``(1, size, size)``.

    Args:
        size: cells along a side of 3.2 km.
        depths: of the layer's top and bottom in m.
        sigma: noise standard deviation in mGal, or a range ``(low, high)`` drawn per sample.
        std: of the density contrast, in kg/m^3.
        nu, length_scale: of its Matérn covariance; the length in m.

    Raises:
        ValueError: a setting is not positive, or the depths do not increase.
    """
    covariance = cell_covariance(size, nu, length_scale / SIDE, std)
    level, params = noise_level(sigma)
    spacing = SIDE / size
    axes = {**cell_axis("y", size, spacing, "m"), **cell_axis("x", size, spacing, "m")}
    return linear_field_problem(
        GravityAnomaly((1, size, size), depths, spacing, GaussianNoise(level)),
        (1, size, size),
        0.0,
        covariance,
        level,
        params,
        units="kg m-3",
        obs_units="mGal",
        long_name="density contrast",
        dims=("y", "x"),
        coords=axes,
        obs_dims=("y", "x"),
        obs_coords=axes,
    )
