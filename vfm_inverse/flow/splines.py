r"""Conditional neural spline flows as a family of noise adapters.

The law is that of :math:`T^{-1}(e)`, :math:`e \sim \mathcal N(0, I)`, with an autoregressive
transform T of monotonic rational-quadratic splines whose knots a network gives from the
observation (Durkan et al. 2019, https://arxiv.org/abs/1906.04032; the transforms are those of the
package ``zuko``, extra ``flows``). Its last layers start at zero, where every spline is the
identity and the law N(0, I).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from vfm_inverse.gaussian.frames import Framed
from vfm_inverse.gaussian.normals import standard_normal

__all__ = ["Flowed", "fresh_flow"]

AUTOREGRESSIVE_LIMIT = 16
"""Most dimensions with a fully autoregressive transform, whose draws take a pass of the network a
dimension; above, a coupling transform takes two."""


class Flowed(Framed, TorchDistribution):
    """The law of ``transform.inv(e)``, ``e ~ N(0, I)``, or of that along some directions only.

    Args:
        transform: a zuko transform over the last dimension, with ``call_and_ladj`` and ``inv``.
        batch_shape: the batch that it broadcasts over.
        like: any tensor ``(..., d)`` of the dtype and device that draws shall have.
        basis: orthonormal columns ``(d, rank)``: the transform acts on the coefficients along
            them, and what is orthogonal to them stays N(0, I).
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, transform: Any, batch_shape: torch.Size, like: Tensor, basis: Tensor | None = None
    ) -> None:
        self.transform, self.like, self.basis = transform, like, basis
        super().__init__(batch_shape, like.shape[-1:], validate_args=False)

    def standardize(self, z: Tensor) -> Tensor:
        """Coordinates ``(*sample, n, d)`` in which the law is N(0, I)."""
        return self._along(self.transform, z)

    def unstandardize(self, e: Tensor) -> Tensor:
        """The inverse of :meth:`standardize`."""
        return self._along(self.transform.inv, e)

    def standard(self) -> TorchDistribution:
        """N(0, I)."""
        return standard_normal(self.batch_shape[0], self.like)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Reparametrised draws, ``(*sample, n, d)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        e = torch.randn(shape, dtype=self.like.dtype, device=self.like.device)
        return self.unstandardize(e)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws, ``(*sample, n, d)``."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, n, d)``, ``(*sample, n)``."""
        inner = value if self.basis is None else value @ self.basis
        e, log_det = self.transform.call_and_ladj(inner)
        # What is orthogonal to the basis keeps its length.
        square = e.square().sum(-1) + value.square().sum(-1) - inner.square().sum(-1)
        return -0.5 * (square + value.shape[-1] * math.log(2 * math.pi)) + log_det

    def _along(self, transform: Any, z: Tensor) -> Tensor:
        if self.basis is None:
            return transform(z)
        inner = z @ self.basis
        return z + (transform(inner) - inner) @ self.basis.T


def fresh_flow(dim: int, context: int, transforms: int = 3, width: int = 128) -> nn.Module:
    """A conditional spline flow over ``(dim,)`` given ``(context,)`` that is the identity.

    Raises:
        ImportError: zuko is not installed.
    """
    try:
        import zuko
    except ImportError as error:
        raise ImportError(
            "the family 'spline' takes its transforms from zuko: pip install 'vfm-inverse[flows]'"
        ) from error
    flow = zuko.flows.NSF(
        dim,
        context,
        transforms=transforms,
        passes=None if dim <= AUTOREGRESSIVE_LIMIT else 2,
        hidden_features=(width, width),
    )
    for transform in flow.transform.transforms:
        nn.init.zeros_(transform.hyper[-1].weight)
        nn.init.zeros_(transform.hyper[-1].bias)
    made: nn.Module = flow
    return made
