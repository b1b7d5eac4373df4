"""Which axis of a file is which axis of the problem, and which value belongs where on it.

Dimensions are matched by their names, by names and CF attributes that mean the same axis
(``lat``, ``latitude`` and ``y``; ``standard_name``, ``axis``), and one that is left over on both
sides by elimination. Names that nothing is known of count by their order where the sizes leave no
doubt. What could be read transposed is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from vfm_inverse.formats.units import converted, duration, same_units
from vfm_inverse.problem.labels import BATCH

__all__ = ["aligned", "arranged", "axis_of", "dated", "is_longitude"]

AXES: dict[str, tuple[str, ...]] = {
    "x": ("x", "lon", "longitude", "long", "nav_lon", "easting", "projection_x_coordinate"),
    "y": ("y", "lat", "latitude", "nav_lat", "northing", "projection_y_coordinate"),
    "z": ("z",),
    "t": ("t", "time"),
    "rotated x": ("rlon", "grid_longitude"),
    "rotated y": ("rlat", "grid_latitude"),
    "depth": ("depth",),
    "height": ("height", "altitude", "alt"),
    "pressure": ("plev", "pressure", "air_pressure"),
    "level": ("level", "lev"),
}
"""Axes by the names that they go by, small letters."""

EAST = ("degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese")
LATITUDES = ("degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn")


def axis_of(name: object, attrs: Mapping[Any, Any] | None = None) -> str | None:
    """A key of :data:`AXES`, where name or CF attributes say so."""
    attrs = attrs or {}
    units = str(attrs.get("units", "")).lower()
    if units in EAST:
        return "x"
    if units in LATITUDES:
        return "y"
    said = str(attrs.get("axis", "")).lower()
    # The broadest comes last: a rotated latitude has the axis Y too.
    for words in (str(attrs.get("standard_name", "")).lower(), str(name).lower(), said):
        for axis, names in AXES.items():
            if words in names:
                return axis
    return None


def is_longitude(name: object, attrs: Mapping[Any, Any]) -> bool:
    """Whether a coordinate counts degrees east, of which 360 make a circle."""
    units = str(attrs.get("units", "")).lower()
    named = {str(name).lower(), str(attrs.get("standard_name", "")).lower()}
    longitude = bool(named & {"lon", "long", "longitude", "nav_lon"})
    return units in EAST or (longitude and units in ("", "degrees", "degree"))


def arranged(
    data: xr.DataArray, dims: Sequence[str], sizes: Sequence[int], coords: Mapping[str, Any]
) -> xr.DataArray:
    """Data with the dimensions ``(observation, *dims)``.

    A dimension of length one that the problem has not is dropped; a single longer one counts
    observations.

    Args:
        data: as it came.
        dims, sizes: axes of one observation.
        coords: of the problem, whose attributes say what its axes are.

    Raises:
        ValueError: the dimensions do not fit, or do not say which is which.
    """
    expected = dict(zip(dims, sizes, strict=True))
    names = _matched(data, expected, coords)
    extra = [dim for dim in data.dims if dim not in names and dim != BATCH]
    for dim in [dim for dim in extra if data.sizes[dim] == 1]:
        data = data.squeeze(dim)  # its coordinate stays, as a scalar
        extra.remove(dim)
    if len(extra) == 1 and BATCH not in data.dims and set(names.values()) == set(dims):
        names, extra = {**names, extra[0]: BATCH}, []
        # A coordinate called as the dimension was is one of the observations.
    found = {names.get(dim, str(dim)): size for dim, size in data.sizes.items() if dim != BATCH}
    found.pop(BATCH, None)
    if extra or found != expected:
        raise ValueError(
            f"the observation has the dimensions {dict(data.sizes)}; the problem expects "
            f"{expected}, after a dimension '{BATCH}' where there are several"
        )
    renamed = {old: new for old, new in names.items() if old != new}
    taken = [new for new in renamed.values() if new in data.coords and new not in renamed]
    data = data.drop_vars(taken).rename(renamed)
    if BATCH not in data.dims:
        data = data.expand_dims(BATCH)
    return data.transpose(BATCH, *dims)


def _matched(
    data: xr.DataArray, expected: Mapping[str, int], coords: Mapping[str, Any]
) -> dict[Any, str]:
    """Dimensions of the data to those of the problem."""
    names: dict[Any, str] = {dim: str(dim) for dim in data.dims if dim in expected}
    left = [dim for dim in data.dims if dim not in names and dim != BATCH]
    open_ = [dim for dim in expected if dim not in names.values()]
    theirs = {dim: axis_of(dim, data[dim].attrs if dim in data.coords else {}) for dim in left}
    ours = {dim: axis_of(dim, getattr(coords.get(dim), "attrs", {})) for dim in open_}
    for dim in left:
        same = [other for other in open_ if theirs[dim] is not None and ours[other] == theirs[dim]]
        if len(same) == 1 and list(theirs.values()).count(theirs[dim]) == 1:
            names[dim] = same[0]
            open_.remove(same[0])
    left = [dim for dim in left if dim not in names]
    if len(left) > len(open_):  # what is of length one is no axis
        left = [dim for dim in left if data.sizes[dim] != 1]
    if not open_ or len(left) != len(open_):
        return names
    known = [dim for dim in left if theirs[dim] is not None]
    strange = [dim for dim in known if any(ours[other] is not None for other in open_)]
    sizes = [data.sizes[dim] for dim in left]
    unnamed = all(str(dim).startswith("dim_") for dim in left)
    sure = len(left) == 1 or unnamed or len(set(sizes)) == len(sizes)
    if strange or not sure or sizes != [expected[dim] for dim in open_]:
        raise ValueError(
            f"cannot tell which of the observation's dimensions {tuple(map(str, data.dims))} is "
            f"which of the problem's {tuple(expected)} (sizes {dict(data.sizes)} and "
            f"{dict(expected)}); rename them"
        )
    return names | dict(zip(left, open_, strict=True))


def aligned(data: xr.DataArray, coords: Mapping[str, xr.Variable], what: str) -> xr.DataArray:
    """Data in the order of the problem's coordinates; those that both have must agree.

    Scalar coordinates of time say when, and not what: they may differ.

    Args:
        data: with the problem's dimensions.
        coords: of the problem.
        what: whose coordinates they are, for messages.

    Raises:
        ValueError: a coordinate differs.
    """
    for name, expected in coords.items():
        if name in data.coords and name in data.dims:
            found, wanted = _comparable(data[name].variable, expected, name)
            data = data.isel({name: _order(found, wanted, name, what)})
    for name, expected in coords.items():
        if name not in data.coords or set(data[name].dims) != set(expected.dims):
            continue
        if not expected.dims and _says_when(name, expected):
            continue
        found, wanted = _comparable(data[name].variable.transpose(*expected.dims), expected, name)
        if not _close(found, wanted):
            raise ValueError(_differs(name, found, wanted, what))
    return data


def _says_when(name: str, coordinate: xr.Variable) -> bool:
    stamp = coordinate.dtype.kind in "Mm" or type(coordinate.values.item()).__module__ == "cftime"
    ensemble = name in ("step", "member", "realization", "realisation", "number")
    return stamp or ensemble or axis_of(name, coordinate.attrs) == "t"


def _comparable(
    found: xr.Variable, expected: xr.Variable, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """A coordinate of the data and the problem's: in one unit, on one circle, both as dates or
    both as numbers."""
    values, wanted = found.values, expected.values
    if values.dtype.kind in "fiu" and wanted.dtype.kind in "fiu":
        return _numbers(found, expected, name), wanted
    # Files hold dates and durations as numbers of a unit.
    if values.dtype.kind == "m" and wanted.dtype.kind in "fiu":
        units = expected.attrs.get("units")
        return duration(values, units, f"coordinate '{name}'"), wanted
    if wanted.dtype.kind == "m" and values.dtype.kind in "fiu" and "units" in found.attrs:
        units = found.attrs["units"]
        return values, duration(wanted, units, f"the problem's coordinate '{name}'")
    return dated(found).values, dated(expected).values


def dated(coordinate: xr.Variable) -> xr.Variable:
    """Dates where a coordinate of numbers counts from one; else, and where there are no such
    dates, the coordinate as it is."""
    since = " since " in str(coordinate.attrs.get("units", ""))
    if not since or coordinate.dtype.kind not in "fiu":
        return coordinate
    try:
        return xr.decode_cf(xr.Dataset({"t": coordinate}), decode_timedelta=False)["t"].variable
    except (ValueError, OverflowError, TypeError):
        return coordinate


def _numbers(found: xr.Variable, expected: xr.Variable, name: str) -> np.ndarray:
    """The data's coordinate in the units and on the circle of the problem's."""
    values, wanted = found.values, expected.values
    units, target = found.attrs.get("units"), expected.attrs.get("units")
    if units is not None and target is not None and not same_units(units, target):
        values = converted(values.astype(np.float64), units, target, f"coordinate '{name}'")
    if is_longitude(name, expected.attrs) and np.isfinite(wanted).any():
        west, east = float(np.nanmin(wanted)), float(np.nanmax(wanted))
        slack, values = 1e-6 * 360, values.astype(np.float64)
        turned = (values - west + slack) % 360 + west - slack
        # A grid may have both ends of the circle.
        values = np.where((values >= west - slack) & (values <= east + slack), values, turned)
    return values


def _order(found: np.ndarray, expected: np.ndarray, name: str, what: str) -> np.ndarray:
    """Index that brings ``found`` into the order of ``expected``."""
    index = np.argsort(found, kind="stable")[np.argsort(np.argsort(expected, kind="stable"))]
    if not _close(found[index], expected):
        raise ValueError(_differs(name, found, expected, what))
    return index


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether coordinates agree; both may be missing at a place."""
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        a, b = a.astype(np.float64), b.astype(np.float64)
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            return bool((equal | (abs(a - b) <= _slack(b))).all())
    if {a.dtype.kind, b.dtype.kind} & set("mM") and a.dtype.kind != b.dtype.kind:
        return False  # NumPy takes a whole number for a duration
    missing = pd.isna(a)
    if not np.array_equal(missing, pd.isna(b)):
        return False
    return bool(np.all((a == b)[~missing])) if a.size else True


def _slack(values: np.ndarray) -> np.ndarray:
    """What a coordinate may be off: single precision is what they often pass through on their way.
    Never as much as lies between neighbours on an axis."""
    finite = np.sort(values[np.isfinite(values)])
    slack = np.abs(values) * np.finfo(np.float32).eps
    if finite.size:
        slack = slack + 1e-6 * (finite[-1] - finite[0])
    if values.ndim == 1 and (steps := np.diff(finite)[np.diff(finite) > 0]).size:
        slack = np.minimum(slack, steps.min() / 4)
    return slack


def _differs(name: str, found: np.ndarray, expected: np.ndarray, what: str) -> str:
    shown = [np.array2string(values, threshold=6, edgeitems=2) for values in (found, expected)]
    if found.dtype.kind != expected.dtype.kind:
        shown = [f"{text} ({v.dtype})" for text, v in zip(shown, (found, expected), strict=True)]
    return f"coordinate '{name}' of {what} is {shown[0]}; the problem has {shown[1]}"
