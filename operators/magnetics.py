r"""Magnetic anomaly of a susceptibility, from layers of rectangular prisms.

Rock of susceptibility :math:`\chi` (SI) in the Earth's field :math:`F \hat f` is magnetised along
it, and changes the measured total field by

.. math:: \Delta T(i) = \frac{F}{4\pi} \sum_j \chi_j\, \hat f^\top
          \Bigl(\nabla\nabla^\top \int_{\text{prism}_j} \frac{\mathrm dV}{r}\Bigr) \hat f

(Poisson's relation; Blakely 1995, Potential Theory in Gravity and Magnetic Applications,
https://doi.org/10.1017/CBO9780511549816, sections 5.3 and 9.3; no remanence, no
self-demagnetising, an anomaly small against ``F``). The closed form of the second derivatives and
the axes are those of :mod:`~vfm_inverse.operators.prisms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from deepinv.physics import LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.prisms import PrismLayers, prism_gradients

__all__ = ["MagneticAnomaly"]


class MagneticAnomaly(PrismLayers):
    """Total-field anomaly in nT of susceptibilities (SI, dimensionless).

    Args:
        img_size: ``(C, H, W)``: susceptibility, ``C`` layers from the top.
        depths: of the ``C + 1`` interfaces below the stations in m, increasing, above 0.
        spacing: size of a cell in m, for both axes or one each.
        inclination: of the Earth's field below the horizontal, in degrees.
        declination: from the array's row axis (north, if rows run northwards) towards its column
            axis (east), in degrees.
        field_strength: of the Earth's field in nT.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, 1, H, W)``, at stations above the middles of the cells. Beyond
    the map there is no susceptibility.

    Raises:
        ValueError: a size does not fit, the depths do not increase from above 0, or the field is
            not positive.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        depths: Sequence[float],
        spacing: float | Sequence[float] = 1.0,
        inclination: float = 90.0,
        declination: float = 0.0,
        field_strength: float = 50_000.0,
        noise_model: NoiseModel | None = None,
    ) -> None:
        if not field_strength > 0:
            raise ValueError(f"'field_strength' must be positive; got {field_strength}")
        dip, turn = math.radians(inclination), math.radians(declination)
        horizontal = math.cos(dip)
        direction = torch.tensor(
            [horizontal * math.cos(turn), horizontal * math.sin(turn), math.sin(dip)],
            dtype=torch.float64,
        )

        def corner(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
            tensor = prism_gradients(z, x, y)
            along = torch.einsum("i,j,ij...->...", direction, direction, tensor)
            return field_strength / (4 * math.pi) * along

        super().__init__(img_size, depths, spacing, corner, noise_model)


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` at a pole and at a latitude between."""
    x = 0.01 * torch.randn(2, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    yield "magnetics-pole", MagneticAnomaly((1, 6, 9), (50.0, 250.0), 100.0), x[:, :1]
    between = MagneticAnomaly((2, 6, 9), (20.0, 90.0, 400.0), 100.0, 60.0, -10.0)
    yield "magnetics", between, x
