r"""A tracer carried by a given wind while it spreads: initial state to later fields.

.. math:: \partial_t c + \nabla\cdot(w c) = \kappa\, \Delta c

on a grid of cells with the wind :math:`w` at their faces (Arakawa C grid). With the differences
:math:`D` from cells to faces, the averages :math:`M` from cells to faces and the diagonal
:math:`W` of the face winds, the finite volumes are

.. math:: \dot c = L c, \qquad L = D^\top W M - \kappa\, D^\top D, \qquad
          L^\top = M^\top W D - \kappa\, D^\top D,

of second order, conserving the sum of ``c`` exactly, with a skew-symmetric first term where the
wind has no divergence on the grid (:func:`wind_of_stream_function` makes such winds), so that
nothing grows. A step of the classical Runge-Kutta method is :math:`P(\Delta t L)`, :math:`P` the
exponential's Taylor polynomial of degree 4, and its exact adjoint :math:`P(\Delta t L^\top)`. It
is stable up to :math:`\Delta t\, |\lambda| \le 2.6` in the left half-plane (Hairer and Wanner
1996, Solving Ordinary Differential Equations II, section IV.2); steps are cut to a Courant
number of 1, where the error in time is below that in space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.grids import check_spacing, check_times

__all__ = ["AdvectionDiffusion", "wind_of_stream_function"]


class AdvectionDiffusion(LinearPhysics):
    """Concentrations at ``times`` from the one at time 0, in a steady wind.

    Args:
        img_size: ``(1, L)`` or ``(1, H, W)``.
        times: observation times in s, increasing, ``(T,)``.
        wind: in m/s, ``(D, *grid)``: component ``d`` along the array's axis ``d`` (for an image:
            down, then right) at the face between a cell and the next one along that axis, the last
            face being that between the last cell and the first. A call may pass another, ``(D,
            *grid)`` or one a field ``(batch, D, *grid)``, up to ``max_speed``.
        diffusivity: in m^2/s, 0 or larger. A call may pass another, a number or one a field
            ``(batch,)``, up to ``max_diffusivity``, and can be differentiated with respect to it.
        spacing: size of a cell in m, for both axes or one each.
        boundary: ``"periodic"``, or ``"closed"``: nothing passes the outer faces, whatever the
            wind says there.
        max_speed: largest wind component in m/s that a call may pass, for the length of the time
            steps; that of ``wind`` by default.
        max_diffusivity: largest diffusivity in m^2/s that a call may pass; ``diffusivity`` by
            default.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, T, *grid)``, one channel a time.

    Raises:
        ValueError: a shape, time or number does not fit; in a call, a wind above ``max_speed`` or
            a diffusivity that is negative or above ``max_diffusivity``.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        times: Sequence[float],
        wind: Tensor,
        diffusivity: float = 0.0,
        spacing: float | Sequence[float] = 1.0,
        boundary: Literal["periodic", "closed"] = "periodic",
        max_speed: float | None = None,
        max_diffusivity: float | None = None,
        noise_model: NoiseModel | None = None,
    ) -> None:
        img_size = tuple(img_size)
        dims = len(img_size) - 1
        if dims not in (1, 2) or img_size[0] != 1 or min(img_size[1:]) < 2:
            raise ValueError(
                f"'img_size' must be (1, L) or (1, H, W) with axes >= 2; got {img_size}"
            )
        expected = (dims, *img_size[1:])
        if tuple(wind.shape) != expected or not bool(torch.isfinite(wind).all()):
            raise ValueError(
                f"'wind' must be finite, of shape {expected}; got {tuple(wind.shape)}"
            )
        if not diffusivity >= 0:
            raise ValueError(f"'diffusivity' must not be negative; got {diffusivity}")
        if boundary not in ("periodic", "closed"):
            raise ValueError(f"'boundary' must be 'periodic' or 'closed'; got {boundary!r}")
        strongest = float(wind.abs().max())
        max_speed = strongest if max_speed is None else float(max_speed)
        if max_speed < strongest:
            raise ValueError(
                f"'max_speed' must be at least that of 'wind', {strongest:g}; got {max_speed:g}"
            )
        most = float(diffusivity) if max_diffusivity is None else float(max_diffusivity)
        if most < diffusivity:
            raise ValueError(
                f"'max_diffusivity' must be at least 'diffusivity', {diffusivity:g}; got {most:g}"
            )
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        self.spacing = check_spacing(spacing, dims)
        self.max_speed, self.max_diffusivity = max_speed, most
        rate = sum(max_speed / h + 4 * most / h**2 for h in self.spacing)
        self.intervals = _intervals(check_times(times), rate)
        faces = torch.ones(expected, dtype=torch.float64)
        if boundary == "closed":
            for axis in range(dims):
                faces[axis].select(axis, -1).zero_()
        self.register_buffer("open_faces", faces)
        self.register_buffer("wind", wind.double())
        self.register_buffer("diffusivity", torch.tensor(diffusivity, dtype=torch.float64))

    def A(
        self,
        x: Tensor,
        wind: Tensor | None = None,
        diffusivity: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``(batch, 1, *grid)`` to ``(batch, T, *grid)``."""
        speed, spread = self._faces(x, wind, diffusivity)
        state, fields = x, []
        for num, step in self.intervals:
            for _ in range(num):
                state = self._step(state, step, speed, spread, transpose=False)
            fields.append(state)
        return torch.cat(fields, 1)

    def A_adjoint(
        self,
        y: Tensor,
        wind: Tensor | None = None,
        diffusivity: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Transpose: ``(batch, T, *grid)`` to ``(batch, 1, *grid)``, backwards in time."""
        speed, spread = self._faces(y, wind, diffusivity)
        state = torch.zeros_like(y[:, :1])
        for index, (num, step) in reversed(list(enumerate(self.intervals))):
            state = state + y[:, index : index + 1]
            for _ in range(num):
                state = self._step(state, step, speed, spread, transpose=True)
        return state

    def _faces(
        self, like: Tensor, wind: Tensor | None, diffusivity: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        """Wind and diffusivity at the faces, zero where they are closed, ``(1 or batch, D,
        *grid)``."""
        faces = self.open_faces.to(like).unsqueeze(0)
        speed, kappa = self.wind.to(like), self.diffusivity.to(like)
        if wind is not None:
            _check_most("wind", wind.abs(), "max_speed", self.max_speed)
            speed = wind.to(like)
        if diffusivity is not None:
            kappa = torch.as_tensor(diffusivity).to(like)
            _check_most("diffusivity", kappa, "max_diffusivity", self.max_diffusivity)
        speed = speed if speed.dim() == faces.dim() else speed.unsqueeze(0)
        return speed * faces, kappa.reshape(-1, *[1] * (faces.dim() - 1)) * faces

    def _step(
        self, state: Tensor, step: float, speed: Tensor, spread: Tensor, *, transpose: bool
    ) -> Tensor:
        """``P(step L)`` of the state, or ``P(step L^T)``."""
        term = total = state
        for order in range(1, 5):
            term = (step / order) * self._rate(term, speed, spread, transpose=transpose)
            total = total + term
        return total

    def _rate(self, c: Tensor, speed: Tensor, spread: Tensor, *, transpose: bool) -> Tensor:
        """``L c`` or ``L^T c``, ``(batch, 1, *grid)``."""
        total = torch.zeros_like(c)
        for axis, h in enumerate(self.spacing):
            dim = 2 + axis
            w, kappa = speed[:, axis : axis + 1], spread[:, axis : axis + 1]
            after = c.roll(-1, dim)
            jump, middle = (after - c) / h, (after + c) / 2
            flux = -kappa * jump
            if transpose:
                drift = w * jump
                total = total + (drift + drift.roll(1, dim)) / 2
            else:
                flux = flux + w * middle
            # D^T: from the flux through the faces to what stays in the cells.
            total = total + (flux.roll(1, dim) - flux) / h
        return total


def wind_of_stream_function(psi: Tensor, spacing: float | Sequence[float] = 1.0) -> Tensor:
    r"""Wind ``(2, H, W)`` at the faces that has no divergence on the periodic grid.

    .. math:: w_\text{down} = \partial\psi / \partial x_\text{right}, \qquad
              w_\text{right} = -\partial\psi / \partial x_\text{down}.

    Args:
        psi: stream function in m^2/s at the corners ``(H, W)``: entry ``(i, j)`` lies after cell
            ``(i, j)`` along both axes.
        spacing: size of a cell in m.

    Raises:
        ValueError: ``psi`` does not have two dimensions.
    """
    if psi.dim() != 2:
        raise ValueError(f"'psi' must have shape (H, W); got {tuple(psi.shape)}")
    down, right = check_spacing(spacing, 2)
    return torch.stack([(psi - psi.roll(1, 1)) / right, -(psi - psi.roll(1, 0)) / down])


def _intervals(times: Sequence[float], rate: float) -> list[tuple[int, float]]:
    """Number and length of the steps to each time from the one before, at Courant number 1."""
    found, previous = [], 0.0
    for time in times:
        num = math.ceil((time - previous) * rate)
        found.append((num, (time - previous) / max(num, 1)))
        previous = time
    return found


def _check_most(name: str, value: Tensor, limit_name: str, limit: float) -> None:
    """Refuse a value above its limit, or below zero."""
    try:
        least, most = float(value.detach().min()), float(value.detach().max())
    except RuntimeError:  # under torch.func.vmap no value can be looked at
        return
    if not most <= limit * (1 + 1e-5):
        raise ValueError(f"'{name}' must not exceed {limit_name} = {limit:g}; got {most:g}")
    if least < 0:
        raise ValueError(f"'{name}' must not be negative; got {least:g}")


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of the boundaries in one and two dimensions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 6, 9, generator=generator)
    wind = torch.randn(2, 6, 9, generator=generator)
    for boundary in ("periodic", "closed"):
        physics = AdvectionDiffusion(
            (1, 6, 9), (0.5, 2.0), wind, 0.1, (0.5, 0.8), boundary=boundary
        )
        yield f"advection-diffusion-{boundary}", physics, x
    line = AdvectionDiffusion((1, 9), (1.5,), wind[1:, 0], 0.05)
    yield "advection-diffusion-1d", line, x[:, :, 0]
