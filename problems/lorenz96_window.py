"""lorenz96-window: one analysis of a data assimilation cycle in a chaotic system.

The unknown is the state of the Lorenz 1996 system (ECMWF seminar on predictability, 1996; 40
sites, forcing 8) at the start of a window, the prior its climate, and every other site is observed
at several times within the window with unit noise. Errors double in 0.4 time units (two days), so
that a later observation says more of the initial state, in a stranger way. There is no exact
posterior.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from deepinv.physics import GaussianNoise
from torch import Tensor

from vfm_inverse.operators import Lorenz96, Trajectory
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.symmetries import Symmetry
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]

# Mean and standard deviation of a site, and the steps after which a draw is on the attractor.
CLIMATE_MEAN, CLIMATE_STD, SPIN_UP = 2.34, 3.64, 120


def make(
    sites: int = 40,
    num_times: int = 5,
    every: int = 2,
    observed: int = 2,
    sigma: Sigma = 1.0,
    forcing: float = 8.0,
    dt: float = 0.05,
) -> InverseProblem:
    """Build the problem: states ``(1, sites)``, observations ``(num_times, sites / observed)``.

    Args:
        sites: number of variables, on a circle.
        num_times: observation times, the first at the start of the window.
        every: time steps between them.
        observed: every how many sites one is observed.
        sigma: standard deviation of the noise, or a range ``(low, high)`` drawn per sample; that
            of the climate is 3.64.
        forcing: of the system.
        dt: time step; 0.05 stands for six hours.

    Raises:
        ValueError: a setting is out of range.
    """
    if sites < 4:
        raise ValueError(f"'sites' must be at least 4; got {sites}")
    if not 1 <= observed <= sites:
        raise ValueError(f"'observed' must lie in [1, {sites}]; got {observed}")
    step = Lorenz96(dt, forcing)
    level, params = noise_level(sigma)

    def climate(num: int) -> Tensor:
        x = CLIMATE_MEAN + CLIMATE_STD * torch.randn(num, 1, sites)
        for _ in range(SPIN_UP):
            x = step(x)
        return x

    return InverseProblem(
        prior=climate,
        physics=Trajectory(
            step,
            num_times,
            every,
            partial(seen, every=observed),
            start=0,
            noise_model=GaussianNoise(level),
        ),
        params=params,
        symmetries=turns(sites, observed),
        dims=("site",),
        coords={"site": np.arange(sites)},
        units="1",
        long_name="state of the Lorenz 1996 system",
        obs_dims=("time", "observed_site"),
        obs_coords={
            "time": ("time", dt * every * np.arange(num_times), {"units": "1"}),
            "observed_site": np.arange(0, sites, observed),
        },
        obs_units="1",
    )


def turns(sites: int, observed: int) -> list[Symmetry]:
    """Rotations of the circle that carry observed sites to observed ones."""
    if sites % observed:
        return []
    return [
        Symmetry(
            partial(torch.roll, shifts=k * observed, dims=-1),
            partial(torch.roll, shifts=k, dims=-1),
        )
        for k in range(1, sites // observed)
    ]


def seen(x: Tensor, every: int) -> Tensor:
    """The observed sites of states ``(*batch, 1, sites)``."""
    return x[..., 0, ::every]
