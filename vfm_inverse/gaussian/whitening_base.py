"""What every change of coordinates to a prior that looks like N(0, I) can do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from vfm_inverse.runtime.scaling import FittedBuffers, over

__all__ = ["Whitening"]


class Whitening(FittedBuffers, ABC):
    """Invertible change of coordinates between fields and whitened vectors.

    Args:
        event_shape: shape of one field, without batch dimensions; of its values without bounds
            where there is a transform that changes the shape.

    Attributes:
        transform: from unbounded values to the prior's support, before which the change of
            coordinates is affine; ``None`` where the prior has no bounds.
        support: constraint that the prior states and no transform keeps to, or ``None``.
        inner_shape: shape of the unbounded values.
        dim: d, their number.
    """

    LATER: tuple[str, ...] = ("spread",)
    mean: Tensor
    spread: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform: Transform | None = None
        self.support: Constraint | None = None
        self.inner_shape = torch.Size(event_shape)
        self.dim = math.prod(event_shape)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("spread", torch.ones(()))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one field."""
        if self.transform is None:
            return self.inner_shape
        return torch.Size(self.transform.forward_shape(self.inner_shape))

    def whiten(self, x: Tensor) -> Tensor:
        """Fields ``(*batch, *event)`` to coordinates ``(*batch, d)``."""
        v = x if self.transform is None else self.transform.inv(x)
        return self._divide(over(v.flatten(-len(self.inner_shape)) - self.mean, self.spread))

    def unwhiten(self, xi: Tensor) -> Tensor:
        """Coordinates ``(*batch, d)`` to fields ``(*batch, *event)``."""
        v = self._unbounded(xi)
        return v if self.transform is None else self.transform(v)

    def log_det(self, xi: Tensor) -> Tensor:
        """``log |dx / dxi|`` up to a constant, ``(*batch, d)`` to ``(*batch,)``."""
        if self.transform is None:
            return torch.zeros_like(xi[..., 0])
        v = self._unbounded(xi)
        rate = self.transform.log_abs_det_jacobian(v, self.transform(v))
        return rate.reshape(*xi.shape[:-1], -1).sum(-1)

    def _unbounded(self, xi: Tensor) -> Tensor:
        v = self.mean + self.spread * self._multiply(xi)
        return v.unflatten(-1, self.inner_shape)

    def color(self, xi: Tensor) -> Tensor:
        """The linear part of :meth:`unwhiten` where the prior has no bounds: ``D S xi`` as fields
        ``(*batch, *event)``."""
        return (self.spread * self._multiply(xi)).unflatten(-1, self.inner_shape)

    @abstractmethod
    def _multiply(self, xi: Tensor) -> Tensor:
        """``S xi`` for flat ``(*batch, d)``."""

    @abstractmethod
    def _divide(self, x: Tensor) -> Tensor:
        """``S^{-1} x`` for flat ``(*batch, d)``."""
