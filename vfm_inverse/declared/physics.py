"""The observation operator of a declared problem.

.. code-block:: toml

   [problem.physics]
   operator = "point-observations"   # an operator of the package, by its class in small letters
   stations = "stations.csv"         # a table (CSV, netCDF, Parquet) with the places of a network
   missing = 0.2                     # the largest share of them that an observation may lack

   [problem.physics]
   operator = "point-observations"
   max_stations = 60                 # a changing network: up to so many, anywhere on the grid

   [problem.physics]
   operator = "deepinv:Blur"         # a class of deepinv.physics
   filter = { name = "gaussian", sigma = 1.5 }   # by name, or the path of a .npy file
   padding = "circular"              # all further keys are arguments of the class

   [problem.physics]
   operator = "deepinv:Inpainting"
   mask = [0.3, 0.7]                 # pixels kept: a share, a range drawn for every observation,
                                     # or the path of a .npy file

   [problem.physics]
   operator = "mycode:Radar"         # a class or function of yours that gives a Physics

The size of the field is filled in where the operator asks for it. Lists are tensors where it asks
for those; what an operator draws when it is made (a mask) is drawn with seed 0.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import torch
import xarray as xr
from deepinv.physics import Inpainting, Physics
from deepinv.physics.functional import blur
from torch import Tensor

from vfm_inverse import operators
from vfm_inverse.formats.places import place_column, positions
from vfm_inverse.formats.table_columns import storable
from vfm_inverse.formats.units import converted
from vfm_inverse.labelled.sources import opened_file
from vfm_inverse.labelled.station_networks import IDENTITY
from vfm_inverse.problem.labels import AxisLabels
from vfm_inverse.problem.priors import CHANNEL
from vfm_inverse.problems.gaussian_field import draw_networks
from vfm_inverse.runtime.calls import attempt
from vfm_inverse.runtime.config import POINTS, check_keys, refuse_unknown
from vfm_inverse.runtime.objects import call_object, import_object
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.settings import Setting

__all__ = ["Operator", "read_physics"]

FILLED = ("img_size", "img_width", "noise_model", "rng")
"""Arguments that are filled in; ``img_size`` may be given too."""

KERNELS = {"gaussian": "gaussian_blur"} | {
    name: f"{name}_filter" for name in ("sinc", "bilinear", "bicubic")
}

SHARE = Setting(float, 0, 1)


@dataclass(frozen=True)
class Operator:
    """An observation operator without its noise.

    Attributes:
        physics: the operator.
        params: draws its parameters, ``num -> dict``, where there are any.
        labels: of the observations, as ``InverseProblem`` takes them.
        rows: most stations of a changing network; None otherwise.
        table: of fixed stations.
        own: whether it is of the user's code, and may have noise of its own.
    """

    physics: Physics
    params: Callable[[int], dict[str, Tensor]] | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    rows: int | None = None
    table: xr.Dataset | None = None
    own: bool = False


def read_physics(table: Mapping[str, Any], fields: AxisLabels, folder: Path) -> Operator:
    """The operator that the table ``[problem.physics]`` says.

    Args:
        table: see above.
        fields: labels of a field.
        folder: that paths are relative to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an operator, a class or a key is unknown, an argument makes no sense, or a
            station lies outside the grid.
    """
    arguments = dict(table)
    name = arguments.pop("operator", None)
    if not isinstance(name, str):
        raise ValueError(
            f"[problem.physics] must have an 'operator', one of {sorted(by_name())}, "
            f'"deepinv:CLASS" or "module:object"; got {name!r}'
        )
    if name == POINTS:
        return _points(arguments, fields, folder)
    module, colon, _ = name.partition(":")
    if colon and module != "deepinv":
        return _own(name, arguments, fields, folder)
    kind = _of_deepinv(name) if colon else _of_package(name)
    return _made(name, kind, arguments, fields, folder)


def by_name() -> dict[str, type[Physics]]:
    """The operators of the package that files can describe."""
    return {
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower(): kind
        for name, kind in vars(operators).items()
        if name in operators.__all__ and inspect.isclass(kind) and issubclass(kind, Physics)
        if "img_size" in inspect.signature(kind).parameters or name == "MatrixObservations"
        if not {"function", "operator", "physics"} & inspect.signature(kind).parameters.keys()
    }


def _of_package(name: str) -> type[Physics]:
    refuse_unknown("'operator' in [problem.physics]", [name], by_name())
    return by_name()[name]


def _of_deepinv(name: str) -> type[Physics]:
    wanted = name.partition(":")[2]
    known = {
        other: kind
        for other, kind in vars(deepinv.physics).items()
        if inspect.isclass(kind) and issubclass(kind, Physics)
    }
    refuse_unknown("class of deepinv.physics", [wanted], known)
    return known[wanted]


# Operators from their arguments ------------------------------------------------------------------


def _own(name: str, arguments: dict[str, Any], fields: AxisLabels, folder: Path) -> Operator:
    found = import_object(name, [folder, Path.cwd()])
    if callable(found) and not isinstance(found, Physics):
        parameters = inspect.signature(found).parameters
        if "img_size" in parameters and "img_size" not in arguments:
            arguments["img_size"] = tuple(fields.shape)
        arguments = {
            key: _argument(value, key, parameters.get(key), fields, folder)
            for key, value in arguments.items()
        }
    with seeded(0):
        physics = call_object(name, found, arguments)
    if not isinstance(physics, Physics):
        raise ValueError(
            f"'{name}' must be a deepinv Physics, or a class or function that gives one; got "
            f"{type(physics).__name__}"
        )
    return Operator(physics, own=True)


def _made(
    name: str, kind: type[Physics], arguments: dict[str, Any], fields: AxisLabels, folder: Path
) -> Operator:
    parameters = inspect.signature(kind).parameters
    reserved = ("device", "dtype", "args", "kwargs", *FILLED[1:])
    check_keys("problem.physics", arguments, kind, reserved=reserved)
    draw = None
    if kind is Inpainting and isinstance(share := arguments.get("mask"), list):
        low, high = _pair(share, "mask")
        size = tuple(fields.shape[1:])
        draw = _Masks(low, high, size)
        arguments["mask"] = torch.ones(fields.shape)
    values = {
        key: _argument(value, key, parameters[key], fields, folder)
        for key, value in arguments.items()
    }
    if "img_size" in parameters and "img_size" not in values:
        default = parameters["img_size"].default
        # Some classes count no channels.
        spatial = isinstance(default, tuple) and len(default) == len(fields.shape) - 1
        values["img_size"] = tuple(fields.shape[1:] if spatial else fields.shape)
    if "img_width" in parameters:
        values["img_width"] = fields.shape[-1]
    if "rng" in parameters:
        values["rng"] = torch.Generator().manual_seed(0)
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in values
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if missing:
        raise ValueError(f"[problem.physics] lacks {missing}, which {name} needs")
    with seeded(0):
        physics = attempt(kind, f"operator = {name}", **values)
    return Operator(physics, draw)


def _argument(
    value: Any,
    name: str,
    parameter: inspect.Parameter | None,
    fields: AxisLabels,
    folder: Path,
) -> Any:
    """A value of a settings file as an operator takes it."""
    wants = "" if parameter is None else str(parameter.annotation)
    if isinstance(value, Mapping) and "name" in value:
        return _kernel(value, fields)
    if isinstance(value, str) and value.endswith(".npy"):
        return _from_file(folder / value, name)
    if isinstance(value, str) and name == "filter" and "str" not in wants:
        return _kernel({"name": value}, fields)
    if isinstance(value, list):
        if "Tensor" not in wants:
            return _tuple(value)
        try:
            return torch.tensor(value, dtype=torch.get_default_dtype())
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"'{name}' in [problem.physics] must be a list of numbers; got {value!r:.80}"
            ) from error
    return value


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _kernel(table: Mapping[str, Any], fields: AxisLabels) -> Tensor:
    """A kernel of deepinv by name."""
    arguments = dict(table)
    name = arguments.pop("name")
    refuse_unknown("filter in [problem.physics]", [name], KERNELS)
    function = getattr(blur, KERNELS[name])
    check_keys("problem.physics.filter", arguments, function, reserved=("device", "dtype"))
    if isinstance(arguments.get("sigma"), int | float):  # the same along all axes
        arguments["sigma"] = [arguments["sigma"]] * (len(fields.shape) - 1)
    values = {key: _tuple(value) for key, value in arguments.items()}
    kernel: Tensor = attempt(function, "filter", **values)
    return kernel


def _from_file(path: Path, name: str) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"'{name}' in [problem.physics]: there is no file '{path}'")
    try:
        values = np.load(path).astype(np.float64)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"'{path}' is not a readable .npy file of numbers: {error}") from error
    if name == "filter" and values.ndim == 2:
        values = values[None, None]
    return torch.from_numpy(values).to(torch.get_default_dtype())


@dataclass(frozen=True)
class _Masks:
    """Masks of single pixels, ``(num, 1, *size)``: the share that is kept is drawn too."""

    low: float
    high: float
    size: tuple[int, ...]

    def __call__(self, num: int) -> dict[str, Tensor]:
        share = self.low + (self.high - self.low) * torch.rand(num, *[1] * (1 + len(self.size)))
        kept = torch.rand(num, 1, *self.size) < share
        return {"mask": kept.to(torch.get_default_dtype())}


def _pair(value: list[Any], name: str) -> tuple[float, float]:
    try:
        low, high = (float(SHARE.check(name, one, "problem.physics")) for one in value)
    except ValueError as error:
        raise ValueError(
            f"'{name}' in [problem.physics] must be a share, a range of two, or a "
            f"file; got {value!r:.80}"
        ) from error
    if not low <= high:
        raise ValueError(f"'{name}' in [problem.physics] must be a range low to high; got {value}")
    return low, high


# Stations ----------------------------------------------------------------------------------------


def _points(arguments: dict[str, Any], fields: AxisLabels, folder: Path) -> Operator:
    refuse_unknown("key in [problem.physics]", arguments, ("stations", "missing", "max_stations"))
    if len({"stations", "max_stations"} & arguments.keys()) != 1:
        raise ValueError(
            f"[problem.physics] of {POINTS} must have 'stations', a table of places, or "
            "'max_stations', the most of a network that changes; got "
            f"{sorted(arguments) or 'neither'}"
        )
    shape = tuple(fields.shape)
    if "max_stations" in arguments:
        return _changing(arguments, shape, fields)
    path = folder / str(arguments["stations"])
    if not path.is_file():
        raise FileNotFoundError(f"'stations' in [problem.physics]: there is no file '{path}'")
    with opened_file(path) as opened:
        table = opened.load()
    space = [dim for dim in fields.dims if dim != CHANNEL]
    columns = [place_column(table, dim, fields.coords) for dim in space]
    rows = columns[0][1].dims
    if len(rows) != 1 or any(column.dims != rows for _, column in columns):
        raise ValueError(f"the places in '{path}' must lie along one dimension; got {rows}")
    num = table.sizes[rows[0]]
    seen = np.ones(num, dtype=bool)
    places = [positions(column, seen, fields.coords[axis], axis) for axis, column in columns]
    points = torch.from_numpy(np.stack(places, -1)).to(torch.get_default_dtype())
    labels: dict[str, Any] = {"obs_dims": ("station",), "obs_units": fields.units}
    labels["obs_coords"] = {
        "station": ("station", _names(table, rows[0], num)),
        **{
            f"station_{axis}": xr.Variable("station", *_of_axis(column, fields.coords[axis]))
            for axis, column in columns
        },
    }
    if shape[0] > 1:
        labels["obs_dims"] = ("obs_channel", "station")
    draw = None
    if (share := SHARE.check("missing", arguments.get("missing", 0.0), "problem.physics")) > 0:
        draw = _Missing(share, (num,) if shape[0] == 1 else (1, num))
    physics = operators.PointObservations(shape, points.clamp(0, 1))
    return Operator(physics, draw, labels, table=table)


def _of_axis(column: xr.DataArray, axis: xr.Variable) -> tuple[np.ndarray, dict[Any, Any]]:
    """Places in the units of the grid's axis, and its attributes."""
    values, units, wanted = column.values, column.attrs.get("units"), axis.attrs.get("units")
    if units is not None and wanted is not None and values.dtype.kind in "fiu":
        values = converted(values.astype(np.float64), units, wanted, f"'{column.name}'")
    return storable(values), axis.attrs


def _changing(arguments: dict[str, Any], shape: Sequence[int], fields: AxisLabels) -> Operator:
    if "missing" in arguments:
        raise ValueError("'missing' in [problem.physics] is of fixed 'stations'")
    num = Setting(int, 1).check("max_stations", arguments["max_stations"], "problem.physics")
    if shape[0] > 1:
        raise ValueError(
            "a network that changes ('max_stations') reads one variable; give fixed 'stations' "
            f"for {shape[0]} of them"
        )
    labels = {"obs_dims": ("station",), "obs_coords": {"station": np.arange(num)}}
    return Operator(
        operators.PointObservations(shape), _Networks(num, len(shape) - 1), labels, rows=num
    )


@dataclass(frozen=True)
class _Networks:
    """Networks that change, without their noise."""

    rows: int
    axes: int

    def __call__(self, num: int) -> dict[str, Tensor]:
        return draw_networks(num, self.rows, axes=self.axes)


@dataclass(frozen=True)
class _Missing:
    """Masks ``(num, *size)`` of stations: a share up to ``largest`` of them is missing."""

    largest: float
    size: tuple[int, ...]

    def __call__(self, num: int) -> dict[str, Tensor]:
        share = self.largest * torch.rand(num, *[1] * len(self.size))
        kept = torch.rand(num, *self.size) >= share
        return {"mask": kept.to(torch.get_default_dtype())}


def _names(table: xr.Dataset, rows: Any, num: int) -> np.ndarray:
    """What the stations are called, or their numbers."""
    for name in table.variables:
        column = table[name]
        if str(name).strip().casefold() in IDENTITY and column.dims == (rows,):
            values = storable(column.values)
            if values.dtype.kind in "iuU" and len(np.unique(values)) == num:
                return values
    return np.arange(num)
