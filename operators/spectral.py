r"""Spectral steppers on periodic domains: Kuramoto-Sivashinsky and two-dimensional vorticity.

Fourier coefficients of

.. math:: \dot u = \mathcal L u + N(u)

with a diagonal linear part are advanced by the exponential time differencing Runge-Kutta method of
order four (ETDRK4; Cox and Matthews 2002; Kassam and Trefethen 2005,
https://doi.org/10.1137/S1064827502410633, eqs. 2.5 and 3.2), exact where ``N`` vanishes. Its
coefficients are means over a circle in the complex plane around :math:`\mathcal L\,dt`, which
avoids their cancellations. Quadratic terms lose the upper third of the wave numbers (Orszag's
rule), so that nothing is aliased.

The steppers go into ``dynamics.Trajectory``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor, nn

from vfm_inverse.operators.dynamics import Trajectory
from vfm_inverse.operators.observation import PointObservations

__all__ = ["KuramotoSivashinsky", "Vorticity"]


class KuramotoSivashinsky(nn.Module):
    r"""One step of :math:`u_t = -u\,u_x - u_{xx} - u_{xxxx}`, periodic, for ``(*, n)``.

    Dimensionless, as usual; the mean of ``u`` is kept.

    Args:
        num_points: ``n``, grid points of the period.
        length: the period; chaotic from about 22 on.
        dt: time step.

    Raises:
        ValueError: a setting is out of range.
    """

    slope: Tensor

    def __init__(self, num_points: int, length: float = 22.0, dt: float = 0.25) -> None:
        super().__init__()
        _check(num_points=num_points - 3, length=length, dt=dt)
        self.num_points = num_points
        wave = 2 * math.pi / length * torch.arange(num_points // 2 + 1, dtype=torch.float64)
        _store(self, wave**2 - wave**4, dt)
        kept = torch.arange(len(wave)) < num_points / 3
        self.register_buffer("slope", -0.5 * wave * kept)

    def forward(self, x: Tensor, **params: Any) -> Tensor:
        """Advance ``(*, n)`` by ``dt``."""
        _check_grid(x, (self.num_points,))

        def nonlinear(v: Tensor) -> Tensor:
            u = torch.fft.irfft(v, self.num_points)
            return 1j * self.slope.to(x) * torch.fft.rfft(u.square())

        return torch.fft.irfft(_etdrk4(self, torch.fft.rfft(x), nonlinear), self.num_points)


class Vorticity(nn.Module):
    r"""One step of the two-dimensional vorticity equation, doubly periodic, for ``(*, n, n)``.

    .. math:: \omega_t + \mathbf u \cdot \nabla \omega = \nu \Delta \omega - \mu\, \omega + g,
              \qquad \mathbf u = (\partial_y \psi, -\partial_x \psi), \quad \Delta \psi = -\omega.

    The last axis is ``x``, the one before it ``y``. Units: lengths as ``length``, times as ``dt``,
    vorticity in their inverse, viscosity in length^2 / time. The mean vorticity is kept where
    ``drag`` and forcing are zero; it moves nothing.

    A call may give ``forcing``, the curl ``g`` of the body force, ``(n, n)`` or one a state, ``(*,
    n, n)``.

    Args:
        num_points: ``n``, grid points along a side.
        viscosity: ``nu``, not negative.
        drag: ``mu``, not negative, in inverse time.
        length: side of the square.
        dt: time step.
        forcing: ``g`` where a call gives none, ``(n, n)``; zero by default.

    Raises:
        ValueError: a setting is out of range.
    """

    k_x: Tensor
    k_y: Tensor
    inverse: Tensor
    kept: Tensor
    forcing: Tensor | None

    def __init__(
        self,
        num_points: int,
        viscosity: float = 1e-3,
        drag: float = 0.0,
        length: float = 2 * math.pi,
        dt: float = 0.05,
        forcing: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(num_points=num_points - 3, length=length, dt=dt)
        if viscosity < 0 or drag < 0:
            raise ValueError(
                f"'viscosity' and 'drag' must not be negative; got {viscosity} and {drag}"
            )
        self.num_points = num_points
        unit = 2 * math.pi / length
        along = torch.arange(num_points // 2 + 1, dtype=torch.float64)
        down = torch.fft.fftfreq(num_points, 1 / num_points, dtype=torch.float64)[:, None]
        square = unit**2 * (along**2 + down**2)
        _store(self, -viscosity * square - drag, dt)
        kept = (along < num_points / 3) & (down.abs() < num_points / 3)
        self.register_buffer("k_x", unit * along * kept)
        self.register_buffer("k_y", unit * down * kept)
        self.register_buffer("inverse", torch.where(square > 0, 1 / square.clamp_min(1e-300), 0))
        self.register_buffer("kept", kept)
        self.register_buffer("forcing", forcing)

    def forward(self, x: Tensor, forcing: Tensor | None = None, **params: Any) -> Tensor:
        """Advance the vorticity ``(*, n, n)`` by ``dt``."""
        grid = (self.num_points, self.num_points)
        _check_grid(x, grid)
        k_x, k_y, inverse = (1j * self.k_x.to(x), 1j * self.k_y.to(x), self.inverse.to(x))
        kept = self.kept.to(x)
        g = self.forcing if forcing is None else forcing
        force = 0 if g is None else torch.fft.rfft2(g.to(x))

        def nonlinear(w: Tensor) -> Tensor:
            psi = inverse * w
            fields = torch.stack([k_y * psi, -k_x * psi, k_x * w, k_y * w])
            u, v, w_x, w_y = torch.fft.irfft2(fields, grid)
            return force - kept * torch.fft.rfft2(u * w_x + v * w_y)

        return torch.fft.irfft2(_etdrk4(self, torch.fft.rfft2(x), nonlinear), grid)


def _store(module: nn.Module, linear: Tensor, dt: float) -> None:
    """Keep the coefficients of ETDRK4 for the real symbol ``linear`` as buffers of the module."""
    circle = torch.exp(1j * math.pi * (torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    z = dt * linear
    # Half a circle: the other half is the complex conjugate of a real function's values.
    r = z[..., None] + circle
    e = torch.exp(r)
    named = {
        "whole": torch.exp(z),
        "half": torch.exp(z / 2),
        "half_step": dt * ((torch.exp(r / 2) - 1) / r).real.mean(-1),
        "first": dt * ((-4 - r + e * (4 - 3 * r + r**2)) / r**3).real.mean(-1),
        "middle": dt * ((2 + r + e * (-2 + r)) / r**3).real.mean(-1),
        "last": dt * ((-4 - 3 * r - r**2 + e * (4 - r)) / r**3).real.mean(-1),
    }
    for name, value in named.items():
        module.register_buffer(f"etd_{name}", value)


def _etdrk4(module: nn.Module, v: Tensor, nonlinear: Callable[[Tensor], Tensor]) -> Tensor:
    """Coefficients ``v`` one step later."""
    whole, half, step, first, middle, last = (
        module.get_buffer(f"etd_{name}").to(v.real.dtype)
        for name in ("whole", "half", "half_step", "first", "middle", "last")
    )
    n_v = nonlinear(v)
    a = half * v + step * n_v
    n_a = nonlinear(a)
    n_b = nonlinear(half * v + step * n_a)
    n_c = nonlinear(half * a + step * (2 * n_b - n_v))
    return whole * v + first * n_v + 2 * middle * (n_a + n_b) + last * n_c


def _check(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            if name == "num_points":
                raise ValueError(f"'num_points' must be at least 4; got {value + 3}")
            raise ValueError(f"'{name}' must be positive; got {value}")


def _check_grid(x: Tensor, grid: Sequence[int]) -> None:
    if x.shape[-len(grid) :] != torch.Size(grid):
        shape = ", ".join(map(str, grid))
        raise ValueError(f"'x' must have shape (*, {shape}); got {tuple(x.shape)}")


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of the steppers above."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    yield "kuramoto-sivashinsky", Trajectory(KuramotoSivashinsky(16), 3, 2), normal(2, 1, 16)
    stations = PointObservations((1, 12, 12), torch.rand(5, 2, generator=generator))
    yield "vorticity", Trajectory(Vorticity(12), 2, 3, stations), normal(2, 1, 12, 12)
