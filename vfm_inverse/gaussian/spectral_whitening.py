r"""Stationary fields of any size: a covariance that is diagonal in the cosine basis.

The symmetric root of the correlation of the standardised elements is

.. math:: S = Q^\top E \operatorname{diag}(a)\, E^\top Q

with the orthonormal DCT-II :math:`Q` along the space axes of each channel, standard deviations
:math:`a` of the modes, and at each frequency an orthogonal :math:`E` that mixes the channels: the
eigenvectors of their covariance there, as the colours of a photograph are nearly one colour. With
one channel, or more than :data:`MIXED`, there is no :math:`E`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vfm_inverse.gaussian.whitening_base import Whitening
from vfm_inverse.runtime.scaling import center_and_spread, over

__all__ = ["SpectralWhitening", "cosine_basis"]

MIXED = 16
"""Most channels whose correlation is taken out: their covariances at all frequencies are ``C``
times as many numbers as a field."""

POOLS = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}
"""Local means by the number of space axes."""

FLOOR = 1e-10
"""Least variance of a mode, as a share of the largest."""


class SpectralWhitening(Whitening):
    """A diagonal covariance in the cosine basis, channels correlated at each frequency.

    The orthonormal DCT-II has reflecting boundaries and so does not tie opposite edges together,
    as a Fourier basis would. A channel has one standard deviation, except for its elements that
    never vary.

    Attributes:
        amplitude: standard deviations of the modes, ``(C, *space)``.
        mixing: their directions among the channels, ``(*space, C, C)`` with a mode a column; the
            number 1 where the modes are those of single channels.
    """

    LATER = ("spread", "mixing")
    amplitude: Tensor
    mixing: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) < 2:
            raise ValueError(
                "'event_shape' must have space axes for a spectral whitening, as (C, H, W) has; "
                f"got {event_shape}"
            )
        super().__init__(event_shape)
        self.register_buffer("amplitude", torch.ones(event_shape))
        self.register_buffer("mixing", torch.ones(()))
        self._set_cosines()

    def _set_cosines(self) -> None:
        """Not cast with the other buffers but made anew: double precision needs all digits."""
        for axis, size in enumerate(self.inner_shape[1:]):
            basis = cosine_basis(size, self.amplitude.dtype).to(self.amplitude.device)
            self.register_buffer(f"cosines{axis}", basis, persistent=False)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self._set_cosines()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._set_cosines()

    @classmethod
    def fit(cls, samples: Tensor) -> SpectralWhitening:
        """From prior samples ``(n, *event)``: the mean field, and at every frequency the power of
        each channel and their correlation, shrunk towards none by C / (n + C)."""
        self = cls(tuple(samples.shape[1:])).to(samples)
        mean, spread = center_and_spread(samples)
        space = tuple(range(1, spread.dim()))
        varies = spread > 0
        share = varies.to(spread).mean(space, keepdim=True)
        # Root mean square over the elements that vary, of numbers whose squares are representable.
        largest = spread.amax(space, keepdim=True)
        square = over(spread, largest).square().mean(space, keepdim=True)
        common = largest * over(square, share).sqrt()
        spread = torch.where(varies, common, 0.0)
        coefficients = self._cosines(over(samples - mean, spread))
        power = coefficients.square().mean(0)
        # What is masked afterwards must have unit variance where it is not.
        power = torch.where(share > 0, over(power, share), 1.0)
        # Few samples make a ragged spectrum: lean on the neighbours then, on the data otherwise.
        weight = 10.0 / (samples.shape[0] + 10.0)
        log_power = torch.maximum(power, FLOOR * power.amax(space, keepdim=True)).log()
        smooth = smoothed(log_power)
        self.amplitude = (0.5 * ((1 - weight) * log_power + weight * smooth)).exp()
        if 1 < len(power) <= MIXED:
            self._mix(coefficients)
        self.mean, self.spread = mean.flatten(), spread.flatten()
        return self

    def _mix(self, coefficients: Tensor) -> None:
        """Directions among the channels from ``coefficients (n, C, *space)``; each channel keeps
        the power that it has."""
        num, channels = coefficients.shape[:2]
        units = coefficients.movedim(1, -1).flatten(1, -2).movedim(0, 1)  # (frequency, n, C)
        norm = units.square().sum(1, keepdim=True).sqrt()
        units = over(units, norm)
        correlation = (units.mT @ units).unflatten(0, self.inner_shape[1:])
        weight = 10.0 / (num + 10.0)
        moved = correlation.movedim((-2, -1), (0, 1)).flatten(0, 1)
        moved = (1 - weight) * moved + weight * smoothed(moved)
        correlation = moved.unflatten(0, (channels, channels)).movedim((0, 1), (-2, -1)).double()
        size = self.amplitude.movedim(0, -1).double()
        own = torch.eye(channels, dtype=torch.bool, device=correlation.device)
        correlation = torch.where(own, 1.0, correlation * (num / (num + channels)))
        values, vectors = torch.linalg.eigh(size.unsqueeze(-1) * correlation * size.unsqueeze(-2))
        values = torch.maximum(values, FLOOR * values.amax())
        self.amplitude = values.sqrt().movedim(-1, 0).to(self.amplitude).contiguous()
        self.mixing = vectors.to(self.amplitude).contiguous()

    def _cosines(self, x: Tensor, inverse: bool = False, squared: bool = False) -> Tensor:
        """Cosine transform of the space axes of ``(*batch, C, *space)``."""
        for axis in range(len(self.inner_shape) - 1):
            basis = getattr(self, f"cosines{axis}")
            basis = basis.square() if squared else basis
            dim = x.dim() - len(self.inner_shape) + 1 + axis
            x = (x.movedim(dim, -1) @ (basis if inverse else basis.T)).movedim(-1, dim)
        return x

    def _mixed(self, modes: Tensor, mixing: Tensor) -> Tensor:
        """Channels ``(*batch, C, *space)`` of modes of the same shape."""
        if self.mixing.dim() == 0:
            return modes
        lead = modes.shape[: -len(self.inner_shape)]
        rows = modes.reshape(-1, self.inner_shape[0], mixing.shape[:-2].numel())
        # A product at each frequency, all fields at once.
        rows = mixing.flatten(0, -3) @ rows.permute(2, 1, 0)
        return rows.permute(2, 1, 0).reshape(*lead, *self.inner_shape)

    def modes(self, xi: Tensor) -> Tensor:
        """Orthonormal coordinates ``E^T Q xi``, ``(*batch, d)``, in which S is diagonal."""
        x = self._cosines(xi.unflatten(-1, self.inner_shape))
        mixing = self.mixing.mT if self.mixing.dim() else self.mixing
        return self._mixed(x, mixing).flatten(-len(self.inner_shape))

    def from_modes(self, modes: Tensor) -> Tensor:
        """The inverse of :meth:`modes`."""
        x = self._mixed(modes.unflatten(-1, self.inner_shape), self.mixing)
        return self._cosines(x, inverse=True).flatten(-len(self.inner_shape))

    def variance_of_modes(self, variance: Tensor) -> Tensor:
        """Variance of every coordinate ``(*batch, d)`` where modes are independent and have
        ``variance (*batch, d)``."""
        x = self._mixed(variance.unflatten(-1, self.inner_shape), self.mixing.square())
        return self._cosines(x, inverse=True, squared=True).flatten(-len(self.inner_shape))

    def _multiply(self, xi: Tensor) -> Tensor:
        return self.from_modes(self.modes(xi) * self.amplitude.flatten())

    def _divide(self, x: Tensor) -> Tensor:
        return self.from_modes(self.modes(x) / self.amplitude.flatten())


def smoothed(values: Tensor) -> Tensor:
    """Means over neighbouring frequencies, ``(C, *space)``."""
    pool = POOLS[values.dim() - 1]
    return pool(values[None], 3, stride=1, padding=1, count_include_pad=False)[0]


def cosine_basis(size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Rows are the orthonormal DCT-II vectors of length ``size``, in the type given or torch's
    default."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * n[:, None] * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype or torch.get_default_dtype())
