r"""A Gaussian by its precision, for each observation its own.

With :math:`P = L L^\top`, :math:`q = \mathcal N(\mu, P^{-1})` is standard in :math:`\zeta = L^\top
(z - \mu)`. Entries of z in the order of a picture stay about where they are: :math:`L^\top` is a
filter that looks one way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vfm_inverse.gaussian.frames import Framed
from vfm_inverse.gaussian.normals import StandardNormal, as_columns, standard_normal

__all__ = ["PreciseNormal"]


class PreciseNormal(Framed):
    """``N(loc, (L L^T)^{-1})`` over vectors ``(d,)``, batch shape ``(n,)``.

    Args:
        loc: mean, ``(n, d)``.
        factor: ``L``, ``(n, d, d)``, lower triangular.
    """

    def __init__(self, loc: Tensor, factor: Tensor) -> None:
        self.loc, self.factor = loc, factor

    @property
    def mean(self) -> Tensor:
        """Mean, ``(n, d)``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, ``(n, d)``."""
        unit = torch.eye(self.loc.shape[1], dtype=self.loc.dtype, device=self.loc.device)
        inverse = torch.linalg.solve_triangular(self.factor, unit, upper=False)
        return inverse.square().sum(-2)

    def standardize(self, z: Tensor) -> Tensor:
        """``L^T (z - loc)``, ``(*sample, n, d)``."""
        return as_columns(lambda columns: self.factor.mT @ columns, z - self.loc)

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """The inverse of :meth:`standardize`."""
        upper = self.factor.mT
        return self.loc + as_columns(
            lambda columns: torch.linalg.solve_triangular(upper, columns, upper=True), zeta
        )

    def standard(self) -> StandardNormal:
        """N(0, I)."""
        return standard_normal(len(self.loc), self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, n, d)``, ``(*sample, n)``."""
        zeta = self.standardize(value)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * (zeta.square() + math.log(2 * math.pi)).sum(-1)
