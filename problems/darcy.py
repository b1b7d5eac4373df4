"""darcy: groundwater. Log-permeability of the unit square, from the pressure at sensors.

Water is injected everywhere and leaves through the boundary; the pressure is smooth, so that it
says much of the large scales of the permeability, more so where the flow is strong, and little of
the small ones. The set-up is that of the elliptic benchmarks of the field (Stuart 2010,
https://doi.org/10.1017/S0962492910000061): a Gaussian or a level-set prior, and no
exact posterior. The truth of an experiment is a draw of the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from deepinv.physics import GaussianNoise
from torch import Tensor

from vfm_inverse.operators import Darcy
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.random_fields import MaternField, expansion, karhunen_loeve, level_sets
from vfm_inverse.problems.gaussian_field import station_labels, stations
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]

CHANNEL = 2.0  # log-permeability inside a channel; its negative outside


def make(
    size: int = 32,
    num_points: int = 50,
    sigma: Sigma = 0.01,
    prior: Literal["matern", "expansion", "channels"] = "matern",
    nu: float = 1.5,
    length_scale: float = 0.2,
    std: float = 1.0,
    num_modes: int = 64,
    source: float = 10.0,
    seed: int = 0,
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, observations ``(num_points,)``.

    Args:
        size: cells along a side of the unit square.
        num_points: sensors, placed at random and then fixed.
        sigma: standard deviation of the noise, or a range ``(low, high)`` drawn per sample; where
            the permeability is 1 the pressure reaches 0.74.
        prior: of the log-permeability: a Matérn field, its leading ``num_modes`` Karhunen-Loève
            modes, or channels: a band of high permeability along the level line 0 of a Matérn
            field, which is twice as long in ``x``.
        nu, length_scale, std: of the Matérn field, the scale in units of the side; ``std`` has no
            effect on channels.
        num_modes: of the expansion.
        source: ``f``, water injected per unit of area and time.
        seed: of the sensors.

    Raises:
        ValueError: a setting is out of range.
    """
    points = stations(num_points, seed)
    level, params = noise_level(sigma)
    labels = station_labels(size, points)
    centers = (np.arange(size) + 0.5) / size
    labels["coords"] = {
        axis: (axis, centers, {"units": "1", "axis": axis.upper()}) for axis in ("y", "x")
    }
    return InverseProblem(
        prior=_prior(prior, size, nu, length_scale, std, num_modes),
        physics=Darcy((1, size, size), points, source, noise_model=GaussianNoise(level)),
        params=params,
        units="1",
        obs_units="1",
        long_name="log-permeability",
        **labels,
    )


def _prior(
    kind: str, size: int, nu: float, length_scale: float, std: float, num_modes: int
) -> MaternField | Callable[[int], Tensor]:
    if kind not in ("matern", "expansion", "channels"):
        raise ValueError(f"'prior' must be 'matern', 'expansion' or 'channels'; got {kind!r}")
    shape, spacing = (size, size), 1 / size
    if kind == "channels":
        along = MaternField(shape, nu, (length_scale, 2 * length_scale), spacing=spacing)
        values = (-CHANNEL, CHANNEL, -CHANNEL)
        return lambda num: level_sets(along.sample(torch.Size([num])), (-0.3, 0.3), values)
    field = MaternField(shape, nu, length_scale, std, spacing=spacing)
    if kind == "matern":
        return field
    return expansion(karhunen_loeve(field.covariance_matrix, num_modes), (1, *shape))
