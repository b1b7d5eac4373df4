r"""Noise adapters: amortized variational distributions ``q(z | y, params)`` over whitened noise.

An adapter is an encoder, a linear head that starts at zero, and a family:

* ``contraction`` starts as the Gaussian start itself (:mod:`vfm_inverse.gaussian_start`), from
  which the network may depart by a bounded amount: means by a few of the start's standard
  deviations, scales by a factor of a few;
* ``diagonal``, ``low-rank``, ``full`` Gaussians, a ``mixture`` of them and a ``spline`` flow
  (:mod:`vfm_inverse.splines`) start at N(0, I). Where
  there is a Gaussian start they are stacked on it: N(0, I) in the coordinates in which the start
  is standard, hence the start again.

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

from vfm_inverse.encoders import FieldEncoder, VectorEncoder
from vfm_inverse.gaussian import ContractedNormal, StandardNormal
from vfm_inverse.networks import zero
from vfm_inverse.splines import Flowed, fresh_flow
from vfm_inverse.stations import StationEncoder

__all__ = [
    "FAMILIES",
    "Contraction",
    "Family",
    "NoiseAdapter",
    "Spline",
    "Stacked",
    "standard_law",
    "standard_normal",
    "standardize",
    "unstandardize",
]

SPLINE_LIMIT, SPLINE_RANK = 64, 32
"""Most dimensions that a spline flow transforms all of, and directions that it takes above."""

MAX_LOG_SCALE = 6.0
MAX_SHIFT = 4.0
MAX_STRETCH = math.log(4.0)


class Family(nn.Module, ABC):
    """From ``size`` numbers to a distribution over ``(d,)``; zeros mean N(0, I).

    Args:
        dim: d.
    """

    size: int

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def initial(self) -> Tensor:
        """The numbers before training, ``(size,)``."""
        return torch.zeros(self.size)

    @abstractmethod
    def forward(self, numbers: Tensor) -> dist.TorchDistribution:
        """The distribution that ``numbers (*batch, size)`` describe, batch shape ``(*batch,)``."""


class Diagonal(Family):
    """Independent normals."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.size = 2 * dim

    def forward(self, numbers: Tensor) -> dist.TorchDistribution:
        loc, log_scale = numbers.chunk(2, -1)
        return dist.Normal(loc, bounded_exp(log_scale), validate_args=False).to_event(1)


class Full(Family):
    """A normal with any covariance, through its Cholesky factor."""

    rows: Tensor
    columns: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        rows, columns = torch.tril_indices(dim, dim, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.size = 2 * dim + len(rows)

    def forward(self, numbers: Tensor) -> dist.TorchDistribution:
        loc, log_scale, lower = numbers.split([self.dim, self.dim, len(self.rows)], -1)
        scale = torch.diag_embed(bounded_exp(log_scale))
        unit = torch.diag_embed(torch.ones_like(loc))
        unit[..., self.rows, self.columns] = lower
        # Rows are scaled like their diagonal, so that a correlation means the same at every scale.
        return dist.MultivariateNormal(loc, scale_tril=scale @ unit, validate_args=False)


class LowRank(Family):
    """Diagonal plus ``rank`` directions."""

    def __init__(self, dim: int, rank: int = 16) -> None:
        super().__init__(dim)
        self.rank = min(rank, dim)
        self.size = dim * (2 + self.rank)

    def initial(self) -> Tensor:
        # A factor of exactly zero is a saddle point of the likelihood.
        return torch.cat([torch.zeros(2 * self.dim), 1e-2 * torch.randn(self.dim * self.rank)])

    def forward(self, numbers: Tensor) -> dist.TorchDistribution:
        loc, log_scale, factor = numbers.split([self.dim, self.dim, self.dim * self.rank], -1)
        return dist.LowRankMultivariateNormal(
            loc,
            factor.unflatten(-1, (self.dim, self.rank)),
            bounded_exp(2 * log_scale),
            validate_args=False,
        )


class Mixture(Family):
    """A mixture of normals, with full covariances up to 16 dimensions and diagonal ones above.

    It has no reparametrised draws, so it trains by forward KL only.
    """

    def __init__(self, dim: int, components: int = 8) -> None:
        super().__init__(dim)
        self.components = components
        self.part = Full(dim) if dim <= 16 else Diagonal(dim)
        self.size = components * (self.part.size + 1)

    def initial(self) -> Tensor:
        # Identical components would get identical gradients for ever.
        numbers = torch.zeros(self.components, self.part.size + 1)
        numbers[:, 1 : 1 + self.dim] = 0.1 * torch.randn(self.components, self.dim)
        return numbers.flatten()

    def forward(self, numbers: Tensor) -> dist.TorchDistribution:
        logits, parts = numbers.unflatten(-1, (self.components, -1)).split([1, self.part.size], -1)
        weights = dist.Categorical(logits=logits.squeeze(-1), validate_args=False)
        return dist.MixtureSameFamily(weights, self.part(parts), validate_args=False)


class Spline(Family):
    """A conditional neural spline flow, for posteriors that no Gaussian resembles.

    Above ``SPLINE_LIMIT`` dimensions it acts on the directions that the data inform most, and the
    rest stays as the Gaussian start has it.

    Args:
        dim: d.
        informed: directions of the Gaussian start.
        context: numbers that describe the flow.
    """

    def __init__(self, dim: int, informed: int = SPLINE_RANK, context: int = 64) -> None:
        super().__init__(dim)
        self.size = context
        self.rank = dim if dim <= SPLINE_LIMIT else min(SPLINE_RANK, informed)
        self.flow = fresh_flow(self.rank, context)

    def forward(self, numbers: Tensor, start: ContractedNormal | None = None) -> Flowed:
        """The law that ``numbers (*batch, size)`` describe, in the start's coordinates."""
        basis = None
        if self.rank < self.dim:
            if start is None:
                raise ValueError(
                    f"the family 'spline' needs a Gaussian start above {SPLINE_LIMIT} dimensions; "
                    f"got {self.dim}"
                )
            basis = start.leading(self.rank)
        like = numbers[..., :1].expand(*numbers.shape[:-1], self.dim)
        return Flowed(self.flow(numbers).transform, numbers.shape[:-1], like, basis)


class Contraction(nn.Module):
    """The Gaussian start, moved and rescaled along its informed directions.

    Args:
        rank: informed directions; of a start with more of them the first, the others stay.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.size = 2 * rank

    def initial(self) -> Tensor:
        """The numbers before training, ``(size,)``."""
        return torch.zeros(self.size)

    def forward(self, numbers: Tensor, start: ContractedNormal) -> ContractedNormal:
        """The start, changed by ``numbers (n, size)``: bounded shifts and log-factors."""
        shift, stretch = numbers.chunk(2, -1)
        if missing := start.scale.shape[-1] - shift.shape[-1]:
            shift, stretch = (nn.functional.pad(part, (0, missing)) for part in (shift, stretch))
        shift = MAX_SHIFT * torch.tanh(shift / MAX_SHIFT) * start.scale
        # Directions that an observation does not inform may be missing from the basis: a scale
        # other than 1 would count in the density and change no draw.
        stretch = torch.where(start.scale < 1, stretch, 0.0)
        scale = start.scale * torch.exp(MAX_STRETCH * torch.tanh(stretch / MAX_STRETCH))
        return ContractedNormal(
            start.loc + start.lift(shift), start.basis, scale, validate_args=False
        )


class Stacked(dist.TorchDistribution):
    """A law in the standard coordinates of a Gaussian start: ``z = loc + C^{1/2} zeta``,
    ``zeta ~ base``."""

    arg_constraints: dict[str, dist.constraints.Constraint] = {}
    support = dist.constraints.real_vector

    def __init__(self, base: dist.TorchDistribution, start: ContractedNormal) -> None:
        self.base, self.start = base, start
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the base has reparametrised draws."""
        return bool(self.base.has_rsample)

    @property
    def mean(self) -> Tensor:
        """Mean, ``(n, d)``."""
        return self.start.unstandardize(self.base.mean)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Reparametrised draws, ``(*sample, *batch, d)``."""
        return self.start.unstandardize(self.base.rsample(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws, ``(*sample, *batch, d)``."""
        return self.start.unstandardize(self.base.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, *batch, d)``, ``(*sample, *batch)``."""
        return self.base.log_prob(self.start.standardize(value)) - self.start.scale.log().sum(-1)


FAMILIES: dict[str, type[Family]] = {
    "diagonal": Diagonal,
    "low-rank": LowRank,
    "full": Full,
    "mixture": Mixture,
    "spline": Spline,
}


class NoiseAdapter(nn.Module):
    """``q(z | y, params)``.

    Args:
        encoder: features to an encoding ``(n, encoder.width)``, see :mod:`vfm_inverse.encoders`.
        family: a :class:`Contraction`, or a :class:`Family`, stacked on the Gaussian start where
            there is one.
    """

    def __init__(
        self,
        encoder: VectorEncoder | FieldEncoder | StationEncoder,
        family: Family | Contraction,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.family = family
        self.head = zero(nn.Linear(encoder.width, family.size))
        with torch.no_grad():
            self.head.bias.copy_(family.initial())

    def forward(
        self, features: Tensor, start: ContractedNormal | None = None, half: bool = False
    ) -> dist.TorchDistribution:
        """``q(z | y)`` from features ``(n, ...)`` and the Gaussian start, if there is one; with
        ``half`` the encoder, and nothing else, computes in bfloat16."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=half):
            encoding = self.encoder(features)
        return self.law(self.head(encoding.to(self.head.weight.dtype)), start)

    def law(self, numbers: Tensor, start: ContractedNormal | None) -> dist.TorchDistribution:
        """``q(z | y)`` that ``numbers (n, size)`` describe."""
        if isinstance(self.family, Contraction):
            if start is None:
                raise ValueError(
                    "the family 'contraction' needs a Gaussian start to contract from; got None"
                )
            return self.family(numbers, start)
        given = (numbers, start) if isinstance(self.family, Spline) else (numbers,)
        q = self.family(*given)
        return q if start is None else Stacked(q, start)


FRAMED = (
    ContractedNormal,
    Flowed,
    torch.distributions.MultivariateNormal,
    torch.distributions.Independent,
)
"""Laws that :func:`standardize` carries to N(0, I); it leaves the others as they are."""


def bounded_exp(log_scale: Tensor) -> Tensor:
    """``exp`` of a log-scale that is softly kept within ``+-MAX_LOG_SCALE``."""
    return (MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)).exp()


def standard_normal(num: int, like: Tensor) -> StandardNormal:
    """N(0, I) with batch shape ``(num,)``, over vectors the size of ``like``'s last dimension."""
    return StandardNormal(
        torch.zeros((), dtype=like.dtype, device=like.device), num, like.shape[-1]
    )


def standardize(q: dist.TorchDistribution, z: Tensor) -> Tensor:
    """Coordinates ``(*sample, n, d)`` in which a Gaussian or a spline ``q`` is N(0, I); ``z``
    itself for any other law."""
    if isinstance(q, Stacked):
        return standardize(q.base, q.start.standardize(z))
    if isinstance(q, ContractedNormal | Flowed):
        return q.standardize(z)
    if isinstance(q, torch.distributions.MultivariateNormal):
        return _rows(
            lambda r: torch.linalg.solve_triangular(q.scale_tril, r, upper=False), z - q.loc
        )
    if isinstance(q, torch.distributions.Independent):
        return (z - q.mean) / q.stddev
    return z


def standard_law(q: dist.TorchDistribution) -> dist.TorchDistribution:
    """The law of ``standardize(q, z)``, ``z ~ q``: N(0, I) for a Gaussian."""
    if isinstance(q, StandardNormal):
        return q
    if isinstance(q, Stacked):
        return standard_law(q.base)
    if isinstance(q, FRAMED):
        return standard_normal(q.batch_shape[0], q.like if isinstance(q, Flowed) else q.mean)
    return q


def unstandardize(q: dist.TorchDistribution, zeta: Tensor) -> Tensor:
    """The inverse of :func:`standardize`."""
    if isinstance(q, Stacked):
        return q.start.unstandardize(unstandardize(q.base, zeta))
    if isinstance(q, ContractedNormal | Flowed):
        return q.unstandardize(zeta)
    if isinstance(q, torch.distributions.MultivariateNormal):
        return q.loc + _rows(lambda r: q.scale_tril @ r, zeta)
    if isinstance(q, torch.distributions.Independent):
        return q.mean + q.stddev * zeta
    return zeta


def _rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``(n, d, k) -> (n, d, k)`` to ``(*sample, n, d)`` without copying its matrices per
    sample."""
    columns = x.reshape(-1, *x.shape[-2:]).permute(1, 2, 0)
    return function(columns).permute(2, 0, 1).reshape(x.shape)
