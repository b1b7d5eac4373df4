"""The prior of a declared problem, from files.

.. code-block:: toml

   [problem.prior]
   path = "anomalies.nc"     # netCDF, a zarr store, or a glob of netCDF files
   variable = "tas"          # or several, which become channels; the only one where left out
   sample = "time"           # the dimension that counts samples; default "sample"
   test = 0.1                # the last share; or "2015-01-01/2020-12-31", labels of the samples,
                             # both ends included; or the path of other files

   [problem.prior]
   path = "photographs"      # a folder or a glob of PNG, JPEG, TIFF or npy pictures
   patch = 64                # side of patches drawn from them; without it whole pictures
   grey = true               # or false: in colour; as stored where left out
   test = 0.1                # the last share of the pictures, in the order of their names

What is held out for tests is never trained on. Values may be missing nowhere. Up to 256 MiB
are held in memory; more is read by dask as it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from vfm_inverse.formats.image_folders import SUFFIXES, Pictures
from vfm_inverse.formats.netcdf_files import FOREIGN
from vfm_inverse.formats.surveys import is_store
from vfm_inverse.problem.labels import AxisLabels
from vfm_inverse.problem.priors import CHANNEL, SAMPLE, LabelledPrior, Prior
from vfm_inverse.runtime.config import refuse_unknown
from vfm_inverse.runtime.settings import Setting

__all__ = ["Fields", "read_prior"]

IN_MEMORY = 2**28
"""Bytes of samples up to which they are held in memory."""

SHARE = Setting(float, 0, 1, open_low=True, open_high=True)


@dataclass(frozen=True)
class Fields:
    """Prior samples of both splits, and what they are.

    Attributes:
        train, test: as ``InverseProblem`` takes them.
        labels: of one field.
        keywords: labels that the priors do not bring along, as ``InverseProblem`` takes them.
    """

    train: Prior
    test: Prior
    labels: AxisLabels
    keywords: dict[str, Any] = field(default_factory=dict)


def read_prior(table: Mapping[str, Any], folder: Path, *, signal: bool = False) -> Fields:
    """Prior samples as the table ``[problem.prior]`` says.

    Args:
        table: see above.
        folder: that its paths are relative to.
        signal: whether samples ``(d,)`` are signals ``(1, d)``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: dask or zarr is missing.
        ValueError: a key is unknown or makes no sense, a file cannot be read, or values are
            missing.
    """
    paths = _paths(table.get("path"), folder)
    pictures = all(path.suffix.lower() in SUFFIXES for path in paths)
    known = ("path", "test", *(("patch", "grey") if pictures else ("variable", "sample")))
    refuse_unknown("key in [problem.prior]", table, known)
    return _pictures(table, paths, folder) if pictures else _labelled(table, paths, folder, signal)


def _paths(path: Any, folder: Path) -> list[Path]:
    """The files of a path: itself, those that a glob matches, or the pictures of a folder."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"'path' in [problem.prior] must be a path or a glob; got {path!r}")
    whole = folder / path
    if whole.is_dir() and not is_store(whole):
        found = sorted(p for p in whole.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise FileNotFoundError(
                f"the folder '{whole}' has no pictures ({', '.join(SUFFIXES)}) and is no zarr "
                'store; a glob takes several netCDF files: path = "folder/*.nc"'
            )
        return found
    found = [whole] if whole.exists() else sorted(map(Path, glob(str(whole), recursive=True)))
    if not found:
        raise FileNotFoundError(f"'path' in [problem.prior]: there is no '{whole}'")
    return found


# Pictures ----------------------------------------------------------------------------------------


def _pictures(table: Mapping[str, Any], paths: list[Path], folder: Path) -> Fields:
    patch, grey, test = table.get("patch"), table.get("grey"), table.get("test", 0.1)
    if patch is not None:
        patch = Setting(int, 2).check("patch", patch, "problem.prior")
    if grey is not None:
        grey = Setting(bool).check("grey", grey, "problem.prior")
    if isinstance(test, str):
        kept, held_out = paths, _paths(test, folder)
    else:
        kept, held_out = _last(paths, _share(test), f"pictures in '{table['path']}'")
    train, tests = Pictures(kept, patch, grey), Pictures(held_out, patch, grey)
    channels, height, width = train.shape
    axis = {"units": "1"}
    keywords: dict[str, Any] = {
        "dims": ("y", "x"),
        "coords": {
            "y": ("y", np.arange(height), {"long_name": "row", "positive": "down", **axis}),
            "x": ("x", np.arange(width), {"long_name": "column", **axis}),
        },
        "units": "1",
        "long_name": "grey value" if channels == 1 else "value",
    }
    if channels > 1:
        keywords["dims"] = (CHANNEL, "y", "x")
        if channels == 3:
            keywords["coords"][CHANNEL] = (CHANNEL, ["red", "green", "blue"])
    labels = AxisLabels.of_field(torch.Size(train.shape), prior=None, **keywords)
    return Fields(train, tests, labels, keywords)


def _share(test: Any) -> float:
    try:
        return float(SHARE.check("test", test, "problem.prior"))
    except ValueError as error:
        raise ValueError(f"{error}, or a path") from error


def _last(paths: list[Path], share: float, what: str) -> tuple[list[Path], list[Path]]:
    kept = len(paths) - max(1, round(share * len(paths)))
    if kept < 1:
        raise ValueError(f"there must be {what} for training and for tests; got {len(paths)}")
    return paths[:kept], paths[kept:]


# Labelled arrays ---------------------------------------------------------------------------------


def _labelled(table: Mapping[str, Any], paths: list[Path], folder: Path, signal: bool) -> Fields:
    train, test = _samples(table, paths), table.get("test", 0.1)
    if isinstance(test, str) and ((folder / test).exists() or glob(str(folder / test))):
        tests = _samples(table, _paths(test, folder))
    else:
        kept, held_out = _parts(train, test, table.get("sample", SAMPLE))
        train, tests = train.isel({SAMPLE: kept}), train.isel({SAMPLE: held_out})
    if signal and train.ndim == 2:
        train, tests = (data.expand_dims(CHANNEL) for data in (train, tests))
    for part, data in {"training": train, "tests": tests}.items():
        _check_complete(data, part)
    prior = LabelledPrior.read(train)
    shape = torch.Size(prior.event_shape)
    labels = AxisLabels.of_field(
        shape, dims=None, coords=None, units=None, long_name=None, prior=prior
    )
    return Fields(train, tests, labels)


def _samples(table: Mapping[str, Any], paths: list[Path]) -> xr.DataArray:
    """The samples along ``sample``, in memory or held by dask."""
    sample, names = table.get("sample", SAMPLE), table.get("variable")
    if not isinstance(sample, str):
        raise ValueError(f"'sample' in [problem.prior] must be a dimension's name; got {sample!r}")
    dataset = _opened(paths, sample)
    several = len(paths) > 1
    where = f"'{paths[0]}'" + f" and {len(paths) - 1} more" * several
    if names is None:
        chosen = [name for name, data in dataset.data_vars.items() if sample in data.dims]
        chosen = [n for n in chosen if not str(n).endswith(("_bnds", "_bounds"))]
        if len(chosen) != 1:
            raise ValueError(
                f"'variable' in [problem.prior] must say which of {sorted(map(str, chosen))} in "
                f"{where} is meant"
                if chosen
                else f"no variable of {where} has the dimension '{sample}', which counts samples; "
                f"'sample' in [problem.prior] must be one of {sorted(map(str, dataset.dims))}"
            )
        names = str(chosen[0])
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in dataset.data_vars:
            raise ValueError(
                f"'variable' in [problem.prior]: {where} has no {name!r:.60}; it has "
                f"{sorted(map(str, dataset.data_vars))}"
            )
        if sample not in dataset[name].dims:
            raise ValueError(
                f"'{name}' of {where} has no dimension '{sample}'; 'sample' in [problem.prior] "
                f"must be one of {list(map(str, dataset[name].dims))}"
            )
    data = dataset[names] if isinstance(names, str) else _channels(dataset, wanted)
    single = [
        dim for dim, size in data.sizes.items() if size == 1 and dim not in (sample, CHANNEL)
    ]
    data = data.squeeze(single[: max(0, data.ndim - 2)], drop=True)
    if sample != SAMPLE:
        data = data.drop_vars(SAMPLE, errors="ignore").rename({sample: SAMPLE})
    return _held(data, dataset)


def _channels(dataset: xr.Dataset, names: list[str]) -> xr.DataArray:
    """Several variables as channels; units only where all have the same."""
    data = dataset[names].to_dataarray(CHANNEL)
    units = {dataset[name].attrs.get("units") for name in names}
    data.attrs = {"units": units.pop()} if len(units) == 1 and None not in units else {}
    return data.rename(None)


def _opened(paths: list[Path], sample: str) -> xr.Dataset:
    try:
        if is_store(paths[0]) and len(paths) == 1:
            return xr.open_zarr(paths[0], decode_timedelta=False)
        if len(paths) == 1:
            return xr.open_dataset(paths[0], decode_timedelta=False)
        with xr.open_dataset(paths[0], decode_timedelta=False) as first:
            ordered = sample in first.indexes
        how: dict[str, Any] = {"combine": "by_coords"}
        if not ordered:
            how = {"combine": "nested", "concat_dim": sample}
        return xr.open_mfdataset(
            paths,
            **how,
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="exact",
            decode_timedelta=False,
        )
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'vfm-inverse[io]'") from error
    except (PermissionError, FileNotFoundError):
        raise
    except FOREIGN as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        shown = f"'{paths[0]}'" + f" and {len(paths) - 1} more" * (len(paths) > 1)
        raise ValueError(f"{shown} cannot be read as netCDF or zarr: {text}") from error


def _held(data: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """In memory, or by dask: as stored in chunks, else sample by sample."""
    if data.nbytes <= IN_MEMORY:
        data = data.load()
        dataset.close()
        return data
    if data.chunks is not None:
        return data
    stored = dict(zip(data.dims, data.encoding.get("chunksizes") or (), strict=False))
    try:
        return data.chunk({SAMPLE: stored.get(SAMPLE, 1)})
    except ImportError as error:
        raise ImportError(
            f"{data.nbytes / 1e9:.3g} GB of samples are read by dask: pip install "
            "'vfm-inverse[io]'"
        ) from error


def _parts(data: xr.DataArray, test: Any, sample: str) -> tuple[slice | np.ndarray, slice]:
    """Which samples are trained on, and which are held out."""
    num = data.sizes[SAMPLE]
    if isinstance(test, str):
        held_out = _range(data, test, sample)
    else:
        held_out = slice(num - max(1, round(_share(test) * num)), num)
    first, last, _ = held_out.indices(num)
    if not 0 < last - first < num:
        raise ValueError(
            f"'test' in [problem.prior] must leave samples for training and for tests; {test!r} "
            f"holds out {max(0, last - first)} of {num}"
        )
    # A slice takes no memory of its own.
    return slice(0, first) if last == num else np.r_[:first, last:num], held_out


def _range(data: xr.DataArray, test: str, sample: str) -> slice:
    """The samples between two labels, both included."""
    first, dash, last = test.partition("/")
    if not dash or "/" in last:
        raise ValueError(
            "'test' in [problem.prior] must be a share, a range of labels such as "
            f"\"2015-01-01/2020-12-31\", or the path of files that are there; got '{test}'"
        )
    index = data.indexes.get(SAMPLE)
    if index is None:
        raise ValueError(
            f"'test' in [problem.prior] is a range, and '{sample}' has no coordinate; give a share"
        )
    if not index.is_monotonic_increasing:
        raise ValueError(
            f"'test' in [problem.prior] is a range, and '{sample}' does not rise; sort the samples"
        )
    ends: list[Any] = [first.strip(), last.strip()]
    try:
        if index.dtype.kind in "fiu":
            ends = [float(end) for end in ends]
        return index.slice_indexer(*ends)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"'test' in [problem.prior] must be a range of '{sample}', which goes from {index[0]} "
            f"to {index[-1]}; got '{test}'"
        ) from error


def _check_complete(data: xr.DataArray, part: str) -> None:
    """Refuse missing values; of samples that dask holds, the first are looked at."""
    looked_at = data if data.chunks is None else data.isel({SAMPLE: slice(4)})
    if looked_at.dtype.kind not in "fiub":
        raise ValueError(
            f"'{data.name}' in [problem.prior] must hold real numbers; got {looked_at.dtype}"
        )
    missing = np.isnan(looked_at.values)
    if not missing.any():
        return
    axis = looked_at.get_axis_num(SAMPLE)
    always, ever = missing.all(axis), missing.any(axis)
    land = f"{int(always.sum())} places miss a value in every sample (land?)"
    some = f"{int(ever.sum() - always.sum())} in some samples"
    raise ValueError(
        f"the samples for {part} must have no missing values; {land}, {some}. Choose a region "
        "without them, or fill them: what never varies is the same number in every draw"
    )
