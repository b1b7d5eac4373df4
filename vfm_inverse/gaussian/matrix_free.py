r"""Linear algebra of a Gaussian posterior by products with the operator: no d x d matrix.

With :math:`B = A D S`, the operator on whitened coordinates, and :math:`W = B / \sigma` row by
row: the posterior mean by conjugate gradients (Hestenes and Stiefel 1952),

.. math:: (I + W^\top W)\, \mu = W^\top \sigma^{-1} (y - A m),

and the leading eigenvectors of :math:`\mathbb E[W^\top W]` by subspace iteration from a random
start (Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, Algorithm 4.4).
:math:`B^\top` comes from reverse differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import rows_of

__all__ = [
    "apply",
    "chunks",
    "leading",
    "noise_level",
    "normal_products",
    "posterior_mean",
    "solve",
]

NUMBERS = 2**23
"""Numbers of fields that are sent through the physics at once: bounds memory."""

MEAN_TOLERANCE, MEAN_STEPS = 1e-2, 100
"""Square of the mean's error, over the whole field and in posterior standard deviations, at which
conjugate gradients stop; and the most steps they take."""

ITERATIONS, BEYOND = 3, 16
"""Rounds of the subspace iteration, and directions it follows beyond those asked for."""


def noise_level(likelihood: Likelihood, params: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Standard deviation of Gaussian noise, ``(n or 1, m or 1)``: per observation, per datum, or
    for all."""
    sigma = likelihood.noise_scale(**params)
    if sigma is None:
        raise ValueError(f"'likelihood' must have Gaussian noise; got {likelihood!r}")
    rows = sigma.shape[0] if "sigma" in params else 1
    return sigma.to(like).reshape(rows, -1)


def apply(physics: Physics, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """Noise-free flat data ``(n, m)`` of fields ``(n, *event)``; one set of parameters serves all
    fields."""
    params = {
        name: value.expand(x.shape[0], *value.shape[1:]) if value.shape[0] == 1 else value
        for name, value in params.items()
    }
    data: Tensor = physics.A(x, **params)
    return data.flatten(1)


def chunks(num: int, size: int) -> Iterator[slice]:
    """Slices over ``num`` vectors of ``size`` numbers, so many that memory is bounded."""
    step = max(1, NUMBERS // size)
    return (slice(i, min(i + step, num)) for i in range(0, num, step))


@torch.enable_grad()
def normal_products(
    physics: Physics,
    likelihood: Likelihood,
    whitening: Whitening,
    xi: Tensor,
    params: Mapping[str, Tensor],
) -> Tensor:
    """``W^T W xi`` for vectors ``(n, d)``, each with its own parameters ``(n, ...)``."""
    parts = []
    for rows in chunks(len(xi), whitening.dim):
        own = rows_of(params, rows)
        x = xi[rows].detach().requires_grad_()
        data = apply(physics, whitening.color(x), own)
        noise = noise_level(likelihood, own, data)
        parts.append(torch.autograd.grad(data, x, data.detach() / noise.square())[0])
    return torch.cat(parts)


def leading(product: Callable[[Tensor], Tensor], like: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(rank,)``, the largest first, and eigenvectors ``(d, rank)`` of a symmetric
    operator that is nowhere negative.

    Args:
        product: the operator on rows ``(n, d)``.
        like: ``(d,)``, of the type wanted.
        rank: how many.
    """
    size = min(rank + BEYOND, len(like))
    basis = torch.linalg.qr(torch.randn(len(like), size).to(like))[0]
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(product(basis.T.contiguous()).T)[0]
    compressed = basis.T.double() @ product(basis.T.contiguous()).T.double()
    values, rotation = torch.linalg.eigh((compressed + compressed.T) / 2)
    order = torch.arange(size - 1, size - 1 - min(rank, size), -1)
    return values[order].clamp_min(0), basis @ rotation[:, order].to(like)


@torch.enable_grad()
def posterior_mean(
    physics: Physics,
    likelihood: Likelihood,
    whitening: Whitening,
    y: Tensor,
    params: Mapping[str, Tensor],
    centred: ContractedNormal,
) -> Tensor:
    """The posterior mean ``(n, d)`` of observations ``(n, *obs)``, exact up to
    :data:`MEAN_TOLERANCE`, from the approximate covariance of ``centred``."""
    noise = noise_level(likelihood, params, y)
    xi = torch.zeros_like(centred.loc, requires_grad=True)
    data = apply(physics, whitening.unwhiten(xi), params)

    def adjoint(residual: Tensor) -> Tensor:
        """Of a residual in units of the noise."""
        return torch.autograd.grad(data, xi, residual / noise, retain_graph=True)[0]

    def hessian(v: Tensor) -> Tensor:
        with torch.no_grad():
            moved = apply(physics, whitening.color(v), params)
        return v + adjoint(moved / noise)

    pull = adjoint((y.flatten(1) - data.detach()) / noise)
    with torch.no_grad():
        covariance = centred.scale.square()

        def precondition(r: Tensor) -> Tensor:
            if not isinstance(centred.basis, Tensor):
                return centred.contract(r, covariance)
            along = centred.project(r)
            rest = r - centred.lift(along)
            # Once more: what rounding left of it along precise directions outweighs them.
            rest = rest - centred.lift(centred.project(rest))
            return rest + centred.lift(covariance * along)

        return solve(hessian, pull, precondition)


def solve(
    operator: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Solutions ``(n, d)`` of ``operator(x) = right`` for symmetric positive operators, by
    preconditioned conjugate gradients."""
    x = precondition(right)
    residual = right - operator(x)
    direction = corrected = precondition(residual)
    size = (residual * corrected).sum(-1, keepdim=True)
    for _ in range(MEAN_STEPS):
        if float(size.max()) < MEAN_TOLERANCE:
            break
        moved = operator(direction)
        step = size / (direction * moved).sum(-1, keepdim=True).clamp_min(1e-30)
        x, residual = x + step * direction, residual - step * moved
        corrected = precondition(residual)
        before, size = size, (residual * corrected).sum(-1, keepdim=True)
        direction = corrected + size / before.clamp_min(1e-30) * direction
    return x
