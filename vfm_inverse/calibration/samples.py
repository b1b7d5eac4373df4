"""Calibration of draws that another program made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration.labels import MapLabels
from vfm_inverse.calibration.results import make_report
from vfm_inverse.calibration.simulations import CHUNK, check_counts, new_tally
from vfm_inverse.quantities import Quantity, default_quantities

__all__ = ["from_draws"]

#: Names under which the two first dimensions of a labelled array are found.
DRAW, SIMULATION = ("draw", "sample"), ("simulation", "observation")


def from_draws(
    draws: Any,
    truth: Any,
    *,
    variable: str | None = None,
    y: Tensor | None = None,
    params: Mapping[str, Tensor] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    seed: int = 0,
    alpha: float = 0.05,
    joint: bool = True,
    local: bool = False,
    baseline: Any = None,
    memory: int = 2**30,
) -> xr.Dataset:
    """Check anyone's posterior draws against the truths they are meant to cover.

    Args:
        draws: ``(num_draws, num_simulations, *event)``, numpy, torch or ``xarray.DataArray``; an
            ``xarray.Dataset``, of which one variable is taken; or an object with a group
            ``posterior``, as ArviZ has it (``InferenceData`` or ``DataTree``). Labelled dimensions
            are matched by name: ``draw`` (or ``chain`` and ``draw``, joined, or ``sample``) and
            ``simulation`` (or ``observation``); the others are the field's. Without a dimension of
            these names the order counts.
        truth: ``(num_simulations, *event)``, of any of these types but the last.
        variable: Name of the variable in a Dataset or a group with more than one.
        y: Observations ``(num_simulations, *observation)`` for quantities that use them, for the
            joint coverage and for ``local``.
        params: Parameters ``(num_simulations, ...)`` of the observations.
        quantities: Test quantities by name instead of the default ones (without log-likelihood).
        seed: Fixes ties, reference points and classifiers.
        alpha: Probability with which a calibrated posterior may fail.
        joint: Test the joint coverage (:mod:`vfm_inverse.tarp`).
        local: Train classifiers that tell draws from truths; needs ``y``.
        baseline: Draws ``(num, num_simulations, *event)`` that the skill compares with; the other
            truths unless given.
        memory: Rough limit in bytes for the working copies of a sort.

    Returns:
        As :func:`calibrate`.

    Raises:
        TypeError: An argument of another type.
        ValueError: Shapes or dimensions that do not belong together, too few of either.
    """
    draws = _variable(draws, "draws", variable)
    truth = _variable(truth, "truth", variable)
    dims: tuple[str, ...] | None = None
    coords: Mapping[str, Any] | None = None
    units: str | None = None
    if isinstance(draws, xr.DataArray):
        draws = _ordered(draws)
        if isinstance(truth, xr.DataArray):
            truth = _like(truth, draws)
        dims, units = tuple(map(str, draws.dims[2:])), draws.attrs.get("units")
        coords = {str(name): draws.coords[name] for name in draws.dims[2:] if name in draws.coords}
    draws, truth = _tensor(draws, "draws"), _tensor(truth, "truth")
    if draws.ndim < 2 or draws.shape[1:] != truth.shape:
        raise ValueError(
            "'truth' must be (num_simulations, *event) and 'draws' (num_draws, num_simulations, "
            f"*event); got {tuple(truth.shape)} and {tuple(draws.shape)}"
        )
    other = (
        None
        if baseline is None
        else _tensor(_variable(baseline, "baseline", variable), "baseline")
    )
    if other is not None and other.shape[1:] != truth.shape:
        raise ValueError(
            f"'baseline' must be (num, {', '.join(map(str, truth.shape))}); "
            f"got {tuple(other.shape)}"
        )
    if local and y is None:
        raise ValueError("'local' needs the observations 'y'")
    scalar, plane = draws.ndim == 2, dims is not None and len(dims) == 2
    if scalar or plane:  # a channel of one
        draws, truth = draws.unsqueeze(2), truth.unsqueeze(1)
        other = None if other is None else other.unsqueeze(2)
    num_draws, num, *event = draws.shape
    check_counts(num, num_draws, alpha)
    tally = new_tally(
        quantities or default_quantities(event),
        num_draws,
        truth,
        y,
        seed=seed,
        joint=joint,
        local=local,
        climate=other is None,
        memory=memory,
    )
    size = max(1, CHUNK // (num_draws * truth[0].numel()))
    for start in range(0, num, size):
        rows = slice(start, start + size)
        seen = {name: value[rows] for name, value in (params or {}).items()}
        tally.add(
            start,
            torch.cat([truth[None, rows], draws[:, rows]]),
            None if y is None else y[rows],
            seen,
            baseline=None if other is None else other[:, rows],
        )
    named = "the prior: truths of other simulations" if other is None else "the draws given"
    return make_report(tally, MapLabels.of(event, dims, coords, units), alpha, {"baseline": named})


def _variable(value: Any, name: str, variable: str | None) -> Any:
    """One array of whatever holds arrays."""
    group = getattr(value, "posterior", None)
    if group is not None and not isinstance(value, xr.Dataset | xr.DataArray | Tensor):
        value = group.to_dataset() if hasattr(group, "to_dataset") else group
    if not isinstance(value, xr.Dataset):
        return value
    names = [str(key) for key in value.data_vars]
    if variable is None and len(names) == 1:
        return value[names[0]]
    if variable not in names:
        raise ValueError(
            f"'variable' must name one of the variables of '{name}', {names}; got {variable!r}"
        )
    return value[variable]


def _ordered(draws: xr.DataArray) -> xr.DataArray:
    """Draws first, simulations second, where the dimensions have these names."""
    if {"chain", "draw"} <= set(draws.dims):
        draws = draws.stack(sample=("chain", "draw"), create_index=False)
        draw: tuple[str, ...] = ("sample",)
    else:
        draw = DRAW
    first = [next((d for d in choice if d in draws.dims), None) for choice in (draw, SIMULATION)]
    if None not in first:
        return draws.transpose(*first, ...)
    if first == [None, None]:
        return draws
    known = "'draw', 'chain' and 'draw' or 'sample', and 'simulation' or 'observation'"
    raise ValueError(f"the dimensions of 'draws' must include {known}; got {draws.dims}")


def _like(truth: xr.DataArray, draws: xr.DataArray) -> xr.DataArray:
    """Truths in the order of the draws, dimensions by name and values by coordinate."""
    expected = draws.dims[1:]
    if set(truth.dims) != set(expected):
        raise ValueError(f"'truth' must have the dimensions {expected}; got {truth.dims}")
    for dim in expected:
        if dim in draws.indexes and dim in truth.indexes:
            if not draws.indexes[dim].equals(truth.indexes[dim]):
                raise ValueError(f"'truth' and 'draws' must have the same coordinate '{dim}'")
    return truth.transpose(*expected)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, xr.DataArray):
        value = value.values
    if not isinstance(value, np.ndarray | Tensor):
        raise TypeError(
            f"'{name}' must be a Tensor, numpy array or labelled array; got {type(value).__name__}"
        )
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.double()
