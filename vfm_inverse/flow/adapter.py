r"""Noise adapters: amortized variational distributions ``q(z | y, params)`` over whitened noise.

An adapter is an encoder, a linear head that starts at zero, and a family:

* ``contraction`` starts as the Gaussian start itself (:mod:`vfm_inverse.gaussian.choose_start`),
  from which the network may depart by a bounded amount: means by a few of the start's standard
  deviations, scales by a factor of a few; a start with the physics in its frame stays as it is;
* ``diagonal``, ``low-rank``, ``full`` Gaussians, a ``mixture`` of them and a ``spline`` flow
  (:mod:`vfm_inverse.flow.splines`) start at N(0, I). Where there is a Gaussian start they are
  stacked on it: N(0, I) in the coordinates in which the start is standard, hence the start again.

All are Pyro distributions over flat vectors ``(d,)`` with batch shape ``(n,)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vfm_inverse.flow.splines import Flowed, fresh_flow
from vfm_inverse.gaussian.normals import ContractedNormal, DiagonalNormal, FullNormal, Stacked
from vfm_inverse.gaussian.physics_frame import StartLaw
from vfm_inverse.networks.encoders import FieldEncoder, VectorEncoder
from vfm_inverse.networks.layers import zero
from vfm_inverse.networks.stations import StationEncoder

__all__ = [
    "FAMILIES",
    "Contraction",
    "Family",
    "NoiseAdapter",
    "Spline",
]

SPLINE_LIMIT, SPLINE_RANK = 64, 32
"""Most dimensions that a spline flow transforms all of, and directions that it takes above."""

SPLINE_CONTEXT = 64
"""Numbers that describe a spline flow."""

RANK, COMPONENTS = 16, 8
"""Directions of a low-rank normal beside its diagonal, and normals in a mixture."""

MAX_LOG_SCALE = 6.0
MAX_SHIFT = 4.0
MAX_STRETCH = math.log(4.0)


class Family(nn.Module, ABC):
    """From ``size`` numbers and the Gaussian start, if there is one, to a distribution over
    ``(d,)``; zeros mean the start, or N(0, I).

    Args:
        dim: d.
        informed: directions of the Gaussian start.
    """

    size: int
    has_rsample = True
    """Whether the law has reparametrised draws."""
    learns = True
    """Whether the adapter is trained beside a map that sees the observation itself."""

    def __init__(self, dim: int, informed: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def initial(self) -> Tensor:
        """The numbers before training, ``(size,)``."""
        return torch.zeros(self.size)

    @abstractmethod
    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> dist.TorchDistribution:
        """The distribution that ``numbers (*batch, size)`` describe, batch shape ``(*batch,)``."""


def stacked(q: dist.TorchDistribution, start: StartLaw | None) -> dist.TorchDistribution:
    """``q`` in the standard coordinates of the start, if there is one."""
    return q if start is None else Stacked(q, gaussian(start))


def gaussian(start: StartLaw) -> ContractedNormal:
    """The start, if it is Gaussian.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(start, ContractedNormal):
        raise ValueError("'adapter' must be 'contraction' for a start with the physics in it")
    return start


class Diagonal(Family):
    """Independent normals."""

    def __init__(self, dim: int, informed: int = 0) -> None:
        super().__init__(dim, informed)
        self.size = 2 * dim

    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> dist.TorchDistribution:
        loc, log_scale = numbers.chunk(2, -1)
        return stacked(DiagonalNormal(loc, bounded_exp(log_scale)), start)


class Full(Family):
    """A normal with any covariance, through its Cholesky factor."""

    rows: Tensor
    columns: Tensor

    def __init__(self, dim: int, informed: int = 0) -> None:
        super().__init__(dim, informed)
        rows, columns = torch.tril_indices(dim, dim, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.size = 2 * dim + len(rows)

    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> dist.TorchDistribution:
        loc, log_scale, lower = numbers.split([self.dim, self.dim, len(self.rows)], -1)
        scale = torch.diag_embed(bounded_exp(log_scale))
        unit = torch.diag_embed(torch.ones_like(loc))
        unit[..., self.rows, self.columns] = lower
        # Rows are scaled like their diagonal, so that a correlation means the same at every scale.
        return stacked(FullNormal(loc, scale @ unit), start)


class LowRank(Family):
    """Diagonal plus :data:`RANK` directions."""

    def __init__(self, dim: int, informed: int = 0) -> None:
        super().__init__(dim, informed)
        self.rank = min(RANK, dim)
        self.size = dim * (2 + self.rank)

    def initial(self) -> Tensor:
        # A factor of exactly zero is a saddle point of the likelihood.
        return torch.cat([torch.zeros(2 * self.dim), 1e-2 * torch.randn(self.dim * self.rank)])

    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> dist.TorchDistribution:
        loc, log_scale, factor = numbers.split([self.dim, self.dim, self.dim * self.rank], -1)
        q = dist.LowRankMultivariateNormal(
            loc,
            factor.unflatten(-1, (self.dim, self.rank)),
            bounded_exp(2 * log_scale),
            validate_args=False,
        )
        return stacked(q, start)


class Mixture(Family):
    """A mixture of normals, with full covariances up to 16 dimensions and diagonal ones above.

    It has no reparametrised draws, so it trains by forward KL only.
    """

    has_rsample = False

    def __init__(self, dim: int, informed: int = 0) -> None:
        super().__init__(dim, informed)
        self.part = Full(dim) if dim <= 16 else Diagonal(dim)
        self.size = COMPONENTS * (self.part.size + 1)

    def initial(self) -> Tensor:
        # Identical components would get identical gradients for ever.
        numbers = torch.zeros(COMPONENTS, self.part.size + 1)
        numbers[:, 1 : 1 + self.dim] = 0.1 * torch.randn(COMPONENTS, self.dim)
        return numbers.flatten()

    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> dist.TorchDistribution:
        logits, parts = numbers.unflatten(-1, (COMPONENTS, -1)).split([1, self.part.size], -1)
        weights = dist.Categorical(logits=logits.squeeze(-1), validate_args=False)
        q = dist.MixtureSameFamily(weights, self.part(parts), validate_args=False)
        return stacked(q, start)


class Spline(Family):
    """A conditional neural spline flow, for posteriors that no Gaussian resembles.

    Above ``SPLINE_LIMIT`` dimensions it acts on the directions that the data inform most, and the
    rest stays as the Gaussian start has it.

    Args:
        dim: d.
        informed: directions of the Gaussian start.
    """

    def __init__(self, dim: int, informed: int = SPLINE_RANK) -> None:
        super().__init__(dim, informed)
        self.size = SPLINE_CONTEXT
        self.rank = dim if dim <= SPLINE_LIMIT else min(SPLINE_RANK, informed)
        self.flow = fresh_flow(self.rank, self.size)

    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> dist.TorchDistribution:
        """The law that ``numbers (*batch, size)`` describe, in the start's coordinates."""
        basis = None
        if self.rank < self.dim:
            if start is None:
                raise ValueError(
                    f"the family 'spline' needs a Gaussian start above {SPLINE_LIMIT} dimensions; "
                    f"got {self.dim}"
                )
            basis = gaussian(start).leading(self.rank)
        like = numbers[..., :1].expand(*numbers.shape[:-1], self.dim)
        q = Flowed(self.flow(numbers).transform, numbers.shape[:-1], like, basis)
        return stacked(q, start)


class Contraction(Family):
    """The Gaussian start, moved and rescaled along its informed directions by bounded shifts and
    log-factors; a start with the physics in its frame as it is.

    Args:
        dim: d.
        informed: directions; of a start with more of them the first, the others stay.
    """

    learns = False

    def __init__(self, dim: int, informed: int = 0) -> None:
        super().__init__(dim, informed)
        self.size = 2 * informed

    def forward(self, numbers: Tensor, start: StartLaw | None = None) -> StartLaw:
        """The start, changed by ``numbers (n, size)`` if it is Gaussian."""
        if start is None:
            raise ValueError(
                "the family 'contraction' needs a Gaussian start to contract from; got None"
            )
        if not isinstance(start, ContractedNormal):
            return start
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


FAMILIES: dict[str, type[Family]] = {
    "contraction": Contraction,
    "diagonal": Diagonal,
    "low-rank": LowRank,
    "full": Full,
    "mixture": Mixture,
    "spline": Spline,
}


class NoiseAdapter(nn.Module):
    """``q(z | y, params)``.

    Args:
        encoder: features to an encoding ``(n, encoder.width)``, see
            :mod:`vfm_inverse.networks.encoders`.
        family: from the numbers that the head gives to the law.
    """

    def __init__(
        self,
        encoder: VectorEncoder | FieldEncoder | StationEncoder,
        family: Family,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.family = family
        self.head = zero(nn.Linear(encoder.width, family.size))
        with torch.no_grad():
            self.head.bias.copy_(family.initial())

    def forward(
        self, features: Tensor, start: StartLaw | None = None, half: bool = False
    ) -> dist.TorchDistribution:
        """``q(z | y)`` from features ``(n, ...)`` and the Gaussian start, if there is one; with
        ``half`` the encoder, and nothing else, computes in bfloat16."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=half):
            encoding = self.encoder(features)
        return self.family(self.head(encoding.to(self.head.weight.dtype)), start)


def bounded_exp(log_scale: Tensor) -> Tensor:
    """``exp`` of a log-scale that is softly kept within ``+-MAX_LOG_SCALE``."""
    return (MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)).exp()
