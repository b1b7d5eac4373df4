"""Columns of tables of any kind: from pandas, and in types that netCDF can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

__all__ = ["folded", "is_place", "read_csv", "storable", "storable_attrs", "table_of"]

LATITUDES = ("lat", "latitude", "lats", "latitudes", "nav_lat")
LONGITUDES = ("lon", "longitude", "lons", "longitudes", "long", "lng", "nav_lon")
"""What columns of places are called, in small letters."""

ERRORS = ("error_std", "sigma", "std", "error", "stdev", "uncertainty")
"""What columns of standard deviations are called, the likeliest first."""

NUMBERS = ("floating", "integer", "mixed-integer-float", "decimal", "boolean")


def folded(name: object) -> str:
    """A name in small letters, without white space around it."""
    return str(name).strip().casefold()


def is_place(name: object) -> bool:
    """Whether a column is called as one of places."""
    return folded(name).removeprefix("station_") in {*LATITUDES, *LONGITUDES, "x", "y"}


def read_csv(path: str | os.PathLike[str]) -> xr.Dataset:
    """A table of comma-separated values, see :func:`table_of`.

    Raises:
        OSError: it may not be opened.
        ValueError: it cannot be read.
    """
    try:
        frame = pd.read_csv(path)
    except PermissionError:
        raise
    except (ValueError, OSError, LookupError) as error:  # pandas' own are ValueErrors
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"'{os.fspath(path)}' is not a readable table of comma-separated values: {text}"
        ) from error
    return table_of(frame)


def table_of(frame: pd.DataFrame) -> xr.Dataset:
    """A pandas table as a dataset along ``station``; its index is a column unless it only counts.

    Numbers that pandas holds in other ways (nullable types, objects) are numbers, with NaN where
    they are missing; times with a zone are times in UTC.

    Raises:
        TypeError: a column has a name that is no text.
        ValueError: two columns have one name.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        frame = _with_index(frame)
    if wrong := [name for name in frame.columns if not isinstance(name, str)]:
        raise TypeError(f"the table's columns must have names; got {wrong[0]!r:.60}")
    if not frame.columns.is_unique:
        double = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"the table has several columns '{double}'; they must differ in name")
    columns = {name: ("station", _of_pandas(frame[name])) for name in frame.columns}
    return xr.Dataset(columns, attrs=storable_attrs(frame.attrs))


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    """The index as columns; what a column says already is left out."""
    taken = set(frame.columns)
    names = list(frame.index.names)
    double = [level for level, name in enumerate(names) if name is not None and name in taken]
    if len(double) == len(names):
        return frame.reset_index(drop=True)
    if double:
        frame = frame.reset_index(level=double, drop=True)
    return frame.reset_index()


def _of_pandas(column: pd.Series) -> np.ndarray:
    """A column as NumPy's numbers, times, durations or text."""
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        column = column.astype(object if column.hasnans else kind.categories.dtype)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufcmM":
        return column.to_numpy()
    if len(column) == 0:
        return np.zeros(0)
    found = pd.api.types.infer_dtype(column, skipna=True)
    if found in NUMBERS or (found == "empty" and bool(column.isna().all())):
        missing = column.isna().to_numpy()
        objects = column.to_numpy(dtype=object, na_value=np.nan)
        whole = found in ("integer", "boolean") and not missing.any()
        return np.where(missing, np.nan, objects).astype(np.int64 if whole else np.float64)
    if found in ("datetime64", "datetime"):
        return pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy()
    if found in ("timedelta64", "timedelta"):
        return pd.to_timedelta(column).to_numpy()
    if found == "complex":
        return column.to_numpy(dtype=complex, na_value=np.nan)
    return storable(column.to_numpy(dtype=object, na_value=""))


def storable(values: Any) -> np.ndarray:
    """A column in a type that netCDF can hold: what is neither number nor time becomes text."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        size = min(max(array.dtype.itemsize, 4), 8)
        return array.astype(f"f{size}")
    if array.dtype.kind in "biumMSU":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    text = ["" if missing(entry) else str(entry) for entry in array.ravel().tolist()]
    return np.array(text, dtype=str).reshape(array.shape)


def missing(entry: Any) -> bool:
    """Whether an entry of a column of objects stands for none: None, NaN, NaT, ``pandas.NA``."""
    found = pd.isna(entry)
    return found if isinstance(found, bool) else False


def storable_attrs(attrs: Mapping[Any, Any], kind: str = "") -> dict[str, Any]:
    """Attributes that netCDF can hold, of a column of NumPy's ``kind``; what says how it was
    stored is left out."""
    stored = {"_FillValue", "missing_value"} | (
        {"units", "calendar", "dtype"} if kind in "mM" and kind else set()
    )
    return {
        str(key): value
        if isinstance(value, str | int | float | np.number) and not isinstance(value, bool)
        else str(value)
        for key, value in attrs.items()
        if value is not None and str(key) not in stored
    }
