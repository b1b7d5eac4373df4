"""The picture of a problem: one observation and its posterior, and the calibration beside them.

Fields show truth, observation, posterior mean, standard deviation and two draws; curves their
intervals; vectors a scatter over exact draws where there are any. On the right are the ranks
of all test quantities, with the band of the verdict, and the coverage of central intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from vfm_inverse.labelled.write import to_xarray
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.report.canvas import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PALE,
    VERMILION,
    axis_label,
    image,
    styled,
)
from vfm_inverse.runtime.randomness import seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

NUM_DRAWS = 500
RAYS = ("travel-time", "travel-time-eikonal")
PHOTOGRAPHS = ("photo-deblur", "photo-inpaint", "ct", "mri")


@styled
def picture(
    vfm: VariationalFlowMap, problem: InverseProblem, report: xr.Dataset, seed: int = 1
) -> Figure:
    """One observation, its posterior, and the calibration of the map.

    Args:
        vfm, problem: the map and what it was trained on.
        report: its calibration.
        seed: of the observation and the draws.
    """
    from matplotlib.figure import Figure

    vector = len(problem.field_shape) == 1
    x, y, params = problem.simulate(6 if vector else 3, split="test", seed=seed)
    with seeded(seed):
        draws = vfm(y, **params).sample((NUM_DRAWS,))
    data = to_xarray(draws, problem, y, params=params)
    truth = to_xarray(x[None], problem).isel(draw=0)["field"]
    ndim = data["field"].ndim - 2
    figure = Figure(figsize=(9.4, 4.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.75, 1))
    if ndim > 1:
        _fields(left, problem, data.isel(observation=0), truth.isel(observation=0))
    elif len(problem.field_shape) > 1:
        _curves(left, problem, data.isel(observation=0), truth.isel(observation=0))
    else:
        reference = problem.reference_posterior(y, **params)
        with seeded(seed):
            exact = None if reference is None else reference.sample((NUM_DRAWS,)).numpy()
        _vectors(left, data["field"], truth, exact)
    _calibration(right, report)
    return figure


# -------------------------------------------------------------------------------------------------
# Fields
# -------------------------------------------------------------------------------------------------


def _fields(figure: SubFigure, problem: InverseProblem, data: xr.Dataset, x: xr.DataArray) -> None:
    """Truth, observation and mean above two draws and the standard deviation."""
    field = data["field"]
    if "part" in field.dims:  # a complex picture is looked at by its magnitude
        field, x = (np.sqrt((part**2).sum("part")).assign_attrs(part.attrs) for part in (field, x))
    mean, std = field.mean("draw", keep_attrs=True), field.std("draw", ddof=1)
    low, high = np.quantile(np.stack([x, mean, field[0], field[1]]), [0.003, 0.997])
    cmap = "gray" if problem.name in PHOTOGRAPHS else "viridis"
    style = {"cmap": cmap, "vmin": low, "vmax": high}
    panels = figure.subplots(2, 3)
    top, below = panels
    drawn = image(top[0], x, **style)
    top[0].set_title("truth")
    _observation(top[1], problem, data, x, style)
    for panel, value, title in (
        (top[2], mean, "posterior mean"),
        (below[0], field[0], "draw 1"),
        (below[1], field[1], "draw 2"),
    ):
        image(panel, value, bare=True, **style)
        panel.set_title(title)
    _bar(top[2], drawn, problem.units)
    spread = image(below[2], std, bare=True, cmap="magma", vmin=0, vmax=float(std.max()))
    below[2].set_title("posterior std")
    _bar(below[2], spread, problem.units)
    figure.suptitle(_caption(problem), x=0.01, ha="left", fontsize=9, color="#444444")


def _observation(
    panel: Axes, problem: InverseProblem, data: xr.Dataset, x: xr.DataArray, style: dict[str, Any]
) -> None:
    """What was observed, where it was observed."""
    y, name = data["observed"], problem.name or ""
    panel.set_title("observation")
    for prefix in ("station", "point"):
        if f"{prefix}_x" in y.coords:
            return _stations(panel, y, prefix, x)
    if name in RAYS:
        return _rays(panel, y, x)
    if name == "mri":
        size = np.log10(np.sqrt((y**2).sum("part", skipna=False)).clip(min=1e-2))
        drawn = image(panel, size, cmap="gray")
        panel.set_title("k-space")
        return _bar(panel, drawn, None, "log10")
    if name == "ct":
        drawn = panel.pcolormesh(y.angle, y.ray, y, cmap="gray", shading="nearest")
        panel.set(xlabel="angle [degree]", ylabel="ray [cm]", title="observation: sinogram")
        return _bar(panel, drawn, None)
    if name == "fwi-small":
        gather = y.isel(shot=y.sizes["shot"] // 2)
        reach = float(abs(gather).max())
        drawn = panel.pcolormesh(
            gather.receiver_z, gather.time, gather.T, cmap="RdBu", vmin=-reach, vmax=reach
        )
        panel.invert_yaxis()
        panel.set(xlabel="receiver depth [m]", ylabel="time [s]", title="observation: middle shot")
        return _bar(panel, drawn, None)
    same = y.shape == x.shape and problem.observation_labels.units == problem.units
    drawn = image(panel, y, bare=True, **(style if same else {"cmap": "cividis"}))
    if not same:
        _bar(panel, drawn, problem.observation_labels.units)
    return None


def _stations(panel: Axes, y: xr.DataArray, prefix: str, x: xr.DataArray) -> None:
    """Values at points; of several times the last, and the first as rings."""
    across, down = y.coords[f"{prefix}_x"], y.coords[f"{prefix}_y"]
    panel.set_facecolor("#F4F6F8")
    limits = {"vmin": float(y.min()), "vmax": float(y.max()), "cmap": "cividis"}
    times = y.sizes.get("time", 1)
    size = 36 if y.sizes[prefix] <= 60 else 12
    for index in range(times):
        values = y.isel(time=index) if "time" in y.dims else y
        drawn = panel.scatter(
            across, down, size * (times - index) ** 1.6, c=values, lw=0.4, ec="white", **limits
        )
    for name, set_limits in (("x", panel.set_xlim), ("y", panel.set_ylim)):
        axis = x[name].values
        half = (axis[1] - axis[0]) / 2
        set_limits(axis[0] - half, axis[-1] + half)
    panel.set(xticks=[], yticks=[], aspect="equal")
    if times > 1:
        hours = float(y.time.max()) > 3600
        at = y.time.values / (3600 if hours else 1)
        panel.set_title("after " + ", ".join(f"{t:g}" for t in at) + (" h" if hours else " s"))
    _bar(panel, drawn, y.attrs.get("units"))


def _rays(panel: Axes, y: xr.DataArray, x: xr.DataArray) -> None:
    """Straight lines from sources to receivers in the colour of what crosses them on average."""
    from matplotlib.collections import LineCollection

    side = float(x.x[-1] + x.x[0])
    start, end = y.source_z.values, y.receiver_z.values
    length = np.hypot(side, end - start)
    average = y.values / length if x.attrs["units"] == "s km-1" else np.log(length / y.values)
    lines = [[(0, a), (side, b)] for a, b in zip(start, end, strict=True)]
    drawn = LineCollection(lines, array=average, cmap="cividis", lw=0.9)
    panel.add_collection(drawn)
    _bar(panel, drawn, x.attrs["units"])
    panel.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
    if x.z.attrs.get("positive") == "down":
        panel.invert_yaxis()
    panel.set_title("observation: rays")


# -------------------------------------------------------------------------------------------------
# Curves and vectors
# -------------------------------------------------------------------------------------------------


def _curves(figure: SubFigure, problem: InverseProblem, data: xr.Dataset, x: xr.DataArray) -> None:
    """The observation above; the field with its intervals and three draws below."""
    above, panel = figure.subplots(2, 1, height_ratios=(1, 1.5))
    y, field = data["observed"], data["field"]
    where = x[x.dims[0]]
    if y.ndim == 1:
        above.plot(where, y, color=VERMILION, lw=1.2)
        above.set(xlim=(where[0], where[-1]), ylabel="observation", xticklabels=[])
    else:
        drawn = above.pcolormesh(y[y.dims[1]], y[y.dims[0]], y, cmap="cividis", shading="nearest")
        above.set(ylabel=axis_label(y, 0), title="observation")
        _bar(above, drawn, problem.observation_labels.units, width=0.02)
        panel.plot(y[y.dims[1]], y[0], "o", ms=3.5, color=VERMILION, label="observed", zorder=4)
    for probability, alpha in ((0.9, 0.18), (0.5, 0.3)):
        tails = field.quantile([0.5 - probability / 2, 0.5 + probability / 2], "draw")
        label = f"{100 * probability:.0f} % interval"
        panel.fill_between(where, *tails.values, color=BLUE, alpha=alpha, lw=0, label=label)
    for index in range(3):
        label = "" if index else "draws"
        panel.plot(where, field[index], color=BLUE, lw=0.6, alpha=0.7, label=label)
    panel.plot(where, field.mean("draw"), color=BLUE, lw=1.6, label="mean")
    panel.plot(where, x, color=BLACK, lw=1.3, label="truth")
    panel.set(xlim=(where[0], where[-1]), xlabel=axis_label(x, 0))
    panel.set_ylabel((problem.long_name or "field").split(" of ")[0])
    panel.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7)
    figure.suptitle(_caption(problem), x=0.01, ha="left", fontsize=9, color="#444444")


def _vectors(
    figure: SubFigure, draws: xr.DataArray, x: xr.DataArray, exact: np.ndarray | None
) -> None:
    """Six observations of the plane, or three pairs of components of two observations."""
    dim = draws.shape[-1]
    panels = figure.subplots(2, 3).ravel()
    plane = [(row, 0, 1) for row in range(6)]
    pairs = [(row, i, i + 1) for row in range(2) for i in (0, max(0, dim // 2 - 1), dim - 2)]
    for panel, (row, i, j) in zip(panels, plane if dim == 2 else pairs, strict=True):
        sets = [(draws.values, BLUE, 4, "draws")]
        if exact is not None:
            sets.insert(0, (exact, ORANGE, 7, "exact"))
        for points, color, size, label in sets:
            across, up = points[:, row, i], points[:, row, j]
            panel.scatter(across, up, size, color=color, alpha=0.6, lw=0, label=label)
        panel.plot(x[row, i], x[row, j], "P", ms=8, mfc=BLACK, mec="white", ls="", label="truth")
        panel.set_title(f"observation {row + 1}", fontsize=8)
        panel.set(xlabel=f"component {i + 1}", ylabel=f"component {j + 1}")
        panel.grid(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside lower center", markerscale=1.5)


# -------------------------------------------------------------------------------------------------
# Calibration, and what all share
# -------------------------------------------------------------------------------------------------


def _calibration(figure: SubFigure, report: xr.Dataset) -> None:
    """Ranks of all quantities against the band of the verdict, and coverage of intervals."""
    ranks, coverage = figure.subplots(2, 1)
    failing = (report.p_adjusted <= report.attrs["alpha"]).values
    position = np.concatenate([[0.0], report.position, [1.0]])
    lower, upper = (np.pad(report[f"ecdf_{side}"], 1) for side in ("lower", "upper"))
    ranks.fill_between(position, lower, upper, color=PALE, lw=0)
    ranks.axhline(0, color=GREY, lw=0.8)
    curves = np.pad(report.ecdf_difference.values, ((0, 0), (1, 1)))
    order = np.argsort(failing, kind="stable")
    for index in order:
        color = VERMILION if failing[index] else BLUE
        ranks.plot(position, curves[index], color=color, lw=0.7, alpha=0.8)
    # A quantity that is all wrong would squeeze the others flat.
    reach = min(1.05 * float(abs(curves).max()), 4 * float(upper.max()))
    ranks.set(xlim=(0, 1), xlabel="fractional rank of the truth", ylabel="ECDF minus uniform")
    ranks.set_ylim(-max(reach, 1.1 * upper.max()), max(reach, 1.1 * upper.max()))
    if failing.any():
        worst = report.quantity.values[np.lexsort((-report.chi2_per_dof, report.p_adjusted))[0]]
        at = {"transform": ranks.transAxes, "fontsize": 7, "color": VERMILION}
        ranks.text(0.97, 0.03, f"worst: {worst}", ha="right", va="bottom", **at)
    ranks.set_title(f"ranks: {failing.sum()} of {len(failing)} outside", fontsize=9)
    level = report.level.values
    noise = 1.96 * np.sqrt(level * (1 - level) / int(report.attrs["num_simulations"]))
    coverage.fill_between(level, level - noise, level + noise, color=PALE, lw=0)
    coverage.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    for index in order:
        color = VERMILION if failing[index] else BLUE
        coverage.plot(level, report["coverage"][index], color=color, lw=0.7, alpha=0.8)
    others = [dim for dim in report.coverage_map.dims if dim != "level"]
    share = report.coverage_map.mean(others)
    coverage.plot(level, share, color=BLACK, lw=1.5, ls=(0, (4, 2)))
    at = float(share.sel(level=0.9))
    coverage.set(xlim=(0, 1), ylim=(0, 1), xlabel="stated probability", ylabel="truths inside")
    coverage.set_title(f"90 % intervals: {100 * at:.1f} %", fontsize=9)


def _bar(panel: Axes, drawn: Any, units: str | None, label: str = "", width: float = 0.05) -> None:
    """A colour bar as high as the panel, with a label on top of it."""
    cax = panel.inset_axes((1.03, 0.0, width, 1.0))
    bar = panel.figure.colorbar(drawn, cax=cax)
    bar.outline.set_visible(False)
    cax.tick_params(labelsize=7, length=2)
    text = label or (units if units and units != "1" else "")
    if text:
        cax.set_title(text, fontsize=7, loc="center", pad=3)


def _caption(problem: InverseProblem) -> str:
    """What the field is, with its unit."""
    units = "" if problem.units in (None, "1") else f" [{problem.units}]"
    return f"{problem.name}: {problem.long_name}{units}"
