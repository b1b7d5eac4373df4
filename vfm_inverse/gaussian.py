r"""A Gaussian that differs from N(0, I) only in a few directions.

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
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["ContractedNormal", "Modes", "StandardNormal"]


class Modes(Protocol):
    """As many orthonormal columns as dimensions, which all observations share and a fast transform
    multiplies by."""

    def project(self, x: Tensor) -> Tensor:
        """``V^T x``, ``(*batch, d)``."""

    def lift(self, coefficients: Tensor) -> Tensor:
        """``V c``, ``(*batch, d)``."""

    def diagonal(self, weights: Tensor) -> Tensor:
        """Diagonal of ``V diag(weights) V^T``, ``(*batch, d)``."""


class StandardNormal(TorchDistribution):
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


class ContractedNormal(TorchDistribution):
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
            return self.basis.lift(self.basis.project(eye) * self.scale.square().unsqueeze(-2))
        weighted = self.basis * (self.scale.square() - 1).unsqueeze(-2)
        return eye + weighted @ self.basis.mT

    def project(self, x: Tensor) -> Tensor:
        """Coefficients ``V^T x``, ``(*sample, *batch, d)`` to ``(*sample, *batch, r)``."""
        if not isinstance(self.basis, Tensor):
            return self.basis.project(x)
        if self.basis.dim() == 2:
            return x @ self.basis
        # One basis per observation: batch first, samples as rows, so that no basis is copied per
        # sample.
        lead = x.shape[:-2]
        return (
            (x.reshape(-1, *x.shape[-2:]).transpose(0, 1) @ self.basis)
            .transpose(0, 1)
            .reshape(*lead, x.shape[-2], -1)
        )

    def lift(self, coefficients: Tensor) -> Tensor:
        """``V c``, ``(*sample, *batch, r)`` to ``(*sample, *batch, d)``."""
        if not isinstance(self.basis, Tensor):
            return self.basis.lift(coefficients)
        if self.basis.dim() == 2:
            return coefficients @ self.basis.T
        lead = coefficients.shape[:-2]
        rows = coefficients.reshape(-1, *coefficients.shape[-2:]).transpose(0, 1)
        return (rows @ self.basis.mT).transpose(0, 1).reshape(*lead, rows.shape[0], -1)

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

    def leading(self, rank: int) -> Tensor:
        """The ``rank`` most informed of the shared directions, ``(d, rank)``.

        Raises:
            ValueError: every law of the batch has directions of its own.
        """
        chosen = self.scale.flatten(0, -2).mean(0).argsort()[:rank]
        if not isinstance(self.basis, Tensor):
            unit = self.loc.new_zeros(rank, self.event_shape[0])
            unit[torch.arange(rank), chosen] = 1
            return self.basis.lift(unit).T
        if self.basis.dim() > 2:
            raise ValueError(
                "the Gaussian start must have directions that all observations share, and not one "
                "operator for each; take the adapter 'contraction' there"
            )
        return self.basis[:, chosen]

    def __getitem__(self, rows: slice) -> ContractedNormal:
        """The laws of some rows of a batch with one dimension."""
        basis = self.basis
        if isinstance(basis, Tensor) and basis.dim() > 2:
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

    def kl_to_standard_normal(self) -> Tensor:
        """``KL(q || N(0, I))``, ``(*batch,)``; directions outside the basis only pay for their
        mean."""
        variance = self.scale.square()
        return 0.5 * (self.loc.square().sum(-1) + (variance - 1 - variance.log()).sum(-1))

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
