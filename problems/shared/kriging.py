r"""The posterior of a Gaussian field seen through another operator in every observation.

For :math:`x \sim \mathcal N(m, C)` and :math:`y = H x + \sigma\epsilon` with an operator
:math:`H` ``(m, d)`` and a noise level per datum (kriging; Rasmussen and Williams 2006,
https://gaussianprocess.org/gpml, eq. 2.25-2.26)

.. math:: G = H C H^\top + \operatorname{diag}(\sigma^2), \quad K = C H^\top G^{-1}, \quad
          x \mid y \sim \mathcal N\bigl(m + K (y - H m),\; C - K H C\bigr).

A draw is a prior draw, corrected by the data it should have given (Matheron's rule; Journel and
Huijbregts 1978): :math:`x' + K (y - H x' - \sigma\epsilon)`. The density is prior times
likelihood over the evidence :math:`\mathcal N(y; H m, G)`. No d x d matrix is made for an
observation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from vfm_inverse.gaussian.normals import as_columns

__all__ = ["KrigingNormal"]


class KrigingNormal(TorchDistribution):
    """Gaussian posterior of fields, each with an operator of its own, in double precision inside.

    Args:
        mean, covariance: of the prior, ``(d,)`` and ``(d, d)``.
        operator: ``H``, ``(batch, m, d)``; a row of zeros is a datum that is not there.
        y: data ``(batch, m)``, whose dtype the draws have.
        sigma: noise standard deviation, a number or ``(batch, m)``.
        field_shape: event shape, of ``d`` elements.
    """

    support = constraints.real
    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor,
        operator: Tensor,
        y: Tensor,
        sigma: Tensor | float,
        field_shape: tuple[int, ...],
    ) -> None:
        self.prior_mean, self.prior_covariance = mean.double(), covariance.double()
        self.operator, self.dtype = operator.double(), y.dtype
        # A datum that is not there is 0 with the noise of a unit, whatever the table holds.
        there = self.operator.abs().sum(-1) > 0
        self.sigma = torch.where(there, torch.as_tensor(sigma).double(), 1.0)
        self.y = torch.where(there, y.double(), 0.0)
        self._root = torch.linalg.cholesky(self.prior_covariance)
        self._cross = self.operator @ self.prior_covariance
        gram = self._cross @ self.operator.mT + torch.diag_embed(self.sigma.square())
        self._gram_root = torch.linalg.cholesky(gram)
        super().__init__(y.shape[:1], torch.Size(field_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``(batch, *field)``."""
        return self._field(self.prior_mean + self._gain(self.y - self._predict(self.prior_mean)))

    @property
    def variance(self) -> Tensor:
        """``(batch, *field)``."""
        half = torch.linalg.solve_triangular(self._gram_root, self._cross, upper=False)
        return self._field(self.prior_covariance.diagonal() - half.square().sum(-2))

    @property
    def covariance_matrix(self) -> Tensor:
        """Of the flattened field, ``(batch, d, d)``: for small fields or few observations."""
        half = torch.linalg.solve_triangular(self._gram_root, self._cross, upper=False)
        return (self.prior_covariance - half.mT @ half).to(self.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, batch, *field)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.y.device}
        x = self.prior_mean + torch.randn(*shape, len(self._root), **options) @ self._root.mT
        noise = self.sigma * torch.randn(*shape, self.y.shape[-1], **options)
        return self._field(x + self._gain(self.y - self._predict(x) - noise))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of fields ``(*, batch, *field)``."""
        x = value.double().flatten(-len(self.event_shape))
        prior = _log_normal(x - self.prior_mean, self._root)
        residual = (self.y - self._predict(x)) / self.sigma
        data = -0.5 * residual.square().sum(-1) - self.sigma.log().sum(-1)
        data = data - 0.5 * self.y.shape[-1] * math.log(2 * math.pi)
        evidence = _log_normal(self.y - self._predict(self.prior_mean), self._gram_root)
        return (prior + data - evidence).to(self.dtype)

    def _predict(self, x: Tensor) -> Tensor:
        """``H x``, ``(d,)`` or ``(*, batch, d)`` to ``(*, batch, m)``."""
        return self.operator @ x if x.dim() == 1 else as_columns(lambda c: self.operator @ c, x)

    def _gain(self, residual: Tensor) -> Tensor:
        """``K r``, ``(*, batch, m)`` to ``(*, batch, d)``."""
        solve = torch.cholesky_solve
        return as_columns(lambda c: self._cross.mT @ solve(c, self._gram_root), residual)

    def _field(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.event_shape).to(self.dtype)


def _log_normal(x: Tensor, root: Tensor) -> Tensor:
    """Log-density of ``N(0, root root^T)`` at ``(*, k)``; ``root`` is ``(k, k)`` or ``(batch, k,
    k)``."""
    if root.dim() == 2:
        zeta = torch.linalg.solve_triangular(root.mT, x, upper=True, left=False)
    else:
        zeta = torch.linalg.solve_triangular(root, x.unsqueeze(-1), upper=False).squeeze(-1)
    normalizer = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (zeta.square().sum(-1) + x.shape[-1] * math.log(2 * math.pi)) - normalizer
