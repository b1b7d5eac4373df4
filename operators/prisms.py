r"""Potential fields of layers of rectangular prisms, by convolution.

Every cell of a map, one layer or several, is a prism; the field of one prism at the station above
another cell depends on their distance only, so the map of the field is a convolution and goes
through FFTs. Axes: ``x`` along the rows of the array, ``y`` along its columns, ``z`` down; the map
ends at its edges, beyond which the anomaly is zero.

With the corners :math:`(\xi, \eta, \zeta)` of the prism relative to the station and :math:`r`
their distance, :math:`||| \cdot |||` the alternating sum over the eight corners,

.. math::

   \int \frac{\zeta}{r^3} \,\mathrm dV &= -\Bigl|\Bigl|\Bigl| \xi \ln(\eta + r) + \eta \ln(\xi + r)
       - \zeta \arctan\frac{\xi\eta}{\zeta r} \Bigr|\Bigr|\Bigr|, \\
   \partial_{xx} \int \frac{\mathrm dV}{r} &= -\Bigl|\Bigl|\Bigl| \arctan\frac{\eta\zeta}{\xi r}
       \Bigr|\Bigr|\Bigr|, \qquad
   \partial_{xy} \int \frac{\mathrm dV}{r} = \Bigl|\Bigl|\Bigl| \ln(\zeta + r)
       \Bigr|\Bigr|\Bigr|,

and cyclically (Nagy, Papp and Benedek 2000, Journal of Geodesy 74, 552,
https://doi.org/10.1007/s001900000116).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.grids import check_spacing, convolve, correlate

__all__ = ["PrismLayers", "prism_attraction", "prism_gradients"]

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class PrismLayers(LinearPhysics):
    """The field above layers of prisms, for a given field of one prism.

    Args:
        img_size: ``(C, H, W)``: the property of each prism, ``C`` layers from the top.
        depths: of the ``C + 1`` interfaces below the stations in m, increasing, above 0.
        spacing: size of a cell in m, for both axes or one each.
        corner: a corner's contribution to the field of a prism of unit property, as a function of
            its coordinates relative to the station.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, 1, H, W)``, at stations above the middles of the cells.

    Raises:
        ValueError: a size does not fit, or the depths do not increase from above 0.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        depths: Sequence[float],
        spacing: float | Sequence[float],
        corner: Kernel,
        noise_model: NoiseModel | None = None,
    ) -> None:
        img_size = tuple(img_size)
        if len(img_size) != 3 or min(img_size) < 1:
            raise ValueError(f"'img_size' must be (C, H, W); got {img_size}")
        depths = tuple(map(float, depths))
        increasing = all(a < b for a, b in zip(depths, depths[1:], strict=False))
        if len(depths) != img_size[0] + 1 or depths[0] <= 0 or not increasing:
            raise ValueError(
                f"'depths' must be {img_size[0] + 1} interfaces increasing from above 0; "
                f"got {depths}"
            )
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        rows, columns = (
            (torch.arange(1 - size, size + 1, dtype=torch.float64) - 0.5) * step
            for size, step in zip(img_size[1:], check_spacing(spacing, 2), strict=True)
        )
        z = torch.tensor(depths, dtype=torch.float64)
        # All corners once; a prism is the difference along the three axes. The station is at i,
        # the prism at j, and the convolution's kernel is a function of i - j.
        corners = corner(z[:, None, None], rows[:, None], columns)
        kernel = corners.diff(dim=0).diff(dim=1).diff(dim=2).flip(1, 2)
        self.register_buffer("kernel", kernel)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``(batch, C, H, W)`` to ``(batch, 1, H, W)``."""
        return convolve(x, self.kernel.to(x), 2).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Transpose: ``(batch, 1, H, W)`` to ``(batch, C, H, W)``."""
        return correlate(y, self.kernel.to(y), 2)


def prism_attraction(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    r"""A corner's part of the downward attraction :math:`\int \zeta / r^3` of a prism, in m.

    Args:
        z, x, y: of the corner relative to the station in m, broadcasting; ``z`` is positive.
    """
    r = (x**2 + y**2 + z**2).sqrt()
    logs = x * _log_sum(y, x, z) + y * _log_sum(x, y, z)
    return z * torch.atan2(x * y, z * r) - logs


def prism_gradients(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    r"""A corner's part of the second derivatives of :math:`\int 1/r`, ``(3, 3, *)``: x, y, z.

    Args:
        z, x, y: of the corner relative to the station in m, broadcasting; ``z`` is positive.

    ``x`` and ``y`` must not be zero.
    """
    r = (x**2 + y**2 + z**2).sqrt()
    entries = [
        [-torch.atan(y * z / (x * r)), _log_sum(z, x, y), _log_sum(y, x, z)],
        [_log_sum(z, x, y), -torch.atan(x * z / (y * r)), _log_sum(x, y, z)],
        [_log_sum(y, x, z), _log_sum(x, y, z), -torch.atan(x * y / (z * r))],
    ]
    return torch.stack([torch.stack(torch.broadcast_tensors(*row)) for row in entries])


def _log_sum(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``log(a + r)``, without the cancellation of negative ``a``."""
    across = (b**2 + c**2).sqrt()
    return torch.asinh(a / across) + across.log()
