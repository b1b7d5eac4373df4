"""seismic-deconvolution: reflectivity from a seismic trace.

The convolutional model with a Ricker wavelet of 30 Hz: layers thinner than a quarter of its
wavelength run into one another, and what is slower or faster than the wavelet's band is not in the
data at all. Two priors for the reflectivity of a sample:

``gaussian``
    independent N(0, std^2), the white reflectivity of predictive deconvolution (Robinson 1957,
    https://doi.org/10.1190/1.1438415): the posterior is exact;
``sparse``
    Bernoulli-Gaussian, 0 but for a share of the samples, with the same variance (Kormylo and
    Mendel 1982, IEEE Transactions on Information Theory 28, 482): spikes, whose posterior has as
    many modes as ways to place them. There is no reference.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from deepinv.physics import GaussianNoise
from torch import Tensor

from vfm_inverse.operators import Seismogram, ricker
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.linear_field import linear_field_problem
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]


def make(
    length: int = 64,
    prior: Literal["gaussian", "sparse"] = "gaussian",
    sigma: Sigma = 0.02,
    std: float = 0.1,
    density: float = 0.15,
    frequency: float = 30.0,
    interval: float = 0.004,
) -> InverseProblem:
    """Build the problem: reflectivities and traces, both ``(1, length)``.

    Args:
        length: samples of the trace.
        prior: ``"gaussian"`` or ``"sparse"``.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample; the wavelet
            has a peak of 1.
        std: of the reflectivity of a sample.
        density: share of the samples that are not 0, of the sparse prior.
        frequency: peak frequency of the wavelet in Hz.
        interval: between samples, in s.

    Raises:
        ValueError: a setting is not positive, or the prior unknown.
    """
    if length < 2 or not std > 0:
        raise ValueError(f"'length' must be at least 2, 'std' positive; got {length}, {std}")
    if prior not in ("gaussian", "sparse"):
        raise ValueError(f"'prior' must be 'gaussian' or 'sparse'; got {prior!r}")
    if not 0 < density <= 1:
        raise ValueError(f"'density' must lie in (0, 1]; got {density}")
    level, params = noise_level(sigma)
    physics = Seismogram((1, length), ricker(frequency, interval), GaussianNoise(level))
    time = (torch.arange(length, dtype=torch.float64) * interval).numpy()
    axis = {"time": ("time", time, {"units": "s", "long_name": "two-way travel time"})}

    def spikes(num: int) -> Tensor:
        shown = torch.rand(num, 1, length) < density
        return torch.randn(num, 1, length) * (std / density**0.5) * shown

    labels: dict[str, Any] = {
        "units": "1",
        "obs_units": "1",
        "long_name": "reflectivity",
        "dims": ("time",),
        "coords": axis,
        "obs_dims": ("time",),
        "obs_coords": axis,
    }
    if prior == "sparse":
        return InverseProblem(prior=spikes, physics=physics, params=params, **labels)
    return linear_field_problem(
        physics,
        (1, length),
        0.0,
        std**2 * torch.eye(length, dtype=torch.float64),
        level,
        params,
        **labels,
    )
