"""Names, coordinates and units of the axes of a field or an observation.

A channel dimension of size one is a convention of the tensors inside and has no name: labels
describe ``(1, H, W)`` by two dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from vfm_inverse.formats.fill_values import PACKING
from vfm_inverse.problem.priors import CHANNEL, LabelledPrior

__all__ = ["AxisLabels", "squeezed", "storable_name"]

# Names in files; see vfm_inverse.labelled.write.
DRAW, BATCH = "draw", "observation"
OBSERVED, ERROR_STD, PARAM, WEIGHT = "observed", "error_std", "param_", "weight"
CHAINS = "num_chains"
"""Attribute of draws that are Markov chains, which take turns along ``draw``."""

TAKEN = frozenset(
    (DRAW, BATCH, OBSERVED, ERROR_STD, WEIGHT, "note", "ess", "k_hat", "rhat", "mcmc_ess")
    + ("acceptance", "folded", "rung", "satisfied", "stages")
)
"""Names of variables and dimensions that an output has for its own."""


@dataclass(frozen=True)
class AxisLabels:
    """What an array is called and what its axes mean.

    Attributes:
        name: of the variable.
        shape: of one tensor, channel included.
        dims: one name an axis, without a channel of size one.
        coords: coordinate variables on these dimensions.
        units, long_name: CF attributes of the variable.
    """

    name: str
    shape: torch.Size
    dims: tuple[str, ...]
    coords: Mapping[str, xr.Variable] = field(default_factory=dict)
    units: str | None = None
    long_name: str | None = None

    @classmethod
    def of_field(
        cls,
        shape: torch.Size,
        *,
        dims: Sequence[str] | None,
        coords: Mapping[str, Any] | None,
        units: str | None,
        long_name: str | None,
        prior: LabelledPrior | None,
    ) -> Self:
        """Labels of a field: as given, else those of a labelled prior, else made up.

        Raises:
            ValueError: the number of dimensions or the length of a coordinate does not fit.
        """
        name = "field"
        if prior is not None:
            dims = prior.dims if dims is None else dims
            coords = prior.coords if coords is None else coords
            units = prior.data.attrs.get("units") if units is None else units
            long_name = prior.data.attrs.get("long_name") if long_name is None else long_name
            name = name if prior.data.name is None else storable_name(prior.data.name, name)
            coords = {
                f"prior_{key}" if key in TAKEN else key: value for key, value in coords.items()
            }
        if dims is None:
            dims = ("component",) if len(shape) == 1 else _space(shape, "")
        _check_text({"units": units, "long_name": long_name})
        variables = _variables(coords, "coords")
        dims = _names(dims, "dims")
        if not name or name in {*dims, *variables} or name in TAKEN or name.startswith(PARAM):
            name = "field"  # an output has such a variable for its own
        return cls(name, shape, dims, variables, units, long_name)._checked("dims", "coords")

    @classmethod
    def of_observation(
        cls,
        shape: torch.Size,
        *,
        dims: Sequence[str] | None,
        coords: Mapping[str, Any] | None,
        units: str | None,
        fields: AxisLabels,
    ) -> Self:
        """Labels of an observation: as given, else the field's if the shapes agree, else made up.

        Raises:
            ValueError: the number of dimensions or the length of a coordinate does not fit.
        """
        long_name = None
        if dims is None and shape == fields.shape:
            dims, long_name = fields.dims, fields.long_name
            coords = fields.coords if coords is None else coords
            units = fields.units if units is None else units
        if dims is None:
            dims = ("datum",) if len(shape) == 1 else _space(shape, "obs_")
        _check_text({"obs_units": units})
        variables = _variables(coords, "obs_coords")
        dims = _names(dims, "obs_dims")
        labels = cls("observed", shape, dims, variables, units, long_name)
        return labels._checked("obs_dims", "obs_coords")

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes that are known."""
        attrs = {"units": self.units, "long_name": self.long_name}
        return {key: value for key, value in attrs.items() if value is not None}

    def _checked(self, argument: str, coords: str) -> Self:
        size = squeezed(self.shape)
        if len(self.dims) != len(size) or len(set(self.dims)) != len(self.dims):
            raise ValueError(
                f"'{argument}' must name the {len(size)} axes of size {size}; got {self.dims}"
            )
        for name in (*self.dims, *self.coords):
            if name in TAKEN or storable_name(name, "") != name or not name:
                raise ValueError(
                    f"'{argument if name in self.dims else coords}' must not use the name "
                    f"'{name}', which an output has for its own or netCDF cannot hold; rename it"
                )
        sizes = dict(zip(self.dims, size, strict=True))
        for name, variable in self.coords.items():
            for dim, length in variable.sizes.items():
                if sizes.get(str(dim)) != length:
                    raise ValueError(
                        f"coordinate '{name}' has {length} values along '{dim}'; "
                        f"the axes are {sizes}"
                    )
        return self


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape without a channel of size one."""
    return tuple(shape[1:]) if len(shape) > 1 and shape[0] == 1 else tuple(shape)


def storable_name(name: object, nothing: str) -> str:
    """A name as netCDF can hold it, ``nothing`` where none is left."""
    plain = re.sub(r"[/\x00-\x1f\x7f]", "_", str(name)).rstrip()[:200]
    return re.sub(r"^(?=[\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f])", "_", plain) or nothing


def _space(shape: Sequence[int], prefix: str) -> tuple[str, ...]:
    count = len(shape) - 1
    axes = "zyx"[-count:] if count <= 3 else [f"axis_{number}" for number in range(count)]
    names = tuple(f"{prefix}{axis}" for axis in axes)
    return names if shape[0] == 1 else (f"{prefix}{CHANNEL}", *names)


def _names(dims: Any, argument: str) -> tuple[str, ...]:
    """Names of dimensions."""
    if isinstance(dims, str) or not isinstance(dims, Sequence):
        raise TypeError(f"'{argument}' must be a sequence of names; got {dims!r:.60}")
    if not all(isinstance(dim, str) for dim in dims):
        raise TypeError(f"'{argument}' must hold text only; got {dims!r:.60}")
    return tuple(dims)


def _check_text(given: Mapping[str, Any]) -> None:
    for argument, value in given.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"'{argument}' must be text; got {value!r:.60}")


def _variables(coords: Any, argument: str) -> dict[str, xr.Variable]:
    """Coordinates in any of the forms that xarray takes; a bare array lies along its own name."""
    if coords is None:
        return {}
    if not isinstance(coords, Mapping):
        raise TypeError(f"'{argument}' must be a mapping of names to values; got {coords!r:.60}")
    variables: dict[str, xr.Variable] = {}
    for name, value in coords.items():
        if not isinstance(name, str):
            raise TypeError(f"'{argument}' must have names that are text; got {name!r:.60}")
        variables[name] = _variable(name, value, argument)
    return variables


def _variable(name: str, value: Any, argument: str) -> xr.Variable:
    if isinstance(value, xr.DataArray):
        value = value.variable
    try:
        if isinstance(value, xr.Variable):
            variable = value.to_base_variable()
        elif isinstance(value, tuple) and len(value) > 1 and isinstance(value[0], str | tuple):
            variable = xr.Variable(*value).to_base_variable()
        else:
            values = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
            variable = xr.Variable((name,) if values.ndim else (), values)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:160]
        raise ValueError(f"'{argument}' has no coordinate in '{name}': {text}") from error
    # What a file would act on when it is read: the values are taken as they are.
    variable.attrs = {k: v for k, v in variable.attrs.items() if k not in PACKING}
    kept = variable.dtype.kind in "biufMmSUT"
    if not kept and variable.dtype.kind == "O":  # text and dates of other calendars
        kept = all(_storable(item) for item in variable.values.flat)
    if not kept:
        raise ValueError(
            f"coordinate '{name}' in '{argument}' must hold numbers, text or dates, which a file "
            f"can hold; got {variable.dtype}"
        )
    return variable


def _storable(item: Any) -> bool:
    return isinstance(item, str) or type(item).__module__.partition(".")[0] == "cftime"
