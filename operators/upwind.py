r"""First arrivals on a grid by fast sweeping, with the exact derivative of the discrete solution.

The upwind scheme of the eikonal equation :math:`|\nabla T| = s` on a grid of spacing ``h``
(Rouy and Tourin 1992; Zhao 2005, https://doi.org/10.1090/S0025-5718-04-01678-3) is

.. math:: (T - a)_+^2 + (T - b)_+^2 = f^2, \qquad f = h s,

with the earlier neighbour along each axis, :math:`a` and :math:`b`. Its solution is the fixed
point of sweeps over the grid in four diagonal orders, reached after finitely many; a sweep works
on one diagonal of all fields at a time.

Differentiated at the solution, with :math:`p = (T - a)_+` and :math:`q = (T - b)_+`,

.. math:: \dot T = \frac{p\, \dot a + q\, \dot b + f \dot f}{p + q}:

each time depends on at most two earlier ones. That linear system and its transpose are triangular
in the order of the times, and the same sweeps solve both. Where two wave fronts meet, the earlier
one decides; the derivative is one-sided there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

__all__ = ["first_arrivals"]

# The neighbour behind and ahead along each axis; the opposite of neighbour d is d ^ 1.
_NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def first_arrivals(delay: Tensor, start: Tensor, known: Tensor) -> Tensor:
    """Arrival times at the nodes of a grid.

    Args:
        delay: positive, ``f = h s``, the time across one grid spacing, ``(*, H, W)``.
        start: times where they are known, ``(*, H, W)``; of no effect elsewhere.
        known: where, boolean, broadcast against ``(*, H, W)``, at least one node of each field.

    Returns:
        Times ``(*, H, W)``, differentiable with respect to ``delay`` and ``start``, in forward and
        reverse mode.
    """
    fields = torch.broadcast_tensors(delay, start, known.to(delay))
    times: Tensor = _FirstArrivals.apply(*fields)
    return times


class _FirstArrivals(Function):
    @staticmethod
    def forward(delay: Tensor, start: Tensor, known: Tensor) -> Tensor:
        # Not infinity, whose differences are NaN.
        late = torch.full_like(delay, torch.finfo(delay.dtype).max / 4)
        f, here, t = (
            _columns(field, float(late.flatten()[0]))
            for field in (delay, known, torch.where(known > 0, start, late))
        )
        width = delay.shape[-1] + 2

        def update(index: Tensor) -> None:
            a = torch.minimum(t[index - width], t[index + width])
            b = torch.minimum(t[index - 1], t[index + 1])
            own, slow = t[index], f[index]
            difference = torch.minimum((a - b).abs(), slow)
            root = (2 * slow.square() - difference.square()).sqrt()
            arrival = torch.minimum(a, b) + (difference + root) / 2
            t[index] = torch.where(here[index] > 0, own, torch.minimum(own, arrival))

        _sweep(update, t, delay.shape[-2:])
        return _grid(t, delay.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        delay, _, known = inputs
        ctx.save_for_backward(delay, known, output)
        ctx.save_for_forward(delay, known, output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        delay, known, times = ctx.saved_tensors
        weights, own = _linearised(delay, known, times)
        adjoint = _Upwind.apply(_transposed(weights), cotangent)
        return adjoint * own, adjoint * known, None

    @staticmethod
    def jvp(ctx: Any, d_delay: Tensor | None, d_start: Tensor | None, _: None) -> Tensor:
        delay, known, times = ctx.saved_tensors
        weights, own = _linearised(delay, known, times)
        right = torch.zeros_like(times)
        if d_delay is not None:
            right = right + own * d_delay
        if d_start is not None:
            right = right + known * d_start
        return _Upwind.apply(weights, right)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Tensor) -> tuple[Tensor, int]:
        return _FirstArrivals.apply(*_mapped_first(info, in_dims, inputs)), 0


class _Upwind(Function):
    """Solve ``z_i = r_i + sum_d w_{d, i} z_{i + d}`` for weights ``(*, 4, H, W)``."""

    @staticmethod
    def forward(weights: Tensor, right: Tensor) -> Tensor:
        w = [_columns(weight.expand_as(right)) for weight in weights.unbind(-3)]
        r = _columns(right)
        z = r.clone()
        width = right.shape[-1] + 2
        offsets = [down * width + across for down, across in _NEIGHBOURS]

        def update(index: Tensor) -> None:
            total = r[index]
            for weight, offset in zip(w, offsets, strict=True):
                total = total + weight[index] * z[index + offset]
            z[index] = total

        _sweep(update, z, right.shape[-2:])
        return _grid(z, right.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        weights, z = ctx.saved_tensors
        adjoint = _Upwind.apply(_transposed(weights), cotangent)
        return adjoint.unsqueeze(-3) * _neighbours(z), adjoint

    @staticmethod
    def jvp(ctx: Any, d_weights: Tensor | None, d_right: Tensor | None) -> Tensor:
        weights, z = ctx.saved_tensors
        right = torch.zeros_like(z) if d_right is None else d_right
        if d_weights is not None:
            right = right + (d_weights * _neighbours(z)).sum(-3)
        return _Upwind.apply(weights, right)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Tensor) -> tuple[Tensor, int]:
        return _Upwind.apply(*_mapped_first(info, in_dims, inputs)), 0


def _mapped_first(
    info: Any, in_dims: Sequence[int | None], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Give every tensor the mapped dimension, in front."""
    return [
        value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
        for value, dim in zip(inputs, in_dims, strict=True)
    ]


def _linearised(delay: Tensor, known: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to the four neighbours, ``(*, 4, H, W)``, and to the delay."""
    late = torch.finfo(times.dtype).max / 4
    around = _neighbours(times, late)
    vertical, horizontal = around[..., :2, :, :], around[..., 2:, :, :]
    own = times.unsqueeze(-3)
    slopes = torch.cat(
        [
            # Of two equal neighbours the first counts.
            torch.where(vertical == vertical.amin(-3, keepdim=True), own - vertical, 0),
            torch.where(horizontal == horizontal.amin(-3, keepdim=True), own - horizontal, 0),
        ],
        -3,
    ).clamp_min(0)
    second = torch.zeros_like(slopes)
    second[..., 1::2, :, :] = (slopes[..., 0::2, :, :] > 0).to(slopes)
    slopes = slopes * (1 - second)
    total = slopes.sum(-3)
    free = (1 - known) / torch.where(known > 0, 1, total)
    return slopes * free.unsqueeze(-3), delay * free


def _neighbours(field: Tensor, beyond: float = 0.0) -> Tensor:
    """Values at the four neighbours, ``(*, H, W)`` to ``(*, 4, H, W)``."""
    height, width = field.shape[-2:]
    padded = pad(field, (1, 1, 1, 1), value=beyond)
    shifted = [
        padded[..., 1 + down : 1 + down + height, 1 + across : 1 + across + width]
        for down, across in _NEIGHBOURS
    ]
    return torch.stack(shifted, -3)


def _transposed(weights: Tensor) -> Tensor:
    """Weights of the transpose: what the neighbour ``d`` of a node takes from the node."""
    around = [_neighbours(weights[..., d ^ 1, :, :])[..., d, :, :] for d in range(4)]
    return torch.stack(around, -3)


def _columns(field: Tensor, beyond: float = 0.0) -> Tensor:
    """``(*, H, W)`` to ``((H + 2) (W + 2), fields)``: a diagonal is a few contiguous rows."""
    return pad(field, (1, 1, 1, 1), value=beyond).flatten(-2).flatten(0, -2).mT.contiguous()


def _grid(columns: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape[-2:]
    padded = columns.mT.reshape(*shape[:-2], height + 2, width + 2)
    return padded[..., 1:-1, 1:-1].contiguous()


def _sweep(update: Any, values: Tensor, grid: Sequence[int]) -> None:
    """Update the diagonals in four orders, again and again, until nothing changes."""
    height, width = grid
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    index = (row + 1) * (width + 2) + column + 1
    orders = []
    for number in (row + column, row - column + width - 1):
        diagonals = [index[number == k].to(values.device) for k in range(int(number.max()) + 1)]
        orders += [diagonals, diagonals[::-1]]
    for _ in range(height * width):
        before = values.clone()
        for order in orders:
            for diagonal in order:
                update(diagonal)
        if not bool(((values - before).abs() > 0).any()):  # False for NaN, which stays
            return
