r"""Full-waveform data: log-velocity to seismograms, by the library deepwave.

.. math:: \frac{1}{v^2} \ddot u - \Delta u = \sum_i \delta(\cdot - s_i)\, q(t), \qquad v = e^x,

the scalar wave equation with constant density in two dimensions, absorbing layers (PML) outside
all edges, and the wave field recorded at receivers. deepwave (Richardson,
https://doi.org/10.5281/zenodo.3829886) solves it by finite differences of second order in time and
its own adjoint. Install it with ``pip install 'vfm-inverse[waves]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from deepinv.physics import GaussianNoise, NoiseModel
from torch import Tensor

from vfm_inverse.operators.masked import MaskedPhysics

__all__ = ["FullWaveform"]

BOUND = 1.001
"""deepwave refuses a velocity above its bound by no more than rounding."""


class FullWaveform(MaskedPhysics):
    """Log-velocity ``(batch, 1, H, W)`` to seismograms ``(batch, S, R, num_samples)``.

    Units: ``x = ln(v / (m/s))``, ``spacing`` in metres, ``dt`` in seconds. Each of the S sources
    is a shot of its own, recorded by all R receivers. Plain backward passes and forward mode go
    through deepwave; ``torch.func.vjp`` and ``vmap`` do not, so ``A_vjp`` uses the former.

    Args:
        img_size: ``(1, H, W)``.
        sources: grid indices ``(S, 2)``, integers: down, right.
        receivers: grid indices ``(R, 2)``.
        wavelet: source time function ``q``, ``(num_times,)``.
        spacing: grid spacing.
        dt: time step of the wavelet. Where stability asks for smaller ones, ``dt`` above
            ``0.6 spacing / (sqrt(2) max_velocity)``, deepwave takes them and resamples, and its
            gradient is then off by some tenths of a percent: choose a small ``dt`` and a large
            ``every`` instead.
        max_velocity: an upper bound in m/s, which fixes the inner steps: without it these, and
            so the map, would depend on the batch. Faster nodes count as this fast.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.
        every: time steps from one sample of the data to the next.
        pml_width: cells of the absorbing layer at every edge. On a small grid most of the work is
            done there: 8 cells are half the cost of 20, and reflect a little more.

    Raises:
        ImportError: deepwave is not installed.
        ValueError: a shape does not fit, or an index lies outside the grid.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        sources: Tensor,
        receivers: Tensor,
        wavelet: Tensor,
        spacing: float,
        dt: float,
        max_velocity: float,
        noise_model: NoiseModel | None = None,
        every: int = 1,
        pml_width: int = 20,
    ) -> None:
        _deepwave()
        super().__init__(noise_model or GaussianNoise(0.1))
        img_size = tuple(img_size)
        if len(img_size) != 3 or img_size[0] != 1:
            raise ValueError(f"'img_size' must be (1, H, W); got {img_size}")
        last = torch.tensor(img_size[1:])
        for name, index in (("sources", sources), ("receivers", receivers)):
            if index.dim() != 2 or index.shape[1] != 2 or index.is_floating_point():
                raise ValueError(
                    f"'{name}' must be integers of shape (N, 2); got {tuple(index.shape)} "
                    f"of {index.dtype}"
                )
            if not bool(((index.cpu() >= 0) & (index.cpu() < last)).all()):
                raise ValueError(f"'{name}' must lie inside the grid {img_size[1:]}")
        if every < 1 or pml_width < 1:
            raise ValueError(
                f"'every' and 'pml_width' must be positive; got {every} and {pml_width}"
            )
        if wavelet.dim() != 1:
            raise ValueError(f"'wavelet' must have shape (num_times,); got {tuple(wavelet.shape)}")
        self.img_size = img_size
        self.spacing, self.dt, self.max_velocity = spacing, dt, max_velocity
        self.every, self.pml_width = every, pml_width
        self.register_buffer("sources", sources)
        self.register_buffer("receivers", receivers)
        self.register_buffer("wavelet", wavelet)

    def predict(self, x: Tensor, **params: Any) -> Tensor:
        """``(batch, 1, H, W)`` to ``(batch, S, R, num_samples)``."""
        if x.dim() != 4 or x.shape[1:] != self.img_size:
            raise ValueError(
                f"'x' must have shape (batch, *{self.img_size}); got {tuple(x.shape)}"
            )
        batch, shots, num_receivers = len(x), len(self.sources), len(self.receivers)
        # deepwave's batch is over shots, each with a velocity of its own.
        velocity = (
            x.exp()
            .clamp(max=self.max_velocity)
            .expand(batch, shots, *self.img_size[1:])
            .flatten(0, 1)
        )
        wavelet = self.wavelet.to(x).expand(batch * shots, 1, -1).contiguous()
        data = _deepwave().scalar(
            velocity.contiguous(),
            self.spacing,
            self.dt,
            source_amplitudes=wavelet,
            source_locations=self.sources[:, None].repeat(batch, 1, 1),
            receiver_locations=self.receivers.expand(batch * shots, -1, -1).contiguous(),
            max_vel=BOUND * self.max_velocity,
            pml_width=self.pml_width,
            pml_freq=_dominant_frequency(self.wavelet, self.dt),
        )[-1]
        return data.reshape(batch, shots, num_receivers, -1)[..., :: self.every]

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Gradient of ``<A(x), v>``, ``(batch, 1, H, W)``."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(self.A(leaf), leaf, v)[0]


def _dominant_frequency(wavelet: Tensor, dt: float) -> float:
    """Frequency of the largest Fourier coefficient in hertz, for which the PML is tuned."""
    spectrum = torch.fft.rfft(wavelet).abs()
    return float(spectrum.argmax()) / (len(wavelet) * dt)


def _deepwave() -> Any:
    try:
        return import_module("deepwave")
    except ImportError as error:
        raise ImportError(
            "full-waveform data need the library deepwave: pip install 'vfm-inverse[waves]'"
        ) from error
