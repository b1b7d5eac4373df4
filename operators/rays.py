r"""Straight-ray travel times: line integrals of the slowness from sources to receivers.

.. math:: t_n = \int_{\text{source}_n}^{\text{receiver}_n} s\, \mathrm d l
          = \sum_j l_{nj}\, s_j

for a slowness that is constant in every cell; :math:`l_{nj}` is the exact length of ray ``n`` in
cell ``j``. A ray is cut where it crosses a line of the grid; the middle of each piece says in
which cell it lies (Siddon 1985, Medical Physics 12, 252, https://doi.org/10.1118/1.595715). Only
the lengths that are not zero are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel
from torch import Tensor

from vfm_inverse.operators.grids import check_spacing

__all__ = ["StraightRays", "ray_lengths"]


class StraightRays(LinearPhysics):
    """Travel times along straight rays in two dimensions.

    Args:
        img_size: ``(1, H, W)``: slowness in s/m (or s/km with lengths in km), one value a cell.
        sources, receivers: ends of each ray in m, ``(N, 2)``: down, then right, from the outer
            corner of cell ``(0, 0)``. Anywhere: outside the grid there is no slowness, and a ray
            along a line between cells counts for the one after it.
        spacing: size of a cell in m, for both axes or one each.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, N)``, in s.

    Raises:
        ValueError: a shape does not fit, an end of a ray is not finite, or no ray meets the grid.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        sources: Tensor,
        receivers: Tensor,
        spacing: float | Sequence[float] = 1.0,
        noise_model: NoiseModel | None = None,
    ) -> None:
        img_size = tuple(img_size)
        if len(img_size) != 3 or img_size[0] != 1 or min(img_size) < 1:
            raise ValueError(f"'img_size' must be (1, H, W); got {img_size}")
        for name, ends in (("sources", sources), ("receivers", receivers)):
            if ends.dim() != 2 or ends.shape != (len(sources), 2) or len(ends) == 0:
                raise ValueError(f"'{name}' must have shape (N, 2); got {tuple(ends.shape)}")
            if not bool(torch.isfinite(ends).all()):
                raise ValueError(f"'{name}' must be finite")
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        ray, cell, length = ray_lengths(sources, receivers, img_size[1:], spacing)
        if len(ray) == 0:
            raise ValueError("'sources' and 'receivers' must have a ray that crosses the grid")
        self.num_rays = len(sources)
        self.register_buffer("ray", ray)
        self.register_buffer("cell", cell)
        self.register_buffer("length", length)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Travel times: ``(batch, 1, H, W)`` to ``(batch, N)``."""
        pieces = x.flatten(1)[:, self.cell] * self.length.to(x)
        return _sum_into(pieces, self.ray, self.num_rays)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Back-projection: ``(batch, N)`` to ``(batch, 1, H, W)``."""
        pieces = y[:, self.ray] * self.length.to(y)
        cells = int(torch.Size(self.img_size).numel())
        return _sum_into(pieces, self.cell, cells).reshape(-1, *self.img_size)


def ray_lengths(
    sources: Tensor,
    receivers: Tensor,
    grid: Sequence[int],
    spacing: float | Sequence[float] = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of rays in the cells of a grid, in double precision.

    Args:
        sources, receivers: ``(N, 2)``.
        grid: cells along each axis, ``(H, W)``.
        spacing: of the cells.

    Returns:
        Ray, flat cell and length of each piece, ``(pieces,)`` each.
    """
    start, end = sources.double(), receivers.double()
    step = torch.tensor(check_spacing(spacing, 2), dtype=start.dtype, device=start.device)
    way = end - start
    ends = torch.tensor([0.0, 1.0], dtype=start.dtype, device=start.device)
    cuts = [ends.expand(len(start), 2)]
    for axis in range(2):
        lines = torch.arange(grid[axis] + 1, device=start.device) * step[axis]
        run = way[:, axis, None]
        # A ray parallel to these lines does not cross them.
        fraction = (lines - start[:, axis, None]) / torch.where(run == 0, torch.inf, run)
        cuts.append(fraction.clamp(0, 1))
    cut, _ = torch.cat(cuts, 1).sort(1)
    share, middle = cut.diff(dim=1), (cut[:, 1:] + cut[:, :-1]) / 2
    index = torch.floor((start[:, None] + middle[..., None] * way[:, None]) / step).long()
    length = share * way.norm(dim=1, keepdim=True)
    limits = torch.tensor(tuple(grid), device=start.device)
    # Rounding leaves pieces of no length where several lines meet.
    real = share > 1e-13
    kept = real & ((index >= 0) & (index < limits)).all(-1)
    ray = torch.arange(len(start), device=start.device).unsqueeze(1).expand_as(kept)
    cell = index[..., 0] * grid[1] + index[..., 1]
    return ray[kept], cell[kept], length[kept]


def _sum_into(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums ``(batch, size)`` of ``values`` ``(batch, n)`` over equal indices ``(n,)``."""
    # Zeros made from the values, so that torch.func.vmap knows their batch.
    return torch.zeros_like(values[:, :1]).repeat(1, size).index_add(1, index, values)


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of rays within, across and beside the grid."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([3.0, 4.5])
    sources, receivers = (1.2 * torch.rand(2, 11, 2, generator=generator) - 0.1) * size
    x = 0.3 + 0.1 * torch.rand(2, 1, 6, 9, generator=generator)
    yield "straight-rays", StraightRays((1, 6, 9), sources, receivers, 0.5), x
