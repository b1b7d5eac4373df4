"""Style and canvas of the figures, and how a labelled plane becomes a picture.

matplotlib is imported when the first figure is made. Colours are those of Okabe and Ito (2008) and
maps are perceptually uniform, so that no reader depends on telling red from green.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axis_label", "coordinate", "image", "new_figure", "plane", "styled", "units_of"]

BLUE, VERMILION, ORANGE, BLACK = "#0072B2", "#D55E00", "#E69F00", "#222222"
PALE, GREY = "#D9DFE5", "#8A9199"
#: Behind an image: where a value is missing.
MISSING = "#F0C3A4"
#: Colours of the failing curves, worst first.
ACCENTS = (VERMILION, ORANGE, "#CC79A7", "#56B4E9", "#009E73", BLACK)

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
    return f"{dim}{units_of(values[dim])}"


def image(panel: Axes, values: xr.DataArray, *, bare: bool = False, **style: Any) -> Any:
    """Draw a plane: coordinates give its axes; rows of pixels and depths run downwards."""
    values = plane(values)
    vertical, horizontal = (values[dim] for dim in values.dims)
    pixels = any(dim not in values.coords for dim in values.dims)
    if pixels:
        drawn: Any = panel.imshow(values, interpolation="nearest", **style)
    else:
        drawn = panel.pcolormesh(horizontal, vertical, values, shading="nearest", **style)
        panel.set_aspect("equal")
        if vertical.attrs.get("long_name") == "row" or vertical.attrs.get("positive") == "down":
            panel.invert_yaxis()
        panel.set(xlabel=axis_label(values, 1), ylabel=axis_label(values, 0))
    panel.set_facecolor(MISSING)
    for spine in panel.spines.values():
        spine.set_visible(False)
    if bare or pixels:
        panel.set(xticks=[], yticks=[], xlabel="", ylabel="")
    return drawn
