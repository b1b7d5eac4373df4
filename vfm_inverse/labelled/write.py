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

:func:`summary` writes ``mean``, ``std`` and ``quantiles`` (``quantile`` first) for the draws.

A file of one observation may leave out the dimension ``observation``. What else belongs to an
observation (its date or name, the rows of its station table, global attributes) travels from
:func:`load_observation`'s file into every output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from vfm_inverse.formats.netcdf_files import SUM, write_netcdf
from vfm_inverse.labelled.read import load_observation, mask_is_of_data
from vfm_inverse.problem.labels import (
    BATCH,
    CHAINS,
    DRAW,
    ERROR_STD,
    OBSERVED,
    PARAM,
    WEIGHT,
    squeezed,
    storable_name,
)
from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.values import inner
from vfm_inverse.runtime.version import __version__
from vfm_inverse.sampling.ensemble import Ensemble, figures
from vfm_inverse.sampling.exact import worst
from vfm_inverse.statistics.summaries import QUANTILES, levels, statistics

if TYPE_CHECKING:
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["load_observation", "observation_to_xarray", "save_netcdf", "summary", "to_xarray"]


# Out ------------------------------------------------------------------------------------------


@checked(problem="InverseProblem", params="mapping", provenance="mapping", observation="Dataset")
def to_xarray(
    draws: Tensor | Ensemble,
    problem: InverseProblem,
    y: Tensor | None = None,
    *,
    params: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
    observation: xr.Dataset | None = None,
    diagnostics: Mapping[str, Tensor] | None = None,
) -> xr.Dataset:
    """Posterior draws with the field's dimensions, coordinates and units.

    Args:
        draws: ``(num_draws, batch, *field)``, or ``(num_draws, *field)`` for one observation; an
            ensemble brings its weights and diagnostics along.
        problem: whose labels are used.
        y: the observations ``(batch, *observation)``, to be written beside the draws.
        params: their parameters.
        provenance: further attributes: ``vfm.provenance()``, with the card, and the seed.
        observation: labels of the observations, as
            :func:`vfm_inverse.labelled.read.read_observation` gives them.
        diagnostics: of draws that were made exact, ``posterior.diagnostics``: each becomes a
            variable, and the worst of ``k_hat`` and ``ess`` attributes.

    Raises:
        TypeError: ``draws`` are neither a tensor, an array nor an ensemble.
        ValueError: shapes do not fit the problem.
    """
    further: dict[str, Any] = {}
    chains = 1
    if isinstance(draws, Ensemble):
        further, chains, draws = draws.variables(DRAW, BATCH), draws.chains, draws.samples
    draws = real_tensor(draws, "draws")
    if diagnostics:
        further = {**further, **figures(diagnostics, BATCH)}
        provenance = {**worst(diagnostics), **(provenance or {})}
    labels, lead = problem.field_labels, draws.dim() - len(problem.field_shape)
    if lead not in (1, 2) or draws.shape[lead:] != problem.field_shape:
        raise ValueError(
            f"'draws' must have shape (num_draws, batch, *{tuple(problem.field_shape)}); "
            f"got {tuple(draws.shape)}"
        )
    num = draws.shape[1] if lead == 2 else 1
    if y is not None:
        y = real_tensor(y, "y")
        if y.shape[1:] != problem.observation_shape or len(y) != num:
            raise ValueError(
                f"'y' must have shape ({num}, {inner(problem.observation_shape)}) for 'draws' of "
                f"shape {tuple(draws.shape)}; got {tuple(y.shape)}"
            )
    values = draws.detach().cpu().reshape(*draws.shape[:lead], *squeezed(problem.field_shape))
    dataset = xr.Dataset(
        {labels.name: (((DRAW, BATCH)[:lead] + labels.dims), values.numpy(), labels.attrs)},
        coords={**labels.coords, DRAW: np.arange(draws.shape[0])},
    ).assign(further)
    if y is not None:
        given = {name: real_tensor(value, name) for name, value in (params or {}).items()}
        data = _observation(y, given, problem)
        # A field and its data may share dimensions, which then have to be the same.
        dataset = dataset.merge(data, join="exact", compat="equals")
    if chains > 1:
        provenance = {CHAINS: chains, **(provenance or {})}
    return _finished(dataset, problem, observation, num, _plain(provenance or {}))


@checked(draws="Dataset")
def summary(
    draws: xr.Dataset, quantiles: Sequence[float] = QUANTILES, *, keep_draws: bool = False
) -> xr.Dataset:
    """Mean, standard deviation and quantiles instead of draws; all else stays as it is.

    Args:
        draws: what :func:`to_xarray` gives, or its file read again. Draws with weights, those of
            an ensemble, count by their weights.
        quantiles: levels, increasing, above 0 and below 1.
        keep_draws: whether the draws stay too.

    Returns:
        ``mean`` and ``std`` ``(observation, *field)`` in the units of the field, and ``quantiles``
        ``(quantile, observation, *field)``. What else has one of these names gets ``station_``
        before it.

    Raises:
        ValueError: there is not one variable of draws, or ``quantiles`` are none.
    """
    points = levels(quantiles)
    field = draws_of(draws)
    weights = draws.get(WEIGHT)
    found = statistics(field.values, points, None if weights is None else weights.values)
    kept = draws if keep_draws else draws.drop_dims(DRAW)
    taken = {*found, "quantile"} & set(map(str, kept.variables))
    if {"quantile"} & set(map(str, kept.dims)):
        raise ValueError("'draws' must have no dimension 'quantile', which a summary adds")
    kept = kept.rename({name: f"station_{name}" for name in taken})
    called, units = field.attrs.get("long_name", field.name), field.attrs.get("units")
    what = {
        "mean": "posterior mean",
        "std": "posterior standard deviation",
        "quantiles": "posterior quantiles",
    }
    dims = {name: ("quantile",) * (name == "quantiles") + field.dims[1:] for name in found}
    variables = {
        name: (
            dims[name],
            values,
            _known({"units": units, "long_name": f"{what[name]} of {called}"}),
        )
        for name, values in found.items()
    }
    about = {"long_name": "level of the quantile"}
    made = kept.assign_coords(quantile=("quantile", np.array(points), about)).assign(variables)
    return made.assign_attrs(num_draws=field.sizes[DRAW])


def draws_of(dataset: xr.Dataset) -> xr.DataArray:
    """The variable of draws, ``draw`` first.

    Raises:
        ValueError: there is not one.
    """
    names = [n for n, v in dataset.data_vars.items() if DRAW in v.dims and n != WEIGHT]
    if len(names) != 1:
        raise ValueError(
            f"'draws' must have one variable with the dimension '{DRAW}'; got {names} among "
            f"{[str(name) for name in dataset.data_vars]}"
        )
    lead = [dim for dim in (DRAW, BATCH) if dim in dataset[names[0]].dims]
    return dataset[names[0]].transpose(*lead, ...)


def _known(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if value is not None}


@checked(problem="InverseProblem", params="mapping", observation="Dataset")
def observation_to_xarray(
    y: Tensor,
    problem: InverseProblem,
    params: Mapping[str, Tensor] | None = None,
    *,
    observation: xr.Dataset | None = None,
) -> xr.Dataset:
    """Observations and their parameters; ``load_observation`` reads them back identically.

    Args:
        y: ``(batch, *observation)``.
        problem: whose labels are used.
        params: their parameters: a mask becomes NaN in the data, sigma the variable ``error_std``.
        observation: their labels, as for :func:`to_xarray`.

    Raises:
        TypeError, ValueError: they do not fit the problem (``InverseProblem.check_observation``).
    """
    y, checked = problem.check_observation(y, params)
    dataset = _observation(y, checked, problem)
    return _finished(dataset, problem, observation, len(y), {})


def _finished(
    dataset: xr.Dataset,
    problem: InverseProblem,
    labels: xr.Dataset | None,
    num: int,
    provenance: Mapping[str, Any],
) -> xr.Dataset:
    """With the labels of ``num`` observations and where it all comes from."""
    made = _provenance(problem)
    if labels is None:
        return dataset.assign_attrs({**made, **provenance})
    if labels.sizes.get(BATCH, num) != num:
        raise ValueError(
            f"'observation' labels {labels.sizes[BATCH]} observations; there are {num}"
        )
    if BATCH in labels.dims and BATCH not in dataset.dims:
        labels = labels.isel({BATCH: 0})
    # What is ours keeps its name.
    ours = {name: f"station_{name}" for name in labels.variables if name in dataset.variables}
    labels = labels.rename({k: v for k, v in ours.items() if k not in labels.dims})
    dataset = dataset.merge(labels.drop_encoding(), join="exact", combine_attrs="override")
    said = {str(k): v for k, v in labels.attrs.items() if k not in (SUM, "coordinates")}
    before = _plain({storable_name(k, "attribute"): v for k, v in said.items()})
    if before.get("title", made["title"]) != made["title"]:
        made["observation_title"] = before["title"]
    if "history" in before:
        made["history"] = f"{before['history']}\n{made['history']}"
    return dataset.assign_attrs({**before, **made, **provenance})


@checked(dataset="Dataset", path="path")
def save_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a netCDF-4 file under a temporary name, then rename it: there is never half a file.

    Raises:
        ValueError: the file cannot be written; one of that name that was there stays as it was.
    """
    path = Path(path)
    try:
        write_netcdf(dataset, path)
    except OSError as error:
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
        if name == "mask" and mask_is_of_data(problem):
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
