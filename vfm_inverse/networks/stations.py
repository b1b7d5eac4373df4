r"""Observations that are tables: a row is a station with its location, value and error.

Networks that change from one observation to the next come as ``y`` ``(n, m)``, padded to the
largest network, with the parameters ``coords`` ``(n, m, D)`` (locations, 0 to 1 along each axis of
the grid), ``mask`` ``(n, m)`` (1 where a row is a station) and ``sigma`` ``(n, m)``, of which each
may be absent. Nothing here depends on the order of the rows or on what stands in a row that is no
station.

*Lifted*, a table becomes channels on the field's grid. With the adjoint :math:`A^\top` of reading
the field at the stations and the weights :math:`w_j = v / \sigma_j^2` (v the variance of the data;
1 where no error is stated)

.. math:: \text{density} = \log(1 + A^\top w), \qquad
          \text{value} = \frac{A^\top w\,(y - \bar y)/\sqrt v}{1 + A^\top w},

the second of which is a local average of the standardised values, drawn to 0 where there are few.
(An operator whose data have another unit than the field is taken over what it makes of ones.)
An operator with a gain, in another unit than the data, is taken as an average: :math:`A^\top` over
the gain.

*Encoded*, every row goes through the same network, and means and maxima over the rows through
another (deep sets; Zaheer et al. 2017, https://arxiv.org/abs/1703.06114, Theorem 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vfm_inverse.gaussian.physics_frame import StartLaw
from vfm_inverse.networks.layers import fresh_mlp
from vfm_inverse.runtime.scaling import FittedBuffers, center_and_spread, over

__all__ = [
    "EncodedContext",
    "StationEncoder",
    "StationFeatures",
    "TableScale",
    "is_table",
    "seen",
    "summary",
]

COLUMNS = ("coords", "mask", "sigma")
"""Parameters that may have a row for each station."""

ROUNDINGS = 8
"""A column that varies by no more than this many roundings is a constant."""

FREQUENCIES = 4
"""Sines and cosines of a location, at 1/2, 1, 2, 4 periods over the grid along each axis."""


def row_columns(
    observation_shape: Sequence[int], param_shapes: Mapping[str, Sequence[int]]
) -> tuple[str, ...]:
    """Names of the parameters with a row for each datum of a table ``(m,)``."""
    if len(observation_shape) != 1:
        return ()
    return tuple(
        name
        for name in COLUMNS
        if tuple(param_shapes.get(name, ()))[:1] == tuple(observation_shape)
        and len(param_shapes[name]) == 1 + (name == "coords")
    )


def is_table(observation_shape: Sequence[int], param_shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether observations are tables whose rows say where they are: ``coords`` by row.

    Args:
        observation_shape: shape of one observation.
        param_shapes: shape of each parameter, without its batch dimension.
    """
    return "coords" in row_columns(observation_shape, param_shapes)


def seen(y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """Which rows of tables ``y (n, m)`` are stations, ``(n, m)`` of booleans."""
    mask = params.get("mask")
    return torch.ones_like(y, dtype=torch.bool) if mask is None else mask != 0


def columns(y: Tensor, params: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """The table's columns, each ``(n, m, k)``, 0 in rows that are no stations; and ``seen``.

    They are the value, the location and the logarithm of sigma, where there is one.
    """
    rows = seen(y, params)
    parts = [y.unsqueeze(-1), params["coords"]]
    if "sigma" in params:
        sigma = params["sigma"].reshape(y.shape[0], -1).expand(y.shape)
        parts.append(torch.where(rows, sigma, 1.0).log().unsqueeze(-1))
    return [torch.where(rows.unsqueeze(-1), part, 0.0) for part in parts], rows


def summary(y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """What tables hold, whatever the order of their rows: the share of rows that are stations,
    and mean, smallest and largest of each column, ``(n, size)``."""
    parts, rows = columns(y, params)
    table, rows = torch.cat(parts, -1), rows.unsqueeze(-1)
    any_row = rows.any(1)
    spread = [
        table.sum(1) / rows.sum(1).clamp_min(1),
        torch.where(any_row, torch.where(rows, table, math.inf).amin(1), 0.0),
        torch.where(any_row, torch.where(rows, table, -math.inf).amax(1), 0.0),
    ]
    return torch.cat([rows.to(table).mean(1), *spread], 1)


class TableScale(FittedBuffers):
    """Mean and standard deviation of the values that stations report."""

    LATER = ("gain",)
    center: Tensor
    spread: Tensor
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("gain", torch.ones(()))

    def fit(self, y: Tensor, params: Mapping[str, Tensor], adjoint: Callable[..., Tensor]) -> None:
        """Fit on simulations ``y (n, m)``, and the gain on the data of a field of ones."""
        rows = seen(y, params)
        values = y[rows]
        if len(values) == 0:
            return
        self.center, self.spread = center_and_spread(values, ROUNDINGS)
        # A^T of ones, summed over the grid, is the sum of what A makes of a field of ones.
        mass = adjoint(rows.to(y), **params).double()
        gain = mass.flatten(2).sum((0, 2)).abs() / rows.sum()
        gain = torch.where(gain > 0, gain, 1.0)
        self.gain = gain.to(y).reshape(-1, *[1] * (mass.dim() - 2))

    def forward(self, y: Tensor) -> Tensor:
        """Standardised values."""
        return over(y - self.center, self.spread)

    def lift(
        self, y: Tensor, params: Mapping[str, Tensor], adjoint: Callable[..., Tensor]
    ) -> Tensor:
        """The table on the grid, value and density: ``(n, 2 C, *spatial)``."""
        rows = seen(y, params)
        weight = torch.ones_like(y)
        if "sigma" in params:
            sigma = params["sigma"].reshape(y.shape[0], -1).expand(y.shape)
            weight = (self.spread / torch.where(rows, sigma, 1.0)).square()
        weight = torch.where(rows, weight, 0.0)
        value = torch.where(rows, self(y), 0.0)
        mass = adjoint(weight, **params) / self.gain
        total = adjoint(weight * value, **params) / self.gain
        mass = mass.clamp_min(0)  # an operator that only averages is never negative
        return torch.cat([total / (1 + mass), mass.log1p()], 1)


class StationFeatures(FittedBuffers):
    """Features of every row, and last whether it is a station: ``(n, m, rows + 1)``.

    A location in [0, 1] is scaled to [-1, 1] and followed by its Fourier features; value and log
    sigma are standardised. Rows that are no stations are 0.

    Args:
        observation_shape: ``(m,)``.
        param_shapes: shape of each parameter, without its batch dimension.

    Raises:
        ValueError: the observations are no tables.
    """

    center: Tensor
    spread: Tensor
    octaves: Tensor

    def __init__(
        self, observation_shape: Sequence[int], param_shapes: Mapping[str, Sequence[int]]
    ) -> None:
        super().__init__()
        if not is_table(observation_shape, param_shapes):
            raise ValueError(
                "'param_shapes' must have 'coords' (m, D) for observations (m,); "
                f"got {dict(param_shapes)} with observations {tuple(observation_shape)}"
            )
        axes = param_shapes["coords"][1]
        self.with_sigma = "sigma" in param_shapes
        self.rows = 1 + axes * (1 + 2 * FREQUENCIES) + self.with_sigma
        # Of the value and of log sigma.
        self.register_buffer("center", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        octaves = 2.0 ** torch.arange(-1, FREQUENCIES - 1)
        self.register_buffer("octaves", octaves, persistent=False)

    def fit(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None = None) -> None:
        """Fit centre and spread on simulations."""
        parts, rows = columns(y, params)
        self.center, self.spread = y.new_zeros(2), y.new_ones(2)
        for i, part in enumerate([parts[0], parts[-1]][: 1 + self.with_sigma]):
            values = part[..., 0][rows]
            if len(values) > 0:
                # A column that never varies (one noise level) stays a constant zero.
                self.center[i], self.spread[i] = center_and_spread(values, ROUNDINGS)

    def forward(
        self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None = None
    ) -> Tensor:
        """Features of tables ``y (n, m)``."""
        parts, rows = columns(y, params)
        place = 2 * parts[1] - 1
        # Octaves are exact in every type; pi times them is not.
        angles = ((math.pi * place).unsqueeze(-1) * self.octaves).flatten(-2)
        features = [over(parts[0] - self.center[0], self.spread[0]), place]
        features += [angles.sin(), angles.cos()]
        if self.with_sigma:
            features.append(over(parts[-1] - self.center[1], self.spread[1]))
        table = torch.where(rows.unsqueeze(-1), torch.cat(features, -1), 0.0)
        return torch.cat([table, rows.unsqueeze(-1).to(table)], -1)


class StationEncoder(nn.Module):
    """From features ``(n, m, size + 1)`` to an encoding ``(n, width)``.

    Args:
        size: features of a row.
        width: of the encoding.
    """

    def __init__(self, size: int, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.row = nn.Sequential(fresh_mlp([size, width, width]), nn.SiLU())
        self.pooled = nn.Sequential(fresh_mlp([2 * width + 1, width, width]), nn.SiLU())

    def forward(self, features: Tensor) -> Tensor:
        """An encoding ``(n, width)``; of an empty table too."""
        rows = features[..., -1:] > 0
        each = self.row(features[..., :-1])
        count = rows.sum(1)
        mean = torch.where(rows, each, 0.0).sum(1) / count.clamp_min(1)
        largest = torch.where(rows, each, -math.inf).amax(1)
        largest = torch.where(count > 0, largest, 0.0)
        return self.pooled(torch.cat([mean, largest, count.to(each).log1p()], 1))


class EncodedContext(nn.Module):
    """A network whose context is an encoding, learned with it, of the table's features.

    Args:
        encoder: features of tables to vectors ``(n, width)``.
        network: ``(x (k n, d), s, t, context (n, width, *spatial)) -> (k n, d)``.
        spatial: shape of the grid over which the encoding is repeated, if the network has one.
    """

    def __init__(
        self, encoder: StationEncoder, network: nn.Module, spatial: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network
        self.spatial = tuple(spatial)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The network's output at ``x (k n, d)``."""
        vector = self.encoder(context)
        planes = vector.reshape(*vector.shape, *[1] * len(self.spatial))
        output: Tensor = self.network(x, s, t, planes.expand(*vector.shape, *self.spatial))
        return output
