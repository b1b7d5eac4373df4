"""Figures of calibration reports and training runs.

Every function returns a ``matplotlib.figure.Figure`` and leaves pyplot, its state and its backend
alone. Blue is within bounds, vermilion is not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from vfm_inverse.report.canvas import (
    BLACK,
    BLUE,
    DASHES,
    GREY,
    PALE,
    VERMILION,
    axis_label,
    coordinate,
    image,
    new_figure,
    plane,
    styled,
    units_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "calibration_maps",
    "coverage_curve",
    "rank_ecdf",
    "rank_histogram",
    "training_history",
]


@styled
def rank_ecdf(report: xr.Dataset) -> Figure:
    """ECDF of the ranks minus the uniform one, for every quantity, with the simultaneous band.

    A curve that leaves the band anywhere fails the verdict. A hill means draws that sit too high,
    a valley too low; first up, then down means draws too narrow, the reverse too wide.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws``.
    """
    figure, (axes,) = new_figure((6.4, 3.6))
    position = np.concatenate([[0.0], report.position, [1.0]])
    lower, upper = (np.pad(report[f"ecdf_{side}"], 1) for side in ("lower", "upper"))
    axes.fill_between(position, lower, upper, color=PALE, lw=0, label="band of the verdict")
    axes.axhline(0, color=GREY, lw=0.8)
    failing = _failing(report)
    for name in report.quantity.values:
        if name not in failing:
            curve = np.pad(report.ecdf_difference.sel(quantity=name), 1)
            axes.plot(position, curve, color=BLUE, lw=0.8, alpha=0.8)
    for name, style in _styles(failing):
        curve = np.pad(report.ecdf_difference.sel(quantity=name), 1)
        axes.plot(position, curve, color=VERMILION, **style)
    passing = report.sizes["quantity"] - len(failing)
    if passing:
        axes.plot([], [], color=BLUE, lw=0.8, label=f"inside the band ({passing})")
    if len(failing) > len(DASHES):
        label = f"{len(failing) - len(DASHES)} more outside"
        axes.plot([], [], color=VERMILION, lw=0.7, alpha=0.6, label=label)
    axes.set(xlim=(0, 1), xlabel="fractional rank of the truth", ylabel="ECDF minus uniform")
    axes.set_title(f"{len(failing)} of {report.sizes['quantity']} quantities leave the band")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def rank_histogram(report: xr.Dataset, max_panels: int | None = None) -> Figure:
    """Histograms of the ranks, relative to uniform; the quantities that fit worst come first.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws``.
        max_panels: largest number of quantities shown; all that fail, and no fewer than 12, unless
            given.
    """
    shown = max(12, len(_failing(report))) if max_panels is None else max_panels
    worst = np.lexsort((-report.chi2_per_dof.values, report.p_adjusted.values))[:shown]
    columns = _columns(len(worst))
    rows = -(-len(worst) // columns)
    figure, axes = new_figure((1.9 * columns + 0.6, 1.4 * rows + 0.6), rows, columns)
    num, bins = report.attrs["num_simulations"], report.sizes["bin"]
    ranks = np.arange(report.attrs["num_draws"] + 1)
    share = np.bincount(ranks * bins // len(ranks)) / len(ranks)
    band = stats.binom.ppf([[0.005], [0.995]], num, share) / (num * share)
    edges = np.concatenate([[0.0], share.cumsum()])
    failing = _failing(report)
    for panel, index in zip(axes, worst, strict=False):
        one = report.isel(quantity=index)
        name = one.quantity.item()
        color = VERMILION if name in failing else BLUE
        low, high = np.pad(band, ((0, 0), (0, 1)), "edge")
        panel.fill_between(edges, low, high, step="post", color=PALE, lw=0)
        panel.axhline(1, color=GREY, lw=0.8)
        height = one.histogram / (num * share)
        panel.stairs(height, edges, fill=True, color=color, alpha=0.2)
        panel.stairs(height, edges, color=color, lw=1.1)
        panel.set_title(name, fontsize=8, color=color)
        panel.set(xlim=(0, 1), ylim=(0, None), xticks=[0, 0.5, 1])
    for panel in axes[len(worst) :]:
        panel.remove()
    figure.supxlabel("fractional rank of the truth", fontsize=9)
    figure.supylabel("frequency / uniform", fontsize=9)
    return figure


@styled
def coverage_curve(report: xr.Dataset) -> Figure:
    """How often intervals hold the truth, against how often they say so; then the difference, for
    central intervals and, where the report has them, for highest-density regions.

    Below the diagonal the draws are too narrow or misplaced, above it too wide.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws``.
    """
    kinds = [("coverage", "central intervals")]
    if "hpd_coverage" in report:
        kinds.append(("hpd_coverage", "highest-density regions"))
    figure, panels = new_figure((4.2 + 3.3 * len(kinds), 3.2), 1, 1 + len(kinds))
    level = report.level.values
    noise = 1.96 * np.sqrt(level * (1 - level) / report.attrs["num_simulations"])
    failing = _failing(report)
    drawn = [(panels[0], kinds[0][0], 0.0)]
    drawn += [(axes, kind, level) for axes, (kind, _) in zip(panels[1:], kinds, strict=True)]
    for axes, kind, base in drawn:
        stated = level - base
        axes.fill_between(
            level, stated - noise, stated + noise, color=PALE, lw=0, label="95 % noise"
        )
        axes.plot(level, stated, color=GREY, lw=0.8)
        for name in report.quantity.values:
            if name not in failing:
                share = report[kind].sel(quantity=name)
                axes.plot(level, share - base, color=BLUE, lw=0.8, alpha=0.6)
        if len(failing) < report.sizes["quantity"]:
            axes.plot([], [], color=BLUE, lw=0.8, label="quantities that pass")
        for name, style in _styles(failing):
            share = report[kind].sel(quantity=name)
            axes.plot(level, share - base, color=VERMILION, **style)
        everywhere = report[f"{kind}_map"]
        everywhere = everywhere.mean([dim for dim in everywhere.dims if dim != "level"])
        axes.plot(
            level, everywhere - base, color=BLACK, lw=1.6, ls=(0, (4, 2)), label="field, mean"
        )
        axes.set(xlim=(0, 1), xlabel="stated probability")
    panels[0].set(ylim=(0, 1), aspect="equal", ylabel="share of truths inside")
    panels[1].set_ylabel("share minus stated")
    for axes, (_, title) in zip((panels[0], *panels[2:]), kinds, strict=True):
        axes.set_title(title)
    limits = [axes.get_ylim() for axes in panels[1:]]
    for axes in panels[1:]:  # side by side, so on one scale
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def calibration_maps(report: xr.Dataset, level: float = 0.9) -> Figure:
    """Where in the field: coverage, spread over error, rank misfit, CRPS; with highest-density
    coverage and bias where the report has the former.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws``, of a field with at most two
            dimensions (more: the first are fixed at their first index).
        level: one of the report's levels.
    """
    maps = _maps(report, level)
    planes = [plane(one.values) for one in maps]
    columns, rows = len(maps) // 2, 2
    if planes[0].ndim == 1:
        figure, axes = new_figure((3.8 * columns, 3.8), 2, columns, sharex=True)
    else:
        height, width = planes[0].shape
        if len(maps) == 4:
            columns, rows = 4, 1
        side = min(6.0, 7.6 / columns * height / width)
        figure, axes = new_figure((10.6, rows * (0.75 + side)), rows, columns)
    for place, (panel, values, one) in enumerate(zip(axes, planes, maps, strict=True)):
        panel.set_title(one.title, fontsize=9)
        if values.ndim == 1:
            _draw_line(panel, values, one)
            panel.set_xlabel(axis_label(values, 0) if place >= columns else "")
            continue
        drawn = image(panel, values, cmap=one.cmap, **_limits(values, one))
        figure.colorbar(drawn, cax=panel.inset_axes((1.03, 0.0, 0.05, 1.0)))
        if place % columns:
            panel.set(ylabel="", yticklabels=[])
        if place < len(maps) - columns:
            panel.set(xlabel="", xticklabels=[])
    return figure


class _Map(NamedTuple):
    """A figure of each element of the field."""

    values: xr.DataArray
    title: str
    centre: float | None
    """What a calibrated posterior has, if there is such a number."""
    noise: float
    """How far from it noise reaches, three standard errors."""
    cmap: str


def _maps(report: xr.Dataset, level: float) -> list[_Map]:
    """The maps that a report has, in the order of the panels."""
    num = report.attrs["num_simulations"]
    share = 3 * np.sqrt(level * (1 - level) / num)
    misfit = 1 + 3 * np.sqrt(2 / max(1, report.attrs["num_bins"] - 1))
    coverage = report.coverage_map.sel(level=level, method="nearest")
    error = report.skill_map.where(report.skill_map > 0)
    percent, crps = f"{100 * level:.0f} %", f"CRPS{units_of(report.crps_map)}"
    maps = [
        _Map(coverage, f"coverage at {percent}", level, share, "PuOr"),
        _Map(report.spread_map / error, "spread / error", 1.0, 3 / np.sqrt(2 * num), "PuOr"),
        _Map(report.chi2_per_dof_map, "rank chi2 / dof", 1.0, misfit - 1, "viridis"),
        _Map(report.crps_map, crps, None, 0.0, "viridis"),
    ]
    if "hpd_coverage_map" in report:
        dense = report.hpd_coverage_map.sel(level=level, method="nearest")
        bias = report.bias_map / error
        maps.insert(1, _Map(dense, f"density coverage at {percent}", level, share, "PuOr"))
        maps.insert(3, _Map(bias, "bias / error", 0.0, 3 / np.sqrt(num), "PuOr"))
    return maps


def _draw_line(panel: Axes, values: xr.DataArray, one: _Map) -> None:
    """A map of a field of one dimension, vermilion where it is out of bounds."""
    style = "o" if values.size <= 32 else "-"
    where = coordinate(values, 0)
    if one.centre is not None:
        panel.axhspan(one.centre - one.noise, one.centre + one.noise, color=PALE, lw=0)
        panel.axhline(one.centre, color=GREY, lw=0.8)
    panel.plot(where, values, style, color=BLUE, ms=4, lw=1.2)
    if one.centre is not None:
        outside = values.where(np.abs(values - one.centre) > one.noise)
        panel.plot(where, outside, style, color=VERMILION, ms=4, lw=1.2)
    panel.margins(y=0.12)
    panel.locator_params(axis="x", integer=style == "o")


def _limits(values: xr.DataArray, one: _Map) -> dict[str, Any]:
    """Ends of the colours of a plane: alike on both sides of what a calibrated posterior has."""
    if one.cmap != "PuOr" or one.centre is None:
        return {}
    # A field that never varies has no ratios at all.
    away = float(np.nan_to_num(np.abs(values - one.centre)).max())
    reach = max(2 * one.noise, away)
    if "coverage" in one.title and one.centre + reach > 1:  # white stays at the stated share
        from matplotlib.colors import TwoSlopeNorm

        return {"norm": TwoSlopeNorm(one.centre, one.centre - reach, 1.0)}
    return {"vmin": one.centre - reach, "vmax": one.centre + reach}


TITLES = {"validation": "held-out energy score", "learning_rate": "learning rate"}
"""Names of the columns of a log that are not plain words."""


@styled
def training_history(history: str | Path | Iterable[Mapping[str, Any]]) -> Figure:
    """Loss terms and health figures of a training run, a panel each, with a running median; first
    the score on held-out simulations, ``validation``, with that of the start as a line.

    Args:
        history: path of a ``log.csv``, or the rows that ``fit`` returns, with a column ``step``.

    Raises:
        ValueError: no rows, or no column ``step``.
    """
    if isinstance(history, str | Path):
        with open(history, newline="") as file:
            rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
    else:
        rows = list(history)
    if not rows or "step" not in rows[0]:
        raise ValueError("'history' must hold rows with a column 'step'; got none")
    names = dict.fromkeys(name for row in rows for name in row)
    # How long it took is no panel, and the score decides: it comes first.
    shown = [name for name in names if name not in ("step", "seconds", "validation")]
    shown = ["validation"] * ("validation" in names) + shown
    step = np.array([_number(row.get("step")) for row in rows])
    table = {name: np.array([_number(row.get(name)) for row in rows]) for name in shown}
    columns = _columns(len(table))
    height = -(-len(table) // columns)
    size = (2.0 * columns + 0.4, 1.5 * height + 0.4)
    figure, axes = new_figure(size, height, columns, sharex=True)
    for panel, (name, column) in zip(axes, table.items(), strict=False):
        known = ~np.isnan(column)
        at, values = step[known], column[known]
        if name == "validation":
            if len(values) and at[0] == 0:
                panel.axhline(values[0], color=GREY, lw=1.0, ls=(0, (4, 2)), label="start")
                panel.legend(loc="best")
            panel.plot(at, values, color=BLUE, lw=1.5, marker="o", ms=2.5)
        else:
            window = max(1, len(at) // 20)
            around = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
            smooth = np.array([np.median(part) for part in around])
            panel.plot(at, values, color=BLUE, lw=0.7, alpha=0.35)
            panel.plot(at, smooth, color=BLUE, lw=1.5)
        positive = len(values) > 0 and np.isfinite(values).all() and values.min() > 0
        if positive and name != "learning_rate" and values.max() > 100 * values.min():
            panel.set_yscale("log")
            panel.tick_params(axis="y", which="minor", labelleft=False)
        panel.set_title(TITLES.get(name, name), fontsize=9)
        panel.grid(True)
    for panel in axes[len(table) :]:
        panel.remove()
    figure.supxlabel("step", fontsize=9)
    return figure


def _number(value: Any) -> float:
    """A logged value; NaN where a row has none."""
    return math.nan if value is None or value == "" else float(value)


def _columns(number: int) -> int:
    """Panels a row, with few places left empty in the last one."""
    return number if number <= 4 else min((4, 3, 5), key=lambda columns: -number % columns)


def _styles(failing: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of the quantities that fail, worst first: dashes and a name for the worst."""
    for i, name in enumerate(failing):
        if i < len(DASHES):
            yield name, {"ls": DASHES[i], "lw": 1.5, "label": name}
        else:
            yield name, {"lw": 0.7, "alpha": 0.6}


def _failing(report: xr.Dataset) -> list[str]:
    """Names of the quantities that fail, worst first."""
    order = np.lexsort((-report.chi2_per_dof.values, report.p_adjusted.values))
    bad = report.p_adjusted.values[order] <= report.attrs["alpha"]
    return report.quantity.values[order][bad].tolist()
