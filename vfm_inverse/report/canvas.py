"""Style and canvas of the figures, and how a labelled plane becomes a picture.

matplotlib is imported when the first figure is made. Colours are those of Okabe and Ito (2008) and
maps are perceptually uniform, so that no reader depends on telling red from green.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import xarray as xr

from vfm_inverse.formats.places import meaning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "axis_label",
    "bar_label",
    "colours",
    "coordinate",
    "has_axes",
    "image",
    "new_figure",
    "plane",
    "runs_down",
    "styled",
    "units_of",
    "upright",
]

BLUE, VERMILION, ORANGE, BLACK = "#0072B2", "#D55E00", "#E69F00", "#222222"
PALE, GREY = "#D9DFE5", "#8A9199"

MISSING = "#F0C3A4"
"""Behind an image: where a value is missing."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (2, 2)))
"""Dashes of the failing curves, worst first: all of them are vermilion."""

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#ECEFF2",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}

P = ParamSpec("P")


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of this module, whatever the user's own is."""

    @wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return drawn


def new_figure(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, np.ndarray[Any, np.dtype[np.object_]]]:
    """A figure outside pyplot, and its panels in one flat array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()


def units_of(array: xr.DataArray) -> str:
    """``" [unit]"``, or nothing for plain numbers."""
    units = array.attrs.get("units", "1")
    return "" if units == "1" else f" [{units}]"


def plane(values: xr.DataArray) -> xr.DataArray:
    """The last two dimensions, at the first index of the others."""
    return values.isel({dim: 0 for dim in values.dims[:-2]})


def coordinate(values: xr.DataArray, axis: int) -> np.ndarray:
    """Coordinate of an axis, or its index."""
    return values[values.dims[axis]].values


def axis_label(values: xr.DataArray, axis: int) -> str:
    """Name and unit of an axis."""
    dim = values.dims[axis]
    degrees = {"degrees_east": " [°E]", "degrees_north": " [°N]"}
    return f"{dim}{degrees.get(str(values[dim].attrs.get('units')), units_of(values[dim]))}"


def upright(values: xr.DataArray) -> xr.DataArray:
    """A field whose last two dimensions are the vertical and the horizontal one, in this order."""
    if values.ndim < 2:
        return values
    *lead, first, second = values.dims
    if _is_horizontal(values, first) and _is_vertical(values, second):
        return values.transpose(*lead, second, first)
    return values


def has_axes(values: xr.DataArray) -> bool:
    """Whether a plane is drawn over its coordinates, and not as rows of pixels."""
    known = [dim for dim in values.dims if dim in values.coords]
    return bool(known) and all(values[dim].dtype.kind in "fiuM" for dim in known)


def runs_down(values: xr.DataArray) -> bool:
    """Whether a plane is drawn from the top: rows of pixels and depths run downwards, latitudes
    and every other coordinate upwards."""
    vertical = values[values.dims[0]]
    if not has_axes(values):
        both = [c for c in values.coords.values() if set(c.dims) == set(values.dims)]
        for one in both:
            if meaning(str(one.name), one.attrs) == "latitude":
                rows = one.transpose(*values.dims).mean(values.dims[1]).values
                return bool(rows[0] > rows[-1])
        return True
    words = {str(values.dims[0]), str(vertical.attrs.get("long_name"))}
    return bool(words & {"row", "depth"}) or vertical.attrs.get("positive") == "down"


def colours(values: xr.DataArray, cmap: str | None = None) -> dict[str, Any]:
    """Colour map and its ends for a field: diverging about 0 for an anomaly, which is one by its
    name or takes both signs alike; grey for grey values.

    Args:
        values: of all panels that share the colours.
        cmap: a map to take in any case.
    """
    low, high = np.nanquantile(values, [0.002, 0.998]).tolist()
    said = " ".join(str(values.attrs.get(name, "")) for name in ("long_name", "units"))
    mean, std = float(np.nanmean(values)), float(np.nanstd(values))
    balanced = low < 0 < high and abs(mean) < 0.5 * std and min(-low, high) > 0.4 * max(-low, high)
    if cmap is None and ("anomal" in said.casefold() or balanced):
        reach = max(abs(low), abs(high)) or 1.0
        return {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    grey = "grey" in said.casefold() or "gray" in said.casefold()
    return {"cmap": cmap or ("gray" if grey else "viridis"), "vmin": low, "vmax": high}


def bar_label(values: xr.DataArray, name: str, units: str | None = None) -> str:
    """What a colour bar is of: long name, or ``name``, and unit."""
    units = values.attrs.get("units", "1") if units is None else units
    text = str(values.attrs.get("long_name", name))
    return text if units == "1" else f"{text} [{units}]"


def image(panel: Axes, values: xr.DataArray, *, bare: bool = False, **style: Any) -> Any:
    """Draw a plane, upright: coordinates give its axes, see :func:`runs_down`. A dimension
    ``rgb`` of three makes it a picture in colour."""
    values = values if "rgb" in values.dims else plane(values)
    values = values.transpose(..., "rgb") if "rgb" in values.dims else upright(values)
    flat = values.isel(rgb=0, drop=True) if "rgb" in values.dims else values
    vertical, horizontal = (flat[dim] for dim in flat.dims)
    axes, down = has_axes(flat), runs_down(flat)
    if "rgb" in values.dims:
        axes = False
        rising = vertical.size < 2 or bool(vertical[0] < vertical[-1])
        origin: Any = "upper" if down == rising else "lower"
        drawn: Any = panel.imshow(np.clip(values, 0, 1), interpolation="nearest", origin=origin)
    elif not axes:
        origin = "upper" if down or flat.ndim < 2 else "lower"
        drawn = panel.imshow(values, interpolation="nearest", origin=origin, **style)
    else:
        drawn = panel.pcolormesh(horizontal, vertical, values, shading="nearest", **style)
        _set_aspect(panel, vertical, horizontal)
        if down:
            panel.invert_yaxis()
        panel.set(xlabel=axis_label(values, 1), ylabel=axis_label(values, 0))
    panel.set_facecolor(MISSING)
    for spine in panel.spines.values():
        spine.set_visible(False)
    if bare or not axes:
        panel.set(xticks=[], yticks=[], xlabel="", ylabel="")
    return drawn


def _set_aspect(panel: Axes, vertical: xr.DataArray, horizontal: xr.DataArray) -> None:
    """One length for both axes, unless they have different units or the plane were a stripe."""
    one, other = (axis.attrs.get("units") for axis in (vertical, horizontal))
    angles = {meaning(str(axis.name), axis.attrs) for axis in (vertical, horizontal)}
    alike = one == other or angles == {"latitude", "longitude"}
    numbers = vertical.dtype.kind in "fiu" and horizontal.dtype.kind in "fiu"
    if alike and numbers:
        spans = [float(np.ptp(axis.values)) for axis in (vertical, horizontal)]
        alike = min(spans) > 0.15 * max(spans)
    panel.set_aspect("equal" if alike and numbers else "auto")


def _is_horizontal(values: xr.DataArray, dim: Hashable) -> bool:
    attrs = values[dim].attrs
    known = str(dim).casefold() in ("x", "column") or attrs.get("axis") == "X"
    return known or meaning(str(dim), attrs) == "longitude"


def _is_vertical(values: xr.DataArray, dim: Hashable) -> bool:
    attrs = values[dim].attrs
    known = str(dim).casefold() in ("y", "z", "row", "depth") or attrs.get("axis") in ("Y", "Z")
    return known or meaning(str(dim), attrs) == "latitude"
