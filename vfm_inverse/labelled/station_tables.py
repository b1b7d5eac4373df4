"""Labelled tables of stations: a row is a place, a value and the standard deviation of its error.

==================================== ===========================================================
variable, coordinate or column       content
==================================== ===========================================================
``observed`` or ``value``            the values; NaN in a row that is no station. Or else the
                                     column called as the field, or the only one of numbers left
as a dimension of the field, ``y``   places; ``lat`` and ``latitude`` are names for ``y`` too,
and ``x`` say, or ``station_y``      ``lon`` and ``longitude`` for ``x``, in small letters or large
``error_std``, ``sigma``, ``std``,   standard deviations
``error`` or ``uncertainty``
==================================== ===========================================================

The dimension may have any name and any length, and a leading dimension ``observation`` makes
several tables of one file; a table of one row may have no dimension. Units are converted to those
of the problem; longitudes are turned by 360 degrees to where the grid has them
(:mod:`vfm_inverse.formats.places`). The table comes back in every output as it was, with the rows'
places among the data in ``row_of_observed``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from vfm_inverse.formats.places import meaning, named, place_column, positions
from vfm_inverse.formats.table_columns import ERRORS, folded, storable, storable_attrs
from vfm_inverse.formats.units import convertible, duration, same_units
from vfm_inverse.labelled.station_networks import is_network, places_or_names, row_index
from vfm_inverse.networks.stations import is_table
from vfm_inverse.problem.labels import BATCH, ERROR_STD, OBSERVED, PARAM, storable_name
from vfm_inverse.runtime.arrays import real_array

if TYPE_CHECKING:
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["observed_units", "own_rows", "read_table"]

VALUE = (OBSERVED, "value")
ROW, STATION = "row_of_observed", "station"
REFERENCES = ("ancillary_variables", "bounds", "coordinates", "grid_mapping")
"""Attributes that name other variables."""


def observed_units(problem: InverseProblem, stated: str | None) -> str | None:
    """Units of the problem's observations; where it does not say, what stations read is in those
    of the field, if it can be.

    Args:
        problem: whose observations they are.
        stated: units of those at hand, or None.

    Raises:
        ValueError: other data than those of stations are in units of the field's kind, so that
            they may need a conversion, and the problem does not say.
    """
    units, field = problem.observation_labels.units, problem.field_labels.units
    if units is not None or field is None:
        return units
    table = is_table(problem.observation_shape, problem.param_shapes)
    if stated is None or not convertible(stated, field):
        return field if stated is None and table else None
    if table or same_units(stated, field):
        return field
    raise ValueError(
        f"the observation is in '{stated}', the field in '{field}', and the problem does not say "
        "what its observations are in; give 'obs_units'"
    )


def read_table(dataset: xr.Dataset, problem: InverseProblem) -> xr.Dataset:
    """A table of stations in the layout of :mod:`vfm_inverse.labelled.write`, padded to the
    problem's size, or in the order of a fixed network; any other data set as it is.

    Raises:
        TypeError: a column that is needed holds no real numbers.
        ValueError: there are more stations than the problem takes, one has no place on the grid,
            or units cannot be converted.
    """
    fixed = is_network(problem)
    if not (fixed or is_table(problem.observation_shape, problem.param_shapes)):
        return dataset
    if PARAM + "coords" in dataset or (fixed and not places_or_names(dataset, problem)):
        return dataset
    table, value = _table(dataset, problem)
    if value is None:
        return dataset
    values, order = _stations(value, problem)
    size, seen = problem.observation_shape[0], ~np.isnan(values)

    def column(numbers: np.ndarray) -> np.ndarray:
        if fixed:
            filled = np.full((len(numbers), size), np.nan)
            filled[:, index[index >= 0]] = numbers[:, index >= 0]
            return filled
        rows = np.take_along_axis(numbers, order, 1)[:, :size]
        return np.pad(rows, ((0, 0), (0, size - rows.shape[1])), constant_values=np.nan)

    about = {} if value.dtype.kind == "m" else value.attrs
    variables: dict[str, Any] = {}
    if fixed:
        dims = (BATCH, problem.observation_labels.dims[0])
        index = row_index(table, value, seen.any(0), problem)
    else:
        dims = (BATCH, STATION)
        places = []
        for dim in problem.field_labels.dims:
            name, location = place_column(table, dim, problem.coords, value)
            rows = _laid_out(location, value)
            places.append(column(positions(rows, seen, problem.coords[name], name)))
        padding = np.isnan(column(values))
        coords = np.where(padding[..., None], 0.0, np.stack(places, -1))
        variables[PARAM + "coords"] = ((BATCH, "coords_0", "coords_1"), coords, {})
    variables[OBSERVED] = (dims, column(values), about)
    error = named(table, ERRORS)
    if error is not None:
        numbers = _numbers(error, problem, f"'{error.name}'", difference=True)
        about = {} if error.dtype.kind == "m" else error.attrs
        if set(error.dims) - {BATCH}:
            rows = _laid_out(error.copy(data=numbers), value)
            variables[ERROR_STD] = (dims, column(rows.values), about)
        else:
            variables[ERROR_STD] = (tuple(map(str, error.dims)), numbers, about)
    for further in map(str, dataset.variables):  # parameters of the problem
        own = further.startswith(PARAM) and further.removeprefix(PARAM) in problem.param_shapes
        if own and further not in variables:
            variables[further] = dataset[further].variable
    return xr.Dataset(variables)


def own_rows(dataset: xr.Dataset, problem: InverseProblem, taken: Collection[str]) -> xr.Dataset:
    """The table as it came, for outputs: every column along its own rows, and for each row its
    place among the problem's data, -1 where it is no station.

    Args:
        dataset: what :func:`read_table` took for a table.
        problem: as there.
        taken: names that the output has for its own; columns of these names begin with
            ``station_``, dimensions with ``table_``.

    Returns:
        Columns as netCDF can hold them, and ``row_of_observed``.
    """
    table, value = _table(dataset, problem)
    assert value is not None  # it is a table
    rows = next(dim for dim in value.dims if dim != BATCH)
    if isinstance(table.indexes.get(rows), pd.MultiIndex):
        table = table.reset_index(rows)
    seen = ~np.isnan(_stations(value, problem)[0])
    place = seen.cumsum(1) - 1
    if is_network(problem):
        place = row_index(table, value, seen.any(0), problem)
    place = np.where(seen, place, -1).astype(np.int32)
    columns = {name: table[name].variable for name in table.variables if rows in table[name].dims}

    used = {str(name) for name in (*taken, BATCH)}
    dims = {
        dim: _free(dim, "table_", used) for column in columns.values() for dim in column.dims
    } | {BATCH: BATCH}
    used |= set(dims.values())
    names: dict[Any, str] = {}
    for name, column in columns.items():
        # A column that is the index of its dimension keeps the dimension's name.
        of_dim = name in dims and column.dims == (name,)
        names[name] = dims[name] if of_dim else _free(name, "station_", used)
        used.add(names[name])
    variables: dict[str, Any] = {}
    for name, column in columns.items():
        values = storable(column.values)
        attrs = storable_attrs(column.attrs, values.dtype.kind)
        for key in REFERENCES:
            if isinstance(attrs.get(key), str):
                attrs[key] = " ".join(names.get(word, word) for word in attrs[key].split())
        variables[names[name]] = (tuple(dims[dim] for dim in column.dims), values, attrs)
    lead = (BATCH, dims[rows]) if BATCH in value.dims else (dims[rows],)
    about = {"long_name": "place of the row among the observed data; -1 if it is no station"}
    variables[_free(ROW, "station_", used)] = (lead, place if len(lead) == 2 else place[0], about)
    return xr.Dataset(variables)


def _free(name: Any, prefix: str, used: Collection[str]) -> str:
    """A name that netCDF takes and nobody has yet."""
    free = storable_name(str(name).strip(), "column")
    while free in used:
        free = prefix + free
    return free


def _table(dataset: xr.Dataset, problem: InverseProblem) -> tuple[xr.Dataset, xr.DataArray | None]:
    """The table along a dimension, and its column of values."""
    value = _value(dataset, problem)
    if value is None:
        return dataset, None
    rows = [dim for dim in value.dims if dim != BATCH]
    # Of several dimensions those of length one say when, or how high.
    single: list[Any] = []
    if len(rows) > 1:
        columns = [place_column(dataset, dim, problem.coords, value)[1] for dim in problem.dims]
        along = {dim for column in columns for dim in column.dims}
        single = [dim for dim in rows if value.sizes[dim] == 1 and dim not in along]
        single = single[: len(rows) - 1]
    if single:
        dataset = dataset.squeeze(single)
        value = dataset[value.name]
    if len(rows) - len(single) > 1:
        raise ValueError(
            f"'{value.name}' has the dimensions {value.dims}; a table of stations has one, after "
            f"a dimension '{BATCH}' where there are several tables"
        )
    if rows:
        return dataset, value
    if value.dims:
        raise ValueError(
            f"the table's rows lie along '{BATCH}', which counts tables; call that dimension "
            f"'{STATION}'"
        )
    if STATION in dataset.dims:
        raise ValueError(f"'{value.name}' lacks the dimension '{STATION}' of the other columns")
    table = dataset.expand_dims(STATION)  # one row
    return table, table[value.name]


def _value(dataset: xr.Dataset, problem: InverseProblem) -> xr.DataArray | None:
    """The column of values; None where there is none or more than one that may be it."""
    found = named(dataset, (*VALUE, problem.field_labels.name))
    if found is not None:
        return found
    taken = {str(place_column(dataset, dim, problem.coords)[1].name) for dim in problem.dims}
    for variable in dataset.variables.values():
        for key in REFERENCES:
            said = f"{variable.attrs.get(key, '')} {variable.encoding.get(key, '')}"
            taken |= set(said.split())
    left = [
        name
        for name, column in dataset.data_vars.items()
        if str(name) not in taken and folded(name) not in (*ERRORS, "crs")
        if meaning(name, column.attrs) is None and not str(name).startswith(PARAM)
        if column.dtype.kind in "fiumc" and not str(name).endswith(("_bnds", "_bounds"))
        if not str(column.attrs.get("standard_name", "")).endswith("status_flag")
        if "grid_mapping_name" not in column.attrs
    ]
    return dataset[left[0]] if len(left) == 1 else None


def _numbers(
    column: xr.DataArray, problem: InverseProblem, name: str, *, difference: bool = False
) -> np.ndarray:
    """A column as float64, durations in the unit of the data."""
    if column.dtype.kind == "m":
        units = observed_units(problem, None)
        return duration(column.values, units, name, difference=difference)
    return real_array(column, str(column.name)).astype(np.float64)


def _stations(value: xr.DataArray, problem: InverseProblem) -> tuple[np.ndarray, np.ndarray]:
    """Values of all rows, float64, and the order that puts the stations first, ``(batch, rows)``;
    what follows them, up to the problem's size, is padding."""
    numbers = _numbers(value, problem, "the stations' values")
    rows = np.asarray(_laid_out(value.copy(data=numbers), value).values)
    missing = np.isnan(rows)
    count, size = int((~missing).sum(1).max(initial=0)), problem.observation_shape[0]
    if count > size:
        raise ValueError(f"the table has {count} stations; the problem takes at most {size}")
    return rows, np.argsort(missing, axis=1, kind="stable")


def _laid_out(variable: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """A column for each table, ``(batch, rows)``."""
    rows = next(dim for dim in like.dims if dim != BATCH)
    if unknown := set(variable.dims) - {BATCH, rows}:
        raise ValueError(
            f"'{variable.name}' has the dimensions {sorted(map(str, unknown))}, which the values "
            f"of the stations have not: {like.dims}"
        )
    shape = (like.sizes.get(BATCH, 1), like.sizes[rows])
    ordered = variable.transpose(BATCH, rows, missing_dims="ignore")
    return xr.DataArray(
        np.broadcast_to(ordered.values, shape),
        dims=(BATCH, rows),
        attrs=variable.attrs,
        name=variable.name,
    )
