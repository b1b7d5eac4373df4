"""What every transport of noise to data can do, and where its paths begin."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = ["Base", "Transport"]


class Base(NamedTuple):
    """Where a path begins.

    The law of the noise is the same in training and in sampling: both take it from here.

    Attributes:
        law: of what is carried to data, batch shape ``(n,)``.
        time: at which it is found; data are at 0.
    """

    law: TorchDistribution
    time: float = 1.0


class Transport(Protocol):
    """Something that carries points along the paths between noise and data, at given observations.

    In every method points are ``(*sample, n, d)`` and times broadcast against ``(*sample, n)``.
    """

    def transport(self, x: Tensor, s: Tensor | float, t: Tensor | float) -> Tensor:
        """``X(x_s, s, t)``: from time s to time t."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """``v(x, t)``: the time derivative of the transport at ``s = t``."""

    def generate(self, z: Tensor, steps: int = 1, begin: float = 1.0) -> Tensor:
        """``X(z, begin, 0)`` in ``steps`` steps: noise to data."""

    def encode(self, x: Tensor, steps: int = 1, end: float = 1.0) -> Tensor:
        """``X(x, 0, end)`` in ``steps`` steps: data to noise."""

    def rows(self, rows: slice) -> Self:
        """The transport at some of the observations."""
