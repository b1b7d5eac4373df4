"""Labelled observations in: to tensors and parameters in the problem's units, layout and order."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.formats.table_columns import storable
from vfm_inverse.formats.units import converted, duration, same_units
from vfm_inverse.labelled.axes import aligned, arranged
from vfm_inverse.labelled.sources import Source, opened
from vfm_inverse.labelled.station_tables import ROW, observed_units, own_rows, read_table
from vfm_inverse.problem.labels import (
    BATCH,
    DRAW,
    ERROR_STD,
    OBSERVED,
    PARAM,
    TAKEN,
    squeezed,
    storable_name,
)
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import real_array
from vfm_inverse.runtime.calls import checked

if TYPE_CHECKING:
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["Observation", "load_observation", "mask_is_of_data", "read_observation"]


class Observation(NamedTuple):
    """Observations as the networks take them, and as their owner knows them.

    Attributes:
        y: ``(batch, *observation)``, zero where not observed.
        params: their parameters.
        labels: what belongs to an observation beside its numbers: coordinates along
            ``observation`` (dates, names), rows of station tables, global attributes.
    """

    y: Tensor
    params: dict[str, Tensor]
    labels: xr.Dataset


def load_observation(source: Source, problem: InverseProblem) -> tuple[Tensor, dict[str, Tensor]]:
    """Read observations and the parameters that the problem needs with them.

    The data are the variable ``observed``, or else the only variable that can be. Dimensions are
    matched by name and by what the names mean (:mod:`vfm_inverse.labelled.axes`). A coordinate
    that the problem has too must agree with it, up to the order along a dimension, units and turns
    of 360 degrees; a scalar time need not. Units are converted. The standard deviation of the
    error is a variable of the file or an attribute of the data called ``error_std`` or ``sigma``,
    in the units of the data. Tables of stations, where the problem takes networks that change:
    :mod:`vfm_inverse.labelled.station_tables`.

    Args:
        source: netCDF file, xarray object, pandas frame of stations, or an array or tensor
            ``(*observation,)`` or ``(batch, *observation)``, without its channel of size one.
        problem: whose labels and parameters are used.

    Returns:
        ``y`` ``(batch, *observation)``, zero where not observed, and the parameters, both checked.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the source is of no such kind, or holds no real numbers.
        ValueError: the file is no readable netCDF, or does not fit the problem.
    """
    observation = read_observation(source, problem)
    return observation.y, observation.params


@checked(problem="InverseProblem")
def read_observation(source: Source, problem: InverseProblem) -> Observation:
    """As :func:`load_observation`, with the labels that
    :func:`vfm_inverse.labelled.write.to_xarray` writes beside the draws."""
    with opened(source, problem) as raw:
        dataset = read_table(raw, problem)
        data = _data_of(dataset, problem)
        labels = problem.observation_labels
        data = arranged(data, labels.dims, squeezed(problem.observation_shape), labels.coords)
        data = aligned(data, labels.coords, "the observation")
        values = _numbers(data, problem, "the observation")
        seen = ~torch.isnan(values)
        y = torch.where(seen, values, 0.0)
        params: dict[str, Tensor] = {}
        if "mask" in problem.param_shapes and mask_is_of_data(problem):
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
                where = f"variable '{PARAM}{name}'" if name != "sigma" else "variable 'error_std'"
                raise ValueError(
                    f"the observation lacks the parameter '{name}': there is no {where}"
                )
            stored = real_array(dataset[PARAM + name], PARAM + name)
            params[name] = _rows(torch.from_numpy(np.array(stored)), shape, len(y), PARAM + name)
        y, params = problem.check_observation(y, params)
        return Observation(y, params, _labels(raw, data, dataset is not raw, problem))


def _rows(values: Tensor, shape: torch.Size, num: int, name: str) -> Tensor:
    """A stored parameter, ``(num, *shape)``."""
    if values.numel() not in (shape.numel(), num * shape.numel()):
        raise ValueError(
            f"'{name}' has shape {tuple(values.shape)}; the problem expects {(num, *shape)}"
        )
    return values.reshape(-1, *shape).expand(num, *shape)


def _labels(
    raw: xr.Dataset, data: xr.DataArray, is_table: bool, problem: InverseProblem
) -> xr.Dataset:
    """What an output should say of whose observations these are."""
    ours = {*problem.observation_labels.coords, *problem.field_labels.coords}
    # A table's own coordinates are left where they stand: read_table makes a layout of its own.
    owners = raw if is_table else data
    along = {
        str(name): coord.variable if coord.dims else coord.expand_dims(BATCH).variable
        for name, coord in owners.coords.items()
        if coord.dims in ((BATCH,), ()) and (name not in ours or not coord.dims)
    }
    num = data.sizes[BATCH]
    along = {
        storable_name(name, "label").replace(" ", "_"): _storable_values(
            value if value.sizes[BATCH] == num else value.isel({BATCH: [0] * num})
        )
        for name, value in along.items()
    }
    labels = xr.Dataset(coords=along, attrs=raw.attrs)
    taken = {*ours, *problem.field_labels.dims, *problem.observation_labels.dims, *along}
    taken |= {problem.field_labels.name, OBSERVED, ERROR_STD, DRAW, BATCH, *TAKEN}
    if is_table:
        rows = own_rows(raw, problem, taken)
        labels = labels.merge(rows, combine_attrs="override")
        taken |= set(map(str, rows.variables))
    # What stands beside the data: names of observations, and rows of a table that was read before.
    rest = _beside(raw, data, taken | {f"{PARAM}{name}" for name in problem.param_shapes})
    return labels.assign(rest)


def _beside(raw: xr.Dataset, data: xr.DataArray, taken: Collection[str]) -> dict[str, xr.Variable]:
    """Variables along ``observation`` or along the rows of a table that was read before, which are
    nothing of the problem's."""
    lengths = {BATCH: data.sizes[BATCH]}
    if ROW in raw:
        lengths |= {str(dim): raw.sizes[dim] for dim in raw[ROW].dims if dim != BATCH}
    found = {}
    for name, variable in raw.variables.items():
        dims = tuple(map(str, variable.dims))
        if not dims or name in {data.name, "sigma", *taken} or variable.dtype.kind == "c":
            continue
        label = name in raw.data_vars or dims != (BATCH,)  # coordinates along it are known
        if label and all(lengths.get(dim) == raw.sizes[dim] for dim in dims):
            found[storable_name(name, "label")] = _storable_values(variable)
    return found


def _storable_values(variable: xr.Variable) -> xr.Variable:
    """In a type that files can hold, with its attributes and without an encoding."""
    values = variable.values
    if values.size and all(type(item).__module__.startswith("cftime") for item in values.flat):
        return xr.Variable(variable.dims, values, variable.attrs)  # of another calendar
    return xr.Variable(variable.dims, storable(values), variable.attrs)


# Data -----------------------------------------------------------------------------------------


def _data_of(dataset: xr.Dataset, problem: InverseProblem) -> xr.DataArray:
    """The variable that is the observation."""
    if OBSERVED in dataset.data_vars:
        return dataset[OBSERVED]
    named: set[str] = set()
    for variable in dataset.variables.values():
        for key in ("bounds", "grid_mapping", "ancillary_variables", "coordinates", "climatology"):
            words = f"{variable.attrs.get(key, '')} {variable.encoding.get(key, '')}"
            named.update(word.rstrip(":") for word in words.split())

    def is_data(name: Hashable, variable: xr.DataArray) -> bool:
        other = str(name) in {ERROR_STD, "sigma", *named} or str(name).startswith(PARAM)
        other = other or str(name).endswith(("_bnds", "_bounds")) or not variable.dims
        return (
            not other and DRAW not in variable.dims and "grid_mapping_name" not in variable.attrs
        )

    found = [name for name, variable in dataset.data_vars.items() if is_data(name, variable)]
    if len(found) > 1:  # of several, the one that is called or shaped as the problem's
        labels = problem.observation_labels
        size = sorted(squeezed(problem.observation_shape))
        own = [n for n in found if n == problem.field_labels.name]
        fits = [
            n
            for n in found
            if set(labels.dims) <= set(map(str, dataset[n].dims))
            or sorted(s for d, s in dataset[n].sizes.items() if s != 1 and d != BATCH) == size
        ]
        found = list(own or fits)
    if len(found) != 1:
        raise ValueError(
            f"cannot tell which variable is the observation: call it '{OBSERVED}'; "
            f"got {sorted(map(str, dataset.data_vars))}"
        )
    return dataset[found[0]]


def _numbers(
    data: xr.DataArray, problem: InverseProblem, name: str, *, difference: bool = False
) -> Tensor:
    """Arranged data in the problem's units, ``(batch, *observation)``, float64; NaN where there is
    no datum."""
    values = _in_units(data, problem, name, difference=difference)
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(-1, *problem.observation_shape)


def _in_units(
    data: xr.DataArray, problem: InverseProblem, name: str, *, difference: bool = False
) -> np.ndarray:
    """Numbers in the problem's units, float64."""
    units = data.attrs.get("units")
    wanted = observed_units(problem, units)
    if data.dtype.kind == "m":
        return duration(data.values, wanted or "", name, difference=difference)
    values = real_array(data, name.strip("'")).astype(np.float64)
    if units is not None and wanted is not None and not same_units(units, wanted):
        values = converted(values, units, wanted, name, difference=difference)
    return values


def _stated(value: object, name: str) -> xr.DataArray:
    """An attribute as a number."""
    try:
        return xr.DataArray(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(
            f"attribute '{name}' of the observation must be one number; got {value!r:.60}"
        ) from None


# Parameters ----------------------------------------------------------------------------------


def mask_is_of_data(problem: InverseProblem) -> bool:
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
            error = _stated(data.attrs[name], name)
        elif name in dataset:
            error = dataset[name]
        else:
            continue
        if "units" not in error.attrs and "units" in data.attrs:
            error = error.assign_attrs(units=data.attrs["units"])
        labels = problem.observation_labels
        if error.ndim > 1 or (error.ndim == 1 and error.dims != (BATCH,)):
            size = squeezed(problem.observation_shape)
            error = aligned(
                arranged(error, labels.dims, size, labels.coords), labels.coords, f"'{name}'"
            )
            values = _numbers(error, problem, f"'{name}'", difference=True)
        else:
            one = _in_units(error, problem, f"'{name}'", difference=True)
            values = torch.from_numpy(np.array(one)).reshape(-1, *(1,) * (seen.dim() - 1))
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
