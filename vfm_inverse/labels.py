"""Names, coordinates and units of the axes of a field or an observation.

A channel dimension of size one is a convention of the tensors inside and has no name: labels
describe ``(1, H, W)`` by two dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from vfm_inverse.priors import CHANNEL, LabelledPrior

__all__ = ["AxisLabels", "squeezed"]

# Names in files; see vfm_inverse.labelled.
DRAW, BATCH = "draw", "observation"
OBSERVED, ERROR_STD, PARAM = "observed", "error_std", "param_"


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
            name = name if prior.data.name is None else str(prior.data.name)
        if dims is None:
            dims = ("component",) if len(shape) == 1 else _space(shape, "")
        if name in dims:
            name = "field"
        return cls(name, shape, tuple(dims), _variables(coords or {}), units, long_name)._checked(
            "dims"
        )

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
        return cls(
            "observed", shape, tuple(dims), _variables(coords or {}), units, long_name
        )._checked("obs_dims")

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes that are known."""
        attrs = {"units": self.units, "long_name": self.long_name}
        return {key: value for key, value in attrs.items() if value is not None}

    def _checked(self, argument: str) -> Self:
        size = squeezed(self.shape)
        if len(self.dims) != len(size) or len(set(self.dims)) != len(self.dims):
            raise ValueError(
                f"'{argument}' must name the {len(size)} axes of size {size}; got {self.dims}"
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


def _space(shape: Sequence[int], prefix: str) -> tuple[str, ...]:
    count = len(shape) - 1
    axes = "zyx"[-count:] if count <= 3 else [f"axis_{number}" for number in range(count)]
    names = tuple(f"{prefix}{axis}" for axis in axes)
    return names if shape[0] == 1 else (f"{prefix}{CHANNEL}", *names)


def _variables(coords: Mapping[str, Any]) -> dict[str, xr.Variable]:
    """Coordinates in any of the forms that xarray takes; a bare array lies along its own name."""
    variables = {}
    for name, value in coords.items():
        if isinstance(value, xr.DataArray):
            value = value.variable
        if isinstance(value, xr.Variable):
            variables[name] = value.to_base_variable()
        elif isinstance(value, tuple) and len(value) > 1 and isinstance(value[0], str | tuple):
            variables[name] = xr.Variable(*value)
        else:
            values = np.asarray(value)
            variables[name] = xr.Variable((name,) if values.ndim else (), values)
    return variables
