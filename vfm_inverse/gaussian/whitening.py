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
from collections.abc import Callable

import torch
from torch import Tensor

from vfm_inverse.gaussian.shrinkage import shrunk
from vfm_inverse.gaussian.spectral_whitening import SpectralWhitening, cosine_basis
from vfm_inverse.gaussian.streamed_moments import StreamedMoments
from vfm_inverse.gaussian.whitening_base import Whitening
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.scaling import center_and_spread, over, tamed

__all__ = [
    "DenseWhitening",
    "IdentityWhitening",
    "LowRankWhitening",
    "SpectralWhitening",
    "Whitening",
    "cosine_basis",
    "fit_whitening",
]

DENSE_LIMIT = 2048
"""Largest dimension for which a d x d square root is the default."""

DENSE_MOST = 8192
"""Largest dimension of a d x d square root that is asked for by name."""

REACHED = 16
"""Directions beyond the rank that a randomised decomposition looks at."""


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
    def fit(cls, samples: Tensor, streamed: StreamedMoments | None = None) -> DenseWhitening:
        """From prior samples ``(n, *event)``, or from the moments of many more; their correlation
        is shrunk towards a stationary one as far as they ask for it
        (:mod:`vfm_inverse.gaussian.shrinkage`)."""
        event_shape = tuple(samples.shape[1:])
        flat = samples.flatten(1)
        mean, spread = center_and_spread(flat) if streamed is None else streamed[1:3]
        z = over(flat - mean, spread).double()
        known = () if streamed is None else (streamed.correlation, streamed.num)
        correlation = shrunk(z, stationary_correlation(z, event_shape), *known)
        correlation = correlation * over(spread, spread)
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
        z = over(flat - mean, spread)
        if min(z.shape) > DENSE_LIMIT:
            with seeded(0):
                _, singular, columns = torch.svd_lowrank(z, rank + REACHED, niter=4)
            right, total = columns.T, z.square().sum() / max(n - 1, 1)
            variance = singular.square() / max(n - 1, 1)
        else:
            _, singular, right = torch.linalg.svd(z, full_matrices=False)
            variance = singular.square() / max(n - 1, 1)
            total = variance.sum()
        least = 1e-10 * variance[0]
        self.basis = right[:rank].T.contiguous()
        self.scales = variance[:rank].clamp_min(least).sqrt()
        rest = (total - variance[:rank].sum()) / (free - rank)
        self.floor = rest.clamp_min(least).sqrt()
        own = self.floor**2 + self.basis.square() @ (self.scales**2 - self.floor**2)
        self.spread = spread / own.sqrt()
        return self

    def _multiply(self, xi: Tensor) -> Tensor:
        return self.floor * xi + ((xi @ self.basis) * (self.scales - self.floor)) @ self.basis.T

    def _divide(self, x: Tensor) -> Tensor:
        inverse = self.scales.reciprocal() - self.floor.reciprocal()
        return x / self.floor + ((x @ self.basis) * inverse) @ self.basis.T


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
    streamed: StreamedMoments | None = None,
) -> Whitening:
    """Choose and fit a whitening.

    Args:
        samples: prior samples ``(n, *event)``.
        kind: ``"dense"``, ``"spectral"``, ``"low-rank"``, ``"identity"``, or ``"auto"``: dense up
            to ``DENSE_LIMIT`` dimensions, spectral for larger fields, low rank for larger vectors.
        moments: the prior's own mean ``(d,)`` and covariance ``(d, d)`` where it states them; used
            by the dense whitening instead of the samples.
        streamed: those of many more samples, likewise.

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
    dim = math.prod(event_shape)
    if kind == "dense" and dim > DENSE_MOST:
        raise ValueError(
            f"'whitening' must not be 'dense' for fields of {dim} numbers: a matrix of {dim} x "
            f"{dim} needs {8e-9 * dim**2:.3g} GB, and several of them are needed; got 'dense'. "
            "Take 'spectral' or 'low-rank'"
        )
    if kind == "dense" and moments is not None:
        return DenseWhitening.from_moments(event_shape, *moments, dtype=samples.dtype)
    if kind == "dense" and streamed is not None:
        return DenseWhitening.fit(samples, streamed)
    return FITS[kind](tamed(samples))
