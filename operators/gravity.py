r"""Gravity anomaly of a density contrast, from layers of rectangular prisms.

.. math:: g_z(i) = G \sum_j \rho_j \int_{\text{prism}_j} \frac{\zeta}{r^3}\, \mathrm dV,

positive over excess mass; the closed form of the integral and the axes are those of
:mod:`~vfm_inverse.operators.prisms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from deepinv.physics import LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.prisms import PrismLayers, prism_attraction

__all__ = ["GRAVITATIONAL_CONSTANT", "GravityAnomaly"]

GRAVITATIONAL_CONSTANT = 6.67430e-11
"""In m^3 kg^-1 s^-2 (CODATA 2018)."""

MILLIGAL = 1e-5
"""In m/s^2."""


class GravityAnomaly(PrismLayers):
    """Vertical gravity anomaly in mGal of density contrasts in kg/m^3.

    Args:
        img_size: ``(C, H, W)``: density contrast, ``C`` layers from the top.
        depths: of the ``C + 1`` interfaces below the stations in m, increasing, above 0.
        spacing: size of a cell in m, for both axes or one each.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, 1, H, W)``, at stations above the middles of the cells; compose
    with ``PointObservations((1, H, W), points)`` for stations elsewhere. Beyond the map
    there is no density contrast.

    Raises:
        ValueError: a size does not fit, or the depths do not increase from above 0.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        depths: Sequence[float],
        spacing: float | Sequence[float] = 1.0,
        noise_model: NoiseModel | None = None,
    ) -> None:
        def corner(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return GRAVITATIONAL_CONSTANT / MILLIGAL * prism_attraction(z, x, y)

        super().__init__(img_size, depths, spacing, corner, noise_model)


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of one layer and of two."""
    x = 300 * torch.randn(2, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    yield "gravity", GravityAnomaly((1, 6, 9), (50.0, 250.0), 100.0), x[:, :1]
    yield "gravity-layers", GravityAnomaly((2, 6, 9), (20.0, 90.0, 400.0), (80.0, 100.0)), x
