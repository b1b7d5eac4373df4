"""What a labelled array says of its own numbers: packing, fill values, valid ranges.

Files keep these as attributes, which xarray acts on when it opens one as it does by default. Here
they count however a dataset was opened or made. NaN stands where there is no datum: at a fill
value, at that of the library in cells which were never written, and outside the valid range. A
limit of packed data is packed too, unless it is of a floating-point type and they are integers
(NetCDF Users Guide, attribute conventions).
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

__all__ = ["decoded"]

PACKING = {"scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned"}
"""Attributes that xarray takes away when it has acted on them."""


def decoded(dataset: xr.Dataset) -> xr.Dataset:
    """Physical numbers, NaN where there is no datum; values are still read when they are needed.

    Dates and durations are left as they are stored.

    Raises:
        ValueError: a factor or an offset is no number.
    """
    dataset = _unpacked(dataset)
    found = {}
    for name, variable in dataset.data_vars.items():
        outside = _outside(variable) if variable.dtype.kind in "fiu" else None
        if outside is None:
            continue
        # Whole numbers stay such where all of them are data; what dask holds is not read for that.
        if variable.dtype.kind == "f" or variable.chunks is not None or bool(outside.any()):
            found[name] = variable.where(~outside).assign_attrs(variable.attrs).variable
    return dataset.assign(found) if found else dataset


def _unpacked(dataset: xr.Dataset) -> xr.Dataset:
    stored = {}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "fiu" and PACKING & set(variable.attrs):
            stored[name] = variable.copy(deep=False)
            stored[name].attrs = {**variable.attrs, **_packing(name, variable.attrs)}
    if not stored:
        return dataset
    with warnings.catch_warnings():  # several fill values all mean the same
        warnings.simplefilter("ignore", xr.SerializationWarning)
        plain = xr.decode_cf(xr.Dataset(stored), decode_times=False, decode_timedelta=False)
    found = {name: plain[name].variable for name in stored}
    coords = {name: value for name, value in found.items() if name in dataset.coords}
    data = {name: value for name, value in found.items() if name not in coords}
    return dataset.assign(data).assign_coords(coords)


def _packing(name: Hashable, attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Factor and offset as one number each, which some programs write as arrays."""
    found = {}
    for key in ("scale_factor", "add_offset"):
        value = np.asarray(attrs.get(key, 1.0))
        fits = value.dtype.kind in "fiu" and value.size == 1 and bool(np.isfinite(value).all())
        if not fits or (key == "scale_factor" and not value.any()):
            raise ValueError(
                f"attribute '{key}' of '{name}' must be one number, of which a factor is not "
                f"zero; got {attrs[key]!r:.60}"
            )
        if key in attrs:
            found[key] = value.reshape(())[()]
    return found


def _outside(variable: xr.DataArray) -> xr.DataArray | None:
    """Where a variable holds no datum; None where it says nothing of that."""
    encoding = variable.encoding
    stored = np.dtype(encoding.get("dtype", variable.dtype))
    packed = "scale_factor" in encoding or "add_offset" in encoding
    scale = float(encoding.get("scale_factor", 1.0))
    raw = (variable - float(encoding.get("add_offset", 0.0))) / scale if packed else variable
    # Unpacking and packing again does not give the same number to the last bit.
    slack = (0.5 if stored.kind in "iu" else 1e-6) if packed else 0.0
    tests = []
    fill = netCDF4.default_fillvals.get(stored.str[1:])
    declared = {"_FillValue", "missing_value"} & set(encoding)
    # A float of that size is nothing else; an integer may be a datum unless it is of a file.
    known = "source" in encoding or (stored.kind == "f" and not packed)
    if fill is not None and known and not declared and stored.itemsize > 1:
        fill = float(fill)
        near = 1e-6 * abs(fill) if stored.kind == "f" else slack
        tests.append(abs(raw - fill) <= near)
    for limit, sign in _limits(variable.attrs):
        physical = not packed or (limit.dtype.kind == "f" and stored.kind in "iu")
        numbers, room = (variable, 0.0) if physical else (raw, slack)
        tests.append(sign * (numbers - float(limit)) > room)
    if not tests:
        return None
    outside = tests[0]
    for test in tests[1:]:
        outside = outside | test
    return outside


def _limits(attrs: dict[str, Any]) -> list[tuple[np.ndarray, int]]:
    """Stated limits, each with -1 for the least and 1 for the largest number that is valid."""
    low, high = attrs.get("valid_min"), attrs.get("valid_max")
    if np.size(attrs.get("valid_range", ())) == 2:
        low, high = attrs["valid_range"]
    limits = [(np.asarray(low), -1), (np.asarray(high), 1)]
    return [
        (limit, sign) for limit, sign in limits if limit.dtype.kind in "fiu" and limit.size == 1
    ]
