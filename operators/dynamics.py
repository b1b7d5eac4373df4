r"""Dynamics observed in time: an initial state to what is seen of its trajectory.

.. math:: y_k = h(x(t_k)), \qquad \dot x = f(x), \qquad x(0) = x_0, \qquad t_k = t_1 + (k - 1)
          \Delta,

with a stepper, ``step(x, **params)`` for one time step, in place of :math:`f`. Steppers here:
Lorenz 1963 (https://doi.org/10.1175/1520-0469(1963)020%3C0130:DNF%3E2.0.CO;2), Lorenz 1996 (ECMWF
seminar on predictability, eq. 1) by the classical Runge-Kutta method of order four, and those of
``spectral``. Derivatives go through the steps; those of a Runge-Kutta step with given constants
are written by hand, in one sweep back over its four stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepinv.physics import GaussianNoise, NoiseModel, Physics
from torch import Tensor, nn
from torch.autograd import Function

from vfm_inverse.operators.masked import MaskedPhysics

__all__ = ["Lorenz63", "Lorenz96", "Trajectory", "runge_kutta"]


class Trajectory(MaskedPhysics):
    """States ``(batch, *state)`` to their observed future ``(batch, num_times, *observed)``.

    Args:
        stepper: ``step(x, **params) -> x`` over one time step ``dt``; a module, so that ``to``
            moves it.
        num_times: number of observation times.
        every: steps between observations.
        observe: what is seen of a state: a deepinv physics (``PointObservations``, ...) or a
            function of a batch of states, such as ``lambda x: x[..., ::2]``; all of it by default.
        start: steps before the first observation; ``every`` by default, 0 observes the initial
            state.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    The parameters of a call go by name to the stepper and to a physics that observes, but for
    ``mask``, ``(batch, num_times, *observed)``, which says what is seen when (``MaskedPhysics``).

    Raises:
        ValueError: a number of steps or times is out of range.
    """

    def __init__(
        self,
        stepper: nn.Module,
        num_times: int,
        every: int = 1,
        observe: Physics | Callable[[Tensor], Tensor] | None = None,
        start: int | None = None,
        noise_model: NoiseModel | None = None,
    ) -> None:
        super().__init__(noise_model or GaussianNoise(0.1))
        start = every if start is None else start
        if num_times < 1 or every < 1 or start < 0:
            raise ValueError(
                "'num_times' and 'every' must be positive and 'start' must not be negative; "
                f"got {num_times}, {every} and {start}"
            )
        self.stepper = stepper
        self.num_times, self.every, self.start = num_times, every, start
        self.observe = observe

    def predict(self, x: Tensor, **params: Any) -> Tensor:
        """``(batch, *state)`` to ``(batch, num_times, *observed)``."""
        seen = []
        for number in range(self.num_times):
            for _ in range(self.every if number else self.start):
                x = self.stepper(x, **params)
            seen.append(self._observe(x, params))
        return torch.stack(seen, 1)

    def _observe(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        if self.observe is None:
            return x
        if isinstance(self.observe, Physics):
            return self.observe.A(x, **params)
        return self.observe(x)


class Lorenz63(nn.Module):
    """One step of the Lorenz 1963 system for states ``(*, 3)``.

    A call may give ``prandtl``, ``rayleigh`` or ``aspect`` (sigma, rho and beta of the paper;
    renamed because ``sigma`` is the noise), numbers or one a state ``(*,)``.

    Args:
        dt: time step, in units of the system.
        prandtl, rayleigh, aspect: values where a call gives none.

    Raises:
        ValueError: ``dt`` is not positive.
    """

    def __init__(
        self,
        dt: float = 0.01,
        prandtl: float = 10.0,
        rayleigh: float = 28.0,
        aspect: float = 8 / 3,
    ) -> None:
        super().__init__()
        self.dt = _positive("dt", dt)
        self.prandtl, self.rayleigh, self.aspect = prandtl, rayleigh, aspect

    def forward(
        self,
        x: Tensor,
        prandtl: Tensor | float | None = None,
        rayleigh: Tensor | float | None = None,
        aspect: Tensor | float | None = None,
        **params: Any,
    ) -> Tensor:
        """Advance ``(*, 3)`` by ``dt``."""
        if prandtl is None and rayleigh is None and aspect is None:
            return _advance(self, x)
        sigma = self.prandtl if prandtl is None else prandtl
        rho = self.rayleigh if rayleigh is None else rayleigh
        beta = self.aspect if aspect is None else aspect

        def slope(state: Tensor) -> Tensor:
            a, b, c = state.unbind(-1)
            return torch.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c], -1)

        return runge_kutta(slope, x, self.dt)

    def slope(self, x: Tensor) -> Tensor:
        """``f(x)``, ``(*, 3)``, for the module's own constants."""
        a, b, c = x.unbind(-1)
        return torch.stack(
            [self.prandtl * (b - a), a * (self.rayleigh - c) - b, a * b - self.aspect * c], -1
        )

    def push(self, x: Tensor, tangent: Tensor) -> Tensor:
        """``f'(x) tangent``, ``(*, 3)``."""
        (a, b, c), (da, db, dc) = x.unbind(-1), tangent.unbind(-1)
        second = da * (self.rayleigh - c) - a * dc - db
        return torch.stack(
            [self.prandtl * (db - da), second, da * b + a * db - self.aspect * dc], -1
        )

    def pull(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """``f'(x)^T cotangent``, ``(*, 3)``."""
        (a, b, c), (u, v, w) = x.unbind(-1), cotangent.unbind(-1)
        first = self.prandtl * u
        return torch.stack(
            [(self.rayleigh - c) * v + b * w - first, first - v + a * w, -a * v - self.aspect * w],
            -1,
        )


class Lorenz96(nn.Module):
    r"""One step of the Lorenz 1996 system for states ``(*, d)``.

    .. math:: \dot x_i = (x_{i+1} - x_{i-2})\, x_{i-1} - x_i + F, \qquad \text{indices modulo } d.

    A call may give ``forcing``, a number or one a state ``(batch,)``.

    Args:
        dt: time step; 0.05 stands for six hours of weather.
        forcing: ``F`` where a call gives none; 8 is chaotic.

    Raises:
        ValueError: ``dt`` is not positive.
    """

    def __init__(self, dt: float = 0.05, forcing: float = 8.0) -> None:
        super().__init__()
        self.dt = _positive("dt", dt)
        self.forcing = forcing

    def forward(self, x: Tensor, forcing: Tensor | float | None = None, **params: Any) -> Tensor:
        """Advance ``(*, d)`` by ``dt``."""
        if forcing is None:
            return _advance(self, x)
        force = torch.as_tensor(forcing).to(x)
        force = (
            force.reshape(force.shape + (1,) * (x.dim() - force.dim())) if force.dim() else force
        )

        def slope(state: Tensor) -> Tensor:
            ahead, behind = state.roll(-1, -1), state.roll(1, -1)
            return (ahead - state.roll(2, -1)) * behind - state + force

        return runge_kutta(slope, x, self.dt)

    def slope(self, x: Tensor) -> Tensor:
        """``f(x)``, ``(*, d)``, for the module's own forcing."""
        ring = _ring(x)
        return torch.addcmul(self.forcing - x, ring[..., 3:-1] - ring[..., :-4], ring[..., 1:-3])

    def push(self, x: Tensor, tangent: Tensor) -> Tensor:
        """``f'(x) tangent``, ``(*, d)``."""
        ring, moved = _ring(x), _ring(tangent)
        first = (moved[..., 3:-1] - moved[..., :-4]) * ring[..., 1:-3]
        return torch.addcmul(first, ring[..., 3:-1] - ring[..., :-4], moved[..., 1:-3]) - tangent

    def pull(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """``f'(x)^T cotangent``, ``(*, d)``."""
        ring, pulled = _ring(x), _ring(cotangent)
        found = torch.addcmul(-cotangent, pulled[..., 1:-3], ring[..., :-4])
        found = torch.addcmul(found, pulled[..., 4:], ring[..., 3:-1], value=-1)
        return torch.addcmul(found, pulled[..., 3:-1], ring[..., 4:] - ring[..., 1:-3])


def _ring(x: Tensor) -> Tensor:
    """Two more at both ends of a periodic ``(*, d)``, ``(*, d + 4)``."""
    return torch.cat([x[..., -2:], x, x[..., :2]], -1)


def _advance(system: Lorenz63 | Lorenz96, x: Tensor) -> Tensor:
    """One Runge-Kutta step with derivatives by hand."""
    new: Tensor = _RungeKutta.apply(x, system)[0]
    return new


class _RungeKutta(Function):
    """``runge_kutta`` of a system with ``slope``, ``push`` and ``pull``: the new state and the
    states at which the second to fourth slopes are taken. These are outputs for their sake as
    saved tensors of derivatives of higher order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, system: Any) -> tuple[Tensor, ...]:
        stages, new, at = [], x, x
        for weight, advance in _TABLEAU:
            k = system.slope(at)
            new = torch.add(new, k, alpha=weight * system.dt)
            if advance:
                at = torch.add(x, k, alpha=advance * system.dt)
                stages.append(at)
        return new, *stages

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.system = inputs
        ctx.save_for_backward(x, *output[1:])
        ctx.save_for_forward(x, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor, None]:
        states, dt = ctx.saved_tensors, ctx.system.dt
        cotangent = torch.zeros_like(states[0]) if cotangents[0] is None else cotangents[0]
        total, pulled = cotangent, cotangent
        for number, (weight, advance) in reversed(list(enumerate(_TABLEAU))):
            k = (weight * dt) * cotangent
            if advance:
                k = torch.add(k, pulled, alpha=advance * dt)
            pulled = ctx.system.pull(states[number], k)
            own = cotangents[number] if number else None
            if own is not None:
                pulled = pulled + own
            total = total + pulled
        return total, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, ...]:
        dt, stages, new, at = ctx.system.dt, [], tangent, tangent
        for state, (weight, advance) in zip(ctx.saved_tensors, _TABLEAU, strict=True):
            k = ctx.system.push(state, at)
            new = torch.add(new, k, alpha=weight * dt)
            if advance:
                at = torch.add(tangent, k, alpha=advance * dt)
                stages.append(at)
        return new, *stages


_TABLEAU = ((1 / 6, 1 / 2), (1 / 3, 1 / 2), (1 / 3, 1.0), (1 / 6, 0.0))
"""Of each stage: the weight of its slope in the step, and how far along it the next stage lies."""


def runge_kutta(slope: Callable[[Tensor], Tensor], x: Tensor, dt: float) -> Tensor:
    """One step of the classical Runge-Kutta method of order four for ``dx/dt = slope(x)``."""
    k1 = slope(x)
    k2 = slope(x + dt / 2 * k1)
    k3 = slope(x + dt / 2 * k2)
    k4 = slope(x + dt * k3)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"'{name}' must be positive; got {value}")
    return value


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of the operators above."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    yield "lorenz-63", Trajectory(Lorenz63(), 3, 4, lambda x: x[..., :1]), 5 * normal(2, 3)
    yield "lorenz-96", Trajectory(Lorenz96(), 3, 2, lambda x: x[..., ::2]), 3 + normal(2, 8)
