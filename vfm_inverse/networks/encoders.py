r"""What the networks get to see of an observation.

Two stages. *Features* are a fixed, standardised description of ``(y, params)``: a vector, or for
fields the observation lifted to the grid by the adjoint, the Gaussian start's mean and standard
deviation, and one channel for every parameter (mask, noise level). They are the context of a
conditional flow map as they are. Tables of stations are lifted as
:mod:`vfm_inverse.networks.stations` says. An *encoder* is the learned network that turns features
into the vector from which a :class:`~vfm_inverse.flow.adapter.NoiseAdapter` predicts its
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from deepinv.physics import Physics
from torch import Tensor, nn

from vfm_inverse.gaussian.physics_frame import PhysicsFrame, StartLaw
from vfm_inverse.networks.layers import CONVOLUTIONS, fresh_mlp
from vfm_inverse.networks.stations import TableScale, row_columns
from vfm_inverse.runtime.scaling import FittedBuffers, center_and_spread, over

__all__ = ["FieldEncoder", "FieldFeatures", "VectorEncoder", "VectorFeatures"]

ROUNDINGS = 8
"""A feature that varies by no more than this many roundings is a constant: it stays 0."""


def flatten(y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """An observation and its parameters, by name, as one vector each: ``(n, size)``."""
    parts = [y, *(params[name] for name in sorted(params))]
    return torch.cat([part.reshape(part.shape[0], -1) for part in parts], 1)


class VectorFeatures(FittedBuffers):
    """``y`` and all parameters, flattened and standardised: ``(n, size)``.

    Args:
        size: numbers in one observation and its parameters.
        framed: numbers in one field, where the start has the physics in it: what it says of the
            field is then a feature too.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, size: int, framed: int = 0) -> None:
        super().__init__()
        self.size = size + (2 * framed + 1 if framed else 0)
        self.framed = framed > 0
        self.register_buffer("center", torch.zeros(self.size))
        self.register_buffer("spread", torch.ones(self.size))

    def fit(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None = None) -> None:
        """Fit centre and spread on simulations."""
        raw = self._raw(y, params, start)
        self.center, self.spread = center_and_spread(raw, ROUNDINGS)

    def forward(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None) -> Tensor:
        """Standardised features of observations ``(n, *obs)``."""
        return over(self._raw(y, params, start) - self.center, self.spread)

    def _raw(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None) -> Tensor:
        raw = flatten(y, params)
        if not self.framed:
            return raw
        assert isinstance(start, PhysicsFrame)  # what it was built for
        return torch.cat([raw, *start.description()], 1)


class FieldFeatures(FittedBuffers):
    """Channels on the field's grid, ``(n, channels, *spatial)``.

    Stations that change or are switched off give a channel of values and one of their density.

    Args:
        event_shape: shape of the field, ``(C, L)`` or ``(C, H, W)``; a vector ``(L,)`` is a field
            of one channel.
        param_shapes: per-sample shape of every parameter; one with the field's spatial shape is a
            channel (or several), one of at most 16 numbers is that many constant channels, a
            larger one (a kernel) is left to the lifted observation.
        physics: lifts the observation; without an adjoint only a field-shaped observation is a
            channel.
        observation_shape: shape of one observation.
        with_start: whether a Gaussian start supplies its mean and standard deviation.
        framed: whether the start has the physics in it, and says how well its mode fits.
        flat: return ``(n, channels * prod(spatial))``, for networks on vectors.
    """

    LATER = ("level",)
    center: Tensor
    spread: Tensor
    level: Tensor
    _adjoint: Callable[..., Tensor]
    _noise: Tensor | None

    def __init__(
        self,
        event_shape: tuple[int, ...],
        observation_shape: tuple[int, ...],
        param_shapes: Mapping[str, tuple[int, ...]],
        physics: Physics | None,
        with_start: bool,
        flat: bool = False,
        framed: bool = False,
    ) -> None:
        super().__init__()
        self._vector = len(event_shape) == 1
        event_shape = (1,) * self._vector + tuple(event_shape)
        self.event_shape = torch.Size(event_shape)
        # Not registered: the physics belongs to the problem and is neither trained nor stored
        # here.
        object.__setattr__(self, "_adjoint", getattr(physics, "A_adjoint", None))
        noise = getattr(getattr(physics, "noise_model", None), "sigma", None)
        stored = noise.detach().clone() if isinstance(noise, Tensor) else None
        object.__setattr__(self, "_noise", stored)
        self.lift = self._adjoint is not None
        self.is_field = self._is_plane(observation_shape)
        self.with_start, self.flat = with_start, flat
        rows = row_columns(observation_shape, param_shapes) if self.lift else ()
        # Stations that come and go: where they are matters as much as what they say.
        table = "coords" in rows or "mask" in rows
        self.table = TableScale() if table else None
        rows = rows if table else ()
        self._shared = sorted(set(param_shapes) - set(rows))
        channels = 2 * event_shape[0] * with_start + framed
        if table:
            channels += 2 * event_shape[0]
        elif self.is_field:
            channels += self._planes(observation_shape)
        elif self.lift:
            channels += event_shape[0]
        for shape in (param_shapes[name] for name in self._shared):
            if self._is_plane(shape):
                channels += self._planes(shape)
            elif math.prod(shape) <= 16:
                channels += math.prod(shape)
        if not channels:
            raise ValueError(
                "'physics' must have an adjoint, or the observation the shape of the field, for "
                "networks on fields; "
                f"got {type(physics).__name__} with observations {tuple(observation_shape)}"
            )
        self.size = channels * (math.prod(event_shape[1:]) if flat else 1)
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("level", torch.ones(()))

    def fit(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None) -> None:
        """Fit centre and spread on simulations."""
        if self.table is not None:
            self.table.fit(y, params, self._adjoint)
        elif self.lift and not self.is_field:
            self.level = self._levels(y, params)
        raw = self._raw(y, params, start).movedim(1, -1).flatten(0, -2)
        # A channel that never varies (a fixed noise level) stays a constant zero.
        self.center, self.spread = center_and_spread(raw, ROUNDINGS)

    def forward(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None) -> Tensor:
        """Standardised features of observations ``(n, *obs)``."""
        shape = (-1, *[1] * (len(self.event_shape) - 1))
        raw = self._raw(y, params, start)
        channels = over(raw - self.center.view(shape), self.spread.view(shape))
        return channels.flatten(1) if self.flat else channels

    def _levels(self, y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Size of each datum, ``(*obs)`` or ``(1, ...)``: its noise where that is stated by datum,
        and otherwise the spread of all data."""
        stated = params.get("sigma", self._noise)
        if (
            stated is not None
            and stated.numel() > 1
            and stated.shape[-y.dim() + 1 :] == y.shape[1:]
        ):
            sigma = stated.to(y).expand_as(y)
            largest = sigma.amax(0)
            return largest * over(sigma, largest).square().mean(0).sqrt()
        _, spread = center_and_spread(y.reshape(-1, 1))
        return torch.where(spread > 0, spread, 1.0)

    def _is_plane(self, shape: tuple[int, ...]) -> bool:
        spatial = tuple(self.event_shape[1:])
        return tuple(shape[1:]) == spatial or (self._vector and tuple(shape) == spatial)

    def _planes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) // math.prod(self.event_shape[1:])

    def _raw(self, y: Tensor, params: Mapping[str, Tensor], start: StartLaw | None) -> Tensor:
        spatial = self.event_shape[1:]
        channels = []
        if self.with_start and start is not None:
            std = start.variance.clamp_min(0).sqrt().expand_as(start.mean)
            channels += [
                start.mean.unflatten(-1, self.event_shape),
                std.unflatten(-1, self.event_shape),
            ]
        if isinstance(start, PhysicsFrame):
            excess = start.description()[-1]
            channels.append(excess.reshape(-1, 1, *[1] * len(spatial)).expand(-1, 1, *spatial))
        if self.table is not None:
            channels.append(self.table.lift(y, params, self._adjoint))
        elif self.is_field:
            channels.append(y.reshape(len(y), -1, *spatial))
        elif self.lift:
            # Twice: once for the datum and once for its row of the operator.
            lifted = self._adjoint(y / self.level / self.level, **params)
            channels.append(lifted.reshape(len(y), *self.event_shape))
        for name in self._shared:
            value = params[name]
            if self._is_plane(value.shape[1:]):
                channels.append(value.reshape(len(value), -1, *spatial))
            elif value[0].numel() <= 16:
                flat = value.reshape(value.shape[0], -1)
                planes = flat.reshape(*flat.shape, *[1] * len(spatial))
                channels.append(planes.expand(*flat.shape, *spatial))
        return torch.cat(channels, 1)


class VectorEncoder(nn.Module):
    """MLP from features ``(n, size)`` to an encoding ``(n, width)``."""

    def __init__(self, size: int, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(fresh_mlp([size, width, width, width]), nn.SiLU())

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features of observations ``(n, *obs)``."""
        return self.layers(features)


class FieldEncoder(nn.Module):
    """Strided convolutions from features ``(n, channels, *spatial)`` to an encoding
    ``(n, width)``."""

    def __init__(self, channels: int, spatial: tuple[int, ...], width: int = 128) -> None:
        super().__init__()
        self.width = width
        conv = CONVOLUTIONS[len(spatial)]
        layers: list[nn.Module] = [conv(channels, 32, 3, padding=1), nn.SiLU()]
        sides = list(spatial)
        while max(sides) > 4:
            strides = tuple(2 if n > 4 else 1 for n in sides)
            layers += [conv(32, 32, 3, stride=strides, padding=1), nn.SiLU()]
            sides = [-(-n // stride) for n, stride in zip(sides, strides, strict=True)]
        layers += [nn.Flatten(), nn.Linear(32 * math.prod(sides), width), nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """An encoding ``(n, width)`` of features."""
        return self.layers(features)
