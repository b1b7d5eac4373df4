r"""Whitening: the coordinates in which the prior looks like N(0, I).

A field :math:`x` with prior mean :math:`m`, standard deviations :math:`D` (diagonal) and
correlation :math:`R = S S^\top` is written as

.. math:: x = m + D S \xi, \qquad \xi = S^{-1} D^{-1} (x - m),

with the **symmetric** square root :math:`S = R^{1/2}`, so that entry :math:`i` of :math:`\xi`
still belongs to place :math:`i` of the field and convolutional networks keep their meaning. White
noise in :math:`\xi` is a random field with the prior's spectrum in :math:`x`; white noise in
:math:`x` has no limit under grid refinement and drowns smooth fields.

Elements may differ in unit by any factor: only their correlation is decomposed. One that never
varies has :math:`D = 0`: it keeps its value exactly, and its entry of :math:`\xi` carries nothing.

Fields have shape ``(*batch, *event)``; whitened coordinates are flat, ``(*batch, d)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from vfm_inverse.scaling import FittedBuffers, center_and_spread, over, tamed
from vfm_inverse.shrinkage import shrunk

__all__ = [
    "DenseWhitening",
    "IdentityWhitening",
    "LowRankWhitening",
    "SpectralWhitening",
    "Whitening",
    "fit_whitening",
]

DENSE_LIMIT = 2048
"""Largest dimension for which a d x d square root is the default."""

POOLS = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}
"""Local means by the number of space axes."""


class Whitening(FittedBuffers, ABC):
    """Invertible change of coordinates between fields and whitened vectors.

    Args:
        event_shape: shape of one field, without batch dimensions; of its values without bounds
            where there is a transform that changes the shape.

    Attributes:
        transform: from unbounded values to the prior's support, before which the change of
            coordinates is affine; ``None`` where the prior has no bounds.
        support: constraint that the prior states and no transform keeps to, or ``None``.
        inner_shape: shape of the unbounded values.
        dim: d, their number.
    """

    LATER = ("spread",)
    mean: Tensor
    spread: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform: Transform | None = None
        self.support: Constraint | None = None
        self.inner_shape = torch.Size(event_shape)
        self.dim = math.prod(event_shape)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("spread", torch.ones(()))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one field."""
        if self.transform is None:
            return self.inner_shape
        return torch.Size(self.transform.forward_shape(self.inner_shape))

    def whiten(self, x: Tensor) -> Tensor:
        """Fields ``(*batch, *event)`` to coordinates ``(*batch, d)``."""
        v = x if self.transform is None else self.transform.inv(x)
        return self._divide(over(v.flatten(-len(self.inner_shape)) - self.mean, self.spread))

    def unwhiten(self, xi: Tensor) -> Tensor:
        """Coordinates ``(*batch, d)`` to fields ``(*batch, *event)``."""
        v = self._unbounded(xi)
        return v if self.transform is None else self.transform(v)

    def log_det(self, xi: Tensor) -> Tensor:
        """``log |dx / dxi|`` up to a constant, ``(*batch, d)`` to ``(*batch,)``."""
        if self.transform is None:
            return torch.zeros_like(xi[..., 0])
        v = self._unbounded(xi)
        rate = self.transform.log_abs_det_jacobian(v, self.transform(v))
        return rate.reshape(*xi.shape[:-1], -1).sum(-1)

    def _unbounded(self, xi: Tensor) -> Tensor:
        v = self.mean + self.spread * self._multiply(xi)
        return v.unflatten(-1, self.inner_shape)

    def color(self, xi: Tensor) -> Tensor:
        """The linear part of :meth:`unwhiten` where the prior has no bounds: ``D S xi`` as fields
        ``(*batch, *event)``."""
        return (self.spread * self._multiply(xi)).unflatten(-1, self.inner_shape)

    @abstractmethod
    def _multiply(self, xi: Tensor) -> Tensor:
        """``S xi`` for flat ``(*batch, d)``."""

    @abstractmethod
    def _divide(self, x: Tensor) -> Tensor:
        """``S^{-1} x`` for flat ``(*batch, d)``."""


class IdentityWhitening(Whitening):
    """No correlation is taken out: ``xi`` is the flattened field, of mean 0 and variance 1 once
    it is fitted."""

    @classmethod
    def fit(cls, samples: Tensor) -> IdentityWhitening:
        """From prior samples ``(n, *event)``: mean and standard deviation of every element."""
        self = cls(tuple(samples.shape[1:]))
        self.mean, self.spread = center_and_spread(samples.flatten(1))
        return self

    def _multiply(self, xi: Tensor) -> Tensor:
        return xi

    def _divide(self, x: Tensor) -> Tensor:
        return x


class DenseWhitening(Whitening):
    """A full d x d covariance, for vectors and small fields."""

    root: Tensor
    inverse_root: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.register_buffer("root", torch.eye(self.dim))
        self.register_buffer("inverse_root", torch.eye(self.dim))

    @classmethod
    def from_moments(
        cls,
        event_shape: tuple[int, ...],
        mean: Tensor,
        covariance: Tensor,
        floor: float = 1e-10,
        dtype: torch.dtype | None = None,
    ) -> DenseWhitening:
        """From a mean ``(d,)`` and a covariance ``(d, d)``, in the type given or torch's default.

        Eigenvalues of the correlation below ``floor`` times the largest are raised to it: a
        direction in which the prior does not vary would otherwise be divided by zero.
        """
        dtype = dtype or torch.get_default_dtype()
        covariance = covariance.double()
        spread = covariance.diagonal().clamp_min(0).sqrt()
        correlation = over(over(covariance, spread).T, spread)
        self = cls._from_correlation(event_shape, correlation, floor, dtype)
        self.mean, self.spread = mean.to(dtype), spread.to(dtype)
        return self

    @classmethod
    def fit(cls, samples: Tensor) -> DenseWhitening:
        """From prior samples ``(n, *event)``; their correlation is shrunk towards a stationary one
        as far as they ask for it (:mod:`vfm_inverse.shrinkage`)."""
        event_shape = tuple(samples.shape[1:])
        flat = samples.flatten(1)
        mean, spread = center_and_spread(flat)
        z = over(flat - mean, spread).double()
        correlation = shrunk(z, stationary_correlation(z, event_shape)) * over(spread, spread)
        self = cls._from_correlation(event_shape, correlation, 1e-8, samples.dtype)
        self.mean, self.spread = mean, spread
        return self

    @classmethod
    def _from_correlation(
        cls, event_shape: tuple[int, ...], correlation: Tensor, floor: float, dtype: torch.dtype
    ) -> DenseWhitening:
        self = cls(event_shape)
        constant = correlation.diagonal() == 0
        values, vectors = torch.linalg.eigh(correlation + torch.diag(constant.to(correlation)))
        values = values.clamp_min(floor * float(values[-1]))
        self.root = ((vectors * values.sqrt()) @ vectors.T).to(dtype)
        self.inverse_root = ((vectors * values.rsqrt()) @ vectors.T).to(dtype)
        return self

    def _multiply(self, xi: Tensor) -> Tensor:
        return xi @ self.root

    def _divide(self, x: Tensor) -> Tensor:
        return x @ self.inverse_root


class SpectralWhitening(Whitening):
    """A diagonal covariance in the cosine basis, per channel: stationary fields of any size.

    The orthonormal DCT-II has reflecting boundaries and so does not tie opposite edges together,
    as a Fourier basis would. A channel has one standard deviation, except for its elements that
    never vary.
    """

    amplitude: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) < 2:
            raise ValueError(
                "'event_shape' must have space axes for a spectral whitening, as (C, H, W) has; "
                f"got {event_shape}"
            )
        super().__init__(event_shape)
        self.register_buffer("amplitude", torch.ones(event_shape))
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
        """From prior samples ``(n, *event)``: the mean field and the power of every cosine."""
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
        power = self._transform(over(samples - mean, spread)).square().mean(0)
        # What is masked afterwards must have unit variance where it is not.
        power = torch.where(share > 0, over(power, share), 1.0)
        # Few samples make a ragged spectrum: lean on the neighbours then, on the data otherwise.
        weight = 10.0 / (samples.shape[0] + 10.0)
        log_power = torch.maximum(power, 1e-10 * power.amax(space, keepdim=True)).log()
        pool = POOLS[log_power.dim() - 1]
        smooth = pool(log_power[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        self.amplitude = (0.5 * ((1 - weight) * log_power + weight * smooth)).exp()
        self.mean, self.spread = mean.flatten(), spread.flatten()
        return self

    def _transform(self, x: Tensor, inverse: bool = False) -> Tensor:
        for axis in range(len(self.inner_shape) - 1):
            basis = getattr(self, f"cosines{axis}")
            dim = x.dim() - len(self.inner_shape) + 1 + axis
            x = (x.movedim(dim, -1) @ (basis if inverse else basis.T)).movedim(-1, dim)
        return x

    def _multiply(self, xi: Tensor) -> Tensor:
        coefficients = self._transform(xi.unflatten(-1, self.inner_shape)) * self.amplitude
        return self._transform(coefficients, inverse=True).flatten(-len(self.inner_shape))

    def _divide(self, x: Tensor) -> Tensor:
        coefficients = self._transform(x.unflatten(-1, self.inner_shape)) / self.amplitude
        return self._transform(coefficients, inverse=True).flatten(-len(self.inner_shape))


class LowRankWhitening(Whitening):
    """``S = U diag(scales) U^T + floor (I - U U^T)``: leading principal directions of the
    standardised elements, isotropic rest."""

    basis: Tensor
    scales: Tensor
    floor: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.register_buffer("basis", torch.zeros(self.dim, 0))
        self.register_buffer("scales", torch.zeros(0))
        self.register_buffer("floor", torch.ones(()))

    @classmethod
    def fit(cls, samples: Tensor, rank: int = 256) -> LowRankWhitening:
        """From prior samples ``(n, *event)`` by principal components; the rest of the variance is
        shared evenly, and every element keeps its own."""
        self = cls(tuple(samples.shape[1:]))
        flat = samples.flatten(1)
        n = len(flat)
        mean, spread = center_and_spread(flat)
        free = int((spread > 0).sum())
        rank = max(0, min(rank, n - 1, free - 1))
        self.mean, self.spread = mean, spread
        self.basis, self.scales, self.floor = flat.new_zeros(self.dim, 0), flat[0, :0], mean[0] * 0
        if not free:
            self.floor = torch.ones_like(self.floor)
            return self
        _, singular, right = torch.linalg.svd(over(flat - mean, spread), full_matrices=False)
        variance = singular.square() / max(n - 1, 1)
        least = 1e-10 * variance[0]
        self.basis = right[:rank].T.contiguous()
        self.scales = variance[:rank].clamp_min(least).sqrt()
        rest = (variance.sum() - variance[:rank].sum()) / (free - rank)
        self.floor = rest.clamp_min(least).sqrt()
        own = self.floor**2 + self.basis.square() @ (self.scales**2 - self.floor**2)
        self.spread = spread / own.sqrt()
        return self

    def _multiply(self, xi: Tensor) -> Tensor:
        return self.floor * xi + ((xi @ self.basis) * (self.scales - self.floor)) @ self.basis.T

    def _divide(self, x: Tensor) -> Tensor:
        inverse = self.scales.reciprocal() - self.floor.reciprocal()
        return x / self.floor + ((x @ self.basis) * inverse) @ self.basis.T


def cosine_basis(size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Rows are the orthonormal DCT-II vectors of length ``size``, in the type given or torch's
    default."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * n[:, None] * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype or torch.get_default_dtype())


def stationary_correlation(z: Tensor, event_shape: tuple[int, ...]) -> Tensor:
    """Correlation ``(d, d)`` of a stationary field with the spectrum of standardised ``z (n, d)``;
    none where there are no space axes, and along what never varies."""
    none = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    if len(event_shape) < 2:
        return none
    root = SpectralWhitening.fit(z.unflatten(1, event_shape)).color(none).flatten(1)
    own = root.norm(dim=1)
    root = over(root, own[:, None])
    return root @ root.mT + torch.diag((own == 0).to(z))


WHITENINGS: dict[str, type[Whitening]] = {
    "identity": IdentityWhitening,
    "dense": DenseWhitening,
    "spectral": SpectralWhitening,
    "low-rank": LowRankWhitening,
}


FITS: dict[str, Callable[[Tensor], Whitening]] = {
    "identity": IdentityWhitening.fit,
    "dense": DenseWhitening.fit,
    "spectral": SpectralWhitening.fit,
    "low-rank": LowRankWhitening.fit,
}


def fit_whitening(
    samples: Tensor,
    kind: str = "auto",
    moments: tuple[Tensor, Tensor] | None = None,
) -> Whitening:
    """Choose and fit a whitening.

    Args:
        samples: prior samples ``(n, *event)``.
        kind: ``"dense"``, ``"spectral"``, ``"low-rank"``, ``"identity"``, or ``"auto"``: dense up
            to ``DENSE_LIMIT`` dimensions, spectral for larger fields, low rank for larger vectors.
        moments: the prior's own mean ``(d,)`` and covariance ``(d, d)`` where it states them; used
            by the dense whitening instead of the samples.

    Raises:
        ValueError: unknown ``kind``, or samples that are not finite.
    """
    event_shape = tuple(samples.shape[1:])
    if lost := int((~torch.isfinite(samples)).sum()):
        raise ValueError(
            "'transform' must have a finite inverse at the prior's samples; "
            f"{lost} of {samples.numel()} numbers are not finite"
        )
    if kind == "auto":
        if math.prod(event_shape) <= DENSE_LIMIT:
            kind = "dense"
        else:
            kind = "spectral" if len(event_shape) > 1 else "low-rank"
    if kind not in WHITENINGS:
        raise ValueError(
            f"'whitening' must be 'auto' or one of {sorted(WHITENINGS)}; got {kind!r}"
        )
    if kind == "dense" and moments is not None:
        return DenseWhitening.from_moments(event_shape, *moments, dtype=samples.dtype)
    return FITS[kind](tamed(samples))
