r"""The posterior of a Gaussian prior under linear data with white noise, at any noise level.

For :math:`x \sim \mathcal N(m, C)`, :math:`C = L L^\top`, and :math:`y = H x + \sigma\epsilon`
take the singular value decomposition :math:`H L = U D V^\top` and :math:`T = L V`. Then :math:`T
T^\top = C` and :math:`T^\top H^\top H T = D^2` together: in the coordinates :math:`x = m + T u`
prior and data are both diagonal, and

.. math:: u \mid y \sim \mathcal N\Bigl(\frac{d_i\, (U^\top (y - H m))_i}{d_i^2 + \sigma^2},\;
          \lambda_i = \frac{\sigma^2}{d_i^2 + \sigma^2}\Bigr), \qquad d_i = 0 \text{ beyond the
          data}.

One decomposition serves every observation and every sigma; a draw is one product with ``T``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["ConjugateGaussian", "CoordinateNormal"]


class ConjugateGaussian:
    """Prior ``N(mean, covariance)`` with data ``y = H x + sigma eps``.

    Args:
        mean: ``(d,)``.
        covariance: ``(d, d)``, positive definite.
        operator: ``H``, ``(m, d)``.
        field_shape: event shape of ``x``, of ``d`` elements; ``(d,)`` by default.
    """

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor,
        operator: Tensor,
        field_shape: Sequence[int] | None = None,
    ) -> None:
        # Double precision: the fitted covariances of photographs have condition numbers of 1e6.
        mean, operator = mean.double(), operator.double()
        root = torch.linalg.cholesky(covariance.double())
        left, values, right = torch.linalg.svd(operator @ root, full_matrices=True)
        self.mean = mean
        self.basis = root @ right.mT
        self.values = torch.cat([values, values.new_zeros(len(mean) - len(values))])
        self._left = left
        self._predicted = operator @ mean
        self.field_shape = torch.Size(field_shape or mean.shape)
        self._log_det = root.diagonal().log().sum()

    def posterior(self, y: Tensor, sigma: Tensor | float) -> CoordinateNormal:
        """Posterior of ``y`` ``(batch, *observation)``, with ``sigma`` a number or ``(batch,)``.

        The result has the dtype and the device of ``y``.
        """
        residual = (y.double().flatten(1).cpu() - self._predicted) @ self._left
        sigma = torch.as_tensor(sigma).double().cpu().reshape(-1, 1)
        precision = self.values**2 + sigma**2
        informed = min(residual.shape[1], len(self.values))
        loc = residual.new_zeros(len(y), len(self.values))
        loc[:, :informed] = residual[:, :informed] * (self.values / precision)[:, :informed]
        scale = (sigma / precision.sqrt()).expand_as(loc)
        return CoordinateNormal(
            loc.to(y), scale.to(y), self.basis.to(y), self.mean.to(y), self.field_shape
        )


class CoordinateNormal(TorchDistribution):
    """Law of ``offset + T u``, ``u ~ N(loc, diag(scale^2))``, reshaped to a field.

    Args:
        loc, scale: ``(batch, d)``.
        basis: ``T``, ``(d, d)``, shared by the batch.
        offset: ``(d,)``.
        field_shape: event shape, of ``d`` elements.
    """

    support = constraints.real
    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, basis: Tensor, offset: Tensor, field_shape: torch.Size
    ) -> None:
        self.loc, self.scale, self.basis, self.offset = loc, scale, basis, offset
        super().__init__(loc.shape[:-1], field_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``(batch, *field)``."""
        return self._field(self.loc)

    @property
    def variance(self) -> Tensor:
        """``(batch, *field)``."""
        return (self.scale**2 @ (self.basis**2).mT).reshape(self._extended_shape())

    @property
    def covariance_matrix(self) -> Tensor:
        """Of the flattened field, ``(batch, d, d)``: for small fields or few observations."""
        scaled = self.basis * self.scale.unsqueeze(-2)
        return scaled @ scaled.mT

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, batch, *field)``."""
        shape = torch.Size(sample_shape) + self.loc.shape
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self._field(self.loc + self.scale * noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of fields ``(*, batch, *field)``."""
        flat = value.reshape(*value.shape[: value.dim() - len(self.event_shape)], -1)
        rhs = (flat - self.offset).reshape(-1, len(self.offset)).mT
        u = torch.linalg.solve(self.basis, rhs).mT.reshape(flat.shape)
        zeta = (u - self.loc) / self.scale
        _, log_det = torch.linalg.slogdet(self.basis)
        normalizer = (
            self.scale.log().sum(-1) + log_det + 0.5 * len(self.offset) * math.log(2 * math.pi)
        )
        return -0.5 * zeta.square().sum(-1) - normalizer

    def expand(self, batch_shape: Any, _instance: Any = None) -> CoordinateNormal:
        """The same law over a larger batch."""
        shape = torch.Size(batch_shape) + self.loc.shape[-1:]
        return CoordinateNormal(
            self.loc.expand(shape),
            self.scale.expand(shape),
            self.basis,
            self.offset,
            self.event_shape,
        )

    def _field(self, u: Tensor) -> Tensor:
        return (self.offset + u @ self.basis.mT).reshape(*u.shape[:-1], *self.event_shape)
