"""Where stations lie on the axes of a grid: the first node is 0, the last 1, and positions between
two nodes follow the coordinate.

Longitudes are periodic: 270 is -90, and a grid may cross the seam (350, 0) or the date line
(180, -170). The interpolation itself does not wrap: between the last node and the first of a
global grid there is no place.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from vfm_inverse.formats.table_columns import LATITUDES, LONGITUDES, folded
from vfm_inverse.formats.units import converted, duration, same_units
from vfm_inverse.runtime.arrays import real_array

__all__ = ["meaning", "named", "place_column", "positions"]


def meaning(name: Hashable, attrs: Mapping[Any, Any]) -> str | None:
    """``latitude`` or ``longitude`` by standard name, name or unit; None for any other axis."""
    units = attrs.get("units")
    angle = units is None or any(_same(units, unit) for unit in ("degrees_north", "degrees_east"))
    if not angle and not _same(units, "radian"):
        return None
    said = str(attrs.get("standard_name", "")).strip()
    if said in ("latitude", "longitude"):
        return said
    if said:
        return None  # rotated coordinates, projection coordinates
    for words, unit, other, found in (
        (LATITUDES, "degrees_north", "degrees_east", "latitude"),
        (LONGITUDES, "degrees_east", "degrees_north", "longitude"),
    ):
        known = units is not None and _same(units, unit) and not _same(units, other)
        if known or str(name).strip().casefold().removeprefix("station_") in words:
            return found
    return None


def positions(
    location: xr.DataArray, seen: np.ndarray, axis: xr.Variable, name: str
) -> np.ndarray:
    """Positions of stations along an axis of the grid, 0 where there is no station.

    Args:
        location: places, in a layout that broadcasts to that of ``seen``.
        seen: which of them are stations, of any shape.
        axis: the grid's coordinate, of one dimension.
        name: of the axis.

    Raises:
        TypeError: places or coordinates are no real numbers.
        ValueError: the coordinate is in no order, a station has no place or lies off the grid, or
            the units do not fit.
    """
    places, nodes = _numbers(location, axis, name)
    places = np.broadcast_to(places, seen.shape)
    if lost := int((seen & ~np.isfinite(places)).sum()):
        raise ValueError(f"{lost} stations have a value and no '{name}'")
    given = places = np.where(seen, places, nodes.flat[0])
    period = _period(name, axis.attrs)
    nodes = _in_order(nodes, name, period)
    position = np.linspace(0.0, 1.0, len(nodes))
    if nodes[0] > nodes[-1]:
        nodes, position = nodes[::-1], position[::-1]
    first, last = float(nodes[0]), float(nodes[-1])
    # Single precision is what coordinates often pass through on their way.
    slack = 1e-6 * (last - first) + 2.0**-23 * float(np.abs(nodes).max())
    inside = (places >= first - slack) & (places <= last + slack)
    if period is not None:
        round_again = first - slack + np.mod(places - first + slack, period)
        places = np.where(inside, places, round_again)
        inside = (places >= first - slack) & (places <= last + slack)
    if not bool(inside[seen].all()):
        wrong = given[seen & ~inside]
        message = (
            f"{len(wrong)} stations lie outside the grid, which has '{name}' from {first:g} to "
            f"{last:g}; the first is at {wrong[0]:g}"
        )
        # On a globe the field is not interpolated from the last node to the first.
        gap = np.inf if period is None else period - (last - first)
        if len(nodes) > 1 and gap <= 1.5 * float(np.diff(nodes).max()):
            message += (
                f", between its last node and its first: repeat the first in the prior, at "
                f"{first + (period or 0.0):g}"
            )
        raise ValueError(message)
    return np.where(seen, np.interp(places, nodes, position), 0.0)


def _same(a: object, b: str) -> bool:
    return same_units(str(a), b)


def _period(name: str, attrs: Mapping[Any, Any]) -> float | None:
    """One turn in the axis' unit, if it is of longitudes."""
    if meaning(name, attrs) != "longitude":
        return None
    units = attrs.get("units")
    return 2 * np.pi if units is not None and _same(units, "radian") else 360.0


def _in_order(nodes: np.ndarray, name: str, period: float | None) -> np.ndarray:
    """Nodes that rise or fall throughout; longitudes go on across the seam."""

    def ordered(values: np.ndarray) -> bool:
        steps = np.diff(values)
        return bool((steps > 0).all() or (steps < 0).all())

    if ordered(nodes):
        return nodes
    if period is not None:
        unrolled = np.unwrap(nodes, period=period)
        if ordered(unrolled) and abs(unrolled[-1] - unrolled[0]) <= period * (1 + 1e-6):
            return unrolled
    raise ValueError(
        f"the grid's '{name}' neither rises nor falls, so that no station can be placed on it; "
        "sort the prior along it"
    )


def _numbers(
    location: xr.DataArray, axis: xr.Variable, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Places and nodes as float64 of one unit, dates as seconds since the first node."""
    places, nodes = np.asarray(location.values), np.asarray(axis.values)
    units, expected = location.attrs.get("units"), axis.attrs.get("units")
    kinds = {places.dtype.kind, nodes.dtype.kind}
    label = f"the stations' '{name}'"
    if kinds == {"M"}:
        origin, second = nodes.flat[0], np.timedelta64(1, "s")
        return (places - origin) / second, (nodes - origin) / second
    if "M" in kinds:
        who = ("stations", "grid") if places.dtype.kind == "M" else ("grid", "stations")
        raise ValueError(f"'{name}' of the {who[0]} are dates, that of the {who[1]} are numbers")
    if nodes.dtype.kind == "m":
        nodes, expected = duration(nodes, "s", name), "s"
    if places.dtype.kind == "m":
        places, units = duration(places, expected, label), expected
    numbers = real_array(nodes, f"the grid's {name}").astype(np.float64)
    places = real_array(places, str(location.name))
    return converted(places, units, expected, label), numbers


def named(dataset: xr.Dataset, names: Sequence[str]) -> xr.DataArray | None:
    """The variable of one of these names: as they are, then in whatever letters."""
    known = {folded(name): name for name in reversed(list(dataset.variables))}
    known |= {str(name): name for name in dataset.variables}
    for spelt in (str, folded):
        for name in names:
            if spelt(name) in known:
                return dataset[known[spelt(name)]]
    return None


def place_column(
    dataset: xr.Dataset,
    dim: str,
    coords: Mapping[str, xr.Variable],
    value: xr.DataArray | None = None,
) -> tuple[str, xr.DataArray]:
    """The grid's coordinate along a dimension, and the column of places on it.

    Args:
        dataset: the table.
        dim: of the field.
        coords: coordinates of the field.
        value: the column of values, which is no place.

    Raises:
        ValueError: the field has no such coordinate, or the table no such column.
    """
    axes = [
        name for name, axis in coords.items() if axis.dims == (dim,) and axis.dtype.kind in "fiumM"
    ]
    axes.sort(key=lambda name: name != dim)
    if not axes:
        raise ValueError(
            f"the problem's field has no coordinate of numbers along '{dim}' alone to place "
            "stations on"
        )
    for axis in axes:
        found = named(dataset, (axis, f"station_{axis}"))
        if found is not None:
            return axis, found
    other = None if value is None else value.name
    columns = {
        meaning(name, column.attrs): name
        for name, column in reversed(list(dataset.variables.items()))
        if name != other and not str(name).endswith(("_bnds", "_bounds"))
    }
    for axis in axes:
        attrs = coords[axis].attrs
        said = meaning(axis, attrs)
        units = str(attrs.get("units", "1"))
        if said is None and any(same_units(units, unit) for unit in ("1", "degrees")):
            # Latitude and longitude are what most tables have for y and x.
            said = {"y": "latitude", "x": "longitude"}.get(folded(axis))
        if said is not None and said in columns:
            return axis, dataset[columns[said]]
    raise ValueError(
        f"the table lacks the stations' '{dim}': call the variable '{axes[0]}' or "
        f"'station_{axes[0]}', or lat, latitude, lon, longitude where that is meant"
    )
