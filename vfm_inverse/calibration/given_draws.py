"""Calibration of draws that another program made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration.containers import (
    aligned,
    common_type,
    of_chains,
    one_array,
    ordered,
    simulations_first,
    tensor_of,
)
from vfm_inverse.calibration.map_labels import MapLabels
from vfm_inverse.calibration.results import make_report
from vfm_inverse.calibration.settings import (
    check_counts,
    check_flags,
    check_quantities,
    seed_of,
    whole,
)
from vfm_inverse.calibration.simulations import CHUNK, new_tally
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.statistics.meanings import about
from vfm_inverse.statistics.quantities import Quantity

__all__ = ["from_draws"]


def from_draws(
    draws: Any,
    truth: Any,
    *,
    variable: str | None = None,
    y: Any = None,
    params: Mapping[str, Any] | None = None,
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
        draws: ``(num_draws, num_simulations, *event)``, of any real type: NumPy, torch,
            ``xarray.DataArray`` or lists; an ``xarray.Dataset``, of which one variable is taken;
            or an object with a group ``posterior``, as ArviZ has it (``InferenceData`` or
            ``DataTree``). Labelled dimensions are matched by name: ``draw`` (or ``chain`` and
            ``draw``, joined, or ``sample``) and ``simulation`` (or ``observation``); the others
            are the field's. Without a dimension of these names the order counts. Or a chain of
            a sampler of deepinv (``get_chain()``, of a batch of simulations) or the sampler itself
            after its run, or a list of chains, one a simulation; the state that such a chain
            started from is left out. Draws of a chain that are not thinned depend on one another,
            and the tests take them for independent.
        truth: ``(num_simulations, *event)``, of any of these types but the last. Labelled, it is
            put in the order of the draws, dimensions by name and values by coordinate, which may
            have gone through single precision; other places and other units are refused. Truth
            and draws are both rounded to the coarser of their types.
        variable: name of the variable in a Dataset or a group with more than one.
        y: observations ``(num_simulations, *observation)``, of any of these types, for quantities
            that use them, for the joint coverage and for ``local``.
        params: parameters of the observations by name, each ``(num_simulations, ...)`` or a number
            for all.
        quantities: test quantities by name instead of the default ones (without log-likelihood).
        seed: fixes ties, reference points and classifiers.
        alpha: probability with which a calibrated posterior may fail.
        joint: test the joint coverage (:mod:`vfm_inverse.statistics.joint_coverage`).
        local: train classifiers that tell draws from truths; needs ``y``.
        baseline: draws ``(num, num_simulations, *event)`` that the skill compares with; the other
            truths unless given.
        memory: rough limit in bytes for the working copies of a sort.

    Returns:
        As :func:`calibrate`.

    Raises:
        TypeError: an argument of another type; numbers that are not real.
        ValueError: shapes, dimensions, coordinates or units that do not belong together, too few
            simulations or draws, values that are not finite.
    """
    seed, level_memory = seed_of(seed), whole(memory, "memory", 1)
    check_flags(joint=joint, local=local)
    check_quantities(quantities)
    draws, truth, other, labels = _together(draws, truth, baseline, variable)
    num_draws, num, *event = draws.shape
    num, num_draws, alpha = check_counts(num, num_draws, alpha)
    if local and y is None:
        raise ValueError("'local' needs the observations 'y'")
    seen_y = None if y is None else _observed(y, "y", num, labels.like).to(draws.device)
    if seen_y is not None and (bad := int((~seen_y.isfinite()).sum())):
        raise ValueError(f"'y' must be finite; {bad} of {seen_y.numel()} values are not")
    if params is not None and not isinstance(params, Mapping):
        raise TypeError(f"'params' must map names to arrays; got {type(params).__name__}")
    given = {
        str(name): _observed(value, str(name), num, labels.like, numbers=True).to(draws.device)
        for name, value in (params or {}).items()
    }
    tally = new_tally(
        quantities,
        num_draws,
        truth,
        seen_y,
        seed=seed,
        joint=joint,
        local=local,
        climate=other is None,
        memory=level_memory,
    )
    size = max(1, CHUNK // (num_draws * truth[0].numel()))
    for start in range(0, num, size):
        rows = slice(start, start + size)
        tally.add(
            start,
            torch.cat([truth[None, rows], draws[:, rows]]),
            None if seen_y is None else seen_y[rows],
            rows_of(given, rows),
            baseline=None if other is None else other[:, rows],
        )
    named = "the prior: truths of other simulations" if other is None else "the draws given"
    maps = MapLabels.of(event, labels.dims, labels.coords, labels.units)
    return make_report(tally, maps, alpha, {"baseline": named, **about(tally.quantities, truth)})


class _Labels(NamedTuple):
    """What a labelled array says of the field; nothing where there is none."""

    like: xr.DataArray | None = None
    dims: tuple[str, ...] | None = None
    coords: Mapping[str, Any] | None = None
    units: str | None = None

    @classmethod
    def of(cls, array: xr.DataArray, lead: int) -> Self:
        dims = tuple(map(str, array.dims[lead:]))
        coords = {str(d): array.coords[d] for d in array.dims[lead:] if d in array.coords}
        return cls(array, dims, coords, array.attrs.get("units"))


def _together(
    draws: Any, truth: Any, baseline: Any, variable: str | None
) -> tuple[Tensor, Tensor, Tensor | None, _Labels]:
    """Draws ``(num_draws, num, *event)``, truths ``(num, *event)`` and draws of the baseline, in
    one order and of one type, and the labels of the field."""
    draws, truth = one_array(draws, "draws", variable), one_array(truth, "truth", variable)
    other = None if baseline is None else one_array(baseline, "baseline", variable)
    labels = _Labels()
    if isinstance(draws, xr.DataArray):
        draws = ordered(draws)
        labels = _Labels.of(draws, 2)
        if isinstance(truth, xr.DataArray) and draws.ndim > 1:
            if truth.ndim >= draws.ndim:
                raise ValueError(
                    f"'truth' must have the dimensions {draws.dims[1:]}; got {truth.dims}"
                )
            truth = aligned(truth, draws, draws.dims[1:], "truth", "draws")
    elif isinstance(truth, xr.DataArray):
        truth = simulations_first(truth)
        labels = _Labels.of(truth, 1)
    if isinstance(other, xr.DataArray):
        other = ordered(other, "baseline")
        like = labels.like
        if like is not None:
            dims = like.dims[-1 - len(labels.dims or ()) :]
            other = aligned(other, like, dims, "baseline", "draws")
    true = tensor_of(truth, "truth")
    read = tensor_of(of_chains(draws, true[0].ndim - 1), "draws")
    shapes = read[0].shape, true[0].shape
    if read[0].ndim < 2 or shapes[0][1:] != shapes[1]:
        raise ValueError(
            "'truth' must be (num_simulations, *event) and 'draws' (num_draws, num_simulations, "
            f"*event); got {tuple(shapes[1])} and {tuple(shapes[0])}"
        )
    if 0 in shapes[0][2:]:
        raise ValueError(f"'draws' must be of a field with elements; got {tuple(shapes[0])}")
    x, x_true = common_type(read, (true[0].to(read[0].device), true[1]))
    third = None
    if other is not None:
        third = tensor_of(other, "baseline")[0].to(x)
        if third.shape[1:] != x_true.shape:
            raise ValueError(
                f"'baseline' must be (num, {', '.join(map(str, x_true.shape))}); "
                f"got {tuple(third.shape)}"
            )
        if len(third) < 2:
            raise ValueError(f"'baseline' must hold at least 2 draws; got {len(third)}")
        if bad := int((~third.isfinite()).sum()):
            raise ValueError(f"'baseline' must be finite; {bad} values are not")
    scalar, plane = x.ndim == 2, labels.dims is not None and len(labels.dims) == 2
    if scalar or plane:  # a channel of one
        x, x_true = x.unsqueeze(2), x_true.unsqueeze(1)
        third = None if third is None else third.unsqueeze(2)
    return x, x_true, third, labels


def _observed(
    value: Any, name: str, num: int, like: xr.DataArray | None, numbers: bool = False
) -> Tensor:
    """What belongs to each simulation, ``(num, ...)``; with ``numbers``, one may hold for all."""
    if isinstance(value, xr.Dataset):
        value = one_array(value, name)
    if isinstance(value, xr.DataArray):
        value = simulations_first(value)
        # The simulations of the draws, where both say which they are.
        if like is not None and value.ndim:
            dim = next((d for d in like.dims if d in ("simulation", "observation")), None)
            if dim is not None and value.dims[0] in ("simulation", "observation"):
                named = value.rename({value.dims[0]: dim}) if value.dims[0] != dim else value
                value = aligned(named, like.drop_attrs(), [dim], name, "draws")
                value = value.transpose(dim, ...)
    tensor = tensor_of(value, name)[0]
    if numbers and tensor.ndim == 0:
        tensor = tensor.expand(num)
    if tensor.ndim == 0 or len(tensor) != num:
        raise ValueError(
            f"'{name}' must be (num_simulations, ...) with {num} simulations; "
            f"got shape {tuple(tensor.shape)}"
        )
    return tensor
