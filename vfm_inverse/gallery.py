"""Pictures of posterior draws: galleries of fields, scatters of vectors.

Draws, truths and observations are tensors, numpy arrays or ``DataArray`` with their leading
dimensions first; a ``DataArray`` also gives axes and units. Every function returns a
``matplotlib.figure.Figure``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from vfm_inverse.canvas import (
    BLACK,
    BLUE,
    ORANGE,
    VERMILION,
    axis_label,
    coordinate,
    image,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["posterior_gallery", "posterior_scatter"]

Array = np.ndarray | Tensor | xr.DataArray


@styled
def posterior_gallery(
    draws: Array,
    truth: Array | None = None,
    observation: Array | None = None,
    *,
    num_draws: int = 4,
    max_rows: int = 4,
    cmap: str = "viridis",
    units: str | None = None,
) -> Figure:
    """Truth, observation, posterior mean, standard deviation and draws; a row an observation, or
    a channel of it.

    Args:
        draws: ``(num_draws, batch, *event)``; a ``DataArray`` also gives axes and units.
        truth: ``(batch, *event)``.
        observation: ``(batch, *observation)``; NaN is shown as not observed.
        num_draws: Number of draws shown.
        max_rows: Largest number of observations shown.
        cmap: Colour map of the field (``"gray"`` for photographs).
        units: Units of the field, those of a ``DataArray`` when missing.

    Raises:
        ValueError: ``draws`` has no batch of fields.
    """
    sample = _field(draws, lead=("draw", "observation"), name="draws")
    units = sample.attrs.get("units") if units is None else units
    sample = sample.isel(observation=slice(max_rows))
    rows = sample.sizes["observation"]
    mean, std = sample.mean("draw"), sample.std("draw", ddof=1)
    x = None if truth is None else _aligned(_field(truth, ("observation",), "truth"), mean)
    y = None
    if observation is not None:
        y = _aligned(_field(observation, ("observation",), "observation"), mean)
    if sample.ndim == 3:
        return _curves(sample, x, y, mean, units, num_draws)
    shown = [("truth", x), ("observation", y), ("posterior mean", mean), ("posterior std", std)]
    shown += [(f"draw {i + 1}", sample.isel(draw=i)) for i in range(min(num_draws, len(sample)))]
    columns = [(title, value) for title, value in shown if value is not None]
    height, width = mean.shape[-2:]
    size = (1.3 * len(columns) + 1.3, (0.08 + min(3.0, 1.3 * height / width)) * rows + 0.3)
    figure, axes = new_figure(size, rows, len(columns))
    field = x if x is not None else mean
    low, high = np.nanquantile(field[:rows], [0.002, 0.998]).tolist()
    of_field = {"cmap": cmap, "vmin": low, "vmax": high}
    of_std = {"cmap": "magma", "vmin": 0.0, "vmax": float(std.quantile(0.998))}
    grid = axes.reshape(rows, len(columns))
    images: dict[str, Any] = {}
    for row in range(rows):
        for panel, (title, value) in zip(grid[row], columns, strict=True):
            one = value.isel(observation=row)
            if row == 0:
                panel.set_title(title, fontsize=9, loc="center")
            if one.ndim != 2:
                panel.plot(one.values.ravel(), ".", ms=3, color=BLUE)
                panel.tick_params(labelsize=6)
                continue
            own = {"cmap": cmap} if one.shape != mean.shape[1:] else of_field
            style = of_std if title == "posterior std" else own
            images[title] = image(panel, one, bare=True, **style)
    label = f" [{units}]" if units and units != "1" else ""
    for title, name in (("posterior std", "std"), ("posterior mean", "field")):
        bar = figure.colorbar(images[title], ax=grid, fraction=0.03, pad=0.01, aspect=12 * rows)
        bar.set_label(f"{name}{label}")
    return figure


def _curves(
    sample: xr.DataArray,
    truth: xr.DataArray | None,
    observation: xr.DataArray | None,
    mean: xr.DataArray,
    units: str | None,
    num_draws: int,
) -> Figure:
    """The gallery of one-dimensional fields: a panel an observation, with bands and draws."""
    rows = sample.sizes["observation"]
    figure, axes = new_figure((7.2, 1.7 * rows + 0.5), rows, 1, sharex=True)
    where = coordinate(mean, 1)
    label = f" [{units}]" if units and units != "1" else ""
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
        if observation is not None and observation.shape[1:] == mean.shape[1:]:
            panel.plot(where, observation[row], ".", ms=4, color=VERMILION, label="observation")
        panel.set_ylabel(f"field{label}")
    axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel(axis_label(mean, 1))
    return figure


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
        reference: Draws of the exact posterior, ``(num_reference, batch, d)``, shown behind.
        components: The two components.
        max_panels: Largest number of observations shown.
        units: Units of the vector, those of a ``DataArray`` when missing.
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
    value = value[: len(field)]
    return field.copy(data=value.values) if value.shape == field.shape else value


def _field(value: Array, lead: tuple[str, ...], name: str) -> xr.DataArray:
    """Array with leading dimensions called ``lead``; a tensor's single channel is dropped."""
    if isinstance(value, xr.DataArray):
        names = dict(zip(value.dims, lead, strict=False))
        return _split(value.rename({old: new for old, new in names.items() if old != new}))
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim <= len(lead):
        raise ValueError(f"'{name}' must be ({', '.join(lead)}, *field); got shape {array.shape}")
    if array.ndim > len(lead) + 1 and array.shape[len(lead)] == 1:
        array = array.squeeze(len(lead))
    axes = {1: ("index",), 2: ("row", "column")}.get(array.ndim - len(lead))
    if axes is None:
        axes = tuple(f"axis_{i}" for i in range(array.ndim - len(lead)))
    return _split(xr.DataArray(array, dims=(*lead, *axes)))


def _split(value: xr.DataArray) -> xr.DataArray:
    """Fields with their channels, if they have any, as observations of their own."""
    lead = value.dims[: value.dims.index("observation")]
    if value.ndim != len(lead) + 4:
        return value
    both = ("observation", value.dims[len(lead) + 1])
    plain = value.drop_vars([name for name in value.coords if {*both} & {*value[name].dims}])
    split = plain.stack(panel=both, create_index=False).transpose(*lead, "panel", ...)
    return split.rename(panel="observation")
