"""Labelled tables of stations: a row is a place, a value and the standard deviation of its error.

==================================== ===========================================================
variable, coordinate or column       content
==================================== ===========================================================
``observed`` or ``value``            the values; NaN in a row that is no station. Or else the
                                     column called as the field, or the only one of numbers left
as a dimension of the field, ``y``   places; ``lat`` and ``latitude`` are names for ``y`` too,
and ``x`` say, or ``station_y``      ``lon`` and ``longitude`` for ``x``, in small letters or large
``error_std``, ``sigma`` or ``std``  standard deviations
==================================== ===========================================================

The dimension may have any name and any length, and a leading dimension ``observation`` makes
several tables of one file. Units are converted to those of the problem; longitudes are turned by
360 degrees to where the grid has them. The table comes back in every output as it was, with the
rows' places among the data in ``row_of_observed``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from vfm_inverse.arrays import real_array
from vfm_inverse.axes import axis_of, is_longitude
from vfm_inverse.labels import BATCH, ERROR_STD, OBSERVED, PARAM
from vfm_inverse.stations import is_table
from vfm_inverse.units import converted, duration, same_units

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["own_rows", "read_table", "table_of"]

VALUE = (OBSERVED, "value")
ERROR = (ERROR_STD, "sigma", "std", "error")
ROW = "row_of_observed"


def table_of(frame: pd.DataFrame) -> xr.Dataset:
    """A pandas table as a dataset along ``station``; its index is a column unless it only counts.

    Raises:
        TypeError: a column has a name that is no text.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    if wrong := [name for name in frame.columns if not isinstance(name, str)]:
        raise TypeError(f"the table's columns must have names; got {wrong[0]!r:.60}")
    columns = {name: np.asarray(frame[name]) for name in frame.columns}
    return xr.Dataset(
        {
            k: ("station", v if v.dtype.kind == "c" else _plain(frame[k]))
            for k, v in columns.items()
        }
    )


def read_table(dataset: xr.Dataset, problem: InverseProblem) -> xr.Dataset:
    """A table of stations in the layout of :mod:`vfm_inverse.labelled`, padded to the problem's
    size; any other data set as it is.

    Raises:
        TypeError: a column that is needed holds no real numbers.
        ValueError: there are more stations than the problem takes, one has no place on the grid,
            or units cannot be converted.
    """
    if not is_table(problem.observation_shape, problem.param_shapes):
        return dataset
    value = _value(dataset, problem)
    if value is None or PARAM + "coords" in dataset or len(set(value.dims) - {BATCH}) != 1:
        return dataset
    values, order = _stations(value, problem)
    size = problem.observation_shape[0]

    def column(variable: xr.DataArray, numbers: np.ndarray) -> np.ndarray:
        rows = np.take_along_axis(_rows(variable, value, numbers), order, 1)[:, :size]
        return np.pad(rows, ((0, 0), (0, size - rows.shape[1])), constant_values=np.nan)

    padded = column(value, values)
    seen = ~np.isnan(padded)
    places = []
    for dim in problem.field_labels.dims:
        location = _location(dataset, dim, value)
        numbers = real_array(location, f"the stations' '{dim}'").astype(np.float64)
        places.append(_place(dim, location, column(location, numbers), seen, problem))
    dims = (BATCH, "station")
    variables: dict[str, Any] = {
        OBSERVED: (dims, padded, {} if value.dtype.kind == "m" else value.attrs),
        PARAM + "coords": ((BATCH, "coords_0", "coords_1"), np.stack(places, -1), {}),
    }
    error = _named(dataset, ERROR)
    if error is not None:
        numbers = real_array(error, str(error.name)).astype(np.float64)
        by_row = set(error.dims) - {BATCH}
        variables[ERROR_STD] = (
            (dims, column(error, numbers), error.attrs)
            if by_row
            else (tuple(map(str, error.dims)), numbers, error.attrs)
        )
    return xr.Dataset(variables)


def own_rows(dataset: xr.Dataset, problem: InverseProblem, taken: Collection[str]) -> xr.Dataset:
    """The table as it came, for outputs: every column along its own rows, and for each row its
    place among the problem's data, -1 where it is no station.

    Args:
        dataset: what :func:`read_table` took for a table.
        problem: as there.
        taken: names that the output has for its own; columns of these names begin with
            ``station_``.
    """
    value = _value(dataset, problem)
    assert value is not None  # it is a table
    rows = next(str(dim) for dim in value.dims if dim != BATCH)
    columns = [str(name) for name, column in dataset.variables.items() if rows in column.dims]
    table = dataset[columns].reset_coords(drop=False).drop_encoding()
    for name in table.data_vars:
        table[name] = (table[name].dims, _plain(table[name].values), table[name].attrs)
    _, order = _stations(value, problem)
    places = np.argsort(order, axis=1, kind="stable")
    count = (~np.isnan(_stations(value, problem)[0])).reshape(len(places), -1).sum(1)
    places = np.where(places < count[:, None], places, -1)
    lead = (BATCH, rows) if BATCH in value.dims else (rows,)
    about = {"long_name": "place of the row among the observed data; -1 if it is no station"}
    table[ROW] = (lead, places if BATCH in value.dims else places[0], about)
    clash = {name: f"station_{name}" for name in columns if name in taken and name != rows}
    along = {rows: f"table_{rows}"} if rows in taken else {}
    return table.rename({**{k: v for k, v in clash.items() if k in table}, **along})


def _plain(values: Any) -> np.ndarray:
    """A column in a type that files can hold."""
    array = np.asarray(values)
    if array.dtype.kind in "biufMmSU":
        return array
    missing = pd.isna(values)
    return np.where(missing, "", np.asarray(values, dtype=object).astype(str)).astype(object)


def _named(dataset: xr.Dataset, names: Sequence[str]) -> xr.DataArray | None:
    """The variable of one of these names, in whatever letters."""
    known = {str(name).lower(): name for name in reversed(list(dataset.variables))}
    return next((dataset[known[n.lower()]] for n in names if n.lower() in known), None)


def _value(dataset: xr.Dataset, problem: InverseProblem) -> xr.DataArray | None:
    """The column of values."""
    found = _named(dataset, (*VALUE, problem.field_labels.name))
    if found is not None:
        return found
    places = {str(_location(dataset, dim, None).name) for dim in problem.field_labels.dims}
    taken = {*places, *ERROR, "crs"}
    left = [
        name
        for name, column in dataset.data_vars.items()
        if str(name).lower() not in taken and str(name) not in places and column.ndim
        if column.dtype.kind in "fium" and not str(name).endswith(("_bnds", "_bounds"))
    ]
    return dataset[left[0]] if len(left) == 1 else None


def _stations(value: xr.DataArray, problem: InverseProblem) -> tuple[np.ndarray, np.ndarray]:
    """Values of all rows, float64, and the order that puts the stations first, ``(batch, rows)``;
    what follows them, up to the problem's size, is padding."""
    if value.dtype.kind == "m":
        units = problem.observation_labels.units or ""
        numbers = duration(value.values, units, "the stations' values")
    else:
        numbers = real_array(value, str(value.name)).astype(np.float64)
    missing = np.isnan(_rows(value, value, numbers))
    count, size = int((~missing).sum(1).max()), problem.observation_shape[0]
    if count > size:
        raise ValueError(f"the table has {count} stations; the problem takes at most {size}")
    return numbers, np.argsort(missing, axis=1, kind="stable")


def _rows(variable: xr.DataArray, like: xr.DataArray, numbers: np.ndarray) -> np.ndarray:
    """A column for each table, ``(batch, rows)``, float64."""
    rows = next(dim for dim in like.dims if dim != BATCH)
    if unknown := set(variable.dims) - {BATCH, rows}:
        raise ValueError(
            f"'{variable.name}' has the dimensions {sorted(map(str, unknown))}, which the values "
            f"of the stations have not: {like.dims}"
        )
    shape = (like.sizes.get(BATCH, 1), like.sizes[rows])
    ordered = xr.DataArray(numbers, dims=variable.dims).transpose(
        BATCH, rows, missing_dims="ignore"
    )
    return np.broadcast_to(ordered.values, shape)


def _location(dataset: xr.Dataset, dim: str, value: xr.DataArray | None) -> xr.DataArray:
    """The column of places along a dimension of the field."""
    found = _named(dataset, (dim, f"station_{dim}"))
    if found is not None:
        return found
    axis = axis_of(dim)
    other = None if value is None else value.name
    for name, column in dataset.variables.items():
        plain = str(name).lower().removeprefix("station_")
        if axis is not None and name != other and axis_of(plain, column.attrs) == axis:
            return dataset[name]
    raise ValueError(
        f"the table lacks the stations' '{dim}': call the variable '{dim}' or 'station_{dim}', or "
        "lat, latitude, lon, longitude where that is meant"
    )


def _place(
    dim: str,
    location: xr.DataArray,
    places: np.ndarray,
    seen: np.ndarray,
    problem: InverseProblem,
) -> np.ndarray:
    """Locations along an axis of the grid, its first node 0 and its last 1; 0 in padding."""
    grid = problem.coords.get(dim)
    if grid is None or grid.dims != (dim,) or grid.dtype.kind not in "fiu":
        raise ValueError(
            f"the problem's field has no coordinate of numbers '{dim}' to place stations on"
        )
    units, wanted = location.attrs.get("units"), grid.attrs.get("units")
    if units is not None and wanted is not None and not same_units(units, wanted):
        places = converted(places, str(units), str(wanted), f"the stations' '{dim}'")
    if not bool(np.isfinite(places[seen]).all()):
        raise ValueError(
            f"{int((~np.isfinite(places[seen])).sum())} stations have a value and no '{dim}'"
        )
    nodes, round_ = grid.values.astype(np.float64), is_longitude(dim, grid.attrs)
    if round_:
        nodes = np.unwrap(nodes, period=360.0)
    position = np.linspace(0.0, 1.0, len(nodes))
    if nodes[0] > nodes[-1]:
        nodes, position = nodes[::-1], position[::-1]
    if not bool((np.diff(nodes) > 0).all()):
        raise ValueError(
            f"the grid's '{dim}' neither rises nor falls, so that no station can be placed on it; "
            "sort the prior along it"
        )
    # Single precision is what coordinates often pass through on their way.
    slack = 1e-6 * (nodes[-1] - nodes[0])
    if round_:
        places = (places - nodes[0] + slack) % 360 + nodes[0] - slack
    inside = (places >= nodes[0] - slack) & (places <= nodes[-1] + slack)
    if not bool(inside[seen].all()):
        wrong = places[seen & ~inside]
        raise ValueError(
            f"{len(wrong)} stations lie outside the grid, which has '{dim}' from {nodes[0]:g} to "
            f"{nodes[-1]:g}; the first is at {wrong[0]:g}"
            + (
                ", between its last node and its first"
                if round_ and nodes[-1] - nodes[0] > 300
                else ""
            )
        )
    return np.where(seen, np.interp(np.where(seen, places, nodes[0]), nodes, position), 0.0)
