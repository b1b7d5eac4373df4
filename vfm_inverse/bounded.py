r"""Priors on a box: the map works in coordinates without bounds.

:math:`x = a + (b - a)\, \Phi(v)`, element by element, with the normal distribution function
:math:`\Phi`: under a uniform prior :math:`v \sim \mathcal N(0, I)`, so that the Gaussian start is
exact in the prior, and no draw ever leaves the box.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import Transform
from torch.special import ndtr, ndtri

__all__ = ["Box", "box_of"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Box(Transform):
    """From the line to an interval, element by element.

    Args:
        low, high: ends of the interval, numbers or one for each element of the event.
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, low: Tensor | float, high: Tensor | float) -> None:
        super().__init__()
        self.low, self.high = torch.as_tensor(low), torch.as_tensor(high)
        if not bool((self.low < self.high).all()):
            raise ValueError(f"'low' must lie below 'high'; got {low} and {high}")

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
        return low + (high - low) * ndtr(x)

    def _inverse(self, y: Tensor) -> Tensor:
        low, high = self.low.to(y), self.high.to(y)
        # A value that rounding put on an end has a finite coordinate all the same.
        edge = torch.finfo(y.dtype).eps / 4
        return ndtri(((y - low) / (high - low)).clamp(edge, 1 - 2 * edge))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log dy/dx`` of each element."""
        width = (self.high - self.low).to(x)
        return width.log() - 0.5 * x.square() - LOG_SQRT_2PI


def box_of(prior: object) -> Box | None:
    """The box that a prior distribution lives on, or ``None``."""
    if not isinstance(prior, Distribution):
        return None
    support: Any = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not hasattr(support, "lower_bound") or not hasattr(support, "upper_bound"):
        return None
    return Box(support.lower_bound, support.upper_bound)
