"""Tables of stations for problems whose network is fixed: which row is which of the stations.

A network is fixed where the observations lie along one dimension, whose coordinates ``station_y``,
``station_x`` say (``station_`` and the field's own coordinates), give the places. Rows of a table
may come in any order, and not all of them, with a name (``station``, ``station_id``, ``id``,
``name`` or ``site``) or with a place on the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from vfm_inverse.formats.places import place_column, positions
from vfm_inverse.formats.table_columns import folded, storable

if TYPE_CHECKING:
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["IDENTITY", "is_network", "places_or_names", "row_index"]

IDENTITY = ("station", "station_id", "id", "name", "site")
"""Columns that may say which station a row is."""

SAME, NEAR = 0.05, 0.5
"""Grid cells between places of one station: where nothing else says which it is, and at most."""


def is_network(problem: InverseProblem) -> bool:
    """Whether the observations of a problem are those of stations in fixed places on its grid."""
    labels = problem.observation_labels
    return (
        len(problem.observation_shape) == len(labels.dims) == 1
        and len(problem.field_shape) > 1
        and "coords" not in problem.param_shapes
        and all(_stations_at(problem, dim) is not None for dim in problem.dims)
    )


def _stations_at(problem: InverseProblem, dim: str) -> tuple[str, xr.Variable] | None:
    """The grid's coordinate along a dimension, and the stations' places on it."""
    labels = problem.observation_labels
    for name, axis in problem.coords.items():
        place = labels.coords.get(f"station_{name}")
        if axis.dims == (dim,) and place is not None and place.dims == labels.dims:
            return name, place
    return None


def places_or_names(dataset: xr.Dataset, problem: InverseProblem) -> bool:
    """Whether a dataset is a table whose rows say which stations they are, in columns: one in the
    problem's own layout has coordinates for that."""
    labels = problem.observation_labels
    if {name for name in labels.coords if name.startswith("station_")} <= set(dataset.coords):
        return False
    return _identity(dataset) is not None or _columns(dataset, problem, None) is not None


def _identity(table: xr.Dataset) -> np.ndarray | None:
    for name in table.variables:
        if folded(name) in IDENTITY and table[name].ndim == 1:
            return storable(table[name].values)
    return None


def _columns(
    table: xr.Dataset, problem: InverseProblem, value: xr.DataArray | None
) -> list[tuple[str, xr.DataArray]] | None:
    """Columns of places, where there are any."""
    try:
        return [place_column(table, dim, problem.coords, value) for dim in problem.dims]
    except ValueError:
        return None


def row_index(
    table: xr.Dataset, value: xr.DataArray, seen: np.ndarray, problem: InverseProblem
) -> np.ndarray:
    """Which station each row is, ``(rows,)``; -1 where it has no value.

    Args:
        table: with columns of names, of places or of both.
        value: its column of values.
        seen: which rows have a value, ``(rows,)``.
        problem: whose stations they are.

    Raises:
        ValueError: a row is none of the stations, two rows are one, or name and place disagree.
    """
    labels = problem.observation_labels
    ours = labels.coords.get(labels.dims[0])
    known = np.arange(problem.observation_shape[0]) if ours is None else ours.values
    given, columns = _identity(table), _columns(table, problem, value)
    distance = None if columns is None else _cells(columns, seen, problem)
    by_name = given is not None and (
        given.dtype.kind == known.dtype.kind == "U" or distance is None
    )
    index = np.full(len(seen), -1)
    if by_name:
        assert given is not None
        where: dict[Any, int] = {name: place for place, name in enumerate(known.tolist())}
        index[seen] = [where.get(name, -1) for name in given[seen].tolist()]
        if (lost := seen & (index < 0)).any():
            raise ValueError(
                f"the table's station {given[lost][0]!s} is none of the problem's: "
                f"{', '.join(map(str, known[:8].tolist()))}{', ...' * (len(known) > 8)}"
            )
    elif distance is not None:
        index[seen] = distance[seen].argmin(1)
    if distance is not None:
        off = np.where(seen, distance[np.arange(len(seen)), index], 0.0)
        if off.max(initial=0.0) > (NEAR if by_name else SAME):
            row = int(off.argmax())
            raise ValueError(
                f"row {row + 1} of the table lies {off[row]:.2g} grid cells from "
                f"{'its' if by_name else 'the nearest'} station, {known[index[row]]}; the "
                "problem's network is fixed"
            )
    if len(np.unique(index[seen])) < seen.sum():
        double = np.bincount(index[seen]).argmax()
        raise ValueError(f"several rows of the table are station {known[double]}")
    return index


def _cells(
    columns: list[tuple[str, xr.DataArray]], seen: np.ndarray, problem: InverseProblem
) -> np.ndarray:
    """Grid cells between rows and stations along the axis where it is most, ``(rows, m)``."""
    apart = []
    for dim, (name, column) in zip(problem.dims, columns, strict=True):
        there = _stations_at(problem, dim)
        assert there is not None  # the network is fixed
        axis, place = problem.coords[there[0]], xr.DataArray(there[1], name=there[0])
        ours = positions(place, np.ones(place.size, dtype=bool), axis, there[0])
        theirs = positions(column, seen, problem.coords[name], name)
        apart.append(abs(theirs[:, None] - ours[None, :]) * (axis.size - 1))
    return np.max(apart, 0)
