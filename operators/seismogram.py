r"""The convolutional model of a seismogram.

.. math:: y(t) = \int w(t - \tau)\, r(\tau)\, \mathrm d\tau
          \quad\longrightarrow\quad y_i = \sum_j w_{i - j + c}\, r_j,

the reflectivity ``r`` of the ground in two-way travel time seen through the wavelet ``w`` of the
source, centred on sample ``c``; outside the trace ``r`` is zero (Robinson 1957, Geophysics 22,
767, https://doi.org/10.1190/1.1438415). The Ricker wavelet of peak frequency :math:`f` is

.. math:: w(t) = (1 - 2\pi^2 f^2 t^2)\, e^{-\pi^2 f^2 t^2}

(Ricker 1953, Geophysics 18, 10, https://doi.org/10.1190/1.1437843; in this form Ryan 1994, CSEG
Recorder 19(7)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.grids import convolve, correlate

__all__ = ["Seismogram", "ricker"]


class Seismogram(LinearPhysics):
    """Traces from reflectivities, by convolution with a wavelet.

    Args:
        img_size: ``(C, L)``: ``C`` traces of ``L`` samples of reflectivity (dimensionless).
        wavelet: amplitudes ``(K,)`` with ``K`` odd, in the units of the trace, its time 0 in the
            middle. A call may pass another, ``(K,)`` or one a field ``(batch, K)``, and can be
            differentiated with respect to it.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, C, L)``.

    Raises:
        ValueError: a shape does not fit.
    """

    def __init__(
        self, img_size: Sequence[int], wavelet: Tensor, noise_model: NoiseModel | None = None
    ) -> None:
        img_size = tuple(img_size)
        if len(img_size) != 2 or min(img_size) < 1:
            raise ValueError(f"'img_size' must be (C, L); got {img_size}")
        if wavelet.dim() != 1:
            raise ValueError(f"'wavelet' must have shape (K,); got {tuple(wavelet.shape)}")
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        self.register_buffer("wavelet", _odd(wavelet).double())

    def A(self, x: Tensor, wavelet: Tensor | None = None, **kwargs: Any) -> Tensor:
        """``(batch, C, L)`` to ``(batch, C, L)``."""
        return convolve(x, self._kernel(x, wavelet), 1)

    def A_adjoint(self, y: Tensor, wavelet: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Transpose: correlation with the wavelet."""
        return correlate(y, self._kernel(y, wavelet), 1)

    def _kernel(self, like: Tensor, wavelet: Tensor | None) -> Tensor:
        """``(1 or batch, 1, K)``."""
        chosen = self.wavelet if wavelet is None else _odd(wavelet)
        return chosen.to(like).reshape(-1, 1, chosen.shape[-1])


def ricker(frequency: float, interval: float, length: int | None = None) -> Tensor:
    """Ricker wavelet of unit peak, ``(length,)`` in double precision.

    Args:
        frequency: peak frequency in Hz.
        interval: between samples in s.
        length: odd number of samples; by default as many as exceed 1e-6.

    Raises:
        ValueError: a number is not positive, or ``length`` not odd.
    """
    if not frequency > 0 or not interval > 0:
        raise ValueError(
            f"'frequency' and 'interval' must be positive; got {frequency} and {interval}"
        )
    if length is None:
        # (pi f t)^2 = 18 gives 35 exp(-18) = 5e-7.
        length = 2 * math.ceil(math.sqrt(18.0) / (math.pi * frequency * interval)) + 1
    if length < 1 or length % 2 == 0:
        raise ValueError(f"'length' must be odd; got {length}")
    t = (torch.arange(length, dtype=torch.float64) - length // 2) * interval
    square = (math.pi * frequency * t) ** 2
    return (1 - 2 * square) * torch.exp(-square)


def _odd(wavelet: Tensor) -> Tensor:
    if wavelet.dim() not in (1, 2) or wavelet.shape[-1] % 2 == 0:
        raise ValueError(
            f"'wavelet' must have shape (K,) or (batch, K) with K odd; got {tuple(wavelet.shape)}"
        )
    return wavelet


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of a Ricker wavelet, and of one that is longer than the trace."""
    x = torch.randn(2, 2, 30, generator=torch.Generator().manual_seed(0))
    yield "seismogram", Seismogram((1, 30), ricker(30.0, 0.004)), x[:, :1]
    skewed = torch.randn(41, generator=torch.Generator().manual_seed(1))
    yield "seismogram-traces", Seismogram((2, 30), skewed), x
