r"""Losses whose minimiser is the flow map of a coupling of data and noise.

========== ====================================================================================
diagonal   :math:`\partial_t X(x_t, t, t) = x_1 - x_0` in expectation (flow matching)
Lagrangian :math:`\partial_t X(x_s, s, t) = \mathrm{sg}[v(X(x_s, s, t), t)]`, a time derivative
Eulerian   :math:`u(x_s, s, t) = \mathrm{sg}[v + (t - s) \tfrac{d}{ds} u]` along it (MeanFlow)
semigroup  :math:`X(x_s, s, t) = \mathrm{sg}[X(X(x_s, s, m), m, t)]`, no derivative
========== ====================================================================================

where sg stops the gradient and :math:`u = (X - x_s) / (t - s)` is the average velocity. Each of
the last three is added to the first. Sources: Boffi et al. 2025
(https://arxiv.org/abs/2505.18825), Geng et al. 2025 (https://arxiv.org/abs/2505.13447), Frans et
al. 2024 (https://arxiv.org/abs/2410.12557).

Every loss takes ``transport(x, s, t)`` and its diagonal velocity ``v(x, t)``, sums over dimensions
and returns one value per sample, ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

__all__ = ["FLOW_LOSSES", "diagonal", "eulerian", "lagrangian", "sample_times", "semigroup"]

TIME_STEP = 0.01
"""Span of the central difference in time."""

Carry = Callable[[Tensor, Tensor, Tensor], Tensor]
Velocity = Callable[[Tensor, Tensor], Tensor]


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """The path ``x_t`` between data ``x0`` and noise ``x1``, ``(n, d)``, at times ``t (n,)``."""
    return torch.lerp(x0, x1, t.unsqueeze(-1))


def diagonal(velocity: Velocity, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Flow matching: the velocity at ``(x_t, t)`` against ``x1 - x0``."""
    return (velocity(interpolate(x0, x1, t), t) - (x1 - x0)).square().sum(-1)


def lagrangian(
    transport: Carry, velocity: Velocity, x0: Tensor, x1: Tensor, s: Tensor, t: Tensor
) -> Tensor:
    """Lagrangian self-distillation: the map's own time derivative is the velocity where it
    arrives.

    The derivative is a central difference over ``TIME_STEP``. Its error, about 1e-5 of the
    derivative in single precision, is far below the loss's own noise, and it costs half of a
    forward-mode derivative, which normalisation layers make slow; in half precision it would
    drown.
    """
    x_s = interpolate(x0, x1, s)
    after, before = transport(x_s, s, t + TIME_STEP / 2), transport(x_s, s, t - TIME_STEP / 2)
    rate = (after - before) / TIME_STEP
    with torch.no_grad():
        target = velocity((after + before) / 2, t)
    return (rate - target).square().sum(-1)


def eulerian(
    transport: Carry, velocity: Velocity, x0: Tensor, x1: Tensor, s: Tensor, t: Tensor
) -> Tensor:
    """MeanFlow: the average velocity against the instantaneous one, corrected along the path."""
    x_s = interpolate(x0, x1, s)
    with torch.no_grad():
        v = velocity(x_s, s)
    # The average velocity is a quotient: keep it away from 0/0 without changing its sign.
    end = torch.where((t - s).abs() < 1e-3, s + torch.where(t < s, -1e-3, 1e-3), t)

    def average(x: Tensor, start: Tensor) -> Tensor:
        return (transport(x, start, end) - x) / (end - start).unsqueeze(-1)

    u, rate = jvp(average, (x_s, s), (v, torch.ones_like(s)))[:2]
    target = (v + (end - s).unsqueeze(-1) * rate).detach()
    return (u - target).square().sum(-1)


def semigroup(
    transport: Carry, velocity: Velocity, x0: Tensor, x1: Tensor, s: Tensor, t: Tensor
) -> Tensor:
    """One step equals two half steps; per unit of time, so that short steps count as much as long
    ones."""
    x_s = interpolate(x0, x1, s)
    with torch.no_grad():
        middle = (s + t) / 2
        target = transport(transport(x_s, s, middle), middle, t)
    gap = (t - s).abs().clamp_min(1e-2).unsqueeze(-1)
    return ((transport(x_s, s, t) - target) / gap).square().sum(-1)


FLOW_LOSSES = {"lagrangian": lagrangian, "eulerian": eulerian, "semigroup": semigroup}


def sample_times(
    num: int, like: Tensor, both_directions: bool, begin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Pairs of times ``(s, t)``, each ``(num,)``, for an off-diagonal loss.

    Half of the pairs start at an end of the path, where sampling (and encoding) starts; the others
    anywhere. Without ``both_directions`` only ``t < s``, from noise to data. Paths reach from 0 to
    ``begin``.
    """
    u = begin * torch.rand(3, num, dtype=like.dtype, device=like.device)
    high, low = torch.maximum(u[0], u[1]), torch.minimum(u[0], u[1])
    from_end = torch.arange(num, device=like.device) % 2 == 0
    s, t = torch.where(from_end, begin, high), torch.where(from_end, u[0], low)
    if not both_directions:
        return s, t
    encode = u[2] < begin / 2
    back_s, back_t = torch.where(from_end, 0.0, low), torch.where(from_end, u[0], high)
    return torch.where(encode, back_s, s), torch.where(encode, back_t, t)
