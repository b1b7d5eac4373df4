"""Labelled data at the border: xarray in, xarray out, tensors inside.

What is written, and accepted when read:

============== ========================================= =======================================
variable       dimensions                                content
============== ========================================= =======================================
``field``      ``draw, observation, <the field's own>``  posterior draws; called as the prior was
``observed``   ``observation, <the data's own>``         the data; NaN = not observed
``error_std``  ``observation[, <the data's own>]``       noise std, in the units of the data
``param_NAME`` ``observation, NAME_0, NAME_1, ...``      any other parameter of the problem
============== ========================================= =======================================

A file of one observation may leave out the dimension ``observation``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse import __version__
from vfm_inverse.correction.ensemble import Ensemble
from vfm_inverse.labels import BATCH, DRAW, ERROR_STD, OBSERVED, PARAM, squeezed
from vfm_inverse.likelihood import Likelihood
from vfm_inverse.netcdf_files import write_netcdf
from vfm_inverse.station_tables import read_table

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["load_observation", "observation_to_xarray", "save_netcdf", "to_xarray"]


# Out ------------------------------------------------------------------------------------------


def to_xarray(
    draws: Tensor | Ensemble,
    problem: InverseProblem,
    y: Tensor | None = None,
    *,
    params: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Posterior draws with the field's dimensions, coordinates and units.

    Args:
        draws: ``(num_draws, batch, *field)``, or ``(num_draws, *field)`` for one observation; an
            ensemble brings its weights and diagnostics along.
        problem: whose labels are used.
        y: the observations ``(batch, *observation)``, to be written beside the draws.
        params: their parameters.
        provenance: further attributes: ``vfm.provenance()``, with the card, and the seed.

    Raises:
        ValueError: shapes do not fit the problem.
    """
    further: dict[str, Any] = {}
    if isinstance(draws, Ensemble):
        further, draws = draws.variables(DRAW, BATCH), draws.samples
    labels, lead = problem.field_labels, draws.dim() - len(problem.field_shape)
    if lead not in (1, 2) or draws.shape[lead:] != problem.field_shape:
        raise ValueError(
            f"'draws' must have shape (num_draws, batch, *{tuple(problem.field_shape)}); "
            f"got {tuple(draws.shape)}"
        )
    if y is not None and len(y) != (draws.shape[1] if lead == 2 else 1):
        raise ValueError(
            f"'y' holds {len(y)} observations; 'draws' has shape {tuple(draws.shape)}"
        )
    values = draws.detach().cpu().reshape(*draws.shape[:lead], *squeezed(problem.field_shape))
    dataset = xr.Dataset(
        {labels.name: (((DRAW, BATCH)[:lead] + labels.dims), values.numpy(), labels.attrs)},
        coords={**labels.coords, DRAW: np.arange(draws.shape[0])},
    ).assign(further)
    if y is not None:
        observation = _observation(y, dict(params or {}), problem)
        # A field and its data may share dimensions, which then have to be the same.
        dataset = dataset.merge(observation, join="exact", compat="equals")
    return dataset.assign_attrs(_provenance(problem) | _plain(provenance or {}))


def observation_to_xarray(
    y: Tensor, problem: InverseProblem, params: Mapping[str, Tensor] | None = None
) -> xr.Dataset:
    """Observations and their parameters; ``load_observation`` reads them back identically.

    Args:
        y: ``(batch, *observation)``.
        problem: whose labels are used.
        params: their parameters: a mask becomes NaN in the data, sigma the variable ``error_std``.

    Raises:
        TypeError, ValueError: they do not fit the problem (``InverseProblem.check_observation``).
    """
    y, checked = problem.check_observation(y, params)
    return _observation(y, checked, problem).assign_attrs(_provenance(problem))


def save_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a netCDF-4 file under a temporary name, then rename it: there is never half a file.

    Raises:
        ValueError: the file cannot be written; one of that name that was there stays as it was.
    """
    path = Path(path)
    try:
        write_netcdf(dataset, path)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot write '{path}': {error}") from error
    return path


def _observation(y: Tensor, params: dict[str, Tensor], problem: InverseProblem) -> xr.Dataset:
    labels = problem.observation_labels
    dims = (BATCH, *labels.dims)
    shape = (len(y), *squeezed(problem.observation_shape))
    values = y.detach().cpu().numpy()
    variables: dict[str, Any] = {}
    attrs = dict(labels.attrs)
    for name, value in params.items():
        array = value.detach().cpu().numpy()
        if name == "mask" and _mask_is_of_data(problem):
            values = np.where(np.broadcast_to(array != 0, values.shape), values, np.nan)
        elif name == "sigma" and array.shape[1:] in ((), problem.observation_shape):
            note = {"long_name": "standard deviation of the observation error"} | (
                {"units": labels.units} if labels.units is not None else {}
            )
            array = array if array.ndim == 1 else array.reshape(shape)
            variables[ERROR_STD] = (dims[: array.ndim], array, note)
            attrs["ancillary_variables"] = ERROR_STD
        else:
            axes = [f"{name}_{axis}" for axis in range(array.ndim - 1)]
            variables[PARAM + name] = ((BATCH, *axes), array)
    variables[OBSERVED] = (dims, values.reshape(shape), attrs)
    return xr.Dataset(variables, coords=labels.coords)


def _provenance(problem: InverseProblem) -> dict[str, Any]:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "Conventions": "CF-1.11",
        "title": f"inverse problem {problem.name or 'without a name'}",
        "history": f"{created} written by vfm_inverse {__version__}",
        "vfm_inverse_version": __version__,
        "problem": problem.name or "",
        "problem_kwargs": json.dumps(problem.kwargs, default=str),
        "physics": problem.describe_physics(),
    }


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that netCDF can hold: text and numbers as they are, the rest as JSON."""
    return {
        key: value
        if isinstance(value, str | int | float | np.number) and not isinstance(value, bool)
        else json.dumps(value, default=str)
        for key, value in attrs.items()
        if value is not None
    }


# In -------------------------------------------------------------------------------------------


def load_observation(
    source: str | os.PathLike[str] | xr.Dataset | xr.DataArray, problem: InverseProblem
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read observations and the parameters that the problem needs with them.

    The data are the variable ``observed``, or else the only variable that is neither an error nor
    a parameter. Dimensions are matched by name, or by position where the names are others. A
    coordinate that the problem has too must agree with it, up to the order along a dimension. NaN
    (or the file's fill value) means not observed. The standard deviation of the error is a
    variable of the file or an attribute of the data called ``error_std`` or ``sigma``, in the
    units of the data. Tables of stations, where the problem takes networks that change:
    :mod:`vfm_inverse.station_tables`.

    Returns:
        ``y`` ``(batch, *observation)``, zero where not observed, and the parameters, both checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no readable netCDF, or does not fit the problem.
    """
    dataset = read_table(_open(source), problem)
    data = _data_of(dataset)
    units = data.attrs.get("units")
    expected = problem.observation_labels.units
    if units is not None and expected is not None and units != expected:
        raise ValueError(f"the observation is in '{units}', the problem in '{expected}'")

    values = _values(data, problem)
    seen = ~torch.isnan(values)
    y = torch.where(seen, values, 0.0)
    params: dict[str, Tensor] = {}
    if "mask" in problem.param_shapes and _mask_is_of_data(problem):
        params["mask"] = _mask(seen, problem)
    else:
        _check_all_seen(seen, problem)
    error = _error_std(dataset, data, seen, problem)
    if error is not None:
        params |= _sigma(error, seen, problem)
    for name, shape in problem.param_shapes.items():
        if name in params:
            continue
        if PARAM + name not in dataset:
            where = "variable 'error_std'" if name == "sigma" else f"variable '{PARAM}{name}'"
            raise ValueError(f"the observation lacks the parameter '{name}': there is no {where}")
        stored = torch.from_numpy(np.array(dataset[PARAM + name].values))
        params[name] = stored.reshape(-1, *shape)
    return problem.check_observation(y.to(problem.dtype), params)


def _open(source: str | os.PathLike[str] | xr.Dataset | xr.DataArray) -> xr.Dataset:
    if isinstance(source, xr.Dataset):
        return source
    if isinstance(source, xr.DataArray):
        return source.to_dataset(name=OBSERVED)
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no observation file '{source}'")
    try:
        with xr.open_dataset(source, engine="netcdf4") as dataset:
            return dataset.load()
    # What a damaged or foreign file raises depends on the library that meets it first.
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"'{source}' is not a readable netCDF file: {error}") from error


def _data_of(dataset: xr.Dataset) -> xr.DataArray:
    def is_data(name: Hashable, variable: xr.DataArray) -> bool:
        other = name in (ERROR_STD, "sigma") or str(name).startswith(PARAM)
        return not other and DRAW not in variable.dims and variable.dtype.kind in "fiu"

    found = [name for name, variable in dataset.data_vars.items() if is_data(name, variable)]
    name = OBSERVED if OBSERVED in dataset.data_vars else found[0] if len(found) == 1 else None
    if name is None:
        raise ValueError(
            f"cannot tell which variable is the observation: call it '{OBSERVED}'; "
            f"got {sorted(map(str, dataset.data_vars))}"
        )
    return dataset[name]


def _values(data: xr.DataArray, problem: InverseProblem) -> Tensor:
    """The data in the problem's layout and order, ``(batch, *observation)``, float64."""
    labels = problem.observation_labels
    size = squeezed(problem.observation_shape)
    if BATCH not in data.dims:
        data = data.expand_dims(BATCH)
    rest = [dim for dim in data.dims if dim != BATCH]
    if len(rest) == len(labels.dims) and set(rest) != set(labels.dims):
        data = data.rename(dict(zip(rest, labels.dims, strict=True)))
        rest = list(labels.dims)
    if set(rest) != set(labels.dims) or tuple(data.sizes[dim] for dim in labels.dims) != size:
        raise ValueError(
            f"the observation has the dimensions { {dim: data.sizes[dim] for dim in rest} }; the "
            f"problem expects {dict(zip(labels.dims, size, strict=True))}"
        )
    data = data.transpose(BATCH, *labels.dims)
    for name, expected in labels.coords.items():
        if name in data.coords and name in labels.dims:
            data = data.isel({name: _order(data[name].values, expected.values, name)})
    for name, expected in labels.coords.items():
        if name in data.coords and data[name].dims == expected.dims:
            if not _close(data[name].values, expected.values):
                raise ValueError(_differs(name, data[name].values, expected.values))
    values = torch.from_numpy(np.array(data.values, dtype=np.float64))
    return values.reshape(-1, *problem.observation_shape)


def _order(found: np.ndarray, expected: np.ndarray, name: str) -> np.ndarray:
    """Index that brings ``found`` into the order of ``expected``."""
    index = np.argsort(found, kind="stable")[np.argsort(np.argsort(expected, kind="stable"))]
    if not _close(found[index], expected):
        raise ValueError(_differs(name, found, expected))
    return index


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        # Single precision is what coordinates often pass through on their way.
        return np.allclose(a, b, rtol=1e-6, atol=1e-6 * float(np.ptp(b)))
    return np.array_equal(a, b)


def _differs(name: str, found: np.ndarray, expected: np.ndarray) -> str:
    shown = [np.array2string(values, threshold=6, edgeitems=2) for values in (found, expected)]
    return f"coordinate '{name}' of the observation is {shown[0]}; the problem has {shown[1]}"


# Parameters -----------------------------------------------------------------------------------


def _mask_is_of_data(problem: InverseProblem) -> bool:
    """Whether the parameter ``mask`` says which data are seen: it broadcasts to an observation."""
    sizes = zip(problem.param_shapes["mask"][::-1], problem.observation_shape[::-1], strict=False)
    fits = len(problem.param_shapes["mask"]) <= len(problem.observation_shape)
    return fits and all(size in (1, full) for size, full in sizes)


def _mask(seen: Tensor, problem: InverseProblem) -> Tensor:
    shape = problem.param_shapes["mask"]
    full = (1,) * (len(problem.observation_shape) - len(shape)) + tuple(shape)
    shared = [axis for axis, size in enumerate(full, start=1) if size == 1]
    mask = seen.amax(shared, keepdim=True) if shared else seen
    if not torch.equal(mask.expand(seen.shape), seen):
        raise ValueError(
            f"the missing data do not fit the problem's mask of shape {tuple(shape)}: a place is "
            "missing in all channels or in none"
        )
    return mask.reshape(-1, *shape).to(problem.dtype)


def _check_all_seen(seen: Tensor, problem: InverseProblem) -> None:
    """Without a parameter ``mask``, data may be missing only where a fixed mask hides them."""
    fixed = (
        dict(problem.physics.named_buffers()).get("mask") if problem.physics is not None else None
    )
    hidden = torch.zeros_like(seen) if fixed is None else (fixed == 0).cpu().expand(seen.shape)
    missing = int((~seen & ~hidden).sum())
    if missing:
        raise ValueError(
            f"{missing} of {seen.numel()} data are missing (NaN), and the problem has no "
            "parameter 'mask' to say so"
        )


def _error_std(
    dataset: xr.Dataset, data: xr.DataArray, seen: Tensor, problem: InverseProblem
) -> Tensor | None:
    """Standard deviation of every datum, ``(batch, *observation)``; None where none is stated."""
    for name in (ERROR_STD, "sigma"):
        if name in data.attrs:
            error = xr.DataArray(float(data.attrs[name]))
        elif name in dataset:
            error = dataset[name]
        else:
            continue
        units = error.attrs.get("units", data.attrs.get("units"))
        if units != data.attrs.get("units", units):
            raise ValueError(
                f"'{name}' is in '{units}', the observation in '{data.attrs['units']}'"
            )
        if error.ndim == 0 or error.dims == (BATCH,):
            values = torch.from_numpy(np.array(error.values, dtype=np.float64))
            values = values.reshape(-1, *(1,) * (seen.dim() - 1))
        else:
            values = _values(error, problem)
        if values.shape[0] not in (1, len(seen)):
            raise ValueError(f"'{name}' is of {len(values)} observations; there are {len(seen)}")
        values = values.expand(seen.shape)
        if not bool((values[seen] > 0).all()):
            raise ValueError(f"'{name}' must be positive for every datum")
        return values
    return None


def _sigma(error: Tensor, seen: Tensor, problem: InverseProblem) -> dict[str, Tensor]:
    """The parameter ``sigma`` in the problem's shape; nothing where its noise is fixed at that."""
    # What stands beside a datum that is not seen does not count.
    largest = torch.where(seen, error, 0.0).flatten(1).amax(1)
    smallest = torch.where(seen, error, torch.inf).flatten(1).amin(1)
    if "sigma" not in problem.param_shapes:
        scale = (
            problem.likelihood.noise_scale()
            if isinstance(problem.likelihood, Likelihood)
            else None
        )
        if scale is None:
            raise ValueError("the observation states an error, and the problem has no 'sigma'")
        fixed = scale.cpu().double().expand(seen.shape[1:])
        if not torch.allclose(error[seen], fixed.expand(seen.shape)[seen], rtol=1e-5, atol=0):
            raise ValueError(
                f"the observation's error is {float(smallest.min()):g} to "
                f"{float(largest.max()):g}; the problem's noise is fixed at "
                f"{float(scale.min()):g} to {float(scale.max()):g}"
            )
        return {}
    shape = problem.param_shapes["sigma"]
    if shape == problem.observation_shape:
        return {"sigma": torch.where(seen, error, 1.0).to(problem.dtype)}
    observed = seen.flatten(1).any(1)
    if not torch.allclose(smallest[observed], largest[observed], rtol=1e-6, atol=0):
        raise ValueError(
            "the error differs between the data of an observation; the problem takes one 'sigma' "
            "for all of them"
        )
    return {"sigma": torch.where(observed, largest, 1.0).reshape(-1, *shape).to(problem.dtype)}
