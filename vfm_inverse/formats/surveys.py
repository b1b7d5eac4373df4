"""What a data file holds, told from its labels and a look at its numbers. No torch is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from vfm_inverse.formats.netcdf_files import FOREIGN, unreadable
from vfm_inverse.formats.table_columns import ERRORS, folded, is_place, read_csv

__all__ = [
    "axis",
    "column_of",
    "fields",
    "is_store",
    "is_table",
    "opened",
    "range_of",
    "sample_dim",
    "survey",
]

COUNTING = ("sample", "time", "member", "realization", "ensemble", "number", "draw")
"""Dimensions that count samples, the likeliest first."""

LOOKED_AT = 2**24
"""Numbers of a variable that are read: all of a small one, samples in even steps of a large."""


@contextmanager
def opened(path: str | Path) -> Iterator[xr.Dataset]:
    """A netCDF file, a zarr store or a CSV table as a dataset; only labels are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no '{path}'")
    if path.suffix.lower() == ".csv":
        yield read_csv(path)
        return
    zarr = is_store(path)
    engine: Any = "zarr" if zarr else "netcdf4"
    options: dict[str, Any] = {"engine": engine, "decode_timedelta": False}
    options |= {"consolidated": False} if zarr else {}
    try:
        try:
            file = xr.open_dataset(path, **options)
        except ValueError:  # times in a unit that means none
            file = xr.open_dataset(path, **options, decode_times=False)
    except FOREIGN as error:
        if zarr:
            text = " ".join(str(error).split())[:300]
            raise ValueError(f"'{path}' is not a readable zarr store: {text}") from error
        raise unreadable(path, error) from error
    with file:
        yield file


def is_store(path: Path) -> bool:
    """Whether a path is a zarr store."""
    parts = (".zgroup", ".zmetadata", "zarr.json")
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in parts)


def is_table(data: xr.Dataset) -> bool:
    """Whether a dataset is a table: columns along one dimension, with places among them."""
    dims = {variable.dims for variable in data.variables.values() if variable.ndim}
    return len(dims) == 1 and len(next(iter(dims))) == 1 and column_of(data, "place") is not None


def column_of(data: xr.Dataset, what: str) -> str | None:
    """The name of a table's column of places (``place``), values' errors (``error``) or values
    (``value``), as far as names tell.

    Args:
        data: the table.
        what: which of them.
    """
    names = {folded(name): str(name) for name in reversed(list(data.variables))}
    if what == "place":
        return next((name for key, name in names.items() if is_place(key)), None)
    if what == "error":
        return next((names[key] for key in ERRORS if key in names), None)
    for key in ("observed", "value"):
        if key in names:
            return names[key]
    left = [
        name
        for key, name in names.items()
        if not is_place(key) and key not in ERRORS and data[name].dtype.kind in "fiu"
    ]
    return left[0] if len(left) == 1 else None


def fields(data: xr.Dataset) -> list[str]:
    """Variables that may be samples of a prior: numbers with two dimensions or more, the largest
    first."""
    names = [
        str(name)
        for name, variable in data.data_vars.items()
        if variable.dtype.kind in "fiu" and variable.ndim > 1
        if not str(name).endswith(("_bnds", "_bounds"))
    ]
    return sorted(names, key=lambda name: -data[name].size)


def sample_dim(variable: xr.DataArray) -> str | None:
    """The dimension that counts samples; None where no name tells and none has dates."""
    for name in COUNTING:
        if name in variable.dims:
            return name
    dated = [d for d in variable.dims if d in variable.coords and _dated(variable[d])]
    return str(dated[0]) if dated else None


def _dated(coord: xr.DataArray) -> bool:
    return coord.dtype.kind == "M" or type(coord.values.flat[0]).__module__ == "cftime"


def axis(coord: xr.DataArray) -> dict[str, Any]:
    """First and last value, and units, of a coordinate."""
    first, last = (plain(coord.values.flat[i]) for i in (0, -1))
    return {"from": first, "to": last, "units": coord.attrs.get("units")}


def plain(value: Any) -> Any:
    """A number of Python, or text; of a time at midnight its date."""
    if isinstance(value, np.datetime64) or type(value).__module__ == "cftime":
        text = str(value)[:19].replace("T", " ")
        return text.removesuffix(" 00:00:00")
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float) else str(value)


def range_of(values: np.ndarray) -> tuple[Any, Any]:
    """Smallest and largest value, not a number left out; None for both where there is none."""
    kept = values[~pd.isnull(values)]
    if not kept.size:
        return None, None
    if kept.dtype.kind not in "biufmM":
        kept = sorted(map(str, kept))
        return kept[0], kept[-1]
    return plain(kept.min()), plain(kept.max())


def labels(variable: xr.DataArray) -> dict[str, Any]:
    """Dimensions, units and ranges of the coordinates of a variable."""
    named = [dim for dim in variable.dims if dim in variable.coords and variable.sizes[dim]]
    coords = {str(dim): axis(variable[dim]) for dim in named if dim != "draw"}
    return {
        "sizes": {str(dim): size for dim, size in variable.sizes.items()},
        "units": variable.attrs.get("units"),
        "long_name": variable.attrs.get("long_name"),
        "coords": coords,
    }


def survey(variable: xr.DataArray, sample: str | None = None) -> dict[str, Any]:
    """Labels of a variable, and figures of its numbers.

    Args:
        variable: numbers.
        sample: the dimension that counts samples, if any.

    Returns:
        :func:`labels`, with ``missing``, ``minimum``, ``maximum``, ``mean``, ``std`` and
        ``looked_at``, how many of the samples were read.
    """
    looked, count = variable, 1
    if sample is not None:
        count = variable.sizes[sample]
        most = max(2, LOOKED_AT // max(1, variable.size // count))
        if count > most:
            looked = variable.isel({sample: np.linspace(0, count - 1, most).astype(int)})
    values = looked.values
    seen = values[np.isfinite(values)].astype(np.float64)
    low, high = range_of(seen)
    return {
        **labels(variable),
        "missing": int(np.isnan(values).sum()),
        "minimum": low,
        "maximum": high,
        "mean": float(seen.mean()) if seen.size else None,
        "std": float(seen.std()) if seen.size else None,
        "looked_at": None if sample is None else int(looked.sizes[sample]),
    }
