r"""Noise adapters: amortized variational distributions ``q(z | y, params)`` over whitened noise.

An adapter is an encoder and a family. The family's last layer starts at zero:

* ``contraction`` starts as the Gaussian start itself (:mod:`vfm_inverse.gaussian_start`), from which the network may
  depart by a bounded amount: means by a few of the start's standard deviations, scales by a factor of a few;
* ``diagonal``, ``low-rank``, ``full`` Gaussians and a ``mixture`` of them start at N(0, I). Where there is a Gaussian
  start they are stacked on it: N(0, I) in the coordinates in which the start is standard, hence the start again.

All are Pyro distributions over flat vectors ``(d,)`` with batch shape ``(n,)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.networks import zero

__all__ = ["FAMILIES", "Contraction", "Family", "NoiseAdapter", "Stacked", "standard_normal", "standardize", "unstandardize"]

MAX_LOG_SCALE = 6.0
MAX_SHIFT = 4.0
MAX_STRETCH = math.log(4.0)


class Family(nn.Module, ABC):
    """From an encoding ``(n, width)`` to a distribution over ``(d,)``.

    Args:
        dim: d.
        width: size of the encoding.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, h: Tensor) -> dist.TorchDistribution: ...


class Diagonal(Family):
    """Independent normals."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width)
        self.head = zero(nn.Linear(width, 2 * dim))

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self.head(h).chunk(2, -1)
        return dist.Normal(loc, bounded_exp(log_scale), validate_args=False).to_event(1)


class Full(Family):
    """A normal with any covariance, through its Cholesky factor: d (d + 3) / 2 outputs."""

    rows: Tensor
    columns: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width)
        rows, columns = torch.tril_indices(dim, dim, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.head = zero(nn.Linear(width, 2 * dim + len(rows)))

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_scale, lower = self.head(h).split([self.dim, self.dim, len(self.rows)], -1)
        return dist.MultivariateNormal(
            loc, scale_tril=self._cholesky(log_scale, lower), validate_args=False
        )

    def _cholesky(self, log_scale: Tensor, lower: Tensor) -> Tensor:
        factor = torch.diag_embed(bounded_exp(log_scale))
        strict = torch.zeros_like(factor)
        strict[..., self.rows, self.columns] = lower
        # Rows are scaled like their diagonal, so that a correlation means the same at every scale.
        return factor @ (torch.eye(self.dim, dtype=lower.dtype, device=lower.device) + strict)


class LowRank(Family):
    """Diagonal plus ``rank`` directions."""

    def __init__(self, dim: int, width: int, rank: int = 16) -> None:
        super().__init__(dim, width)
        self.rank = min(rank, dim)
        self.head = zero(nn.Linear(width, dim * (2 + self.rank)))
        # A factor of exactly zero is a saddle point of the likelihood.
        nn.init.normal_(self.head.bias[2 * dim :], std=1e-2)

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_scale, factor = self.head(h).split([self.dim, self.dim, self.dim * self.rank], -1)
        return dist.LowRankMultivariateNormal(
            loc,
            factor.unflatten(-1, (self.dim, self.rank)),
            bounded_exp(2 * log_scale),
            validate_args=False,
        )


class Mixture(Family):
    """A mixture of ``components`` normals, with full covariances up to 16 dimensions and diagonal ones above.

    It has no reparametrised draws, so it trains by forward KL only.
    """

    def __init__(self, dim: int, width: int, components: int = 8) -> None:
        super().__init__(dim, width)
        self.components = components
        self.part = (Full if dim <= 16 else Diagonal)(dim, width)
        self.head = zero(nn.Linear(width, components * self.part.head.out_features))
        self.part.head = nn.Identity()
        self.weights = zero(nn.Linear(width, components))
        # Identical components would get identical gradients for ever.
        with torch.no_grad():
            self.head.bias.view(components, -1)[:, :dim].normal_(std=0.1)

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        parts = self.part(self.head(h).unflatten(-1, (self.components, -1)))
        weights = dist.Categorical(logits=self.weights(h), validate_args=False)
        return dist.MixtureSameFamily(weights, parts, validate_args=False)


class Contraction(nn.Module):
    """The Gaussian start, moved and rescaled along its informed directions.

    Args:
        width: size of the encoding.
        rank: informed directions.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.head = zero(nn.Linear(width, 2 * rank))

    def forward(self, h: Tensor, start: ContractedNormal) -> ContractedNormal:
        shift, stretch = self.head(h).chunk(2, -1)
        shift = MAX_SHIFT * torch.tanh(shift / MAX_SHIFT) * start.scale
        scale = start.scale * torch.exp(MAX_STRETCH * torch.tanh(stretch / MAX_STRETCH))
        return ContractedNormal(
            start.loc + start.lift(shift), start.basis, scale, validate_args=False
        )


class Stacked(dist.TorchDistribution):
    """A law in the standard coordinates of a Gaussian start: ``z = loc + C^{1/2} zeta``, ``zeta ~ base``."""

    arg_constraints: dict[str, dist.constraints.Constraint] = {}
    support = dist.constraints.real_vector

    def __init__(self, base: dist.TorchDistribution, start: ContractedNormal) -> None:
        self.base, self.start = base, start
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base.has_rsample)

    @property
    def mean(self) -> Tensor:
        return self.start.unstandardize(self.base.mean)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.start.unstandardize(self.base.rsample(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.start.unstandardize(self.base.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(self.start.standardize(value)) - self.start.scale.log().sum(-1)


FAMILIES: dict[str, type[Family]] = {
    "diagonal": Diagonal,
    "low-rank": LowRank,
    "full": Full,
    "mixture": Mixture,
}


class NoiseAdapter(nn.Module):
    """``q(z | y, params)``.

    Args:
        encoder: features to an encoding ``(n, width)``, see :mod:`vfm_inverse.encoders`.
        family: encoding to a distribution: a :class:`Contraction`, or a :class:`Family`, stacked on the Gaussian start
            where there is one.
    """

    def __init__(self, encoder: nn.Module, family: Family | Contraction) -> None:
        super().__init__()
        self.encoder = encoder
        self.family = family

    def forward(
        self, features: Tensor, start: ContractedNormal | None = None
    ) -> dist.TorchDistribution:
        h = self.encoder(features)
        if isinstance(self.family, Contraction):
            if start is None:
                raise ValueError("the family 'contraction' needs a Gaussian start to contract from; got None")
            return self.family(h, start)
        q = self.family(h)
        return q if start is None else Stacked(q, start)


def bounded_exp(log_scale: Tensor) -> Tensor:
    """``exp`` of a log-scale that is softly kept within ``+-MAX_LOG_SCALE``."""
    return (MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)).exp()


def standard_normal(num: int, like: Tensor) -> dist.TorchDistribution:
    """N(0, I) with batch shape ``(num,)``, over vectors the size of ``like``'s last dimension."""
    loc = torch.zeros(num, like.shape[-1], dtype=like.dtype, device=like.device)
    return dist.Normal(loc, torch.ones_like(loc), validate_args=False).to_event(1)


def standardize(q: dist.TorchDistribution, z: Tensor) -> Tensor:
    """Coordinates ``(*sample, n, d)`` in which a Gaussian ``q`` is N(0, I); ``z`` itself for any other law."""
    if isinstance(q, Stacked):
        return standardize(q.base, q.start.standardize(z))
    if isinstance(q, ContractedNormal):
        return q.standardize(z)
    if isinstance(q, torch.distributions.MultivariateNormal):
        return _rows(lambda r: torch.linalg.solve_triangular(q.scale_tril, r, upper=False), z - q.loc)
    if isinstance(q, torch.distributions.Independent):
        return (z - q.mean) / q.stddev
    return z


def unstandardize(q: dist.TorchDistribution, zeta: Tensor) -> Tensor:
    """The inverse of :func:`standardize`."""
    if isinstance(q, Stacked):
        return q.start.unstandardize(unstandardize(q.base, zeta))
    if isinstance(q, ContractedNormal):
        return q.unstandardize(zeta)
    if isinstance(q, torch.distributions.MultivariateNormal):
        return q.loc + _rows(lambda r: q.scale_tril @ r, zeta)
    if isinstance(q, torch.distributions.Independent):
        return q.mean + q.stddev * zeta
    return zeta


def _rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``(n, d, k) -> (n, d, k)`` to ``(*sample, n, d)`` without copying its matrices per sample."""
    columns = x.reshape(-1, *x.shape[-2:]).permute(1, 2, 0)
    return function(columns).permute(2, 0, 1).reshape(x.shape)
