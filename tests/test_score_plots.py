"""Figures of joint coverage, skill, spread and local tests show the numbers they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from vfm_inverse.calibration import from_draws
from vfm_inverse.report import score_plots
from vfm_inverse.report.canvas import BLACK, BLUE, GREY, VERMILION


def checked(scale: float = 1.0) -> xr.Dataset:
    samples = torch.randn(40, 200, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    return from_draws(scale * samples[1:], samples[0])


GOOD, NARROW = checked(), checked(0.6)


def colored(axes: Any, color: str) -> list[Any]:
    return [line for line in axes.lines if line.get_color() == color and len(line.get_xdata()) > 2]


def saved(figure: Any, path: Path) -> None:
    from matplotlib.image import imread

    figure.savefig(path / "figure.png", dpi=60)
    pixels = imread(path / "figure.png")[..., :3]
    assert pixels.shape[0] > 80 and 0.5 < pixels.mean() < 0.999


@pytest.mark.parametrize(("report", "color"), [(GOOD, BLUE), (NARROW, VERMILION)])
def test_joint_coverage_is_drawn_and_coloured_by_its_test(
    report: xr.Dataset, color: str, tmp_path: Path
) -> None:
    figure = score_plots.tarp_curve(report)
    curve, zoom = figure.axes
    mean = colored(curve, color)[-1]
    np.testing.assert_allclose(mean.get_ydata()[1:-1], report.tarp_coverage)
    np.testing.assert_allclose(
        colored(zoom, color)[-1].get_ydata(), mean.get_ydata() - mean.get_xdata()
    )
    band = zoom.collections[0].get_paths()[0].vertices
    upper = max(0.0, float((report.tarp_upper - report.position).max()))  # 0 at both ends
    assert band[:, 1].max() == pytest.approx(upper, abs=1e-12)
    labels = [text.get_text() for text in zoom.get_legend().get_texts()]
    assert {f"references: {kind}" for kind in set(report.tarp_kind.values)} <= set(labels)
    saved(figure, tmp_path)
    with pytest.raises(ValueError, match="made without the joint test"):
        score_plots.tarp_curve(report.drop_vars("tarp_coverage"))


def test_skill_is_a_bar_with_two_standard_errors(tmp_path: Path) -> None:
    report = GOOD.copy()
    value = dict(zip(report.score.values, (0.42, 0.4, -0.05, 0.3, 0.001), strict=False))
    report["skill"] = ("score", [value[name] for name in report.score.values])
    report["skill_error"] = ("score", np.full(report.sizes["score"], 0.01))
    figure = score_plots.skill_scores(report)
    (panel,) = figure.axes
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == ["CRPS", "energy score", "variogram score"]  # the plain ones say it again
    expected = [value[name] for name in ("crps", "energy", "variogram")]
    np.testing.assert_allclose(
        [bar.get_width() for bar in panel.patches], np.multiply(100, expected)
    )
    colors = [BLUE if v > 0.02 else VERMILION if v < -0.02 else GREY for v in expected]
    assert [
        container.lines[0].get_color()
        for container in panel.containers
        if hasattr(container, "lines")
    ] == colors
    bar = panel.containers[1].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 0], [100 * (expected[0] - 0.02), 100 * (expected[0] + 0.02)])
    saved(figure, tmp_path)
    report["skill"] = report.skill * np.nan
    with pytest.raises(ValueError, match="made without a baseline"):
        score_plots.skill_scores(report)


def test_the_log_score_has_an_axis_in_nats() -> None:
    names = ["crps", "log_score"]
    report = xr.Dataset(
        {"skill": ("score", [0.3, 1.25]), "skill_error": ("score", [0.01, 0.02])},
        coords={"score": names},
    )
    figure = score_plots.skill_scores(report)
    assert figure.axes[1].get_xlabel() == "gain over the baseline [nat]"
    assert figure.axes[1].patches[0].get_width() == pytest.approx(1.25)


def test_spread_and_error_of_each_element(tmp_path: Path) -> None:
    good, narrow = (score_plots.spread_skill(report) for report in (GOOD, NARROW))
    points = good.axes[0].collections[1].get_offsets()
    np.testing.assert_allclose(points[:, 0], GOOD.spread_map.values.ravel())
    np.testing.assert_allclose(points[:, 1], GOOD.skill_map.values.ravel())
    whole = next(line for line in narrow.axes[0].lines if line.get_marker() == "P")
    assert whole.get_markerfacecolor() == BLACK
    ratio = whole.get_xdata()[0] / whole.get_ydata()[0]
    assert ratio == pytest.approx(0.6, abs=0.05)
    texts = [text.get_text() for text in narrow.axes[0].get_legend().get_texts()]
    assert "outside (24 of 24)" in texts
    saved(good, tmp_path)


def test_local_tests_are_shown_where_they_fail(tmp_path: Path) -> None:
    report = xr.Dataset(
        {
            "local_observation": (("simulation", "local_axis"), np.eye(60, 2)),
            "local_p_value": ("simulation", np.linspace(0.01, 1, 60)),
        },
        attrs={"alpha": 0.05},
    )
    figure = score_plots.local_map(report)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    small = int((report.local_p_value <= 0.05).sum())
    assert texts == [f"indistinguishable ({60 - small})", f"p below 0.05 ({small})"]
    counts = figure.axes[1].patches[0].get_data().values
    assert counts.tolist() == [3] * 20
    saved(figure, tmp_path)
    with pytest.raises(ValueError, match="has no local test"):
        score_plots.local_map(GOOD)
