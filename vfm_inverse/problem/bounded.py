r"""Priors with bounds: the map works in coordinates that have none.

Between :math:`a` and :math:`b`, either of which may be infinite, element by element

.. math:: x = a + (b - a)\, \Phi(v), \qquad x = a + e^v, \qquad x = b - e^{-v},

with the normal distribution function :math:`\Phi`: under a uniform prior in the first case, a
log-normal one in the second, :math:`v \sim \mathcal N`, so that the Gaussian start is exact in the
prior, and no draw ever leaves the support. Where only values near the ends are to be kept inside,
as of grey values, :class:`SoftBox` changes no others. A simplex is taken apart as a stick is
broken, and for every other support torch or Pyro may know a bijection;
:mod:`vfm_inverse.problem.supports` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transforms
from torch.distributions.transforms import Transform
from torch.special import ndtr, ndtri

__all__ = ["Box", "Joined", "Simplex", "SoftBox"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Box(Transform):
    """From the line to an interval, element by element.

    Args:
        low, high: ends of the interval, numbers or one for each element of the event; an infinite
            end is none.

    Raises:
        ValueError: an interval is empty.
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, low: Tensor | float, high: Tensor | float) -> None:
        super().__init__()
        self.low, self.high = (
            end if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64)
            for end in (low, high)
        )
        if not bool((self.low < self.high).all()):
            raise ValueError(f"'low' must lie below 'high'; got {low} and {high}")
        self._finite = bool((self.low.isfinite() & self.high.isfinite()).all())

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """The interval."""
        return constraints.interval(self.low, self.high)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Box)
            and torch.equal(self.low, other.low)
            and torch.equal(self.high, other.high)
        )

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x), self.high.to(x)
        if self._finite:
            return (low + (high - low) * ndtr(x)).clamp(low, high)
        above, below = low > -math.inf, high < math.inf
        base, top = low.where(above, 0.0), high.where(below, 0.0)
        largest = 0.9 * math.log(torch.finfo(x.dtype).max)
        up = base + x.clamp_max(largest).exp()
        down = top - (-x).clamp_max(largest).exp()
        inside = torch.where(above & below, base + (top - base) * ndtr(x), up)
        y = torch.where(above, inside, torch.where(below, down, x))
        # An open end is never reached.
        return y.clamp(_inward(low, math.inf), _inward(high, -math.inf))

    def _inverse(self, y: Tensor) -> Tensor:
        low, high = self.low.to(y), self.high.to(y)
        # A value that rounding put on an end has a finite coordinate all the same.
        edge = torch.finfo(y.dtype).eps / 4
        if self._finite:
            return ndtri(((y - low) / (high - low)).clamp(edge, 1 - 2 * edge))
        tiny = torch.finfo(y.dtype).tiny
        above, below = low > -math.inf, high < math.inf
        base, top = low.where(above, 0.0), high.where(below, 1.0)
        width = (top - base).where(above & below, 1.0)
        inside = ndtri(((y - base) / width).clamp(edge, 1 - 2 * edge))
        up, down = (y - base).clamp_min(tiny).log(), -(top - y).clamp_min(tiny).log()
        return torch.where(above, torch.where(below, inside, up), torch.where(below, down, y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log dy/dx`` of each element."""
        low, high = self.low.to(x), self.high.to(x)
        above, below = low > -math.inf, high < math.inf
        width = (high - low).where(above & below, 1.0)
        inside = width.log() - 0.5 * x.square() - LOG_SQRT_2PI
        open_ended = x * (above.to(x) - below.to(x))
        return torch.where(above & below, inside, open_ended)


class SoftBox(Transform):
    r"""From the line to a finite interval, element by element, and the identity but near its ends:

    .. math:: x = a + m\, e^{(v - a)/m - 1} \ (v < a + m), \qquad
              x = b - m\, e^{(b - v)/m - 1} \ (v > b - m), \qquad x = v \text{ between},

    with a continuous derivative, so that what is linear in :math:`x` stays so in :math:`v` for all
    but extreme values, and a Gaussian start in closed form with it.

    Args:
        low, high: ends of the interval.
        margin: m, width of the range at either end where it is not the identity.

    Raises:
        ValueError: the margins leave nothing between them.
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, low: float, high: float, margin: float) -> None:
        super().__init__()
        if not 0 < margin < (high - low) / 2:
            raise ValueError(
                f"'margin' must lie between 0 and half of high - low; got {margin}, from {low} to "
                f"{high}"
            )
        self.low, self.high, self.margin = low, high, margin

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """The interval."""
        return constraints.interval(self.low, self.high)

    def __eq__(self, other: object) -> bool:
        ends = ("low", "high", "margin")
        return isinstance(other, SoftBox) and all(
            getattr(self, end) == getattr(other, end) for end in ends
        )

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        below, above = self._beyond(x)
        low = self.low + self.margin * below.exp()
        high = self.high - self.margin * above.exp()
        return torch.where(below < 0, low, torch.where(above < 0, high, x))

    def _inverse(self, y: Tensor) -> Tensor:
        # A value that rounding put on an end has a finite coordinate all the same.
        edge = torch.finfo(y.dtype).eps * (self.high - self.low)
        below = ((y - self.low).clamp_min(edge) / self.margin).log().clamp_max(0)
        above = ((self.high - y).clamp_min(edge) / self.margin).log().clamp_max(0)
        return y.clamp(self.low + self.margin, self.high - self.margin) + self.margin * (
            below - above
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log dy/dx`` of each element."""
        below, above = self._beyond(x)
        return below + above

    def _beyond(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far, in margins, beyond the inner end of each margin: 0 or less."""
        below = (x - self.low) / self.margin - 1
        above = (self.high - x) / self.margin - 1
        return below.clamp_max(0), above.clamp_max(0)


class Simplex(Transform):
    """From ``(*, d - 1)`` to ``d`` positive numbers ``(*, d)`` whose sum is 1, by breaking a
    stick (torch's ``StickBreakingTransform``, accurate where almost nothing is left of it)."""

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def __init__(self) -> None:
        super().__init__()
        self._stick = transforms.StickBreakingTransform()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Simplex)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        y = self._stick(x).clamp_min(torch.finfo(x.dtype).tiny)
        return y / y.sum(-1, keepdim=True)

    def _inverse(self, y: Tensor) -> Tensor:
        y = y.clamp_min(torch.finfo(y.dtype).tiny)
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        pieces = torch.arange(left.shape[-1], 0, -1).to(y)
        return y[..., :-1].log() - left.log() + pieces.log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``(*, d - 1)`` to ``(*,)``, of the first ``d - 1`` numbers."""
        return self._stick.log_abs_det_jacobian(x, y)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """One number more."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """One number fewer."""
        return torch.Size((*shape[:-1], shape[-1] - 1))


class Joined(Transform):
    """Parts of a vector, each with a transform of its own.

    Args:
        parts: transforms of the parts, which may change their length.
        lengths: of the parts, after the transform.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, parts: Sequence[Transform], lengths: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.lengths = list(parts), [int(length) for length in lengths]
        self._inner = [
            part.inverse_shape((length,))[0]
            for part, length in zip(self.parts, self.lengths, strict=True)
        ]

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Joined) and self.lengths == other.lengths
        return same and self.parts == other.parts  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        pieces = x.split(self._inner, -1)
        return torch.cat([part(v) for part, v in zip(self.parts, pieces, strict=True)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        pieces = y.split(self.lengths, -1)
        return torch.cat([part.inv(v) for part, v in zip(self.parts, pieces, strict=True)], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of all parts together, ``(*, d)`` to ``(*,)``."""
        total = x.new_zeros(x.shape[:-1])
        pieces = zip(self.parts, x.split(self._inner, -1), y.split(self.lengths, -1), strict=True)
        for part, v, w in pieces:
            rate = part.log_abs_det_jacobian(v, w)
            total = total + (rate if rate.dim() < v.dim() else rate.sum(-1))
        return total

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """The parts' lengths together."""
        return torch.Size((*shape[:-1], sum(self.lengths)))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """The lengths together that the parts have without bounds."""
        return torch.Size((*shape[:-1], sum(self._inner)))


def _inward(end: Tensor, towards: float) -> Tensor:
    """The nearest normal number inside of an open end; an infinite end stays."""
    inner = torch.nextafter(end, torch.full_like(end, towards))
    tiny = math.copysign(torch.finfo(end.dtype).tiny, towards)
    return end.where(end.isinf(), inner.where(end != 0, tiny))
