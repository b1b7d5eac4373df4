r"""Linear observations of a vector or a field.

``MatrixObservations``: :math:`y = M x` for a dense matrix.

``PointObservations``: a field known at the nodes of a grid, read at station coordinates by
multilinear interpolation,

.. math:: y_n = \sum_{k \in \{0,1\}^D} \Bigl(\prod_d w_{n d}^{k_d} (1 - w_{n d})^{1 - k_d}\Bigr)\,
          x_{i_n + k}, \qquad p_{n d}\,(N_d - 1) = i_{nd} + w_{nd},

a gather with :math:`2^D` weights a station. The adjoint is the scatter with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel
from torch import Tensor

__all__ = ["MatrixObservations", "PointObservations"]


class MatrixObservations(LinearPhysics):
    """``y = M x`` for vectors ``(batch, d)`` and a matrix ``M`` ``(m, d)``.

    Raises:
        ValueError: ``matrix`` is not two-dimensional.
    """

    def __init__(self, matrix: Tensor, noise_model: NoiseModel | None = None) -> None:
        if matrix.dim() != 2:
            raise ValueError(f"'matrix' must have shape (m, d); got {tuple(matrix.shape)}")
        super().__init__(
            img_size=(matrix.shape[1],), noise_model=noise_model or GaussianNoise(0.1)
        )
        self.register_buffer("matrix", matrix)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``M x``: ``(batch, d)`` to ``(batch, m)``."""
        return x @ self.matrix.to(x).mT

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """``M^T y``: ``(batch, m)`` to ``(batch, d)``."""
        return y @ self.matrix.to(y)


class PointObservations(LinearPhysics):
    """A field on a regular grid, observed at points.

    Args:
        img_size: event shape of the field, ``(C, L)`` or ``(C, H, W)``.
        points: station coordinates ``(N, D)`` in grid units, ``[0, 1]`` along every axis in the
            order of the array's axes (for an image: down, then right). 0 is the first grid node, 1
            the last. None where every call brings its own ``coords``.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation has shape ``(batch, N)`` for one channel, ``(batch, C, N)`` for several.
    ``mask``, ``(batch, N)`` of zeros and ones (``(batch, 1 or C, N)`` for several channels),
    switches stations off: they read 0, without noise, as in deepinv's ``Inpainting``. ``coords``,
    ``(batch, N, D)`` or ``(1, N, D)``, takes the place of ``points`` for networks that change from
    one observation to the next. Neither is stored when passed in a call.

    Raises:
        ValueError: a shape does not fit or a point lies outside the grid.
    """

    replaced = {"coords": ("points", "index", "weight")}
    """Buffers that do not count where a parameter of a call takes their place."""

    def __init__(
        self,
        img_size: Sequence[int],
        points: Tensor | None = None,
        noise_model: NoiseModel | None = None,
    ) -> None:
        img_size = tuple(img_size)
        grid = img_size[1:]
        if len(img_size) not in (2, 3) or min(img_size) < 1 or min(grid) < 2:
            raise ValueError(
                f"'img_size' must be (C, L) or (C, H, W) with axes >= 2; got {img_size}"
            )
        index, weight = None, None
        if points is not None:
            if points.dim() != 2 or points.shape[0] == 0 or points.shape[1] != len(grid):
                raise ValueError(
                    f"'points' must have shape (N, {len(grid)}); got {tuple(points.shape)}"
                )
            _check_inside("points", points)
            index, weight = _stencil(points.double(), grid)
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        self.register_buffer("points", points)
        self.register_buffer("index", index)
        self.register_buffer("weight", weight)
        self.register_buffer("mask", None)

    def A(
        self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """``(batch, *img_size)`` to ``(batch, N)`` or ``(batch, C, N)``.

        Raises:
            ValueError: ``coords`` has a wrong shape or leaves the grid.
        """
        index, weight = self._stencil(coords, mask)
        nodes = x.flatten(2)
        if coords is None:
            corners = nodes[..., index]
        else:
            places = index.flatten(1).unsqueeze(1).expand(*nodes.shape[:2], -1)
            corners = nodes.gather(2, places).unflatten(2, index.shape[1:])
            weight = weight.unsqueeze(1)
        y = (corners * weight.to(x)).sum(-1)
        return self._masked(y.squeeze(1) if self.img_size[0] == 1 else y, mask)

    def A_adjoint(
        self, y: Tensor, mask: Tensor | None = None, coords: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Transpose: ``(batch, N)`` or ``(batch, C, N)`` to ``(batch, *img_size)``.

        Raises:
            ValueError: as :meth:`A`.
        """
        index, weight = self._stencil(coords, mask)
        y = self._masked(y, mask)
        y = y.unsqueeze(1) if self.img_size[0] == 1 else y
        weight = weight.to(y) if coords is None else weight.to(y).unsqueeze(1)
        spread = (y.unsqueeze(-1) * weight).flatten(2)
        nodes = torch.zeros_like(spread[..., :1]).repeat(1, 1, self._num_nodes())
        if coords is None:
            nodes = nodes.index_add(2, index.flatten(), spread)
        else:
            places = index.flatten(1).unsqueeze(1).expand_as(spread)
            nodes = nodes.scatter_add(2, places, spread)
        return nodes.reshape(-1, *self.img_size)

    def noise(self, x: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Noise at the stations that are switched on."""
        return self._masked(self.noise_model(x, **kwargs), mask)

    def _stencil(self, coords: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Flat node indices and weights: ``(N, 2^D)``, or ``(batch, N, 2^D)`` with ``coords``."""
        if coords is None:
            if self.points is None:
                raise ValueError("'coords' must be given: these observations have no 'points'")
            return self.index, self.weight
        grid = self.img_size[1:]
        if coords.dim() != 3 or coords.shape[-1] != len(grid):
            raise ValueError(
                f"'coords' must have shape (batch, N, {len(grid)}); got {tuple(coords.shape)}"
            )
        if mask is not None:  # what stands beside a station that is off does not count
            seen = (mask != 0).reshape(mask.shape[0], -1, mask.shape[-1]).any(1)
            coords = torch.where(seen.unsqueeze(-1), coords, 0.0)
        _check_inside("coords", coords)
        return _stencil(coords.double(), grid)

    def _masked(self, y: Tensor, mask: Tensor | None) -> Tensor:
        mask = self.mask if mask is None else mask
        return y if mask is None else y * mask.to(y)

    def _num_nodes(self) -> int:
        return int(torch.Size(self.img_size[1:]).numel())


def _check_inside(name: str, points: Tensor) -> None:
    """Refuse points outside the grid."""
    try:
        inside = bool(((points >= 0) & (points <= 1)).all())
    except RuntimeError:  # under torch.func.vmap no value can be looked at
        return
    if not inside:
        raise ValueError(
            f"'{name}' must lie in [0, 1]; got {float(points.min()):g} to {float(points.max()):g}"
        )


def _stencil(points: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Flat node indices and weights, each ``(*, N, 2^D)``, of points ``(*, N, D)``."""
    last = torch.tensor(grid, dtype=points.dtype, device=points.device) - 1
    position = points * last
    # The last node belongs to the last cell.
    lower = torch.minimum(position.floor(), last - 1)
    fraction = position - lower
    strides = [int(torch.Size(grid[axis + 1 :]).numel()) for axis in range(len(grid))]
    index, weight = [], []
    for corner in product((0, 1), repeat=len(grid)):
        flat, product_of = torch.zeros_like(lower[..., 0]), torch.ones_like(lower[..., 0])
        for axis, step in enumerate(corner):
            flat = flat + (lower[..., axis] + step) * strides[axis]
            along = fraction[..., axis]
            product_of = product_of * (along if step else 1 - along)
        index.append(flat.long())
        weight.append(product_of)
    return torch.stack(index, -1), torch.stack(weight, -1)


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of the operators above."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    yield "matrix", MatrixObservations(uniform(3, 5)), uniform(2, 5)
    yield "points-1d", PointObservations((1, 12), uniform(5, 1)), uniform(2, 1, 12)
    yield "points-2d", PointObservations((1, 6, 9), uniform(7, 2)), uniform(2, 1, 6, 9)
    yield "points-2d-channels", PointObservations((3, 6, 9), uniform(7, 2)), uniform(2, 3, 6, 9)
