"""Laws as frames: coordinates in which a law is N(0, I), or at least simpler.

A map that starts where a law is standard has nothing left to learn where that law is right. What
has such coordinates is :class:`Framed`; the functions take any law, and leave one that has none as
it is.
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = ["Framed", "standard_law", "standardize", "unstandardize"]


class Framed:
    """A distribution over ``(d,)``, batch shape ``(n,)``, that has a frame."""

    def standardize(self, z: Tensor) -> Tensor:
        """Coordinates ``(*sample, n, d)`` of ``z`` in the frame."""
        raise NotImplementedError

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """The inverse of :meth:`standardize`."""
        raise NotImplementedError

    def standard(self) -> TorchDistribution:
        """The law of ``standardize(z)``."""
        raise NotImplementedError


def standardize(q: TorchDistribution, z: Tensor) -> Tensor:
    """Coordinates ``(*sample, n, d)`` in the frame of ``q``; ``z`` itself where it has none."""
    return q.standardize(z) if isinstance(q, Framed) else z


def unstandardize(q: TorchDistribution, zeta: Tensor) -> Tensor:
    """The inverse of :func:`standardize`."""
    return q.unstandardize(zeta) if isinstance(q, Framed) else zeta


def standard_law(q: TorchDistribution) -> TorchDistribution:
    """The law of ``standardize(q, z)``, ``z ~ q``: N(0, I) for a Gaussian."""
    return q.standard() if isinstance(q, Framed) else q
