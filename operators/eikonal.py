r"""First-arrival travel times: log-velocity to times between sources and receivers.

.. math:: |\nabla T| = 1 / v, \qquad T(\text{source}) = 0, \qquad v = e^x,

with the first-order upwind scheme of ``upwind``. Around a source, where the solution is not
smooth, straight rays give the times: :math:`T = r\, (s_0 + s)/2` at the distance :math:`r`, with
the slowness :math:`s = 1/v` at the source and at the node. Nothing is reflected: the edges of the
grid let waves pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, NoiseModel, Physics
from torch import Tensor

from vfm_inverse.operators.masked import MaskedPhysics
from vfm_inverse.operators.observation import PointObservations
from vfm_inverse.operators.upwind import first_arrivals

__all__ = ["FirstArrivals"]


class FirstArrivals(MaskedPhysics):
    """Log-velocity ``(batch, 1, H, W)`` at nodes to travel times ``(batch, S R)``.

    Units: ``x = ln(v / (km/s))`` with ``spacing`` in km gives seconds; any other consistent three
    do. The field is given at the nodes of the grid. Times come source by source: datum ``i R + j``
    is from source ``i`` to receiver ``j``.

    Args:
        img_size: ``(1, H, W)``.
        sources: coordinates ``(S, 2)`` in ``[0, 1]`` along the axes of the grid: down, right. 0 is
            the first node, 1 the last.
        receivers: coordinates ``(R, 2)`` likewise.
        spacing: distance of neighbouring nodes, the same along both axes.
        near: radius, in grid spacings and at least 1, within which rays are straight.
        noise_model: deepinv noise model; Gaussian with sigma 0.01 by default.

    ``mask`` as in ``MaskedPhysics``. Derivatives are those of the discrete solution, in forward
    and reverse mode.

    Raises:
        ValueError: a shape does not fit, a point lies outside the grid, or ``spacing`` or ``near``
            is out of range.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        sources: Tensor,
        receivers: Tensor,
        spacing: float = 1.0,
        near: float = 2.0,
        noise_model: NoiseModel | None = None,
    ) -> None:
        super().__init__(noise_model or GaussianNoise(0.01))
        img_size = tuple(img_size)
        if len(img_size) != 3 or img_size[0] != 1 or min(img_size[1:]) < 2:
            raise ValueError(f"'img_size' must be (1, H, W) with axes >= 2; got {img_size}")
        if not spacing > 0 or not near >= 1:
            raise ValueError(
                f"'spacing' must be positive and 'near' at least 1; got {spacing} and {near}"
            )
        self.img_size = img_size
        self.spacing = spacing
        self.at_sources = PointObservations(img_size, sources)
        self.at_receivers = PointObservations((len(sources), *img_size[1:]), receivers)
        last = torch.tensor(img_size[1:]) - 1
        nodes = torch.cartesian_prod(*(torch.arange(side).double() for side in img_size[1:]))
        cells = torch.linalg.vector_norm(nodes - (sources.double().cpu() * last)[:, None], dim=-1)
        cells = cells.reshape(len(sources), *img_size[1:]).to(sources.device)
        self.register_buffer("distance", spacing * cells)
        self.register_buffer("known", cells <= near)

    def predict(self, x: Tensor, **params: Any) -> Tensor:
        """``(batch, 1, H, W)`` to ``(batch, S R)``."""
        return self.at_receivers.A(self.times(x)).flatten(1)

    def times(self, x: Tensor) -> Tensor:
        """First arrivals from each source at all nodes, ``(batch, S, H, W)``."""
        if x.dim() != 4 or x.shape[1:] != self.img_size:
            raise ValueError(
                f"'x' must have shape (batch, {', '.join(map(str, self.img_size))}); "
                f"got {tuple(x.shape)}"
            )
        slowness = torch.exp(-x)
        return self._times(slowness, self.at_sources.A(slowness))

    def jacobian(self, x: Tensor, mask: Tensor | None = None, **params: Any) -> Tensor:
        """Derivatives of the data, ``(batch, 1, H, W)`` to ``(batch, S R, 1, H, W)``. Each source
        has a slowness of its own, so that a receiver's times of all sources share a gradient."""
        num = len(self.known)

        def data(slowness: Tensor) -> Tensor:
            own = self.at_sources.A(slowness.flatten(0, 1).unsqueeze(1))
            at_source = own.unflatten(0, (-1, num)).diagonal(dim1=-2, dim2=-1)
            return self.at_receivers.A(self._times(slowness, at_source))

        slowness = torch.exp(-x)
        vjp: Any = torch.func.vjp  # its stated type is that of the form with auxiliary data
        times, gradient = vjp(data, slowness.repeat(1, num, 1, 1))
        one = torch.eye(times.shape[-1], dtype=x.dtype, device=x.device)
        (rows,) = torch.func.vmap(gradient)(one[:, None, None].expand(-1, *times.shape))
        rows = rows.movedim(0, 2) * -slowness.unsqueeze(2)
        return self._masked_rows(rows.flatten(1, 2).unsqueeze(2), mask)

    def _times(self, slowness: Tensor, at_source: Tensor) -> Tensor:
        """``(batch, 1 or S, H, W)``, at sources ``(batch, S)``, to ``(batch, S, H, W)``."""
        start = self.distance.to(slowness) * (slowness + at_source[..., None, None]) / 2
        return first_arrivals((self.spacing * slowness).expand_as(start), start, self.known)


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of the operator above."""
    generator = torch.Generator().manual_seed(2)
    sources = torch.rand(2, 2, generator=generator)
    receivers = torch.rand(4, 2, generator=generator)
    x = 0.3 * torch.randn(2, 1, 7, 9, generator=generator)
    yield "first-arrivals", FirstArrivals((1, 7, 9), sources, receivers, spacing=0.5), x
