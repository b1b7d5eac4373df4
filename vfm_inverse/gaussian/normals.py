r"""Gaussians with their frames; among them one that differs from N(0, I) in a few directions only.

In whitened coordinates the posterior of a linear-Gaussian problem is

.. math:: q(z) = \mathcal N\bigl(\mu,\; I - V \operatorname{diag}(1 - \lambda) V^\top\bigr),

with orthonormal columns :math:`V` (at most one per datum), the likelihood-informed directions,
along which the data contract the prior's unit variance to :math:`\lambda \in (0, 1]` (Spantini et
al. 2015, https://arxiv.org/abs/1407.3463, Theorem 2.3). Draws are
:math:`\mu + e + V((\sqrt\lambda - 1) V^\top e)` with :math:`e \sim \mathcal N(0, I)` and the
density costs O(d r): there is no d x d matrix anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from pyro.distributions import (
    Independent,
    MultivariateNormal,
    Normal,
    TorchDistribution,
    constraints,
)
from torch import Tensor

from vfm_inverse.gaussian.frames import Framed, standard_law, standardize, unstandardize

__all__ = [
    "ContractedNormal",
    "DiagonalNormal",
    "FullNormal",
    "Modes",
    "Stacked",
    "StandardNormal",
    "as_columns",
    "by_observation",
    "standard_normal",
]


class Modes(Protocol):
    """As many orthonormal columns as dimensions, which a fast transform multiplies by."""

    @property
    def shared(self) -> bool:
        """Whether all observations have the same columns."""

    def __getitem__(self, rows: slice) -> Modes:
        """Those of some observations."""

    def project(self, x: Tensor) -> Tensor:
        """``V^T x``, ``(*batch, d)``."""

    def lift(self, coefficients: Tensor) -> Tensor:
        """``V c``, ``(*batch, d)``."""

    def diagonal(self, weights: Tensor) -> Tensor:
        """Diagonal of ``V diag(weights) V^T``, ``(*batch, d)``."""


class StandardNormal(Framed, TorchDistribution):
    """N(0, I) over vectors ``(dim,)`` with batch shape ``(num,)``.

    Independent normals of torch draw with a mean and a scale for every number, which takes several
    times as long.

    Args:
        like: any tensor of the dtype and device that draws shall have.
        num: laws in the batch.
        dim: d.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, like: Tensor, num: int, dim: int) -> None:
        self._like = like
        super().__init__(torch.Size([num]), torch.Size([dim]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Zeros, ``(num, dim)``."""
        return self._like.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Ones, ``(num, dim)``."""
        return self._like.new_ones(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws, ``(*sample, num, dim)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self._like.dtype, device=self._like.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, num, dim)``, ``(*sample, num)``."""
        return -0.5 * (value.square() + math.log(2 * math.pi)).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StandardNormal:
        """The same law over a larger batch."""
        (num,) = torch.Size(batch_shape)
        return StandardNormal(self._like, num, self.event_shape[0])

    def standardize(self, z: Tensor) -> Tensor:
        """``z`` itself."""
        return z

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """``zeta`` itself."""
        return zeta

    def standard(self) -> StandardNormal:
        """Itself."""
        return self


def standard_normal(num: int, like: Tensor) -> StandardNormal:
    """N(0, I) with batch shape ``(num,)``, over vectors the size of ``like``'s last dimension."""
    return StandardNormal(
        torch.zeros((), dtype=like.dtype, device=like.device), num, like.shape[-1]
    )


class DiagonalNormal(Framed, Independent):  # type: ignore[override]
    """Independent normals.

    Args:
        loc, scale: means and standard deviations, ``(n, d)``.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), 1)

    def standardize(self, z: Tensor) -> Tensor:
        """``(z - loc) / scale``."""
        return (z - self.mean) / self.stddev

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """``loc + scale zeta``."""
        return self.mean + self.stddev * zeta

    def standard(self) -> StandardNormal:
        """N(0, I)."""
        return standard_normal(self.batch_shape[0], self.mean)


class FullNormal(Framed, MultivariateNormal):
    """A normal with any covariance.

    Args:
        loc: mean, ``(n, d)``.
        scale_tril: Cholesky factors, ``(n, d, d)``.
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril=scale_tril, validate_args=False)

    def standardize(self, z: Tensor) -> Tensor:
        """``L^{-1} (z - loc)``."""
        factor = self.scale_tril
        return as_columns(
            lambda r: torch.linalg.solve_triangular(factor, r, upper=False), z - self.loc
        )

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """``loc + L zeta``."""
        return self.loc + as_columns(lambda r: self.scale_tril @ r, zeta)

    def standard(self) -> StandardNormal:
        """N(0, I)."""
        return standard_normal(self.batch_shape[0], self.mean)


def as_columns(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``(n, d, k) -> (n, l, k)`` to ``(*sample, n, d)``, which gives ``(*sample, n, l)``,
    without copying its matrices per sample."""
    columns = function(x.reshape(-1, *x.shape[-2:]).permute(1, 2, 0))
    return columns.permute(2, 0, 1).reshape(*x.shape[:-1], -1)


def by_observation(x: Tensor, matrices: Tensor) -> Tensor:
    """Rows ``x (*sample, n, d)`` times a matrix for each observation, ``(n, d, k)``:
    ``(*sample, n, k)``."""
    # Batch first, samples as rows, so that no matrix is copied per sample.
    rows = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)
    return (rows @ matrices).transpose(0, 1).reshape(*x.shape[:-1], -1)


class ContractedNormal(Framed, TorchDistribution):
    """``N(loc, I - V diag(1 - scale**2) V^T)`` over vectors ``(d,)``.

    Args:
        loc: mean, ``(*batch, d)``.
        basis: orthonormal columns, ``(d, r)`` shared by the batch or ``(*batch, d, r)`` with one
            batch dimension; or :class:`Modes`, with ``r = d``.
        scale: standard deviations along the columns, ``(*batch, r)``.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, basis: Tensor | Modes, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = loc, scale
        self.basis = basis
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean, ``(*batch, d)``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, ``(*batch, d)``."""
        if not isinstance(self.basis, Tensor):
            return self.basis.diagonal(self.scale.square())
        gain = (1 - self.scale.square()).unsqueeze(-2)
        return 1 - (gain @ self.basis.square().mT).squeeze(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance, ``(*batch, d, d)``; for small ``d``."""
        eye = torch.eye(self.event_shape[0], dtype=self.loc.dtype, device=self.loc.device)
        if not isinstance(self.basis, Tensor):
            # Rows of the identity as samples, so that each observation has its own columns.
            rows = eye.unsqueeze(1).expand(-1, self.loc.shape[0], -1)
            return self.lift(self.project(rows) * self.scale.square()).movedim(0, 1)
        weighted = self.basis * (self.scale.square() - 1).unsqueeze(-2)
        return eye + weighted @ self.basis.mT

    def project(self, x: Tensor) -> Tensor:
        """Coefficients ``V^T x``, ``(*sample, *batch, d)`` to ``(*sample, *batch, r)``."""
        if not isinstance(self.basis, Tensor):
            return self.basis.project(x)
        return x @ self.basis if self.basis.dim() == 2 else by_observation(x, self.basis)

    def lift(self, coefficients: Tensor) -> Tensor:
        """``V c``, ``(*sample, *batch, r)`` to ``(*sample, *batch, d)``."""
        if not isinstance(self.basis, Tensor):
            return self.basis.lift(coefficients)
        if self.basis.dim() == 2:
            return coefficients @ self.basis.T
        return by_observation(coefficients, self.basis.mT)

    def contract(self, x: Tensor, factor: Tensor) -> Tensor:
        """``x + V (factor - 1) V^T x``: scale by ``factor`` along the informed directions only."""
        if not isinstance(self.basis, Tensor):  # which are all of them
            return self.lift(factor * self.project(x))
        return x + self.lift((factor - 1) * self.project(x))

    def standardize(self, z: Tensor) -> Tensor:
        """Symmetric-root residual ``C^{-1/2} (z - loc)``; N(0, I) for draws of this law."""
        return self.contract(z - self.loc, self.scale.reciprocal())

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """``loc + C^{1/2} zeta``, the inverse of :meth:`standardize`."""
        return self.loc + self.contract(zeta, self.scale)

    def standard(self) -> StandardNormal:
        """N(0, I)."""
        return standard_normal(self.batch_shape[0], self.loc)

    def leading(self, rank: int) -> Tensor:
        """The ``rank`` most informed of the shared directions, ``(d, rank)``.

        Raises:
            ValueError: every law of the batch has directions of its own.
        """
        if not (self.basis.dim() == 2 if isinstance(self.basis, Tensor) else self.basis.shared):
            raise ValueError(
                "the Gaussian start must have directions that all observations share, and not one "
                "operator for each; take the adapter 'contraction' there"
            )
        chosen = self.scale.flatten(0, -2).mean(0).argsort()[:rank]
        if not isinstance(self.basis, Tensor):
            unit = self.loc.new_zeros(rank, self.event_shape[0])
            unit[torch.arange(rank), chosen] = 1
            return self.basis.lift(unit).T
        return self.basis[:, chosen]

    def __getitem__(self, rows: slice) -> ContractedNormal:
        """The laws of some rows of a batch with one dimension."""
        basis = self.basis
        if not isinstance(basis, Tensor) or basis.dim() > 2:
            basis = basis[rows]
        return ContractedNormal(self.loc[rows], basis, self.scale[rows], validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Reparametrised draws, ``(*sample, *batch, d)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.unstandardize(noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, *batch, d)``, ``(*sample, *batch)``."""
        zeta = self.standardize(value)
        normalizer = 0.5 * self.event_shape[0] * math.log(2 * math.pi) + self.scale.log().sum(-1)
        return -0.5 * zeta.square().sum(-1) - normalizer

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContractedNormal:
        """The same laws over a larger batch."""
        batch_shape = torch.Size(batch_shape)
        basis = self.basis
        if isinstance(basis, Tensor) and basis.dim() > 2:
            basis = basis.expand(batch_shape + basis.shape[-2:])
        return ContractedNormal(
            self.loc.expand(batch_shape + self.event_shape),
            basis,
            self.scale.expand(batch_shape + self.scale.shape[-1:]),
            validate_args=False,
        )


class Stacked(Framed, TorchDistribution):
    """A law in the standard coordinates of a Gaussian start: ``z = loc + C^{1/2} zeta``,
    ``zeta ~ base``."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, base: TorchDistribution, start: ContractedNormal) -> None:
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

    def standardize(self, z: Tensor) -> Tensor:
        """In the start's frame first, then in that of the base."""
        return standardize(self.base, self.start.standardize(z))

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """The inverse of :meth:`standardize`."""
        return self.start.unstandardize(unstandardize(self.base, zeta))

    def standard(self) -> TorchDistribution:
        """That of the base."""
        return standard_law(self.base)
