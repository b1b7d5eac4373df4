"""Figures of what goes beyond ranks: joint coverage, scores against a baseline, spread, places.

As in :mod:`vfm_inverse.report.rank_plots`, blue is within bounds and vermilion is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from vfm_inverse.report.canvas import (
    BLACK,
    BLUE,
    GREY,
    PALE,
    VERMILION,
    new_figure,
    styled,
    units_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SCORE_NAMES", "local_map", "p_text", "skill_scores", "spread_skill", "tarp_curve"]

SCORE_NAMES = {
    "crps": "CRPS",
    "crps_plain": "CRPS (plain)",
    "energy": "energy score",
    "energy_plain": "energy score (plain)",
    "variogram": "variogram score",
    "log_score": "log score",
}
"""What the scores are called on the page."""

KINDS = {"fixed": "#009E73", "random": "#E69F00", "data": "#CC79A7"}
"""Colours of the kinds of reference points."""


@styled
def tarp_curve(report: xr.Dataset) -> Figure:
    """Joint coverage of the whole field (TARP) against the credibility that is stated.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws`` with the joint test.

    Raises:
        ValueError: it has no joint test.
    """
    if "tarp_coverage" not in report:
        raise ValueError("'report' must have 'tarp_coverage'; it was made without the joint test")
    position = np.concatenate([[0.0], report.position, [1.0]])

    def whole(values: xr.DataArray) -> np.ndarray:
        return np.concatenate([[0.0], values, [1.0]])

    failed = float(report.tarp_p_adjusted) <= report.attrs["alpha"]
    color = VERMILION if failed else BLUE
    figure, (curve, zoom) = new_figure((7.8, 3.2), 1, 2)
    low, high, mean = (whole(report[f"tarp_{name}"]) for name in ("lower", "upper", "coverage"))
    for axes, base in ((curve, 0.0), (zoom, position)):
        axes.plot(position, position - base, color=GREY, lw=0.8)
        seen = set()
        for one in report.tarp_set_coverage if "tarp_set_coverage" in report else ():
            kind = str(one.tarp_kind.item())
            label = "" if kind in seen else f"references: {kind}"
            seen.add(kind)
            axes.plot(
                position,
                whole(one) - base,
                color=KINDS.get(kind, GREY),
                lw=0.7,
                alpha=0.8,
                label=label,
            )
        axes.fill_between(
            position,
            low - base,
            high - base,
            color=color,
            alpha=0.18,
            lw=0,
            label="95 % bootstrap band",
        )
        axes.plot(position, mean - base, color=color, lw=1.8, label="mean of all sets")
        axes.set(xlim=(0, 1), xlabel="stated credibility")
    curve.set(ylim=(0, 1), aspect="equal", ylabel="share of truths inside")
    zoom.set_ylabel("share minus stated")
    zoom.set_title(f"p = {p_text(float(report.tarp_p_adjusted))} after correction", color=color)
    zoom.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def skill_scores(report: xr.Dataset) -> Figure:
    """Scores as skill against the baseline, with two standard errors: above zero is better.
    Squares are against the map before its training, where the report has that.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws`` with a baseline.

    Raises:
        ValueError: no score has a baseline.
    """
    shown = [] if "skill" not in report else report.score.values[np.isfinite(report.skill)]
    # The plain scores say the same again.
    ratios = [n for n in shown if n != "log_score" and not str(n).endswith("_plain")]
    if not len(shown):
        raise ValueError("'report' must have 'skill'; it was made without a baseline")
    panels = [(ratios, 100.0, "skill: 1 - score / baseline [%]")] if ratios else []
    if "log_score" in shown:
        panels.append((["log_score"], 1.0, "gain over the baseline [nat]"))
    height = 0.9 + 0.38 * max(len(names) for names, *_ in panels)
    figure, axes = new_figure((8.2 if len(panels) > 1 else 6.4, height), 1, len(panels))
    for panel, (names, factor, label) in zip(axes, panels, strict=True):
        for row, name in enumerate(names):
            skill = factor * float(report.skill.sel(score=name))
            error = 2 * factor * float(report.skill_error.sel(score=name))
            color = BLUE if skill > error else VERMILION if skill < -error else GREY
            panel.barh(row, skill, height=0.55, color=color, alpha=0.25, lw=0)
            panel.errorbar(skill, row, xerr=error, fmt="o", color=color, ms=5, lw=1.4, capsize=3)
            unit = " %" if factor > 1 else ""
            panel.annotate(
                f"{skill:+.1f}{unit}" if factor > 1 else f"{skill:+.2f}",
                (max(skill + error, 0.0), row),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=color,
            )
            if "untrained_skill" not in report or factor == 1.0:
                continue
            gain = factor * float(report.untrained_skill.sel(score=name))
            error = 2 * factor * float(report.untrained_skill_error.sel(score=name))
            color = BLUE if gain > error else VERMILION if gain < -error else GREY
            label_it = "" if row else "against the untrained map"
            panel.errorbar(
                gain, row + 0.36, xerr=error, fmt="s", color=color, ms=4, lw=1.2, label=label_it
            )
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))
        panel.axvline(0, color=GREY, lw=0.8)
        panel.set_yticks(range(len(names)), [SCORE_NAMES.get(str(n), str(n)) for n in names])
        panel.set(ylim=(len(names) - 0.5, -0.5), xlabel=label)
        low, high = panel.get_xlim()
        panel.set_xlim(low, high + 0.22 * (high - low))
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(True, axis="x")
    return figure


@styled
def spread_skill(report: xr.Dataset) -> Figure:
    """Root-mean-square error of each element of the field against the spread that is stated.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws``.
    """
    spread, error = (report[f"{name}_map"].values.ravel() for name in ("spread", "skill"))
    figure, (axes,) = new_figure((6.6, 3.6))
    top = 1.05 * float(max(spread.max(), error.max())) or 1.0
    noise = 3 / np.sqrt(2 * report.attrs["num_simulations"])
    line = np.array([0.0, top])
    axes.fill_between(
        line,
        line * (1 - noise),
        line * (1 + noise),
        color=PALE,
        lw=0,
        label="3 standard deviations of noise",
    )
    axes.plot(line, line, color=GREY, lw=0.8)
    inside = np.abs(error / np.where(spread > 0, spread, np.nan) - 1) <= noise
    inside |= (spread == 0) & (error == 0)  # what never varies is stated without error
    size = 22 if spread.size <= 64 else 6
    for which, color, label in ((inside, BLUE, "within"), (~inside, VERMILION, "outside")):
        if which.any():
            alpha = min(0.9, 0.25 + 30 / which.sum())
            axes.scatter(spread[which], error[which], size, color=color, alpha=alpha, lw=0)
            axes.scatter([], [], 18, color=color, label=f"{label} ({which.sum()} of {which.size})")
    total = np.sqrt((error**2).mean())
    axes.plot(
        np.sqrt((spread**2).mean()),
        total,
        "P",
        ms=9,
        mfc=BLACK,
        mec="white",
        ls="none",
        label="whole field",
    )
    units = units_of(report.spread_map)
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal", anchor="W")
    axes.set(
        xlabel=f"spread: stated standard deviation{units}", ylabel=f"RMS error of the mean{units}"
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def local_map(report: xr.Dataset) -> Figure:
    """Where among the observations the posterior fails: the local test at every simulation.

    Args:
        report: from ``calibration.calibrate`` with the local test.

    Raises:
        ValueError: it has no local test.
    """
    if "local_observation" not in report:
        raise ValueError("'report' must have 'local_observation'; it has no local test")
    figure, (where, share) = new_figure((8.2, 3.4), 1, 2)
    points, p_value = report.local_observation.values, report.local_p_value.values
    small = p_value <= report.attrs["alpha"]
    for which, color, label in (
        (~small, BLUE, "indistinguishable"),
        (small, VERMILION, f"p below {report.attrs['alpha']:g}"),
    ):
        if which.any():
            where.scatter(*points[which].T, 9, color=color, alpha=0.55, lw=0)
            where.scatter([], [], 18, color=color, label=f"{label} ({which.sum()})")
    where.set(xlabel="observation, first principal coordinate", ylabel="second")
    where.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    count, edges = np.histogram(p_value, bins=20, range=(0, 1))
    share.axhline(len(p_value) / 20, color=GREY, lw=0.8, label="uniform")
    share.stairs(count, edges, fill=True, color=BLUE, alpha=0.2)
    share.stairs(count, edges, color=BLUE, lw=1.1)
    if count[0] > len(p_value) / 20 + 3 * np.sqrt(len(p_value) / 20):
        share.stairs(count[:1], edges[:2], fill=True, color=VERMILION, alpha=0.3)
    share.set(xlim=(0, 1), xlabel="local p-value", ylabel="simulations")
    share.legend(loc="upper right")
    return figure


def p_text(value: float) -> str:
    """A p-value in two digits."""
    return f"{value:.2g}" if value > 1e-99 else "< 1e-99"
