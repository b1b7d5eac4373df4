r"""How far the data of a field are from an observation, and how that changes with the field.

With :math:`x(\xi)` the field of whitened coordinates, a link of the prior's included, the
physics :math:`A` and Gaussian noise :math:`\Sigma = \operatorname{diag}(\sigma^2)`,

.. math:: r(\xi) = \Sigma^{-1/2} \bigl(A(x(\xi)) - y\bigr), \qquad
          J(\xi) = \frac{\partial r}{\partial \xi}, \qquad
          -\log p(\xi \mid y) = \tfrac12 |\xi|^2 + \tfrac12 |r(\xi)|^2 + \text{const}.

All observations of a batch are done at once. ``J`` takes one evaluation of the physics and a
gradient for each datum, which share it; or one call of ``physics.jacobian(x, **params)``, where
the physics has that: ``(n, *obs, *event)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.gaussian.matrix_free import apply
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.problem.likelihood import restored
from vfm_inverse.runtime.arrays import rows_of

__all__ = ["Misfit"]

NUMBERS = 2**20
"""Numbers of fields, or of Jacobians, that are sent through the physics at once: bounds memory
and stays near a processor."""


class Misfit:
    """``r(xi)`` for a batch of observations.

    Args:
        physics: ``A``; differentiable, or with a ``jacobian``.
        whitening: coordinates of the field.
        y: observations ``(n, *obs)``.
        noise: standard deviations, ``(n or 1, m or 1)``.
        params: parameters of the physics, each ``(n, ...)``.
    """

    def __init__(
        self,
        physics: Physics,
        whitening: Whitening,
        y: Tensor,
        noise: Tensor,
        params: Mapping[str, Tensor],
    ) -> None:
        self.physics, self.whitening = physics, whitening
        self.y, self.params = y.flatten(1), dict(params)
        self.noise = noise.expand(len(y), -1)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, d)``: numbers in an observation, and in a field."""
        return self.y.shape[1], self.whitening.dim

    def __getitem__(self, rows: slice | Tensor) -> Misfit:
        """Of some of the observations, each as often as it is named."""
        params = rows_of(self.params, rows)
        return Misfit(self.physics, self.whitening, self.y[rows], self.noise[rows], params)

    def __call__(self, xi: Tensor) -> Tensor:
        """``r(xi)``, ``(*sample, n, d)`` to ``(*sample, n, m)``."""
        flat = xi.reshape(-1, xi.shape[-1])
        own = torch.arange(len(self), device=xi.device).repeat(len(flat) // max(len(self), 1))
        step = max(1, NUMBERS // max(self.shape))
        parts = [
            self[rows]._residual(points)
            for rows, points in zip(own.split(step), flat.split(step), strict=True)
        ]
        return torch.cat(parts).reshape(*xi.shape[:-1], -1)

    def linearize(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """``r (n, m)`` and ``J (n, m, d)`` at ``xi (n, d)``."""
        m, d = self.shape
        step = max(1, NUMBERS // (m * d))
        parts = [self[i : i + step]._linearize(xi[i : i + step]) for i in range(0, len(xi), step)]
        residual, jacobian = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return residual, jacobian

    def _residual(self, xi: Tensor) -> Tensor:
        with restored(self.physics):
            data = apply(self.physics, self.whitening.unwhiten(xi), self.params)
        return (data - self.y) / self.noise

    @torch.enable_grad()
    def _linearize(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        own: Callable[..., Tensor] | None = getattr(self.physics, "jacobian", None)
        if own is not None:
            return self._residual(xi.detach()).detach(), self._through(own, xi)
        xi = xi.detach().requires_grad_()
        residual = self._residual(xi)
        return residual.detach(), rows_by_gradients(residual, xi)

    def _through(self, own: Callable[..., Any], xi: Tensor) -> Tensor:
        """``J`` from the Jacobian that the physics gives, through the link and the whitening."""
        m, d = self.shape
        points = xi.detach().repeat_interleave(m, 0).requires_grad_()
        x = self.whitening.unwhiten(points)
        with restored(self.physics):
            rows = own(x.detach()[::m], **self.params).reshape(x.shape)
        (jacobian,) = torch.autograd.grad(x, points, rows)
        return jacobian.unflatten(0, (-1, m)) / self.noise.unsqueeze(-1)


def rows_by_gradients(value: Tensor, at: Tensor) -> Tensor:
    """The Jacobian ``(n, m, d)`` of ``value (n, m)``, row by row a function of ``at (n, d)``, from
    the graph that computed it."""
    n, m = value.shape
    unit = torch.eye(m, dtype=value.dtype, device=value.device)
    try:
        together = unit.unsqueeze(1).expand(m, n, m)
        (rows,) = torch.autograd.grad(
            value, at, together, is_grads_batched=True, retain_graph=True
        )
    except (RuntimeError, NotImplementedError):  # a function that vmap cannot batch
        pieces = [
            torch.autograd.grad(value, at, one.expand(n, m), retain_graph=True)[0] for one in unit
        ]
        rows = torch.stack(pieces)
    return rows.transpose(0, 1)
