"""Whatever holds an observation, as a dataset: netCDF, CSV and Parquet files, pictures, xarray,
pandas, plain arrays.

NaN, NaT, a fill value and what lies outside a stated valid range mean: not observed
(:mod:`vfm_inverse.formats.fill_values`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from vfm_inverse.formats.fill_values import decoded
from vfm_inverse.formats.image_folders import SUFFIXES, picture
from vfm_inverse.formats.netcdf_files import FOREIGN, content_holds, unreadable
from vfm_inverse.formats.table_columns import read_csv, table_of
from vfm_inverse.labelled.axes import dated
from vfm_inverse.problem.labels import BATCH, OBSERVED, squeezed
from vfm_inverse.problem.priors import unstacked
from vfm_inverse.runtime.arrays import real_array

if TYPE_CHECKING:
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["Source", "opened", "opened_file"]

Source: TypeAlias = (
    str | os.PathLike[str] | xr.Dataset | xr.DataArray | pd.DataFrame | np.ndarray | Tensor
)


@contextmanager
def opened(source: Any, problem: InverseProblem) -> Iterator[xr.Dataset]:
    """The source as a dataset, whose values are read when they are needed."""
    if isinstance(source, xr.Dataset):
        yield decoded(unstacked(source))
        return
    if isinstance(source, xr.DataArray):
        name = OBSERVED if source.name is None or source.name in source.coords else source.name
        yield decoded(unstacked(source.to_dataset(name=name)))
        return
    if isinstance(source, pd.DataFrame):
        yield table_of(source)
        return
    if not isinstance(source, str | os.PathLike):
        yield _of_array(source, problem).to_dataset(name=OBSERVED)
        return
    if Path(source).suffix.lower() in SUFFIXES and Path(source).is_file():
        yield _of_array(_read_picture(source, problem), problem).to_dataset(name=OBSERVED)
        return
    with opened_file(source) as dataset:
        yield dataset


@contextmanager
def opened_file(source: str | os.PathLike[str]) -> Iterator[xr.Dataset]:
    """A netCDF file, or a table as CSV or Parquet, whose values are read when they are needed.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pandas lacks a reader of Parquet.
        ValueError: it cannot be read.
    """
    if Path(source).is_dir():
        raise ValueError(
            f"'{os.fspath(source)}' is a folder and no file; open a store with xarray.open_zarr "
            "and give the dataset"
        )
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no observation file '{os.fspath(source)}'")
    if (kind := Path(source).suffix.lower()) in (".csv", ".parquet", ".pq"):
        yield read_csv(source) if kind == ".csv" else table_of(_read_parquet(source))
        return
    try:
        if not content_holds(source):  # an observation may be edited, and a bit may have flipped
            warnings.warn(
                f"'{os.fspath(source)}' was edited since this package wrote it, or is damaged: "
                "its content does not have the checksum it states",
                UserWarning,
                stacklevel=2,
            )
        # Only coordinates are ever decoded as times.
        file = xr.open_dataset(source, engine="netcdf4", decode_times=False, mask_and_scale=False)
    # What a damaged or foreign file raises depends on the library that meets it first.
    except FOREIGN as error:
        raise unreadable(source, error) from error
    with file:
        try:
            dataset = decoded(file)
            coords = dataset.coords.items()
            dataset = dataset.assign_coords({name: dated(c.variable) for name, c in coords})
        except FOREIGN as error:
            raise unreadable(source, error) from error
        yield dataset


def _read_picture(source: str | os.PathLike[str], problem: InverseProblem) -> np.ndarray:
    """A picture of as many channels as the problem observes; or the numbers of a npy file."""
    if Path(source).suffix.lower() != ".npy":
        return picture(Path(source), grey=len(squeezed(problem.observation_shape)) < 3)
    try:
        return np.load(source)
    except (ValueError, EOFError) as error:
        raise ValueError(f"'{os.fspath(source)}' is not a readable npy file: {error}") from error


def _read_parquet(source: str | os.PathLike[str]) -> pd.DataFrame:
    try:
        return pd.read_parquet(source)
    except PermissionError:
        raise
    except ImportError as error:
        raise ImportError(
            f"'{os.fspath(source)}' is Parquet, which pandas reads with pyarrow: pip install "
            "'vfm-inverse[io]'"
        ) from error
    except Exception as error:  # pyarrow's own are of several families
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"'{os.fspath(source)}' is not a readable Parquet file: {text}"
        ) from error


def _of_array(source: Any, problem: InverseProblem) -> xr.DataArray:
    """Plain numbers by position; masked entries are not observed."""
    labels = problem.observation_labels
    if isinstance(source, np.ma.MaskedArray) and source.dtype.kind in "fiu":
        source = np.ma.filled(source.astype(np.float64), np.nan)
    elif isinstance(source, np.ndarray) and source.dtype.kind == "m":
        source = np.asarray(source)
    else:
        source = real_array(source, "source")
    size = squeezed(problem.observation_shape)
    for lead in ((), (BATCH,)):
        for shape in (size, tuple(problem.observation_shape)):
            if source.shape[len(lead) :] == shape and source.ndim == len(lead) + len(shape):
                values = source.reshape(*source.shape[: len(lead)], *size)
                return xr.DataArray(values, dims=(*lead, *labels.dims))
    raise ValueError(
        f"'source' must have shape {size} or (batch, {', '.join(map(str, size))}) for this "
        f"problem; got {source.shape}"
    )
