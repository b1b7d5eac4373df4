"""Figures show the numbers that they were given, in real files, without touching pyplot."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from vfm_inverse.calibration import from_draws
from vfm_inverse.report import gallery
from vfm_inverse.report import rank_plots as plots


def report(
    event: tuple[int, ...] = (1, 6, 8), scale: float = 1.0, shift: float = 0.0
) -> xr.Dataset:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(40, 200, *event, generator=generator)
    return from_draws(shift + scale * samples[1:], samples[0])


GOOD, NARROW, VECTOR = report(), report(scale=0.6), report((3,), shift=1.0)


def picture(figure: Any, path: Path) -> np.ndarray:
    """The saved file, read back: (H, W, 3) in [0, 1]."""
    from matplotlib.image import imread

    figure.savefig(path / "figure.png", dpi=60)
    return imread(path / "figure.png")[..., :3]


def lines(axes: Any, color: str) -> list[Any]:
    return [line for line in axes.lines if line.get_color() == color and len(line.get_xdata())]


@pytest.mark.parametrize(
    "name", ["rank_ecdf", "rank_histogram", "coverage_curve", "calibration_maps"]
)
@pytest.mark.parametrize("which", [NARROW, VECTOR], ids=["field", "vector"])
def test_every_calibration_figure_makes_a_file(
    name: str, which: xr.Dataset, tmp_path: Path
) -> None:
    pixels = picture(getattr(plots, name)(which), tmp_path)
    assert pixels.shape[0] > 100 and 0.5 < pixels.mean() < 0.999


def test_rank_ecdf_draws_the_band_and_marks_what_leaves_it() -> None:
    axes = plots.rank_ecdf(GOOD).axes[0]
    count = GOOD.sizes["quantity"]
    assert f"0 of {count}" in axes.get_title(loc="left")
    assert not lines(axes, plots.VERMILION)
    curves = [line.get_ydata() for line in lines(axes, plots.BLUE)]
    assert len(curves) == count
    np.testing.assert_allclose(curves[0][1:-1], GOOD.ecdf_difference[0])
    vertices = axes.collections[0].get_paths()[0].vertices
    assert vertices[:, 1].max() == pytest.approx(GOOD.ecdf_upper.max().item())

    axes = plots.rank_ecdf(NARROW).axes[0]
    failing = int((NARROW.p_adjusted <= 0.05).sum())
    assert failing >= 5 and f"{failing} of {count}" in axes.get_title(loc="left")
    worst = NARROW.quantity.values[np.lexsort((-NARROW.chi2_per_dof, NARROW.p_adjusted))[0]]
    assert lines(axes, plots.VERMILION)[0].get_label() == worst


def test_histograms_come_worst_first_and_average_to_one() -> None:
    figure = plots.rank_histogram(NARROW, max_panels=5)
    assert len(figure.axes) == 5
    order = NARROW.quantity.values[np.lexsort((-NARROW.chi2_per_dof, NARROW.p_adjusted))]
    assert [axes.get_title(loc="left") for axes in figure.axes] == order[:5].tolist()
    heights = figure.axes[0].patches[0].get_data().values
    one = NARROW.histogram.sel(quantity=order[0])
    np.testing.assert_allclose(heights * 200 / 20, one, atol=1e-9)  # 40 ranks fill 20 bins evenly


def test_coverage_of_narrow_draws_lies_below_the_diagonal() -> None:
    curve, zoom, dense = plots.coverage_curve(NARROW).axes
    everywhere = lines(curve, plots.BLACK)[-1]
    assert (everywhere.get_ydata() < everywhere.get_xdata()).all()
    np.testing.assert_allclose(
        lines(zoom, plots.BLACK)[-1].get_ydata(), everywhere.get_ydata() - everywhere.get_xdata()
    )
    regions = NARROW.hpd_coverage_map.mean(["row", "column"]) - NARROW.level
    np.testing.assert_allclose(lines(dense, plots.BLACK)[-1].get_ydata(), regions)
    assert zoom.get_ylim() == dense.get_ylim()
    assert (
        len(plots.coverage_curve(NARROW.drop_vars(["hpd_coverage", "hpd_coverage_map"])).axes) == 2
    )


def test_maps_show_the_values_and_the_axes_of_the_field() -> None:
    labelled = GOOD.rename(row="y").assign_coords(y=10.0 + np.arange(6), column=np.arange(8.0))
    labelled.column.attrs["units"] = "km"
    labelled.crps_map.attrs["units"] = "K"
    panels = plots.calibration_maps(labelled, level=0.5).axes[:6]
    mesh = panels[0].collections[0]
    np.testing.assert_allclose(mesh.get_array(), GOOD.coverage_map.sel(level=0.5))
    low, high = mesh.get_clim()
    assert (low + high) / 2 == pytest.approx(0.5)  # white is the stated probability
    np.testing.assert_allclose(
        panels[1].collections[0].get_array(), GOOD.hpd_coverage_map.sel(level=0.5)
    )
    assert panels[3].get_xlabel() == "column [km]" and panels[0].get_xlabel() == ""
    assert panels[0].get_ylim()[0] < panels[0].get_ylim()[1]
    assert "CRPS [K]" in panels[5].get_title(loc="left")
    assert len(plots.calibration_maps(VECTOR).axes) == 6
    old = labelled.drop_vars(["hpd_coverage", "hpd_coverage_map"])
    assert "CRPS [K]" in plots.calibration_maps(old).axes[3].get_title(loc="left")


def test_no_colour_stands_for_a_share_above_one() -> None:
    mesh = plots.calibration_maps(NARROW).axes[0].images[0]
    assert mesh.norm.vmax == 1.0 and mesh.norm(0.9) == pytest.approx(0.5)


def test_gallery_shows_truth_observation_mean_std_and_draws(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(30, 3, 1, 6, 8, generator=generator)
    truth = torch.randn(3, 1, 6, 8, generator=generator)
    figure = gallery.posterior_gallery(
        draws, truth, truth + 1, num_draws=2, max_rows=2, units="m s-1", cmap="gray"
    )
    panels = figure.axes[:12]
    titles = [axes.get_title() for axes in panels[:6]]
    assert titles == [
        "truth",
        "observation",
        "posterior mean",
        "posterior std",
        "draw 1",
        "draw 2",
    ]
    shown = [axes.images[0].get_array() for axes in panels]
    np.testing.assert_allclose(shown[0], truth[0, 0])
    np.testing.assert_allclose(shown[8], draws[:, 1].mean(0)[0], atol=1e-6)
    np.testing.assert_allclose(shown[9], draws[:, 1].std(0)[0], atol=1e-6)
    limits = {panels[i].images[0].get_clim() for i in (0, 1, 2, 4, 5, 6)}
    assert len(limits) == 1  # one scale for everything in units of the field
    assert {axes.get_ylabel() for axes in figure.axes[12:]} == {"field [m s-1]", "std [m s-1]"}
    picture(figure, tmp_path)


def test_gallery_shows_the_channels_of_a_field_in_rows(tmp_path: Path) -> None:
    draws, truth = torch.randn(20, 3, 2, 8, 8), torch.randn(3, 2, 8, 8)
    figure = gallery.posterior_gallery(draws, truth, truth, max_rows=4)
    rows = [axes for axes in figure.axes if axes.images]
    assert len(rows) == 4 * 8  # truth, observation, mean, std and four draws
    shown = rows[8].images[0].get_array()  # second row: second channel of the first truth
    np.testing.assert_allclose(shown, truth[0, 1].numpy(), rtol=1e-6)
    figure.savefig(tmp_path / "channels.png")


def test_gallery_takes_labels_lines_missing_data_and_other_observations(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30, 2, 6, 8, generator=generator).numpy()
    draws = xr.DataArray(
        values,
        dims=("draw", "observation", "depth", "x"),
        coords={"depth": ("depth", np.arange(6.0), {"positive": "down"}), "x": np.arange(8.0)},
        attrs={"units": "K"},
    )
    seen = values[0].copy()
    seen[:, 2:4] = np.nan
    figure = gallery.posterior_gallery(draws, observation=seen)
    mean = figure.axes[1]
    assert mean.get_ylim()[0] > mean.get_ylim()[1]  # depths run downwards
    assert np.ma.count_masked(figure.axes[0].collections[0].get_array()) == 16
    picture(figure, tmp_path)
    assert figure.axes[0].get_ylim() == mean.get_ylim()  # plain data follow the labelled field
    stations = gallery.posterior_gallery(draws, observation=torch.zeros(2, 5))
    np.testing.assert_allclose(stations.axes[0].lines[0].get_ydata(), 0)

    curves = torch.randn(200, 2, 1, 20, generator=generator)
    figure = gallery.posterior_gallery(curves, curves[0], curves[1], units="m")
    assert len(figure.axes) == 2 and figure.axes[0].get_ylabel() == "field [m]"
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert labels == {"90 % interval", "50 % interval", "draws", "mean", "truth", "observation"}
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    lowest = curves[:, 0, 0].quantile(0.05, dim=0).min().item()
    assert band[:, 1].min() == pytest.approx(lowest, rel=1e-5)
    with pytest.raises(ValueError, match="'draws' must be"):
        gallery.posterior_gallery(torch.zeros(5, 4))


def labelled(values: np.ndarray, dims: tuple[str, ...], **attrs: str) -> xr.DataArray:
    """Draws on a grid of latitudes, from north to south, and longitudes."""
    grid = {"lat": np.linspace(70, 40, 6), "lon": np.linspace(-10, 20, 8)}
    units = {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}}
    coords = {name: (name, grid[name], units[name]) for name in dims[-2:]}
    return xr.DataArray(values, dims=("draw", "observation", *dims), coords=coords, attrs=attrs)


@pytest.mark.parametrize("dims", [("lat", "lon"), ("lon", "lat")])
def test_north_is_up_whatever_the_order_of_axes_and_values(dims: tuple[str, str]) -> None:
    values = np.zeros((4, 1, 6, 8))
    values[:, :, 0, 7] = 5.0  # in the north-east
    if dims == ("lon", "lat"):
        values = values.swapaxes(2, 3)
    draws = labelled(values + np.arange(4).reshape(-1, 1, 1, 1), dims, units="K", long_name="air")
    # A truth without labels takes those of the draws.
    figure = gallery.posterior_gallery(draws, values[0], num_draws=1)
    for panel in (figure.axes[0], figure.axes[1]):
        mesh = panel.collections[0]
        assert panel.get_xlim()[0] < panel.get_xlim()[1]
        assert panel.get_ylim()[0] < panel.get_ylim()[1]
        centre = np.array(mesh.get_array()).argmax()
        row, column = divmod(int(centre), 8)
        cell = mesh.get_coordinates()[row : row + 2, column : column + 2]
        np.testing.assert_allclose(cell.mean((0, 1)), [20, 70])
    assert figure.axes[0].get_ylabel() == "lat [°N]"
    assert "air [K]" in {axes.get_ylabel() for axes in figure.axes}


def test_stations_are_dots_on_the_map_in_the_colours_of_the_field() -> None:
    generator = np.random.default_rng(0)
    draws = labelled(280 + generator.normal(size=(9, 2, 6, 8)), ("lat", "lon"), units="K")
    where = np.stack([generator.uniform(42, 68, (2, 5)), generator.uniform(-9, 19, (2, 5))], -1)
    where[1, 3:] = np.nan  # a smaller network
    seen = 280 + generator.normal(size=(2, 5))
    figure = gallery.posterior_gallery(draws, observation=seen, places=where, num_draws=0)
    dots = [axes.collections[-1] for axes in (figure.axes[0], figure.axes[3])]
    np.testing.assert_allclose(dots[0].get_offsets(), where[0, :, ::-1])
    np.testing.assert_allclose(dots[0].get_array(), seen[0])
    assert np.isfinite(np.asarray(dots[1].get_offsets().filled(np.nan))[:, 0]).sum() == 3
    assert dots[0].get_clim() == figure.axes[1].collections[0].get_clim()
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    with pytest.raises(ValueError, match="'places' must be"):
        gallery.posterior_gallery(draws, observation=seen, places=where[:, :3])


def test_an_observation_of_another_scale_has_a_bar_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(9, 2, 1, 6, 6, generator=generator)
    for factor, bars in ((1.0, 2), (100.0, 3)):
        figure = gallery.posterior_gallery(draws, draws[0], factor * draws[1], num_draws=0)
        assert len(figure.axes) == 2 * 4 + bars
    assert "observation" in {axes.get_ylabel() for axes in figure.axes}


def test_colours_are_those_of_anomalies_or_of_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(9, 2, 1, 6, 6, generator=generator)
    signed = gallery.posterior_gallery(draws, draws[0]).axes[0].images[0]
    low, high = signed.get_clim()
    assert signed.get_cmap().name == "RdBu_r" and low == -high
    positive = gallery.posterior_gallery(5 + draws, 5 + draws[0]).axes[0].images[0]
    assert positive.get_cmap().name == "viridis"
    colour = torch.rand(9, 2, 3, 6, 6, generator=generator)
    figure = gallery.posterior_gallery(colour, colour[0], num_draws=0)
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, colour[0, 0].movedim(0, -1), rtol=1e-6)
    assert len(figure.axes) == 2 * 3 + 1  # a row an observation, and one bar: of the std


def test_all_that_fails_is_shown_and_vermilion() -> None:
    bad = report(scale=0.3)
    failing = int((bad.p_adjusted <= 0.05).sum())
    assert failing > len(plots.DASHES)
    assert len(lines(plots.rank_ecdf(bad).axes[0], plots.VERMILION)) == failing
    assert len(plots.rank_histogram(bad).axes) == max(failing, 12)
    passing = bad.sizes["quantity"] - failing
    assert len(lines(plots.coverage_curve(bad).axes[0], plots.VERMILION)) == failing
    assert len(lines(plots.coverage_curve(bad).axes[0], plots.BLUE)) == passing


def test_scatter_of_two_components(tmp_path: Path) -> None:
    draws = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    figure = gallery.posterior_scatter(
        draws, draws[0], draws[:20], components=(1, 3), max_panels=2, units="kg"
    )
    assert len(figure.axes) == 2
    points = figure.axes[1].collections[2].get_offsets()
    np.testing.assert_allclose(points, draws[:, 1, [1, 3]])
    assert figure.axes[0].get_xlabel() == "component 1 [kg]"
    picture(figure, tmp_path)
    with pytest.raises(ValueError, match="with components"):
        gallery.posterior_scatter(draws, components=(0, 4))


def test_training_history_reads_rows_and_files_alike(tmp_path: Path) -> None:
    rows = [{"step": 10 * i, "loss": 5000.0 / (1 + i) ** 2, "flow": -float(i)} for i in range(40)]
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for history in (rows, tmp_path / "log.csv"):
        loss, flow = plots.training_history(history).axes
        np.testing.assert_allclose(flow.lines[0].get_ydata(), [-i for i in range(40)])
        np.testing.assert_allclose(loss.lines[0].get_xdata(), [10 * i for i in range(40)])
        assert loss.get_yscale() == "log" and flow.get_yscale() == "linear"
    picture(plots.training_history(rows), tmp_path)
    scored = [{"step": 0, "validation": 2.0, "loss": "", "seconds": 0.0}]
    scored += [{"step": 5 * i, "loss": 1.0 / i, "seconds": 1.0 * i} for i in range(1, 9)]
    scored[-1]["validation"] = 1.5
    score, loss = plots.training_history(scored).axes  # the time is no curve
    assert set(score.lines[0].get_ydata()) == {2.0}  # the start's
    np.testing.assert_allclose(score.lines[1].get_xydata(), [[0, 2.0], [40, 1.5]])
    assert loss.lines[0].get_xdata().tolist() == list(range(5, 45, 5))
    with pytest.raises(ValueError, match="'history' must hold rows"):
        plots.training_history([])


def test_training_history_shows_the_held_out_score_with_that_of_the_start(tmp_path: Path) -> None:
    rows = [{"step": 0, "validation": 0.5, "seconds": 1.0}]
    rows += [{"step": i, "loss": 1.0, "seconds": 2.0} for i in (10, 20, 30)]
    rows[2] |= {"validation": 0.4}
    figure = plots.training_history(rows)
    score, loss = figure.axes
    titles = [panel.get_title("left") for panel in figure.axes]
    assert titles == ["held-out energy score", "loss"]
    np.testing.assert_allclose(score.lines[0].get_ydata(), 0.5)
    np.testing.assert_allclose(score.lines[1].get_xydata(), [[0, 0.5], [20, 0.4]])
    np.testing.assert_allclose(loss.lines[0].get_xdata(), [10, 20, 30])
    picture(figure, tmp_path)


def test_matplotlib_waits_for_the_first_figure_and_pyplot_is_left_alone() -> None:
    code = (
        "import sys\n"
        "from vfm_inverse.report import gallery, page, rank_plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; size = matplotlib.rcParams['font.size']\n"
        "rank_plots.training_history([{'step': 1, 'loss': 2.0}])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['font.size'] == size\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
