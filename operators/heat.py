r"""Heat conduction and diffusion: a field spreads, and later fields are observed.

.. math:: \partial_t u = \kappa\, \Delta u + s, \qquad u(0) = u_0,

on an interval or a rectangle of cells with centres :math:`(i + 1/2) h`. On the orthonormal basis
that the boundary condition asks for (cosines for ``"neumann"``, no flux through the outer faces;
sines for ``"dirichlet"``, zero at the outer faces; both for ``"periodic"``) the equation is
diagonal with the eigenvalues :math:`-\kappa \mu_k`, :math:`\mu_k` the sum over the axes of
:math:`(\pi k / L)^2` (periodic: :math:`(2 \pi k / L)^2`), and its solution is exact in time and,
for what a grid can hold, in space:

.. math:: \hat u(t) = e^{-\kappa\mu t}\, \hat u_0
          \qquad\text{or, from a steady source and } u_0 = 0, \qquad
          \hat u(t) = \frac{1 - e^{-\kappa\mu t}}{\kappa\mu}\, \hat s.

The matrix of each time is symmetric, so the adjoint of all of them together is their sum. The
bases are those of Strang 1999, SIAM Review 41, 135, https://doi.org/10.1137/S0036144598336745.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.grids import check_spacing, check_times

__all__ = ["HeatEquation"]

Boundary = Literal["neumann", "dirichlet", "periodic"]


class HeatEquation(LinearPhysics):
    """Fields at ``times`` from the initial state, or from a steady source.

    Args:
        img_size: ``(1, L)`` or ``(1, H, W)``, of the unknown: the state at time 0 (units of ``u``)
            or the source (units of ``u`` a second).
        times: observation times in s, increasing, ``(T,)``.
        diffusivity: in m^2/s; a call may pass another, a number or one a field ``(batch,)``, and
            can be differentiated with respect to it.
        spacing: size of a cell in m, for both axes or one each.
        boundary: ``"neumann"`` (insulated), ``"dirichlet"`` (held at 0) or ``"periodic"``.
        unknown: ``"initial"`` or ``"source"``.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, T, *grid)``, one channel a time: compose it with
    ``PointObservations((T, *grid), points)`` to read it at stations.

    Raises:
        ValueError: a size, time, diffusivity or boundary does not fit.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        times: Sequence[float],
        diffusivity: float = 1.0,
        spacing: float | Sequence[float] = 1.0,
        boundary: Boundary = "neumann",
        unknown: Literal["initial", "source"] = "initial",
        noise_model: NoiseModel | None = None,
    ) -> None:
        img_size = tuple(img_size)
        if len(img_size) not in (2, 3) or img_size[0] != 1 or min(img_size) < 1:
            raise ValueError(f"'img_size' must be (1, L) or (1, H, W); got {img_size}")
        if not diffusivity > 0:
            raise ValueError(f"'diffusivity' must be positive; got {diffusivity}")
        if boundary not in BASES:
            raise ValueError(f"'boundary' must be one of {sorted(BASES)}; got {boundary!r}")
        if unknown not in ("initial", "source"):
            raise ValueError(f"'unknown' must be 'initial' or 'source'; got {unknown!r}")
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        self.unknown = unknown
        eigenvalue = torch.zeros((), dtype=torch.float64)
        steps = check_spacing(spacing, len(img_size) - 1)
        for axis, (size, step) in enumerate(zip(img_size[1:], steps, strict=True)):
            basis, wave_number = BASES[boundary](size, step)
            self.register_buffer(f"basis_{axis}", basis)
            eigenvalue = eigenvalue.unsqueeze(-1) + wave_number**2
        self.register_buffer("eigenvalue", eigenvalue)
        self.register_buffer("times", torch.tensor(check_times(times), dtype=torch.float64))
        self.register_buffer("diffusivity", torch.tensor(diffusivity, dtype=torch.float64))

    def A(self, x: Tensor, diffusivity: Tensor | float | None = None, **kwargs: Any) -> Tensor:
        """``(batch, 1, *grid)`` to ``(batch, T, *grid)``."""
        return self._transform(self._multiplier(x, diffusivity) * self._transform(x), back=True)

    def A_adjoint(
        self, y: Tensor, diffusivity: Tensor | float | None = None, **kwargs: Any
    ) -> Tensor:
        """Transpose: ``(batch, T, *grid)`` to ``(batch, 1, *grid)``."""
        summed = (self._multiplier(y, diffusivity) * self._transform(y)).sum(1, keepdim=True)
        return self._transform(summed, back=True)

    def _multiplier(self, like: Tensor, diffusivity: Tensor | float | None) -> Tensor:
        """Factor of each mode at each time, ``(1 or batch, T, *grid)``."""
        kappa = self.diffusivity if diffusivity is None else torch.as_tensor(diffusivity)
        axes = [1] * self.eigenvalue.dim()
        time = self.times.to(like).reshape(-1, *axes)
        exponent = kappa.to(like).reshape(-1, 1, *axes) * self.eigenvalue.to(like) * time
        if self.unknown == "initial":
            return torch.exp(-exponent)
        # (1 - exp(-a)) / a is 1 at the constant mode, with the derivative -1/2.
        small = exponent < 1e-6
        safe = torch.where(small, torch.ones_like(exponent), exponent)
        return time * torch.where(small, 1 - exponent / 2, -torch.expm1(-safe) / safe)

    def _transform(self, field: Tensor, back: bool = False) -> Tensor:
        """Coefficients of the modes of every channel, or the field of the coefficients."""
        for axis in range(len(self.img_size) - 1):
            basis = self.get_buffer(f"basis_{axis}").to(field)
            rotated = field.movedim(2 + axis, -1) @ (basis.mT if back else basis)
            field = rotated.movedim(-1, 2 + axis)
        return field


def _cosines(size: int, step: float) -> tuple[Tensor, Tensor]:
    """Orthonormal basis ``(size, modes)`` and wave numbers ``(modes,)``: DCT-II."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * (k.unsqueeze(1) + 0.5) * k / size)
    return basis / basis.norm(dim=0), math.pi * k / (size * step)


def _sines(size: int, step: float) -> tuple[Tensor, Tensor]:
    """DST-II: zero half a cell outside."""
    i = torch.arange(size, dtype=torch.float64)
    basis = torch.sin(math.pi * (i.unsqueeze(1) + 0.5) * (i + 1) / size)
    return basis / basis.norm(dim=0), math.pi * (i + 1) / (size * step)


def _waves(size: int, step: float) -> tuple[Tensor, Tensor]:
    """Cosines, then sines, of the wave numbers that a periodic grid holds."""
    i = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    cosine = torch.arange(size // 2 + 1, dtype=torch.float64)
    sine = torch.arange(1, (size + 1) // 2, dtype=torch.float64)
    angle = 2 * math.pi / size
    basis = torch.cat([torch.cos(angle * i * cosine), torch.sin(angle * i * sine)], 1)
    return basis / basis.norm(dim=0), angle / step * torch.cat([cosine, sine])


BASES = {"neumann": _cosines, "dirichlet": _sines, "periodic": _waves}


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of the boundary conditions and unknowns."""
    x = torch.randn(2, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    boundaries: tuple[Boundary, ...] = ("neumann", "dirichlet", "periodic")
    for boundary in boundaries:
        physics = HeatEquation((1, 6, 9), (0.1, 1.0, 4.0), 0.7, (0.5, 0.8), boundary)
        yield f"heat-{boundary}", physics, x
    yield "heat-source", HeatEquation((1, 6, 9), (0.5, 2.0), unknown="source"), x
    yield "heat-1d", HeatEquation((1, 9), (0.5,), 0.3), x[:, :, 0]
