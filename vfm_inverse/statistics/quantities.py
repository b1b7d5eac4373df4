"""Scalar test quantities ``(x, y, **params) -> value`` whose ranks carry the verdict.

Ranks of a few functionals of a field say more than those of every pixel: a posterior with the
right pixels and the wrong correlations is caught by its block means and its gradients, one with
the wrong tails by its maximum, and one that ignores the data by the log-likelihood (Modrák et al.
2023, arXiv 2211.02383).

A quantity has the signature of ``InverseProblem.log_likelihood``: ``x`` is ``(num, batch,
*event)``, ``y`` is ``(batch, *observation)`` or ``None``, ``params`` are ``(batch, ...)``, and the
values are ``(num, batch)``. A user's own is one line: ``{"total": lambda x, y, **params:
x.sum((-1, -2, -3))}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vfm_inverse.runtime.arrays import real_tensor

__all__ = [
    "Quantity",
    "Units",
    "channel_units",
    "default_quantities",
    "evaluate",
    "needs_double",
    "observation_features",
]

Quantity = Callable[..., Tensor]

ALIKE = 100.0
"""Scales of channels that may have one unit differ by less than this."""


def default_quantities(
    event_shape: Sequence[int],
    log_likelihood: Quantity | None = None,
    *,
    limit: int = 32,
    units: Units | None = None,
) -> dict[str, Quantity]:
    """Scalar test quantities that carry the verdict.

    A vector ``(d,)`` gives its coordinates (``limit`` of them, evenly spaced, when there are more)
    and its norm; a field ``(C, *space)`` its mean, maximum, minimum, block means (halves of every
    axis, of the longest four when there are more; quarters in one dimension), mean squared
    gradient, power in up to four octaves of the wave number, and a probe pixel in each block.  A
    field of one place ``(C, 1, ...)`` gives its channels as pixels, and their mean, maximum and
    minimum.  Both give ``distance``, the Euclidean distance from the mean of truth and draws
    together: the part of the energy score that one of them carries.  The log-likelihood comes
    last.

    Args:
        event_shape: ``(d,)`` or ``(C, *space)``.
        log_likelihood: ``(x, y, **params) -> (*batch,)``, such as
            ``InverseProblem.log_likelihood``.
        limit: largest number of coordinates of a vector.
        units: centre and scale of channels (or of a vector's coordinates), as
            :func:`channel_units` finds them where they have no unit in common: quantities of
            several of them then take each in its own scale, since the norm of temperatures and
            pressures would be that of the pressures alone.

    Raises:
        ValueError: ``event_shape`` has no axis, or an empty one.
    """
    event_shape = tuple(event_shape)
    if not event_shape or min(event_shape) < 1:
        raise ValueError(
            "'event_shape' must be (d,) or (C, *space) with sizes of at least 1; "
            f"got {event_shape}"
        )
    if len(event_shape) == 1 or math.prod(event_shape[1:]) == 1:
        single, joint = _coordinates(event_shape, limit), _of_one_place(event_shape)
        chosen = single | _all_in_units(joint, units)
    else:
        joint, blocks = _of_field(event_shape), _of_blocks(event_shape, units)
        chosen = _all_in_units(joint, units) | blocks
    if log_likelihood is not None:
        chosen["log_likelihood"] = log_likelihood
    return chosen


class Units(NamedTuple):
    """What channels are measured from and in, each ``(C,)``, double precision."""

    centre: Tensor
    scale: Tensor


def channel_units(truth: Tensor) -> Units | None:
    """Units for quantities of several channels of fields ``(num, C, *space)``, or of several
    coordinates of vectors ``(num, d)``; ``None`` for plain quantities.

    Where the channels' spreads over the truths differ by more than a factor of 100, as those of
    temperature and humidity in SI units do, each channel is centred and scaled by a power of two
    near its spread. Numbers whose squares leave single precision (:func:`needs_double`) keep their
    unit, and are taken in double precision.
    """
    num, channels = truth.shape[:2] if truth.ndim > 1 else (len(truth), 1)
    rows = torch.from_numpy(np.linspace(0, num - 1, min(num, 512)).round().astype(int))
    few = truth.detach()[rows.to(truth.device)].double().reshape(len(rows), channels, -1)
    if channels > 1 and num > 1 and bool(few.isfinite().all()):
        # A deviation is scaled before it is squared.
        spread = few - few.mean(0)
        largest = spread.abs().amax((0, 2))
        unit = torch.where(largest > 0, largest, 1.0)
        spread = (spread / unit[:, None]).square().mean((0, 2)).sqrt() * unit
        # What rounding leaves of a constant is no spread.
        varies = largest > 1e-9 * few.abs().amax((0, 2))
        if bool(varies.any()) and float(spread[varies].max() / spread[varies].min()) > ALIKE:
            scale = torch.exp2(torch.where(varies, spread, 1.0).log2().round())
            return Units(few.mean((0, 2)), scale)
    if not needs_double(truth):
        return None
    return Units(few.new_zeros(channels), few.new_ones(channels))


def needs_double(truth: Tensor) -> bool:
    """Whether squares and their sums over ``(num, *event)``, or over draws some thousand times
    narrower, leave the range of single precision."""
    if truth.dtype != torch.float32 or truth.numel() == 0:
        return False
    high, low = truth.amax(0), truth.amin(0)
    spread = high - low
    spread = spread[spread > 0]
    largest = float(torch.maximum(high.abs(), low.abs()).max())
    return largest > 1e14 or (spread.numel() > 0 and float(spread.min()) < 1e-14)


def _in_units(quantity: Quantity, units: Units | None) -> Quantity:
    """A quantity of fields whose channels are standardised first."""
    if units is None:
        return quantity
    given = units

    def standardised(x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 3))
        centre, scale = (value.to(x.device).reshape(shape) for value in given)
        return quantity((x - centre) / scale, y, **params)

    return standardised


def _all_in_units(quantities: Mapping[str, Quantity], units: Units | None) -> dict[str, Quantity]:
    return {name: _in_units(quantity, units) for name, quantity in quantities.items()}


def _coordinates(event_shape: tuple[int, ...], limit: int) -> dict[str, Quantity]:
    """Coordinates of a vector ``(d,)`` or channels of a place ``(C, 1, ...)``, ``limit`` of
    them."""
    ndim, channels = len(event_shape), event_shape[0]
    name, rest = ("x", "") if ndim == 1 else ("pixel", ",0" * (ndim - 1))
    chosen: dict[str, Quantity] = {}
    spread = np.linspace(0, channels - 1, min(channels, limit)).round().astype(int)
    for i in np.unique(spread).tolist():
        label = f"{i}{rest}" if ndim == 1 or channels > 1 else rest[1:]
        chosen[f"{name}[{label}]"] = _element((..., i, *[0] * (ndim - 1)))
    return chosen


def _of_one_place(event_shape: tuple[int, ...]) -> dict[str, Quantity]:
    """Quantities of all coordinates or channels together, if there are several."""
    if event_shape[0] == 1:
        return {}
    if len(event_shape) == 1:
        return {
            "norm": lambda x, y=None, **params: torch.linalg.vector_norm(x, dim=-1),
            "distance": _distance,
        }
    return {"distance": _distance, **_extremes(_axes(event_shape))}


def _of_field(event_shape: tuple[int, ...]) -> dict[str, Quantity]:
    """Quantities of a whole field ``(C, *space)``."""
    event = _axes(event_shape)
    joint: dict[str, Quantity] = {**_extremes(event), "distance": _distance}
    joint["gradient_energy"] = lambda x, y=None, **params: sum(
        torch.linalg.vector_norm(d, dim=event).square() / math.prod(d.shape[2:])
        for d in (x.diff(dim=axis) for axis in event[1:] if x.shape[axis] > 1)
    )
    bands = min(4, int(math.log2(max(event_shape[1:]))) - 1)
    for band in range(bands):
        joint[f"band_power[{band}]"] = _BandPower(event_shape, band, last=band == bands - 1)
    return joint


def _of_blocks(event_shape: tuple[int, ...], units: Units | None) -> dict[str, Quantity]:
    """The mean of each block of a field ``(C, *space)``, and a pixel in its middle, whose channels
    take turns."""
    ndim, channels, event = len(event_shape), event_shape[0], _axes(event_shape)
    parts = 4 if ndim == 2 else 2
    longest = sorted(range(1, ndim), key=lambda axis: -event_shape[axis])[:4]
    cuts = [
        np.linspace(0, n, (min(parts, n) if axis in longest else 1) + 1).astype(int).tolist()
        for axis, n in enumerate(event_shape[1:], start=1)
    ]
    chosen: dict[str, Quantity] = {}
    for number, block in enumerate(product(*(range(len(cut) - 1) for cut in cuts))):
        spans = [(cut[b], cut[b + 1]) for cut, b in zip(cuts, block, strict=True)]
        inside = (..., slice(None), *(slice(*span) for span in spans))
        name = ",".join(map(str, block))
        chosen[f"block_mean[{name}]"] = _in_units(
            lambda x, y=None, s=inside, **params: x[s].mean(event), units
        )
        at = (number % channels, *((low + high) // 2 for low, high in spans))
        name = ",".join(map(str, at if channels > 1 else at[1:]))
        chosen[f"pixel[{name}]"] = _element((..., *at))
    return chosen


def _element(index: tuple[Any, ...]) -> Quantity:
    return lambda x, y=None, **params: x[index]


def _axes(event_shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(event_shape), 0))


def _extremes(event: tuple[int, ...]) -> dict[str, Quantity]:
    return {
        "mean": lambda x, y=None, **params: x.mean(event),
        "max": lambda x, y=None, **params: x.amax(event),
        "min": lambda x, y=None, **params: x.amin(event),
    }


def _distance(x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
    # Of the mean of truth and draws: it treats them alike, as ranks need.
    centred = x - x.mean(0)
    return torch.linalg.vector_norm(centred.flatten(2), dim=-1)


class _BandPower:
    """Mean power of a field in an octave of the wave number, in cycles per field.

    Band ``b`` holds wave numbers from ``2**b`` to below ``2**(b+1)``, the last band all above.
    """

    def __init__(self, event_shape: Sequence[int], band: int, *, last: bool) -> None:
        space = event_shape[1:]
        axes = [np.fft.fftfreq(n, 1 / n) for n in space[:-1]] + [
            np.fft.rfftfreq(space[-1], 1 / space[-1])
        ]
        radius = np.sqrt(sum(np.square(k) for k in np.meshgrid(*axes, indexing="ij")))
        inside = (radius >= 2**band) & (last | (radius < 2 ** (band + 1)))
        # A real field's transform stores half of its modes; the others are their conjugates.
        twice = np.full(radius.shape, 2.0)
        twice[..., 0] = 1.0
        if space[-1] % 2 == 0:
            twice[..., -1] = 1.0
        self.dims = tuple(range(-len(space), 0))
        self.weight = torch.from_numpy(inside * twice / (math.prod(space) ** 2 * event_shape[0]))

    def __call__(self, x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
        weight = self.weight.to(x).sqrt()
        modes = torch.view_as_real(torch.fft.rfftn(x, dim=self.dims) * weight)
        return torch.linalg.vector_norm(modes.flatten(2), dim=-1).square()


def evaluate(
    quantities: Mapping[str, Quantity], x: Tensor, y: Tensor | None, params: Mapping[str, Tensor]
) -> Tensor:
    """Values of all quantities: ``(num, batch, len(quantities))``.

    Raises:
        TypeError: a quantity returns no real numbers.
        ValueError: it returns another shape than ``(num, batch)``, or a NaN.
    """
    values = []
    for name, quantity in quantities.items():
        found: Any = quantity(x, y, **params)
        plain = isinstance(found, Tensor) and found.is_floating_point()
        wide = None if plain else torch.float64  # counts stay exact
        value = real_tensor(found, f"quantity {name}", dtype=wide, device=x.device).detach()
        if value.shape != x.shape[:2]:
            raise ValueError(
                f"quantity '{name}' must return shape {tuple(x.shape[:2])}; "
                f"got {tuple(value.shape)}"
            )
        if value.isnan().any():
            raise ValueError(f"quantity '{name}' must not be NaN")
        values.append(value)
    dtype = torch.float64 if any(v.dtype == torch.float64 for v in values) else torch.float32
    return torch.stack([value.to(dtype) for value in values], dim=-1)


def observation_features(y: Tensor) -> Tensor:
    """A few numbers of each observation ``(batch, *observation)``: ``(batch, features)``.

    All of its numbers where there are at most 32, otherwise its default quantities.
    """
    if y[0].numel() <= 32:
        return y.reshape(len(y), -1)
    values = evaluate(default_quantities(y.shape[1:]), y[None], None, {})
    return values[0]
