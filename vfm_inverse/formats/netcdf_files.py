"""netCDF files that show their damage: a sum over all of a file's content, as an attribute of it.

HDF5 itself guards the structure of a netCDF-4 file and, where asked to, the chunks of a variable
(Fletcher's checksum, which every reader checks). The attribute ``content_sha256`` covers the rest:
names, types, attributes and the values of all variables whose chunks are not guarded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from vfm_inverse.runtime.files import check_space, replacing

__all__ = [
    "check_content",
    "content_holds",
    "read_netcdf",
    "seal",
    "unreadable",
    "write_netcdf",
]

SUM = "content_sha256"
"""Attribute that holds the sum."""

GUARDED = 2**16
"""Numbers of a variable from which on HDF5 guards its chunks."""

FOREIGN = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError, EOFError)
"""What a damaged or foreign file raises depends on the library that meets it first."""


def write_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a sealed netCDF-4 file under a temporary name, then rename it: never half a file.

    Raises:
        OSError: the file cannot be written; one of that name that was there stays as it was.
        ValueError: netCDF cannot hold the dataset.
    """
    path = Path(path)
    guarded = {
        name: {"fletcher32": True}
        for name, variable in dataset.variables.items()
        if variable.size >= GUARDED and variable.dtype.kind in "biuf"
    }
    # HDF5 keeps a file open that it cannot finish: better not begun.
    check_space(path, sum(v.nbytes for v in dataset.variables.values() if _stored_as_is(v)))
    with replacing(path) as temporary, writing(path):
        dataset.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=guarded)
        seal(temporary)
    return path


def _stored_as_is(variable: xr.Variable) -> bool:
    """Whether a variable takes its own size in a file: it is not packed or compressed."""
    smaller = ("dtype", "zlib", "compression", "scale_factor", "add_offset")
    return variable.dtype.kind in "biuf" and not any(variable.encoding.get(k) for k in smaller)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What a library raises while it writes is an error with the file's name."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot write '{os.fspath(path)}': {text[:400]}") from error


def read_netcdf(path: str | os.PathLike[str]) -> xr.Dataset:
    """A whole netCDF file in memory, its seal checked where it has one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no readable netCDF file, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{os.fspath(path)}'")
    try:
        check_content(path)
        with xr.open_dataset(path, engine="netcdf4", decode_timedelta=False) as dataset:
            return dataset.load()
    except PermissionError:
        raise
    except FOREIGN as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: Exception) -> ValueError:
    """What to say of a file that cannot be read, unless the error names the file by itself."""
    text, name = " ".join(str(error).split()) or type(error).__name__, os.fspath(path)
    if isinstance(error, ValueError) and str(name) in text:
        return ValueError(text)
    return ValueError(f"'{name}' is not a readable netCDF file: {text[:400]}")


def seal(path: str | os.PathLike[str]) -> None:
    """Give a finished netCDF-4 file the sum of its content."""
    with netCDF4.Dataset(path, "a") as file:
        file.setncattr(SUM, content_sum(file))


def check_content(path: str | os.PathLike[str]) -> None:
    """Refuse a sealed netCDF file whose content is no longer what was written; a file without a
    seal passes.

    Raises:
        ValueError: it is damaged.
    """
    if not content_holds(path):
        raise ValueError(
            f"'{os.fspath(path)}' is damaged or was edited: its content does not have the "
            "checksum it states"
        )


def content_holds(path: str | os.PathLike[str]) -> bool:
    """Whether a netCDF file has the content that its seal states; one without a seal has.

    xarray copies the seal along with the other attributes of a file that somebody edits.
    """
    with netCDF4.Dataset(path, "r") as file:
        return SUM not in file.ncattrs() or bool(file.getncattr(SUM) == content_sum(file))


def content_sum(file: Any) -> str:
    """SHA-256 of names, types, attributes and values of an open file."""
    total = sha256()

    def note(*parts: object) -> None:
        total.update(repr(parts).encode("utf-8", "backslashreplace"))

    def note_attributes(owner: Any) -> None:
        for name in sorted(owner.ncattrs()):
            if name != SUM:
                value = owner.getncattr(name)
                array = np.asarray(value)
                note(name, str(array.dtype), array.tolist())

    note_attributes(file)
    for name, dimension in sorted(file.dimensions.items()):
        note(name, len(dimension))
    for name, variable in sorted(file.variables.items()):
        variable.set_auto_maskandscale(False)
        variable.set_auto_chartostring(False)
        note(name, str(variable.dtype), variable.dimensions, variable.shape)
        note_attributes(variable)
        filters = variable.filters() or {}
        if filters.get("fletcher32") and variable.size >= GUARDED:
            continue
        values = np.asarray(variable[...])
        if values.dtype.kind == "O":
            note(values.tolist())
        else:
            total.update(np.ascontiguousarray(values).tobytes())
    for name, group in sorted(file.groups.items()):
        note(name, content_sum(group))
    return total.hexdigest()
