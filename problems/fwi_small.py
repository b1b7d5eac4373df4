r"""fwi-small: full-waveform inversion. Log-velocity between two boreholes, from whole seismograms.

Three shots in the left borehole of a square, recorded by eight receivers in the right one, by the
scalar wave equation

.. math:: \frac{1}{v^2} \ddot u - \Delta u = \delta(\cdot - s)\, q(t), \qquad v = e^x,

with a Ricker wavelet :math:`q`. Where travel times keep one number of a record, the waveform keeps
all of it: amplitudes, and what arrives later. The map is oscillatory, and a model whose waves come
more than half a period late matches the wrong cycle (Virieux and Operto 2009,
https://doi.org/10.1190/1.3238367): half a period is 62 ms here, and arrivals on the far side have
a standard deviation of about 20 ms. Records are in units of their root mean square at the median
velocity. There is no exact posterior.

The waves are those of the library deepwave: ``pip install 'vfm-inverse[waves]'``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from deepinv.physics import GaussianNoise

from vfm_inverse.operators import FullWaveform
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.boreholes import DOWN, log_velocity
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["make"]

# The time step is stable (Courant number) up to this many standard deviations above the median
# velocity; the absorbing layers are as wide as suffices for waves that cross a small grid once.
FASTEST, COURANT, PML_WIDTH = 4.0, 0.55, 8


def make(
    size: int = 24,
    num_shots: int = 3,
    num_receivers: int = 8,
    num_times: int = 40,
    sigma: Sigma = 0.2,
    side: float = 600.0,
    velocity: float = 2000.0,
    std: float = 0.1,
    nu: float = 1.5,
    length_scale: float = 0.25,
    frequency: float = 8.0,
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, data ``(shots, receivers, times)``.

    Args:
        size: nodes along a side of the square.
        num_shots, num_receivers: evenly spaced along the left and the right edge.
        num_times: samples of a record, which ends when a wave at three quarters of the median
            velocity has crossed the square and passed.
        sigma: standard deviation of the noise, or a range ``(low, high)`` drawn per sample, where
            1 is the root mean square of the records at the median velocity.
        side: of the square, in metres.
        velocity: median velocity, in metres per second.
        std: standard deviation of the log-velocity.
        nu, length_scale: of its Matérn covariance, the scale in units of the side.
        frequency: of the wavelet's peak, in hertz; deepwave warns below six nodes a wavelength.

    Raises:
        ImportError: deepwave is not installed.
        ValueError: a setting is out of range.
    """
    if num_shots < 1 or num_receivers < 1 or not side > 0 or not velocity > 0 or not frequency > 0:
        raise ValueError(
            "'num_shots', 'num_receivers', 'side', 'velocity' and 'frequency' must be positive; "
            f"got {num_shots}, {num_receivers}, {side}, {velocity} and {frequency}"
        )
    spacing, fastest = side / (size - 1), velocity * math.exp(FASTEST * std)
    record = _record(num_times, frequency, side / (0.75 * velocity), fastest, spacing)
    shots, receivers = _along(num_shots, size), _along(num_receivers, size)
    level, params = noise_level(sigma)
    shape = (1, size, size)

    def waves(amplitude: float) -> FullWaveform:
        return FullWaveform(
            shape,
            torch.stack([shots, torch.zeros_like(shots)], -1),
            torch.stack([receivers, torch.full_like(receivers, size - 1)], -1),
            amplitude * record.wavelet,
            spacing,
            record.dt,
            fastest,
            noise_model=GaussianNoise(level),
            every=record.every,
            pml_width=PML_WIDTH,
        )

    with torch.no_grad():
        homogeneous = waves(1.0).A(torch.full((1, *shape), math.log(velocity)))
    axis = side * np.linspace(0, 1, size)
    return InverseProblem(
        **log_velocity(axis, velocity, std, nu, length_scale, "m/s"),
        physics=waves(1 / float(homogeneous.square().mean().sqrt())),
        params=params,
        obs_dims=("shot", "receiver", "time"),
        obs_coords={
            "shot_z": ("shot", axis[shots], DOWN),
            "receiver_z": ("receiver", axis[receivers], DOWN),
            "time": ("time", record.sampling * np.arange(num_times), {"units": "s"}),
        },
        obs_units="1",
    )


class _Record(NamedTuple):
    """Seismograms in time, in seconds."""

    sampling: float
    every: int
    """Steps of the waves between two samples."""
    dt: float
    wavelet: torch.Tensor
    """``(num_times * every,)``, one value a step, with a peak of 1."""


def _record(
    num_times: int, frequency: float, crossing: float, fastest: float, spacing: float
) -> _Record:
    """Record a Ricker wavelet until a wave that takes ``crossing`` has passed, in steps that are
    stable for the ``fastest`` waves on a grid of this ``spacing``."""
    delay = 1.2 / frequency  # of the wavelet's peak; it lasts twice as long
    sampling = (2 * delay + crossing) / num_times
    if sampling > 0.25 / frequency:
        raise ValueError(
            f"'num_times' must be at least {math.ceil(4 * frequency * sampling * num_times)} to "
            f"resolve a wavelet of {frequency} Hz; got {num_times}"
        )
    every = math.ceil(sampling * math.sqrt(2) * fastest / (COURANT * spacing))
    dt = sampling / every
    phase = (math.pi * frequency * (dt * torch.arange(num_times * every) - delay)).square()
    return _Record(sampling, every, dt, (1 - 2 * phase) * torch.exp(-phase))


def _along(num: int, size: int) -> torch.Tensor:
    """Grid indices ``(num,)`` of points evenly spaced along an edge."""
    return ((torch.arange(num) + 0.5) / num * (size - 1)).round().long()
