r"""Heavy tails as normal laws of random precision: the two conditional laws of a posterior.

Laplace, Student-t and Cauchy variables are :math:`t_j \sim \mathcal N(0, 1/w_j)` for some law of
:math:`w_j` (Andrews and Mallows 1974, https://doi.org/10.1111/j.2517-6161.1974.tb00989.x). Where
the field is a linear function of independent ones, the physics is linear and its noise Gaussian,
:math:`y = c + H t + \Sigma^{1/2} \epsilon`,

.. math:: t \mid w, y \sim \mathcal N(\Lambda^{-1} H^\top \Sigma^{-1} (y - c),\; \Lambda^{-1}),
          \quad \Lambda = H^\top \Sigma^{-1} H + \mathrm{diag}(w),

.. math:: w_j \mid t \sim \mathrm{Gamma}\bigl(\tfrac{\nu + 1}2, \tfrac{\nu + t_j^2}2\bigr)
          \quad \text{(Student; Cauchy with } \nu = 1), \qquad
          w_j \mid t \sim \mathrm{InverseGaussian}\bigl(\tfrac{1}{|t_j|}, 1\bigr)
          \quad \text{(Laplace)}

(Park and Casella 2008, https://doi.org/10.1198/016214508000000337). Drawing the one and then the
other, a *sweep*, leaves the posterior as it is and brings any other law closer to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Gamma, Laplace, StudentT
from torch.distributions.transforms import ComposeTransform, Transform

from vfm_inverse.gaussian.matrix_free import apply, noise_level
from vfm_inverse.gaussian.operator_start import operator_params
from vfm_inverse.problem.likelihood import Likelihood, is_linear_gaussian
from vfm_inverse.problem.priors import LogPrior
from vfm_inverse.problem.quantiles import Elements, elements_of

__all__ = ["ScaleMixture", "precisions", "sweep"]

MOST = 1024
"""Most elements: a sweep factorises a matrix of that size for each draw."""

NUMBERS = 2**18
"""Numbers of matrices that are factorised at once: they stay in a processor's cache."""

TINY = 1e-12
"""Least variable of which the precision is drawn."""


class ScaleMixture:
    """Posteriors of n observations under a prior of elements with heavy tails.

    Args:
        elements: of the prior.
        operator: ``H``, ``(n or 1, m, d)``.
        centre: ``c``, ``(n or 1, m)``.
        noise: standard deviations, ``(n or 1, m or 1)``.
        y: observations ``(n, m)``.
    """

    def __init__(
        self, elements: Elements, operator: Tensor, centre: Tensor, noise: Tensor, y: Tensor
    ) -> None:
        self.law, self.loc, self.scale, _ = elements
        self.rest = chained(elements)
        white = operator.double() / noise.double().unsqueeze(-1)
        data = (y.double() - centre.double()) / noise.double()
        self.precision = white.mT @ white
        self.shift = (white.mT @ data.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def suits(log_prior: object, likelihood: object) -> bool:
        """Whether a problem has such posteriors: by the density of its prior, and its
        likelihood."""
        if not (isinstance(log_prior, LogPrior) and isinstance(likelihood, Likelihood)):
            return False
        found = elements_of(log_prior.prior)
        if found is None or found.loc.numel() > MOST:
            return False
        return is_linear_gaussian(likelihood.physics) and is_affine(found)

    @classmethod
    def of(
        cls, log_prior: LogPrior, likelihood: Likelihood, y: Tensor, params: Mapping[str, Tensor]
    ) -> Self:
        """Those of observations ``(n, *obs)``, where it :meth:`suits`."""
        elements = elements_of(log_prior.prior)
        assert elements is not None
        # Transforms hold tensors where the prior was made.
        loc, scale = (part.to(y.dtype) for part in (elements.loc, elements.scale))
        d = loc.numel()
        # A field at the centre, and one beside it along each element.
        along = torch.diag(scale.flatten()).unflatten(-1, loc.shape)
        fields = chained(elements)(torch.cat([loc.unsqueeze(0), loc + along])).to(y)
        names = operator_params(likelihood.physics, params)
        num = len(y) if names else 1
        own = {name: params[name].repeat_interleave(d + 1, 0) for name in names}
        every = fields.expand(num, *fields.shape).flatten(0, 1)
        data = apply(likelihood.physics, every, own).unflatten(0, (num, d + 1))
        noise = noise_level(likelihood, params, y)
        return cls(elements, (data[:, 1:] - data[:, :1]).mT, data[:, 0], noise, y.flatten(1))

    def elements(self, x: Tensor) -> Tensor:
        """``t (*batch, d)`` of fields ``(*batch, *event)``, in double precision."""
        u = self.rest.inv(x.to(self.loc.device)).double()
        t = (u - self.loc.to(u)) / self.scale.to(u)
        return t.flatten(-self.loc.dim()).to(x.device)

    def field(self, t: Tensor, like: Tensor) -> Tensor:
        """Fields ``(*batch, *event)`` of ``t (*batch, d)``, in the type of ``like``."""
        u = t.unflatten(-1, self.loc.shape).to(self.loc.device)
        field: Tensor = self.rest((self.loc.to(u) + self.scale.to(u) * u).to(like.dtype))
        return field.to(like)

    def sweep(self, t: Tensor) -> Tensor:
        """One sweep from ``t (k, n, d)``."""
        return sweep(t, self.law, self.precision, self.shift)


def sweep(t: Tensor, law: Distribution, precision: Tensor, shift: Tensor) -> Tensor:
    """Precisions given elements, and elements given precisions.

    Args:
        t: elements in units of their scales, ``(k, n, d)``, in double precision.
        law: of each, standard.
        precision: ``H^T Sigma^-1 H``, ``(n or 1, d, d)``.
        shift: ``H^T Sigma^-1 (y - c)``, ``(n, d)``.
    """
    d = t.shape[-1]
    step = max(1, NUMBERS // (t.shape[1] * d**2))
    return torch.cat([_sweep(part, law, precision, shift) for part in t.split(step)])


def _sweep(t: Tensor, law: Distribution, precision: Tensor, shift: Tensor) -> Tensor:
    both = precision.expand(*t.shape, t.shape[-1]).clone()
    both.diagonal(dim1=-2, dim2=-1).add_(precisions(t, law))
    root = torch.linalg.cholesky(both)
    pull = shift.unsqueeze(-1).expand(*t.shape, 1)
    inner = torch.linalg.solve_triangular(root, pull, upper=False)
    noisy = inner + torch.randn_like(inner)
    return torch.linalg.solve_triangular(root.mT, noisy, upper=True).squeeze(-1)


def precisions(t: Tensor, law: Distribution) -> Tensor:
    """Draws of ``w`` given ``t (*)`` of a standard law, of the same shape."""
    if isinstance(law, Laplace):
        # Michael, Schucany and Haas 1976, with the smaller root as a quotient.
        mean = 1 / t.abs().clamp_min(TINY)
        half = mean * torch.randn_like(t).square() / 2
        smaller = mean / (1 + half + (half * (2 + half)).sqrt())
        taken = torch.rand_like(t) * (mean + smaller) <= mean
        return torch.where(taken, smaller, mean**2 / smaller)
    assert isinstance(law, StudentT | Cauchy)
    nu = float(law.df) if isinstance(law, StudentT) else 1.0
    return Gamma(torch.full_like(t, (nu + 1) / 2), (nu + t.square()) / 2).sample()


def chained(elements: Elements) -> Transform:
    """From elements to fields."""
    return ComposeTransform(elements.parts)


def is_affine(elements: Elements) -> bool:
    """Whether a field is a linear function of the elements, and a constant."""
    map_, like = chained(elements), elements.loc
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *like.shape, generator=generator, dtype=torch.float64).to(like)
    whole, parts = map_(a + b) + map_(torch.zeros_like(a)), map_(a) + map_(b)
    return torch.allclose(whole, parts, rtol=1e-4, atol=1e-4 * float(parts.abs().amax()))
