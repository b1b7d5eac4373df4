r"""Whitening: the coordinates in which the prior looks like N(0, I).

A field :math:`x` with prior mean :math:`m` and covariance :math:`C = S S^\top` is written as

.. math:: x = m + S \xi, \qquad \xi = S^{-1} (x - m),

with the **symmetric** square root :math:`S = C^{1/2}`, so that entry :math:`i` of :math:`\xi`
still belongs to place :math:`i` of the field and convolutional networks keep their meaning. White
noise in
:math:`\xi` is a random field with the prior's spectrum in :math:`x`; white noise in :math:`x` has
no limit under grid refinement and drowns smooth fields.

Fields have shape ``(*batch, *event)``; whitened coordinates are flat, ``(*batch, d)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import Transform

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


class FittedBuffers(nn.Module):
    """A module whose buffers take their shapes from the data they were fitted on.

    Loading a state dict therefore adopts the stored shapes instead of comparing them.
    """

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Whitening(FittedBuffers, ABC):
    """Invertible change of coordinates between fields and whitened vectors.

    Args:
        event_shape: shape of one field, without batch dimensions.

    Attributes:
        transform: element by element from unbounded values to the prior's support, before which
            the change of coordinates is affine; ``None`` where the prior has no bounds.
    """

    mean: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform: Transform | None = None
        self.event_shape = torch.Size(event_shape)
        self.dim = math.prod(event_shape)
        self.register_buffer("mean", torch.zeros(self.dim))

    def whiten(self, x: Tensor) -> Tensor:
        """Fields ``(*batch, *event)`` to coordinates ``(*batch, d)``."""
        v = x if self.transform is None else self.transform.inv(x)
        return self._divide(v.flatten(-len(self.event_shape)) - self.mean)

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
        return rate.flatten(-len(self.event_shape)).sum(-1)

    def _unbounded(self, xi: Tensor) -> Tensor:
        return (self.mean + self._multiply(xi)).unflatten(-1, self.event_shape)

    def color(self, xi: Tensor) -> Tensor:
        """The linear part of :meth:`unwhiten` where the prior has no bounds: ``S xi`` as fields
        ``(*batch, *event)``."""
        return self._multiply(xi).unflatten(-1, self.event_shape)

    @abstractmethod
    def _multiply(self, xi: Tensor) -> Tensor:
        """``S xi`` for flat ``(*batch, d)``."""

    @abstractmethod
    def _divide(self, x: Tensor) -> Tensor:
        """``S^{-1} x`` for flat ``(*batch, d)``."""


class IdentityWhitening(Whitening):
    """No change of coordinates: ``xi`` is the flattened field."""

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
        cls, event_shape: tuple[int, ...], mean: Tensor, covariance: Tensor, floor: float = 1e-10
    ) -> DenseWhitening:
        """From a mean ``(d,)`` and a covariance ``(d, d)``.

        Eigenvalues below ``floor`` times the largest are raised to it: a direction in which the
        prior does not vary would otherwise be divided by zero.
        """
        self = cls(event_shape)
        values, vectors = torch.linalg.eigh(covariance.double())
        values = values.clamp_min(floor * float(values[-1]))
        dtype = torch.get_default_dtype()
        self.mean = mean.to(dtype)
        self.root = ((vectors * values.sqrt()) @ vectors.T).to(dtype)
        self.inverse_root = ((vectors * values.rsqrt()) @ vectors.T).to(dtype)
        return self

    @classmethod
    def fit(cls, samples: Tensor) -> DenseWhitening:
        """From prior samples ``(n, *event)``; the covariance is shrunk towards its diagonal by d /
        (n + d)."""
        flat = samples.flatten(1).double()
        n, d = flat.shape
        mean = flat.mean(0)
        covariance = (flat - mean).T @ (flat - mean) / max(n - 1, 1)
        # With few samples the small eigenvalues of a sample covariance are far too small.
        weight = 0.1 * d / (n + d)
        covariance = (1 - weight) * covariance + weight * torch.diag(covariance.diagonal())
        return cls.from_moments(tuple(samples.shape[1:]), mean, covariance, floor=1e-8)

    def _multiply(self, xi: Tensor) -> Tensor:
        return xi @ self.root

    def _divide(self, x: Tensor) -> Tensor:
        return x @ self.inverse_root


class SpectralWhitening(Whitening):
    """A diagonal covariance in the cosine basis, per channel: stationary fields of any size.

    The orthonormal DCT-II has reflecting boundaries and so does not tie opposite edges together,
    as a Fourier basis would.
    """

    amplitude: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) < 2:
            raise ValueError(
                "'event_shape' must be (C, L) or (C, H, W) for a spectral whitening; got "
                f"{event_shape}"
            )
        super().__init__(event_shape)
        self.register_buffer("amplitude", torch.ones(event_shape))
        for axis, size in enumerate(event_shape[1:]):
            self.register_buffer(f"cosines{axis}", cosine_basis(size), persistent=False)

    @classmethod
    def fit(cls, samples: Tensor) -> SpectralWhitening:
        """From prior samples ``(n, *event)``: the mean field and the power of every cosine."""
        self = cls(tuple(samples.shape[1:])).to(samples)
        mean = samples.mean(0)
        power = self._transform(samples - mean).square().mean(0)
        # Few samples make a ragged spectrum: lean on the neighbours then, on the data otherwise.
        weight = 10.0 / (samples.shape[0] + 10.0)
        log_power = power.clamp_min(1e-10 * float(power.max())).log()
        pool = nn.functional.avg_pool1d if log_power.dim() == 2 else nn.functional.avg_pool2d
        smooth = pool(log_power[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        self.amplitude = (0.5 * ((1 - weight) * log_power + weight * smooth)).exp()
        self.mean = mean.flatten()
        return self

    def _transform(self, x: Tensor, inverse: bool = False) -> Tensor:
        for axis in range(len(self.event_shape) - 1):
            basis = getattr(self, f"cosines{axis}")
            dim = x.dim() - len(self.event_shape) + 1 + axis
            x = (x.movedim(dim, -1) @ (basis if inverse else basis.T)).movedim(-1, dim)
        return x

    def _multiply(self, xi: Tensor) -> Tensor:
        coefficients = self._transform(xi.unflatten(-1, self.event_shape)) * self.amplitude
        return self._transform(coefficients, inverse=True).flatten(-len(self.event_shape))

    def _divide(self, x: Tensor) -> Tensor:
        coefficients = self._transform(x.unflatten(-1, self.event_shape)) / self.amplitude
        return self._transform(coefficients, inverse=True).flatten(-len(self.event_shape))


class LowRankWhitening(Whitening):
    """``S = U diag(scales) U^T + floor (I - U U^T)``: leading principal directions, isotropic
    rest."""

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
        shared evenly."""
        self = cls(tuple(samples.shape[1:]))
        flat = samples.flatten(1)
        n, d = flat.shape
        rank = min(rank, n - 1, d - 1)
        mean = flat.mean(0)
        _, singular, right = torch.linalg.svd(flat - mean, full_matrices=False)
        variance = singular.square() / max(n - 1, 1)
        self.mean, self.basis, self.scales = (
            mean,
            right[:rank].T.contiguous(),
            variance[:rank].sqrt(),
        )
        rest = (variance.sum() - variance[:rank].sum()) / (d - rank)
        self.floor = rest.clamp_min(1e-10 * float(variance[0])).sqrt()
        return self

    def _multiply(self, xi: Tensor) -> Tensor:
        return self.floor * xi + ((xi @ self.basis) * (self.scales - self.floor)) @ self.basis.T

    def _divide(self, x: Tensor) -> Tensor:
        inverse = self.scales.reciprocal() - self.floor.reciprocal()
        return x / self.floor + ((x @ self.basis) * inverse) @ self.basis.T


def cosine_basis(size: int) -> Tensor:
    """Rows are the orthonormal DCT-II vectors of length ``size``."""
    k, n = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    basis = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)).double() * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(torch.get_default_dtype())


WHITENINGS: dict[str, type[Whitening]] = {
    "identity": IdentityWhitening,
    "dense": DenseWhitening,
    "spectral": SpectralWhitening,
    "low-rank": LowRankWhitening,
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
        ValueError: unknown ``kind``.
    """
    event_shape = tuple(samples.shape[1:])
    if kind == "auto":
        if math.prod(event_shape) <= DENSE_LIMIT:
            kind = "dense"
        else:
            kind = "spectral" if len(event_shape) > 1 else "low-rank"
    if kind not in WHITENINGS:
        raise ValueError(
            f"'whitening' must be 'auto' or one of {sorted(WHITENINGS)}; got {kind!r}"
        )
    if kind == "identity":
        return IdentityWhitening(event_shape)
    if kind == "dense":
        if moments is not None:
            return DenseWhitening.from_moments(event_shape, *moments)
        return DenseWhitening.fit(samples)
    return (SpectralWhitening if kind == "spectral" else LowRankWhitening).fit(samples)
