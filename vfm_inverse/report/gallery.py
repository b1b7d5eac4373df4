"""Pictures of posterior draws: galleries of fields, scatters of vectors.

Draws, truths and observations are tensors, numpy arrays or ``DataArray`` with their leading
dimensions first; a ``DataArray`` also gives axes and units. Every function returns a
``matplotlib.figure.Figure``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor

from vfm_inverse.report.canvas import (
    BLACK,
    BLUE,
    ORANGE,
    PALE,
    axis_label,
    bar_label,
    colours,
    coordinate,
    image,
    new_figure,
    styled,
    units_of,
    upright,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["posterior_gallery", "posterior_scatter"]

Array = np.ndarray | Tensor | xr.DataArray


@styled
def posterior_gallery(
    draws: Array,
    truth: Array | None = None,
    observation: Array | None = None,
    *,
    places: Array | None = None,
    num_draws: int = 4,
    max_rows: int = 4,
    cmap: str | None = None,
    units: str | None = None,
) -> Figure:
    """Truth, observation, posterior mean, standard deviation and draws; a row an observation, or
    a channel of it.

    Latitudes and other coordinates run upwards, rows of pixels and depths downwards. Three
    channels called ``rgb``, ``colour`` or ``color``, or with coordinates red, green, blue, make a
    picture in colour, and so do those of a tensor with truths in [0, 1]. Where the observation has
    another scale than the field it has a bar of its own.

    Args:
        draws: ``(num_draws, batch, *event)``; a ``DataArray`` also gives axes, units and long
            name.
        truth: ``(batch, *event)``.
        observation: ``(batch, *observation)``; NaN is shown as not observed.
        places: of the data of an observation that is a table ``(batch, m)``: ``(batch, m, k)`` or
            ``(m, k)`` in the coordinates of the field's k last axes (indices where it has none);
            NaN for no station. The data are then dots on the map.
        num_draws: number of draws shown.
        max_rows: largest number of observations shown.
        cmap: colour map of the field (``"gray"`` for photographs); chosen for the field unless
            given, diverging about 0 for anomalies.
        units: units of the field, those of a ``DataArray`` when missing.

    Raises:
        ValueError: ``draws`` has no batch of fields, or ``places`` does not fit.
    """
    sample = _field(draws, lead=("draw", "observation"), name="draws")
    units = sample.attrs.get("units", "1") if units is None else units
    sample = _colour(sample, None if truth is None else _field(truth, ("observation",), "truth"))
    sample = _split(sample).isel(observation=slice(max_rows))
    rows = sample.sizes["observation"]
    mean, std = sample.mean("draw", keep_attrs=True), sample.std("draw", ddof=1)
    x, y = (
        None if value is None else _aligned(_field(value, ("observation",), name), mean)
        for value, name in ((truth, "truth"), (observation, "observation"))
    )
    where = None if places is None else _places(places, y, len(mean.dims) - 1)
    if sample.ndim == 3:
        return _curves(sample, x, y, mean, where, units, num_draws)
    if "rgb" in std.dims:
        std = (std**2).mean("rgb") ** 0.5
    shown = [("truth", x), ("observation", y), ("posterior mean", mean), ("posterior std", std)]
    shown += [(f"draw {i + 1}", sample.isel(draw=i)) for i in range(min(num_draws, len(sample)))]
    columns = {title: value for title, value in shown if value is not None}
    scales = _scales(sample, mean if x is None else x, y, std, cmap, units)
    bars = _bars(sample, y, units, own=scales.own)
    if "observation" in bars and where is None and y is not None and y.ndim != 3:
        del bars["observation"]
    height, width = upright(std.isel(observation=0)).shape
    wide = 1.3 * len(columns) + 0.7 * len(bars) + 0.4
    figure, axes = new_figure(
        (wide, (0.12 + min(3.0, 1.3 * height / width)) * rows + 0.6), rows, len(columns)
    )
    grid = axes.reshape(rows, len(columns))
    images = _fill(grid, columns, scales, where)
    for title, label in bars.items():
        bar = figure.colorbar(images[title], ax=grid, fraction=0.03, pad=0.01, aspect=12 * rows)
        bar.set_label(label)
        bar.ax.tick_params(labelsize=7)
    return figure


def _fill(
    grid: np.ndarray[Any, np.dtype[np.object_]],
    columns: Mapping[str, xr.DataArray],
    scales: _Scales,
    places: np.ndarray | None,
) -> dict[str, Any]:
    """Draw every column into the panels ``(rows, columns)``; an image of each, for its bar."""
    images: dict[str, Any] = {}
    plane, last = columns["posterior std"].isel(observation=0), len(grid) - 1
    for row, panels in enumerate(grid):
        for place, (panel, (title, value)) in enumerate(zip(panels, columns.items(), strict=True)):
            one, style = value.isel(observation=row), scales.of(title)
            if row == 0:
                panel.set_title(title, fontsize=9, loc="center")
            if title == "observation" and places is not None:
                images[title] = _dots(panel, one, places[row], plane, style)
            elif one.ndim == 2 or "rgb" in one.dims:
                images[title] = image(panel, one, **style)
            else:
                _plain_data(panel, one, title if row == 0 else None)
                continue
            _thin_ticks(panel, left=place == 0, bottom=row == last)
    return images


class _Scales(NamedTuple):
    """Colours of the columns of a gallery, as arguments of an image."""

    field: dict[str, Any]
    observation: dict[str, Any]
    std: dict[str, Any]
    own: bool
    """Whether the observation has a scale of its own."""

    def of(self, title: str) -> dict[str, Any]:
        """Those of a column."""
        others = {"posterior std": self.std, "observation": self.observation}
        return others.get(title, self.field)


def _scales(
    sample: xr.DataArray,
    field: xr.DataArray,
    observation: xr.DataArray | None,
    std: xr.DataArray,
    cmap: str | None,
    units: str,
) -> _Scales:
    of_field = colours(field.assign_attrs(sample.attrs), cmap)
    of_std = {"cmap": "magma", "vmin": 0.0, "vmax": float(std.quantile(0.998))}
    if observation is None:
        return _Scales(of_field, of_field, of_std, own=True)
    if "rgb" not in sample.dims and _same_scale(observation, of_field, units):
        return _Scales(of_field, of_field, of_std, own=False)
    return _Scales(of_field, colours(observation), of_std, own=True)


def _dots(
    panel: Axes, data: xr.DataArray, places: np.ndarray, plane: xr.DataArray, style: dict[str, Any]
) -> Any:
    """Data of stations at their places ``(m, 2)`` on the map of a field."""
    turned = upright(plane)
    image(panel, turned, alpha=0.0)
    limits = panel.get_xlim(), panel.get_ylim()
    across, up = places.T if turned.dims != plane.dims else places.T[::-1]
    dots = panel.scatter(across, up, c=data, s=14, edgecolors=BLACK, linewidths=0.4, **style)
    panel.set(xlim=limits[0], ylim=limits[1], facecolor=PALE)
    return dots


def _plain_data(panel: Axes, data: xr.DataArray, title: str | None) -> None:
    """Data that are no picture, one after the other."""
    panel.plot(data.values.ravel(), ".", ms=3, color=BLUE)
    panel.tick_params(labelsize=6)
    if title is not None:
        panel.set_title(f"{title}{units_of(data)}", fontsize=9, loc="center")


def _curves(
    sample: xr.DataArray,
    truth: xr.DataArray | None,
    observation: xr.DataArray | None,
    mean: xr.DataArray,
    places: np.ndarray | None,
    units: str,
    num_draws: int,
) -> Figure:
    """The gallery of one-dimensional fields: a panel an observation, with bands and draws."""
    rows = sample.sizes["observation"]
    figure, axes = new_figure((7.2, 1.7 * rows + 0.5), rows, 1, sharex=True)
    where = coordinate(mean, 1)
    label = bar_label(sample, "field", units)
    if observation is not None and observation.shape[1:] != mean.shape[1:]:
        low, high = sample.quantile([0.002, 0.998])
        alike = _same_scale(observation, {"vmin": float(low), "vmax": float(high)}, units)
        observation = observation if alike and places is not None else None
    for row, panel in enumerate(axes):
        one = sample.isel(observation=row)
        for probability, alpha in ((0.9, 0.18), (0.5, 0.3)):
            tails = one.quantile([0.5 - probability / 2, 0.5 + probability / 2], "draw")
            name = f"{100 * probability:.0f} % interval"
            panel.fill_between(where, *tails.values, color=BLUE, alpha=alpha, lw=0, label=name)
        for i in range(min(num_draws, len(one))):
            name = "" if i else "draws"
            panel.plot(where, one[i], color=BLUE, lw=0.6, alpha=0.7, label=name)
        panel.plot(where, mean[row], color=BLUE, lw=1.6, label="mean")
        if truth is not None:
            panel.plot(where, truth[row], color=BLACK, lw=1.4, label="truth")
        if observation is not None:
            at = where if places is None else places[row][:, 0]
            panel.plot(at, observation[row], ".", ms=4, color=ORANGE, label="observation")
        panel.set_ylabel(label)
    axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel(axis_label(mean, 1))
    return figure


def _bars(
    sample: xr.DataArray, observation: xr.DataArray | None, units: str, own: bool
) -> dict[str, str]:
    """Labels of the colour bars, by the column that each belongs to."""
    bars = {"posterior std": "std" if units == "1" else f"std [{units}]"}
    if "rgb" not in sample.dims:
        bars["posterior mean"] = bar_label(sample, "field", units)
    if observation is not None and own and "rgb" not in observation.dims:
        bars["observation"] = bar_label(observation, "observation")
    return bars


def _thin_ticks(panel: Axes, left: bool, bottom: bool) -> None:
    """A few ticks, with numbers and names at the edge of the figure alone."""
    panel.tick_params(labelsize=7, length=2)
    if not panel.get_xlabel():
        return
    panel.locator_params(nbins=3)
    if not left:
        panel.set(xlabel="", ylabel="", yticklabels=[])
    if not bottom:
        panel.set(xlabel="", xticklabels=[])


@styled
def posterior_scatter(
    draws: Array,
    truth: Array | None = None,
    reference: Array | None = None,
    *,
    components: tuple[int, int] = (0, 1),
    max_panels: int = 4,
    units: str | None = None,
) -> Figure:
    """Posterior draws of two components of a vector; a panel an observation.

    Args:
        draws: ``(num_draws, batch, d)``.
        truth: ``(batch, d)``.
        reference: draws of the exact posterior, ``(num_reference, batch, d)``, shown behind.
        components: the two components.
        max_panels: largest number of observations shown.
        units: units of the vector, those of a ``DataArray`` when missing.
    """
    sample = _field(draws, lead=("draw", "observation"), name="draws")
    if sample.ndim != 3 or max(components) >= sample.shape[-1]:
        raise ValueError(
            f"'draws' must be (num_draws, batch, d) with components {components}; "
            f"got {tuple(draws.shape)}"
        )
    units = sample.attrs.get("units") if units is None else units
    label = f" [{units}]" if units and units != "1" else ""
    panels = min(sample.sizes["observation"], max_panels)
    figure, axes = new_figure((2.5 * panels + 1.2, 2.9), 1, panels, sharex=True, sharey=True)
    sets = [(sample, BLUE, "draws", 4)]
    if reference is not None:
        behind = _field(reference, lead=("draw", "observation"), name="reference")
        sets.insert(0, (behind, ORANGE, "reference", 7))
    i, j = components
    for row, panel in enumerate(axes):
        for values, color, name, size in sets:
            points = values.isel(observation=row)
            alpha = min(0.8, 40 / len(points) ** 0.7)
            panel.scatter(
                points[:, i], points[:, j], size, color=color, alpha=alpha, lw=0, rasterized=True
            )
            panel.scatter([], [], 18, color=color, label=name)
        if truth is not None:
            x = _field(truth, lead=("observation",), name="truth")[row]
            panel.plot(x[i], x[j], "P", ms=9, mfc=BLACK, mec="white", ls="none", label="truth")
        panel.set_xlabel(f"component {i}{label}")
        panel.set_title(f"observation {row + 1}", fontsize=9)
        panel.grid(True)
    axes[0].set_ylabel(f"component {j}{label}")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _aligned(value: xr.DataArray, field: xr.DataArray) -> xr.DataArray:
    """Values of a field's own shape take its axes, so that neither is upside down."""
    if "rgb" in field.dims and value.ndim == field.ndim:
        value = value[: len(field)]
        return _like(value, field) if value.shape == field.shape else value
    value = _split(value)[: len(field)]
    return _like(value, field) if value.shape == field.shape else value


def _like(value: xr.DataArray, field: xr.DataArray) -> xr.DataArray:
    """Values on the axes of a field, with their own unit and name."""
    named = field.copy(data=value.values)
    named.attrs = dict(value.attrs)
    return named


def _field(value: Array, lead: tuple[str, ...], name: str) -> xr.DataArray:
    """Array with leading dimensions called ``lead``; a tensor's single channel is dropped."""
    if isinstance(value, xr.DataArray):
        names = dict(zip(value.dims, lead, strict=False))
        return value.rename({old: new for old, new in names.items() if old != new})
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim <= len(lead):
        raise ValueError(f"'{name}' must be ({', '.join(lead)}, *field); got shape {array.shape}")
    if array.ndim > len(lead) + 1 and array.shape[len(lead)] == 1:
        array = array.squeeze(len(lead))
    axes = {1: ("index",), 2: ("row", "column")}.get(array.ndim - len(lead))
    if axes is None:
        axes = tuple(f"axis_{i}" for i in range(array.ndim - len(lead)))
    return xr.DataArray(array, dims=(*lead, *axes))


def _colour(sample: xr.DataArray, truth: xr.DataArray | None) -> xr.DataArray:
    """Fields ``(draw, observation, 3, height, width)`` in colour call their channels ``rgb``."""
    if sample.ndim != 5 or sample.shape[2] != 3:
        return sample
    dim = sample.dims[2]
    names = (
        [str(name).casefold()[:1] for name in sample[dim].values] if dim in sample.coords else []
    )
    known = str(dim).casefold() in ("rgb", "colour", "color") or names == ["r", "g", "b"]
    if str(dim) == "axis_0" and truth is not None:  # a tensor
        known = float(truth.min()) >= 0 and float(truth.max()) <= 1
    if not known:
        return sample
    plain = sample.drop_vars([name for name in sample.coords if dim in sample[name].dims])
    return plain.rename({dim: "rgb"})


def _split(value: xr.DataArray) -> xr.DataArray:
    """Fields with their channels, if they have any, as observations of their own."""
    lead = value.dims[: value.dims.index("observation")]
    if value.ndim != len(lead) + 4 or "rgb" in value.dims:
        return value
    both = ("observation", value.dims[len(lead) + 1])
    plain = value.drop_vars([name for name in value.coords if {*both} & {*value[name].dims}])
    split = plain.stack(panel=both, create_index=False).transpose(*lead, "panel", ...)
    return split.rename(panel="observation")


def _places(places: Array, observation: xr.DataArray | None, ndim: int) -> np.ndarray:
    """Places ``(batch, m, k)`` of a table."""
    where = np.asarray(places.detach().cpu() if isinstance(places, Tensor) else places)
    if observation is None or observation.ndim != 2:
        raise ValueError("'places' belong to an observation that is a table, (batch, m)")
    rows, num = observation.shape
    where = np.broadcast_to(where, (rows, *where.shape)) if where.ndim == 2 else where[:rows]
    if where.shape != (rows, num, ndim):
        raise ValueError(f"'places' must be {(rows, num, ndim)}; got {where.shape}")
    return where


def _same_scale(seen: xr.DataArray, of_field: dict[str, Any], units: str) -> bool:
    """Whether an observation can be read with the field's colours."""
    if str(seen.attrs.get("units", units)) != units or not bool(np.isfinite(seen).any()):
        return False
    low, high = np.nanquantile(seen, [0.002, 0.998]).tolist()
    reach = of_field["vmax"] - of_field["vmin"]
    inside = low > of_field["vmin"] - 0.75 * reach and high < of_field["vmax"] + 0.75 * reach
    return bool(inside and high - low > 0.25 * reach)
