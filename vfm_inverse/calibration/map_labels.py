"""How arrays over a field's elements become labelled maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from vfm_inverse.problem.labels import squeezed

__all__ = ["MapLabels"]

AXES = ("depth", "row", "column")
"""Axes of space without labels."""

OWN = {
    "simulation",
    "quantity",
    "level",
    "position",
    "bin",
    "score",
    "tarp_set",
    "aspect",
    "local_axis",
}
"""Dimensions that the report uses itself: a field's own of that name is prefixed."""


@dataclass(frozen=True)
class MapLabels:
    """Dimensions, coordinates and units of maps, one channel dropped."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    event: tuple[int, ...]
    coords: dict[str, Any]
    attrs: dict[str, str]

    @classmethod
    def of(
        cls,
        event: Sequence[int],
        dims: Sequence[str] | None = None,
        coords: Mapping[str, Any] | None = None,
        units: str | None = None,
    ) -> MapLabels:
        """Labels of fields ``event``; plain names of axes where ``dims`` is missing.

        Raises:
            ValueError: ``dims`` does not name every axis.
        """
        dropped = dims is None or len(dims) == len(event) - 1
        shape = squeezed(event) if dropped else tuple(event)
        space = len(event) - 1
        axes = AXES[-space:] if space <= 3 else tuple(f"axis_{i}" for i in range(space))
        plain = ("component",) if not space else ("channel", *axes)
        names = tuple(dims or plain[-len(shape) :])
        if len(names) != len(shape):
            raise ValueError(f"'dims' must name the axes {shape} of the field; got {names}")
        new = {name: f"field_{name}" if name in OWN else name for name in names}
        kept = {}
        for name, value in (coords or {}).items():
            variable = xr.Dataset(coords={name: value})[name]
            if all(dim in new for dim in variable.dims):
                where = tuple(new[str(dim)] for dim in variable.dims)
                label = f"field_{name}" if name in OWN else name
                kept[label] = (where, variable.values, variable.attrs)
        attrs = {} if units is None else {"units": units}
        return cls(tuple(new.values()), shape, tuple(event), kept, attrs)

    def reshape(self, value: np.ndarray) -> np.ndarray:
        """``(..., *event)`` to ``(..., *shape)``."""
        return value.reshape(*value.shape[: value.ndim - len(self.event)], *self.shape)
