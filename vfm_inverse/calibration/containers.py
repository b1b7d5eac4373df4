"""Draws and truths out of whatever holds them: one array each, in one order, of one type.

**One type.**  Truths and draws are compared number by number, and an element that never varies
must tie: both are rounded to the coarser of their types. Double precision in both stays double.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.formats.units import same_units
from vfm_inverse.runtime.arrays import real_array, real_tensor

__all__ = [
    "aligned",
    "common_type",
    "of_chains",
    "one_array",
    "ordered",
    "simulations_first",
    "tensor_of",
]

DRAW, SIMULATION = ("draw", "sample"), ("simulation", "observation")
"""Names under which the two first dimensions of a labelled array are found."""


def one_array(value: Any, name: str, variable: str | None = None) -> Any:
    """One array of whatever holds arrays: a Dataset, or an object with a group ``posterior``.

    Raises:
        ValueError: ``variable`` does not say which.
    """
    group = getattr(value, "posterior", None)
    if group is not None and not isinstance(value, xr.Dataset | xr.DataArray | Tensor):
        value = group.to_dataset() if hasattr(group, "to_dataset") else group
    if isinstance(value, xr.Variable):
        value = xr.DataArray(value)
    if isinstance(value, xr.DataArray) and all(
        dim == f"dim_{axis}" for axis, dim in enumerate(value.dims)
    ):
        return value.values  # names that xarray made up: the order counts
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


def of_chains(value: Any, num_axes: int) -> Any:
    """Chains of Markov-chain samplers as one tensor; any other value as it is.

    A chain is a list of tensors; of what deepinv's samplers keep, a list of states with the field
    under ``x``, the first of which is where the chain started and no draw. Such a sampler itself
    has a chain too, by ``get_chain``.

    Args:
        value: a chain ``num_draws`` long of ``(num_simulations, *event)``, or a list of chains,
            one or more simulations each.
        num_axes: of the event.

    Returns:
        ``(num_draws, num_simulations, *event)``.

    Raises:
        TypeError: a state of a chain holds no tensor ``x``.
        ValueError: a chain has fields of several shapes or no draw, or chains differ in length.
    """
    chain = _chain(value)
    if isinstance(chain, Tensor):
        return chain
    several = list(value) if isinstance(value, list | tuple) else []
    chains = [_chain(one) for one in several]
    if not chains or not all(isinstance(one, Tensor) for one in chains):
        return value
    parts = [one.unsqueeze(1) if one.ndim == num_axes + 1 else one for one in chains]
    if len({one.shape[:1] + one.shape[2:] for one in parts}) > 1:
        raise ValueError(
            "the chains in 'draws' must have the same length and fields of the same shape; got "
            f"{sorted({tuple(one.shape) for one in parts})[:6]}"
        )
    return torch.cat(parts, 1)


def _chain(value: Any) -> Any:
    """A chain as one tensor, draws first; None where it is none."""
    if callable(getattr(value, "get_chain", None)):
        value = value.get_chain()
    if not isinstance(value, list | tuple) or not value:
        return None
    if all(isinstance(state, Mapping) for state in value):
        fields = [state.get("x") for state in value[1:]]
        if not all(isinstance(field, Tensor) for field in fields):
            raise TypeError("the states of a chain in 'draws' must hold a tensor under 'x'")
        if not fields:
            raise ValueError(
                "a chain in 'draws' must hold draws; got the state it started from alone"
            )
    elif all(isinstance(field, Tensor) and field.ndim > 0 for field in value):
        fields = list(value)
    else:
        return None
    if len({field.shape for field in fields}) > 1:
        raise ValueError("'draws' must be an array; got tensors of different shapes")
    return torch.stack(fields)


def ordered(draws: xr.DataArray, name: str = "draws") -> xr.DataArray:
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
    raise ValueError(f"the dimensions of '{name}' must include {known}; got {draws.dims}")


def simulations_first(value: xr.DataArray) -> xr.DataArray:
    """Simulations first, where a dimension has their name."""
    first = next((dim for dim in SIMULATION if dim in value.dims), None)
    return value if first is None else value.transpose(first, ...)


def aligned(
    value: xr.DataArray, like: xr.DataArray, dims: Sequence[Any], name: str, whose: str
) -> xr.DataArray:
    """An array in the order of another: dimensions by name, values along them by coordinate.

    Args:
        value: array to put in order; other dimensions come first.
        like: whose order it takes.
        dims: dimensions of ``like`` that it must have.
        name, whose: of the two arguments, for messages.

    Raises:
        ValueError: it is of other places, or in another unit.
    """
    if dims[0] not in value.dims and dims[0] in SIMULATION:
        (other,) = (d for d in SIMULATION if d != dims[0])
        value = value.rename({other: dims[0]}) if other in value.dims else value
    lead = [dim for dim in value.dims if dim not in dims]
    if missing := [dim for dim in dims if dim not in value.dims]:
        raise ValueError(
            f"'{name}' must have the dimensions {tuple(dims)}; got {value.dims}, without {missing}"
        )
    value = value.transpose(*lead, *dims)
    for dim in dims:
        if value.sizes[dim] != like.sizes[dim]:
            raise ValueError(
                f"'{name}' and '{whose}' must have the same size along '{dim}'; got "
                f"{value.sizes[dim]} and {like.sizes[dim]}"
            )
        if dim in like.indexes and dim in value.indexes:
            order = _order(value.indexes[dim], like.indexes[dim])
            if order is None:
                raise ValueError(_differ(dim, name, whose, value, like))
            value = value.isel({dim: order})
    for key, coord in value.coords.items():
        other_coord = like.coords.get(key)
        field = other_coord is not None and set(coord.dims) <= set(dims[1:])
        if other_coord is None or not field or key in dims or coord.dtype.kind not in "fiu":
            continue
        if set(other_coord.dims) != set(coord.dims) or other_coord.dtype.kind not in "fiu":
            continue
        a, b = coord.values, other_coord.transpose(*coord.dims).values
        size = float(np.nanmax(np.abs(b), initial=0.0))
        if not np.allclose(a, b, rtol=0, atol=1e-6 * size, equal_nan=True):
            raise ValueError(_differ(key, name, whose, value, like))
    ours, theirs = (array.attrs.get("units") for array in (value, like))
    if None not in (ours, theirs) and not same_units(str(ours), str(theirs)):
        raise ValueError(
            f"'{name}' is in '{value.attrs['units']}', '{whose}' in '{like.attrs['units']}'; "
            "convert one of them"
        )
    return value


def tensor_of(value: Any, name: str) -> tuple[Tensor, torch.dtype]:
    """Numbers in single or double precision, without a graph, and the type that they came in."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        if len({tensor.shape for tensor in value}) > 1:
            raise ValueError(f"'{name}' must be an array; got tensors of different shapes")
        value = torch.stack(list(value))
    if not isinstance(value, Tensor):
        value = real_array(value, name)
        kinds = {"float16": torch.float16, "float32": torch.float32}
        given = kinds.get(value.dtype.name, torch.float64)
    else:
        given = value.dtype if value.is_floating_point() else torch.float64
    wide = torch.float64 if given == torch.float64 else torch.float32
    return real_tensor(value, name, dtype=wide).detach(), given


def common_type(
    draws: tuple[Tensor, torch.dtype], truth: tuple[Tensor, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Both rounded to the coarser of the types that they came in; in double precision where that
    cannot hold them."""
    rough = max((kind for _, kind in (draws, truth)), key=lambda kind: torch.finfo(kind).eps)
    wide = torch.float64 if rough == torch.float64 else torch.float32
    pair = []
    for values, kind in (draws, truth):
        rounded = values.to(wide) if kind == rough else values.to(rough).to(wide)
        if kind != rough and bool((rounded.isinf() & values.isfinite()).any()):
            return draws[0].double(), truth[0].double()
        pair.append(rounded)
    return pair[0], pair[1]


def _order(found: Any, expected: Any) -> np.ndarray | None:
    """Index that brings ``found`` into the order of ``expected``; None where they differ."""
    a, b = np.asarray(found), np.asarray(expected)
    same = np.arange(len(a))
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        # Single precision is what coordinates often pass through; neighbours stay apart.
        steps = np.diff(np.sort(b.astype(np.float64)))
        size = float(np.nanmax(np.abs(b), initial=0.0))
        near = min(1e-6 * size, 0.25 * float(np.nanmin(steps, initial=np.inf)))
        exact = a.dtype.kind in "iu" and b.dtype.kind in "iu"

        def close(x: np.ndarray) -> bool:
            if exact:
                return np.array_equal(x, b)
            return np.allclose(x, b, rtol=0, atol=near, equal_nan=True)

        if close(a):
            return same
        order = np.argsort(a, kind="stable")[np.argsort(np.argsort(b, kind="stable"))]
        return order if len(np.unique(b)) == len(b) and close(a[order]) else None
    if found.equals(expected):
        return same
    if not (found.is_unique and expected.is_unique):
        return None
    index = np.asarray(found.get_indexer(expected))
    return None if (index < 0).any() else index


def _differ(dim: Any, name: str, whose: str, value: xr.DataArray, like: xr.DataArray) -> str:
    shown = [
        np.array2string(np.asarray(array[dim].values), threshold=6, edgeitems=2).replace("\n", "")
        for array in (value, like)
    ]
    return (
        f"'{name}' and '{whose}' must have the same coordinate '{dim}', in any order and without "
        f"equal values; got {shown[0]} and {shown[1]}"
    )
