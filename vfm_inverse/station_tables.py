"""Labelled tables of stations: a row is a place, a value and the standard deviation of its error.

==================================== ===========================================================
variable or coordinate               content
==================================== ===========================================================
``observed`` or ``value``            the values; NaN in a row that is no station
as a dimension of the field, ``y``   locations in the units of the field's coordinates; ``lat``
and ``x`` say, or ``station_y``      and ``latitude`` are names for ``y`` too, ``lon`` and
                                     ``longitude`` for ``x``
``error_std``, ``sigma`` or ``std``  standard deviations, in the units of the values
==================================== ===========================================================

The dimension may have any name and any length, and a leading dimension ``observation`` makes
several tables of one file.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from vfm_inverse.labels import BATCH, ERROR_STD, OBSERVED, PARAM
from vfm_inverse.stations import is_table

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["read_table"]

VALUE = (OBSERVED, "value")
ERROR = (ERROR_STD, "sigma", "std")
ALIASES = {
    "y": ("lat", "latitude"),
    "x": ("lon", "longitude"),
    "lat": ("latitude",),
    "lon": ("longitude",),
    "latitude": ("lat",),
    "longitude": ("lon",),
}


def read_table(dataset: xr.Dataset, problem: InverseProblem) -> xr.Dataset:
    """A table of stations in the layout of :mod:`vfm_inverse.labelled`, padded to the problem's
    size; any other data set as it is.

    Raises:
        ValueError: there are more stations than the problem takes, or one that has no place on the
            grid.
    """
    value = _named(dataset, VALUE)
    if value is None or not is_table(problem.observation_shape, problem.param_shapes):
        return dataset
    if PARAM + "coords" in dataset or len(set(value.dims) - {BATCH}) != 1:
        return dataset
    values = _rows(value, value)
    # The stations first; what follows them, up to the problem's size, is padding.
    order = np.argsort(np.isnan(values), axis=1, kind="stable")
    count, size = int((~np.isnan(values)).sum(1).max()), problem.observation_shape[0]
    if count > size:
        raise ValueError(f"the table has {count} stations; the problem takes at most {size}")

    def column(variable: xr.DataArray) -> np.ndarray:
        rows = np.take_along_axis(_rows(variable, value), order, 1)[:, :size]
        return np.pad(rows, ((0, 0), (0, size - rows.shape[1])), constant_values=np.nan)

    padded = column(value)
    places = [
        _place(dim, column(_location(dataset, dim)), ~np.isnan(padded), problem)
        for dim in problem.field_labels.dims
    ]
    dims = (BATCH, "station")
    variables: dict[str, tuple[tuple[str, ...], np.ndarray, dict[Hashable, Any]]] = {
        OBSERVED: (dims, padded, value.attrs),
        PARAM + "coords": ((BATCH, "coords_0", "coords_1"), np.stack(places, -1), {}),
    }
    error = _named(dataset, ERROR)
    if error is not None:
        by_row = set(error.dims) - {BATCH}
        variables[ERROR_STD] = (
            (dims, column(error), error.attrs)
            if by_row
            else (tuple(map(str, error.dims)), error.values, error.attrs)
        )
    return xr.Dataset(variables)


def _named(dataset: xr.Dataset, names: tuple[str, ...]) -> xr.DataArray | None:
    return next((dataset[name] for name in names if name in dataset), None)


def _rows(variable: xr.DataArray, like: xr.DataArray) -> np.ndarray:
    """A column for each table, ``(batch, rows)``, float64."""
    rows = next(dim for dim in like.dims if dim != BATCH)
    if unknown := set(variable.dims) - {BATCH, rows}:
        raise ValueError(
            f"'{variable.name}' has the dimensions {sorted(map(str, unknown))}, which the values "
            f"of the stations have not: {like.dims}"
        )
    shape = (like.sizes.get(BATCH, 1), like.sizes[rows])
    ordered = variable.transpose(BATCH, rows, missing_dims="ignore")
    return np.broadcast_to(np.asarray(ordered.values, dtype=np.float64), shape)


def _location(dataset: xr.Dataset, dim: str) -> xr.DataArray:
    names = (dim, f"station_{dim}", *ALIASES.get(dim, ()))
    found = _named(dataset, names)
    if found is None:
        raise ValueError(
            f"the table lacks the stations' '{dim}': call the variable one of {names}"
        )
    return found


def _place(
    dim: str, location: np.ndarray, seen: np.ndarray, problem: InverseProblem
) -> np.ndarray:
    """Locations along an axis of the grid, its first node 0 and its last 1; 0 in padding."""
    if dim not in problem.coords:
        raise ValueError(f"the problem's field has no coordinate '{dim}' to place stations on")
    nodes = np.asarray(problem.coords[dim].values, dtype=np.float64)
    position = np.linspace(0.0, 1.0, len(nodes))
    if nodes[0] > nodes[-1]:
        nodes, position = nodes[::-1], position[::-1]
    # Single precision is what coordinates often pass through on their way.
    slack = 1e-6 * (nodes[-1] - nodes[0])
    inside = (location >= nodes[0] - slack) & (location <= nodes[-1] + slack)
    if not bool(inside[seen].all()):
        wrong = location[seen & ~inside]
        raise ValueError(
            f"{len(wrong)} stations lie outside the grid, which has '{dim}' from {nodes[0]:g} to "
            f"{nodes[-1]:g}; the first is at {wrong[0]:g}"
        )
    return np.where(seen, np.interp(np.where(seen, location, nodes[0]), nodes, position), 0.0)
