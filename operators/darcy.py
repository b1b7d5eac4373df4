r"""Steady Darcy flow: log-permeability to the pressure at sensors.

.. math:: -\nabla\cdot(e^{x} \nabla p) = f \text{ on } (0, 1)^2, \qquad p = 0 \text{ on the
          boundary},

with :math:`x` constant on the cells of an ``H x W`` grid and :math:`p` in the bilinear finite
elements of that grid, integrated exactly. With ``c = exp(x)`` the pressure of the inner nodes
solves :math:`K(c)\, p = b`. The matrix is block tridiagonal, with a block :math:`A_r` for a row of
nodes and :math:`B_r` for a row and the next, and its Cholesky factor, of the whole batch at once,
is

.. math:: L_r L_r^\top = A_r - W_{r-1}^\top W_{r-1}, \qquad W_r = L_r^{-1} B_r.

The derivatives are those of the discrete solution, by one more solve with the same factor: for a
cotangent :math:`\bar p` the adjoint state :math:`\lambda = K^{-1} \bar p` gives :math:`\bar b =
\lambda` and :math:`\bar c_e = -\lambda_e^\top k\, p_e` on the cell ``e`` with the four corners
:math:`p_e` and the element matrix ``k``; a tangent is :math:`\dot p = K^{-1}(\dot b - K(\dot c)
p)`. See Hinze, Pinnau, Ulbrich and Ulbrich 2009, *Optimization with PDE Constraints*, section 1.6
(https://doi.org/10.1007/978-1-4020-8839-1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, NoiseModel, Physics
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from vfm_inverse.operators.masked import MaskedPhysics
from vfm_inverse.operators.observation import PointObservations

__all__ = ["Darcy", "solve_darcy"]


class Darcy(MaskedPhysics):
    """Log-permeability ``(batch, 1, h, w)`` to the pressure at sensors ``(batch, N)``.

    Units: lengths in the side of the square; the permeability ``exp(x)`` (over the viscosity) and
    the source ``f`` fix that of the pressure, ``[f] length^2 / [exp(x)]``. The pressure vanishes
    on all four sides.

    Args:
        img_size: ``(1, h, w)``.
        points: sensor coordinates ``(N, 2)`` in ``[0, 1]``: down, right.
        source: ``f``, one number or one a finite element, ``(1, H, W)``.
        refine: finite elements along each side of a cell of the field: ``H = refine h``.
        noise_model: deepinv noise model; Gaussian with sigma 0.01 by default.

    In a call, ``source`` is a number, one a sample ``(batch,)`` or one an element ``(batch, 1, H,
    W)``; it is not stored. ``mask`` as in ``MaskedPhysics``. Derivatives exist with respect to the
    field and the source, in forward and reverse mode and of any order.

    Raises:
        ValueError: a shape does not fit, a sensor lies outside the square, or there are fewer than
            two elements a side.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        points: Tensor,
        source: Tensor | float = 1.0,
        refine: int = 1,
        noise_model: NoiseModel | None = None,
    ) -> None:
        super().__init__(noise_model or GaussianNoise(0.01))
        img_size = tuple(img_size)
        if len(img_size) != 3 or img_size[0] != 1 or refine < 1 or min(img_size[1:]) * refine < 2:
            raise ValueError(
                "'img_size' must be (1, h, w) with at least two elements a side; "
                f"got {img_size} and 'refine' {refine}"
            )
        elements = tuple(refine * side for side in img_size[1:])
        source = torch.as_tensor(source, dtype=torch.get_default_dtype())
        if source.dim() and source.shape != (1, *elements):
            raise ValueError(
                f"'source' must be a number or have shape {(1, *elements)}; "
                f"got {tuple(source.shape)}"
            )
        self.img_size = img_size
        self.refine = refine
        self.elements = elements
        self.sensors = PointObservations((1, *(side + 1 for side in elements)), points)
        self.register_buffer("source", source)

    def predict(self, x: Tensor, source: Tensor | float | None = None, **params: Any) -> Tensor:
        """``(batch, 1, h, w)`` to ``(batch, N)``."""
        return self.sensors.A(self.pressure(x, source))

    def pressure(self, x: Tensor, source: Tensor | float | None = None) -> Tensor:
        """Pressure at all nodes, ``(batch, 1, h, w)`` to ``(batch, 1, H + 1, W + 1)``."""
        if x.dim() != 4 or x.shape[1:] != self.img_size:
            raise ValueError(
                f"'x' must have shape (batch, {', '.join(map(str, self.img_size))}); "
                f"got {tuple(x.shape)}"
            )
        c, f = self._elementwise(x, source)
        return solve_darcy(c, f).unsqueeze(1)

    def jacobian(
        self,
        x: Tensor,
        source: Tensor | float | None = None,
        mask: Tensor | None = None,
        **params: Any,
    ) -> Tensor:
        """Derivatives of the data, ``(batch, 1, h, w)`` to ``(batch, N, 1, h, w)``: one
        factorisation, and a right-hand side for each sensor."""
        c, f = self._elementwise(x, source)
        factor = _factorise(c)
        p = _substitute(factor, _load(f))
        sides = [side + 1 for side in self.elements]
        nodes = torch.eye(sides[0] * sides[1], dtype=x.dtype, device=x.device)
        rows = self.sensors.A(nodes.unflatten(1, (1, *sides))).unflatten(0, sides)
        right = rows[1:-1, 1:-1].expand(len(x), -1, -1, -1)
        adjoint = _substitute_all(factor, right).movedim(-1, 1)
        slope = -(_corners(adjoint) * _stiffness(_corners(p)).unsqueeze(1)).sum(-3) * c[:, None]
        h, w = self.img_size[1:]
        slope = slope.reshape(len(x), -1, 1, h, self.refine, w, self.refine).sum((-3, -1))
        return self._masked_rows(slope, mask)

    def _elementwise(self, x: Tensor, source: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """Permeability and source of every element, ``(batch, H, W)``."""
        f = self.source if source is None else torch.as_tensor(source)
        f = f.to(x)
        f = f.reshape(-1, 1, 1) if f.dim() < 3 else f.reshape(-1, *self.elements)
        c = x.exp().squeeze(1)
        c = c.repeat_interleave(self.refine, -2).repeat_interleave(self.refine, -1)
        return c, f.expand_as(c)


def solve_darcy(permeability: Tensor, source: Tensor) -> Tensor:
    """Finite-element pressure of a batch of elementwise constant permeabilities.

    Args:
        permeability: positive, ``(*, H, W)``; not its logarithm.
        source: ``(*, H, W)``, constant on each element.

    Returns:
        The pressure at the nodes, ``(*, H + 1, W + 1)``, zero on the boundary; inside not a number
        where a permeability overflowed or rounding left the matrix indefinite.
    """
    c = permeability
    inner: Tensor = _Solve.apply(c, _load(source), *_factorise(c.detach()))
    return pad(inner, (1, 1, 1, 1))


def _load(f: Tensor) -> Tensor:
    """Right-hand side ``(*, H - 1, W - 1)`` of a source ``(*, H, W)``."""
    area = 1 / (f.shape[-2] * f.shape[-1])
    return area / 4 * (f[..., :-1, :-1] + f[..., :-1, 1:] + f[..., 1:, :-1] + f[..., 1:, 1:])


class _Solve(Function):
    """Inner pressure ``(*, H - 1, W - 1)`` of ``K(c) p = b``, given the factor of ``K(c)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(c: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        return _substitute(factor, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        c, _, *factor = inputs
        ctx.save_for_backward(c, output, *factor)
        ctx.save_for_forward(c, output, *factor)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        c, p, *factor = ctx.saved_tensors
        adjoint = _Solve.apply(c, cotangent, *factor)
        slope = -(_corners(adjoint) * _stiffness(_corners(p))).sum(-3)
        return slope, adjoint, *(None for _ in factor)

    @staticmethod
    def jvp(ctx: Any, dc: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
        c, p, *factor = ctx.saved_tensors
        right = torch.zeros_like(p) if db is None else db
        if dc is not None:
            right = right - _gather(dc.unsqueeze(-3) * _stiffness(_corners(p)))
        return _Solve.apply(c, right, *factor)


def _element(rows: int, columns: int) -> list[list[float]]:
    """Stiffness ``k`` of an element between its corners (0, 0), (0, 1), (1, 0), (1, 1)."""
    stiffness = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    mass = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) / 6
    ratio = columns / rows  # height of an element over its width
    matrix = ratio * torch.kron(mass, stiffness) + torch.kron(stiffness, mass) / ratio
    return matrix.tolist()


def _factorise(c: Tensor) -> tuple[Tensor, ...]:
    """Blocks ``L_0, W_0, L_1, W_1, ..., L_{H-2}`` of the factor, each ``(*, W - 1, W - 1)``.

    Where a coefficient overflowed or rounding left a matrix indefinite, the last block, and with
    it every solution, is not a number: one field of a batch does not stop the others.
    """
    (own, east, south, diagonal), *_ = _element(*c.shape[-2:])
    beside = c[..., :-1, :] + c[..., 1:, :]
    center = own * (beside[..., :-1] + beside[..., 1:])
    right = east * beside[..., 1:-1]
    between = c[..., 1:-1, :]
    below = south * (between[..., :-1] + between[..., 1:])
    across = diagonal * between[..., 1:-1]
    factor: list[Tensor] = []
    failed = torch.zeros(c.shape[:-2], dtype=torch.bool, device=c.device)
    block = _symmetric_tridiagonal(center[..., 0, :], right[..., 0, :])
    for row in range(c.shape[-2] - 2):
        lower, info = torch.linalg.cholesky_ex(block)
        failed = failed | (info > 0)
        coupling = _symmetric_tridiagonal(below[..., row, :], across[..., row, :])
        coupling = torch.linalg.solve_triangular(lower, coupling, upper=False)
        factor += [lower, coupling]
        block = _symmetric_tridiagonal(
            center[..., row + 1, :], right[..., row + 1, :], -(coupling.mT @ coupling)
        )
    lower, info = torch.linalg.cholesky_ex(block)
    return *factor, lower.masked_fill_((failed | (info > 0))[..., None, None], torch.nan)


def _symmetric_tridiagonal(diagonal: Tensor, beside: Tensor, to: Tensor | None = None) -> Tensor:
    """Matrices ``(*, m, m)`` of ``(*, m)`` and ``(*, m - 1)``, added to ``to`` in place."""
    matrix = diagonal.new_zeros(*diagonal.shape, diagonal.shape[-1]) if to is None else to
    matrix.diagonal(0, -2, -1).add_(diagonal)
    matrix.diagonal(1, -2, -1).add_(beside)
    matrix.diagonal(-1, -2, -1).add_(beside)
    return matrix


def _substitute(factor: Sequence[Tensor], b: Tensor) -> Tensor:
    """Solve for right-hand sides ``(*, H - 1, W - 1)``."""
    return _substitute_all(factor, b.unsqueeze(-1)).squeeze(-1)


def _substitute_all(factor: Sequence[Tensor], b: Tensor) -> Tensor:
    """Solve for k right-hand sides each, ``(*, H - 1, W - 1, k)``, forward and back through the
    rows."""
    lowers, couplings = factor[0::2], factor[1::2]
    y = [torch.linalg.solve_triangular(lowers[0], b[..., 0, :, :], upper=False)]
    for row, (lower, coupling) in enumerate(zip(lowers[1:], couplings, strict=True), 1):
        right = b[..., row, :, :] - coupling.mT @ y[-1]
        y.append(torch.linalg.solve_triangular(lower, right, upper=False))
    p = [torch.linalg.solve_triangular(lowers[-1].mT, y[-1], upper=True)]
    for lower, coupling, right in zip(
        reversed(lowers[:-1]), reversed(couplings), reversed(y[:-1]), strict=True
    ):
        p.append(torch.linalg.solve_triangular(lower.mT, right - coupling @ p[-1], upper=True))
    return torch.stack(p[::-1], -3)


def _corners(inner: Tensor) -> Tensor:
    """Values at the corners of every element: ``(*, H - 1, W - 1)`` to ``(*, 4, H, W)``."""
    p = pad(inner, (1, 1, 1, 1))
    return torch.stack([p[..., :-1, :-1], p[..., :-1, 1:], p[..., 1:, :-1], p[..., 1:, 1:]], -3)


def _gather(corners: Tensor) -> Tensor:
    """Transpose of ``_corners``: ``(*, 4, H, W)`` to the inner nodes ``(*, H - 1, W - 1)``."""
    upper_left, upper_right, lower_left, lower_right = corners.unbind(-3)
    return (
        upper_left[..., 1:, 1:]
        + upper_right[..., 1:, :-1]
        + lower_left[..., :-1, 1:]
        + lower_right[..., :-1, :-1]
    )


def _stiffness(corners: Tensor) -> Tensor:
    """``k p_e`` of every element, ``(*, 4, H, W)``."""
    element = torch.tensor(
        _element(*corners.shape[-2:]), dtype=corners.dtype, device=corners.device
    )
    return torch.einsum("ij,...jhw->...ihw", element, corners)


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of the operators above."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(7, 2, generator=generator)
    x = torch.randn(2, 1, 6, 5, generator=generator)
    yield "darcy", Darcy((1, 6, 5), points), x
    yield "darcy-refined", Darcy((1, 6, 5), points, source=10.0, refine=2), x
