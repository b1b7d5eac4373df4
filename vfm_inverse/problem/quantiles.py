r"""Priors with heavy tails: a link from normal coordinates to a law on the line.

For a law with distribution function :math:`F`, element by element,

.. math:: x = m + s\, F^{-1}\bigl(\Phi(v)\bigr), \qquad v \sim \mathcal N(0, 1),

has that law, exactly, whatever its tails: Cauchy variables have no variance to be whitened with,
and normal coordinates all the same. What is linear in :math:`x` is then not linear in :math:`v`.

No function :math:`F` is needed. Both tails are integrals of the density, summed from their far
ends, so that each keeps its relative accuracy; with :math:`x = \sinh w`, under which Laplace and
Cauchy tails have sizes alike, :math:`w` is tabled over :math:`v` and :math:`v` over :math:`w`, as
cubic polynomials with the exact derivatives

.. math:: \frac{dw}{dv} = \frac{\varphi(v)}{p(x) \cosh w}

at the knots. Beyond :math:`|v| = 12`, where 1e-33 of the law lies, the last slope goes on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Distribution,
    Independent,
    Laplace,
    StudentT,
    TransformedDistribution,
    constraints,
)
from torch.distributions.transforms import ComposeTransform, Transform
from torch.special import ndtri

__all__ = ["Elements", "Quantile", "elements_of", "quantile_of"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

FARTHEST = 12.0
"""Largest normal coordinate that the tables reach."""

KNOTS = 1025
"""Knots over the normal coordinate."""

REACH, CELL, NODES = 160.0, 0.02, 8
"""The density is integrated over ``|w| <= 160``, ``|x| <= 1e69``, in cells of that width, with as
many Gauss-Legendre nodes in each."""

TOTAL = 1e-6
"""Most by which the integral of a density may miss 1."""


class Table(NamedTuple):
    """A function by cubic polynomials between equal steps, and straight lines outside.

    Attributes:
        first, step: knots are ``first + k step``.
        value, slope: at the knots, ``(k,)``.
    """

    first: float
    step: float
    value: Tensor
    slope: Tensor

    def __call__(self, at: Tensor) -> Tensor:
        """Values at ``at``, of any shape."""
        last = len(self.value) - 1
        inside = at.clamp(self.first, self.first + last * self.step)
        place = (inside - self.first) / self.step
        cell = place.detach().long().clamp(0, last - 1)
        t = place - cell
        value, slope = self.value.to(at), self.slope.to(at) * self.step
        left, right = value[cell], value[cell + 1]
        rise = right - left
        bend = (slope[cell] - rise) * (1 - t) - (slope[cell + 1] - rise) * t
        beyond = torch.where(at < inside, slope[0], slope[-1]) / self.step
        return left + rise * t + t * (1 - t) * bend + beyond * (at - inside)


class Quantile(Transform):
    """From normal coordinates to a law on the line, element by element.

    Args:
        law: of one number, with a density on the whole line; of the order of 1, around 0.
        loc, scale: what its variable is multiplied by, and what is added then; numbers, or one for
            each element of the event.

    Raises:
        ValueError: ``law`` is not of one number, or its density does not integrate to 1.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(
        self, law: Distribution, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0
    ) -> None:
        super().__init__()
        if law.batch_shape or law.event_shape:
            raise ValueError(
                "'law' must be of one number; got batch shape "
                f"{tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}"
            )
        self.law = law
        self.loc, self.scale = (torch.as_tensor(part) for part in (loc, scale))
        self._forward, self._backward = _tables(law)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Quantile)
            and type(self.law) is type(other.law)
            and torch.equal(self.loc, other.loc)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self._forward.value, other._forward.value)
        )

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        # Beyond it numbers of this type end.
        largest = 0.95 * math.log(torch.finfo(x.dtype).max)
        w = self._forward(x.double()).clamp(-largest, largest)
        return (self.loc.to(w) + self.scale.to(w) * w.sinh()).to(x)

    def _inverse(self, y: Tensor) -> Tensor:
        exact = y.double()
        w = ((exact - self.loc.to(exact)) / self.scale.to(exact)).asinh()
        v = self._backward(w)
        slope = self._backward_slope(w)
        for _ in range(2):  # steps of Newton, which make the tables inverse to each other
            v = v - (self._forward(v) - w) * slope
        return v.to(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log dy/dx`` of each element."""
        v, exact = x.double(), y.double()
        scale = self.scale.to(exact)
        density = self.law.log_prob((exact - self.loc.to(exact)) / scale)
        return (scale.log() - 0.5 * v.square() - LOG_SQRT_2PI - density).to(x)

    def _backward_slope(self, w: Tensor) -> Tensor:
        table = self._backward
        place = ((w.detach() - table.first) / table.step).round().long()
        return table.slope.to(w)[place.clamp(0, len(table.slope) - 1)]


class Elements(NamedTuple):
    """Independent elements with heavy tails, of which a field is made.

    Attributes:
        law: standard law of each, of one number, in double precision.
        loc, scale: what its variable is multiplied by, and what is added then, each of the shape
            of the elements.
        parts: transforms from the elements to the field.
    """

    law: Distribution
    loc: Tensor
    scale: Tensor
    parts: list[Transform]


def elements_of(prior: object) -> Elements | None:
    """The elements of a prior of independent Laplace, Student-t or Cauchy variables, which may
    differ in location and scale, and the transforms of a ``TransformedDistribution`` of them;
    ``None`` for any other prior."""
    parts: list[Transform] = []
    while isinstance(prior, Independent | TransformedDistribution):
        if isinstance(prior, TransformedDistribution):
            parts = [*prior.transforms, *parts]
        prior = prior.base_dist
    if not isinstance(prior, Laplace | StudentT | Cauchy) or len(prior.batch_shape) == 0:
        return None
    standard: dict[str, Any] = {"loc": 0.0, "scale": 1.0}
    if isinstance(prior, StudentT):
        df = prior.df.detach().double().flatten()
        if not bool((df == df[0]).all()):
            return None
        standard["df"] = float(df[0])
    doubles: dict[str, Any] = {
        key: torch.tensor(value, dtype=torch.float64) for key, value in standard.items()
    }
    kind = next(kind for kind in (Laplace, StudentT, Cauchy) if isinstance(prior, kind))
    shape = prior.batch_shape
    loc, scale = (part.detach().expand(shape) for part in (prior.loc, prior.scale))
    return Elements(kind(**doubles), loc, scale, parts)


def quantile_of(prior: object) -> Transform | None:
    """From normal coordinates to the fields of a prior that :func:`elements_of` takes apart;
    ``None`` for any other.

    ``InverseProblem(prior=prior, transform=quantile_of(prior), ...)`` works in them.
    """
    if (found := elements_of(prior)) is None:
        return None
    link = Quantile(found.law, found.loc, found.scale)
    return ComposeTransform([link, *found.parts]) if found.parts else link


def _tables(law: Distribution) -> tuple[Table, Table]:
    """``w(v)`` and ``v(w)`` of a standard law, in double precision."""
    num = round(REACH / CELL)
    edges = CELL * torch.arange(-num, num + 1, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(NODES))
    inner = edges[:-1, None] + CELL * (nodes + 1) / 2
    mass = (_log_density(law, inner).exp() * weights).sum(-1) * CELL / 2
    total = float(mass.sum())
    if not abs(total - 1) < TOTAL:
        raise ValueError(
            f"'law' must have a density on the whole line, of the order of 1; that of "
            f"{type(law).__name__} integrates to {total:.6g}"
        )
    none = mass.new_zeros(1)
    lower = torch.cat([none, mass.cumsum(0)]) / total
    upper = torch.cat([mass.flip(0).cumsum(0).flip(0), none]) / total
    v = torch.where(lower < upper, ndtri(lower), -ndtri(upper))
    told = v.abs() < FARTHEST + 1
    v, w = v[told], edges[told]
    knots = torch.linspace(-FARTHEST, FARTHEST, KNOTS, dtype=torch.float64)
    at = _uneven(v, w, _slope(law, v, w), knots)
    forward = Table(-FARTHEST, 2 * FARTHEST / (KNOTS - 1), at, _slope(law, knots, at))
    # Around 0, where a density may have a corner, there is a knot.
    few = slice(int((w < at[0]).sum()), int((w <= at[-1]).sum()))
    v, w = v[few], w[few]
    return forward, Table(float(w[0]), CELL, v, 1 / _slope(law, v, w))


def _log_density(law: Distribution, w: Tensor) -> Tensor:
    """Of ``w = asinh(x)``."""
    return law.log_prob(w.sinh()) + w.abs() + (0.5 * (1 + (-2 * w.abs()).exp())).log()


def _slope(law: Distribution, v: Tensor, w: Tensor) -> Tensor:
    """``dw / dv``."""
    return (-0.5 * v.square() - LOG_SQRT_2PI - _log_density(law, w)).exp()


def _uneven(v: Tensor, w: Tensor, slope: Tensor, at: Tensor) -> Tensor:
    """The cubic polynomials through ``(v, w)`` with these slopes, at other places."""
    cell = (torch.searchsorted(v, at) - 1).clamp(0, len(v) - 2)
    width = v[cell + 1] - v[cell]
    t = (at - v[cell]) / width
    rise = w[cell + 1] - w[cell]
    bend = (slope[cell] * width - rise) * (1 - t) - (slope[cell + 1] * width - rise) * t
    return w[cell] + rise * t + t * (1 - t) * bend
