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

from collections.abc import Callable, Sequence
from functools import lru_cache
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
        late = _late(delay)
        t = _columns(torch.where(known > 0, start, late))
        # An infinite delay leaves the known times alone.
        f = _columns(torch.where(known > 0, torch.inf, delay))

        def update(
            own: Tensor, around: Sequence[Tensor], slow: Tensor, double_square: Tensor
        ) -> None:
            up, down, left, right = around
            a, b = torch.minimum(up, down), torch.minimum(left, right)
            difference = torch.minimum((a - b).abs_(), slow)
            root = torch.addcmul(double_square, difference, difference, value=-1).sqrt_()
            arrival = torch.minimum(a, b).add_(difference.add_(root), alpha=0.5)
            torch.minimum(own, arrival, out=own)

        t = _sweep(update, t, [f, 2 * f.square()], delay.shape[-2:], beyond=late)
        return t.mT.reshape(delay.shape)

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
        w = [_columns(weight) for weight in weights.unbind(-3)]
        r = _columns(right)

        def update(
            own: Tensor, around: Sequence[Tensor], constant: Tensor, *weight: Tensor
        ) -> None:
            total = torch.addcmul(constant, weight[0], around[0])
            for factor, neighbour in zip(weight[1:], around[1:], strict=True):
                total.addcmul_(factor, neighbour)
            own.copy_(total)

        z = _sweep(update, r, [r, *w], right.shape[-2:])
        return z.mT.reshape(right.shape)

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


def _late(times: Tensor) -> float:
    """Later than all arrivals. Not infinity, whose differences are NaN, and with a finite square,
    which is taken from that of an infinite delay."""
    return torch.finfo(times.dtype).max ** 0.5 / 4


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
    late = _late(times)
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
    # Rounding can swallow a delay beside the time that it is added to; no derivative is left then.
    free = torch.where((known == 0) & (total > 0), 1 / torch.where(total > 0, total, 1), 0)
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


def _columns(field: Tensor) -> Tensor:
    """``(*, H, W)`` to ``(H W, fields)``."""
    return field.flatten(-2).flatten(0, -2).mT


def _sweep(
    update: Callable[..., None],
    values: Tensor,
    constants: Sequence[Tensor],
    grid: Sequence[int],
    beyond: float = 0.0,
) -> Tensor:
    """Update the diagonals in four orders, again and again, until nothing changes.

    Args:
        update: ``update(own, around, *constants)`` changes a diagonal ``(nodes, fields)`` in
            place, given its four neighbours and its part of the constants.
        values: ``(H W, fields)``.
        constants: each ``(H W, fields)``.
        grid: ``(H, W)``.
        beyond: value outside the grid.
    """
    orders = []
    for mirrored in (False, True):
        into, back, spans = _diagonals(*grid, mirrored)
        into, back = into.to(values.device), back.to(values.device)
        fixed = [pad(constant, (0, 0, 0, 1))[into] for constant in constants]
        orders.append((into, back, (*spans, *reversed(spans)), fixed))
    for _ in range(len(values)):
        before = values
        for number, (into, back, spans, fixed) in enumerate(orders):
            field = pad(values, (0, 0, 0, 1), value=beyond)[into]
            for k, low, high in spans:
                up, down = field[k - 1, low - 1 : high - 1], field[k + 1, low + 1 : high + 1]
                left, right = field[k - 1, low:high], field[k + 1, low:high]
                around = (up, down, right, left) if number else (up, down, left, right)
                update(field[k, low:high], around, *(part[k, low:high] for part in fixed))
            values = field.flatten(0, 1)[back]
        if not bool(((values - before).abs() > 0).any()):  # False for NaN, which stays
            break
    return values


@lru_cache(maxsize=32)
def _diagonals(
    height: int, width: int, mirrored: bool
) -> tuple[Tensor, Tensor, tuple[tuple[int, int, int], ...]]:
    """A layout in which diagonals, and their neighbours, are slices.

    Node ``(i, j)`` sits at ``[i + j + 1, i + 1]``, after the columns are mirrored, of an array
    with a margin.

    Returns:
        ``into``, ``(H + W + 1, H + 2)``: which node sits where, ``H W`` in the margin; ``back``,
        ``(H W,)``: where a node sits in the flattened array; and of each diagonal its row, its
        first place and the place after its last.
    """
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = row + (width - 1 - column if mirrored else column)
    back = ((distance + 1) * (height + 2) + row + 1).flatten()
    into = torch.full(((height + width + 1) * (height + 2),), height * width)
    into[back] = torch.arange(height * width)
    spans = tuple(
        (k + 1, max(0, k - width + 1) + 1, min(height - 1, k) + 2)
        for k in range(height + width - 1)
    )
    return into.reshape(height + width + 1, height + 2), back, spans
