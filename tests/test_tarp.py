"""TARP: exact level, planted faults, independence of the blocks, the curve by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from tests.benchmarks.power import FAULTS, simulate
from vfm_inverse.statistics.joint_coverage import Tarp, tarp


def test_exact_posteriors_are_rejected_at_the_nominal_rate() -> None:
    p_values = []
    for seed in range(200):
        draws, truth, y = simulate("exact", 60, 30, seed)
        report = tarp(draws, truth, y=y, num_null=99, num_bootstrap=2, seed=seed)
        p_values.append(report.attrs["p_value"])
        assert (report.attrs["verdict"] == "fail") == (report.attrs["p_value"] <= 0.05)
    # 0.05 give or take 2.6 standard errors of 200 repetitions.
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_exact_fields_are_rejected_at_the_nominal_rate() -> None:
    """Correlated fields, a unit for every element, one element constant: 200 repetitions."""
    unit = 1e3 * (1 + torch.arange(32.0).reshape(2, 4, 4))
    unit[-1, -1, -1] = 0.0
    p_values = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(20, 60, 1, 1, 1, generator=generator)
        points = unit * (points + 0.5 * torch.randn(20, 60, 2, 4, 4, generator=generator))
        report = tarp(points[1:], points[0], num_null=99, num_bootstrap=2, seed=seed)
        p_values.append(report.attrs["p_value"])
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_planted_faults_are_caught(fault: str) -> None:
    draws, truth, y = simulate(fault, 500, 99, seed=1)
    report = tarp(draws, truth, y=y)
    assert report.attrs["verdict"] == "fail", report.attrs["reason"]
    assert "differs from" in report.attrs["reason"]


def test_only_data_dependent_references_see_the_prior() -> None:
    draws, truth, y = simulate("prior", 500, 99, seed=2)
    assert tarp(draws, truth).attrs["verdict"] == "pass"
    report = tarp(draws, truth, y=y)
    assert report.kind.values[report.distance.values.argmax()] == "data"
    assert report.attrs["p_value"] <= 0.002


def test_random_references_are_blind_to_a_shift_that_fixed_ones_see() -> None:
    draws, truth, _ = simulate("shift 0.3", 800, 99, seed=3)
    report = tarp(draws, truth)
    distance = report.distance.groupby(report.kind).max()
    assert distance.sel(kind="fixed") > 2 * distance.sel(kind="random")
    # The sets disagree: this is what the sensitivity reports.
    exact, truth, _ = simulate("exact", 800, 99, seed=3)
    assert report.sensitivity.max() > 1.5 * tarp(exact, truth).sensitivity.max()


@pytest.mark.parametrize("event", [(), (3,), (1, 8, 8), (2, 4, 4)])
def test_fields_pass_and_a_lost_correlation_is_seen(event: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    common = torch.randn(100, 300, *[1] * len(event), generator=generator)
    points = common + 0.5 * torch.randn(100, 300, *event, generator=generator)
    # A unit for every element, and one element that is constant.
    points = points * (1 + torch.arange(points[0, 0].numel()).reshape(event)) * 1e3
    if event:
        points[..., -1] = 7.0
    assert tarp(points[1:], points[0]).attrs["p_value"] > 0.005  # one in 200 exact ones fails
    if event:
        lost = points[1:].flatten(2)
        lost = torch.stack([lost[:, torch.randperm(300), i] for i in range(lost.shape[2])], -1)
        assert tarp(lost.reshape(points[1:].shape), points[0]).attrs["verdict"] == "fail"


def test_coverage_by_hand() -> None:
    """One element, three draws, the reference below all: distances rank as values do."""
    draws = torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]])
    truth = torch.tensor([0.5, 1.5, 2.5, 1.5])
    report = tarp(draws, truth, references=torch.full((1, 4), -10.0))
    np.testing.assert_allclose(report.credibility, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(report.expected_coverage[0], [0.25, 0.75, 1.0])
    np.testing.assert_allclose(report.mean_coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(report.sensitivity, 0.0)
    assert report.distance.item() == pytest.approx(0.25)
    assert report.kind.item() == "given"


def test_the_bootstrap_band_has_the_width_of_the_binomial_law() -> None:
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(100, 1000, generator=generator)
    report = tarp(points[1:], points[0], references=torch.full((1, 1000), -10.0))
    width = (report.band_upper - report.band_lower).sel(credibility=0.5)
    assert width.item() == pytest.approx(2 * 1.96 * 0.5 / 1000**0.5, rel=0.2)
    inside = (report.band_lower <= report.mean_coverage) & (
        report.mean_coverage <= report.band_upper
    )
    assert inside.all()


def test_ties_keep_the_level() -> None:
    generator = torch.Generator().manual_seed(6)
    points = torch.randint(2, (20, 2000, 1), generator=generator).double()
    report = tarp(points[1:], points[0], num_references=2)
    assert report.attrs["verdict"] == "pass"
    assert report.set_p_value.min() > 1e-3


def test_result_does_not_depend_on_the_blocks_nor_on_the_units() -> None:
    draws, truth, y = simulate("shift 0.3", 50, 40, seed=7)
    whole = tarp(draws, truth, y=y)
    xr.testing.assert_identical(whole, tarp(draws, truth, y=y, memory=1))
    scaled = tarp(1024 * draws, 1024 * truth, y=y)
    np.testing.assert_array_equal(whole.expected_coverage, scaled.expected_coverage)
    tally = Tarp(40, 50, y=y)
    for part in torch.arange(50).split(17):
        tally.add(draws[:, part], truth[part])
    xr.testing.assert_identical(whole, tally.result())
    assert not whole.equals(tarp(draws, truth, y=y, seed=1))


def test_bad_input_is_refused() -> None:
    draws, truth = torch.zeros(5, 4, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"'truth' must be \(num_simulations, \*event\)"):
        tarp(draws, truth[:3])
    with pytest.raises(ValueError, match=r"'references' must be \(num_sets, 4, 3\)"):
        tarp(draws, truth, references=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="'y' must hold 4 observations; got 3"):
        tarp(draws, truth, y=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="'draws' and 'truth' must be finite"):
        tarp(draws / 0, truth)
    with pytest.raises(ValueError, match="'num_draws' must be at least 2; got 1"):
        tarp(draws[:1], truth)
    with pytest.raises(ValueError, match="'alpha' must lie between 0 and 1; got 1.5"):
        tarp(draws, truth, alpha=1.5)
    with pytest.raises(ValueError, match="'add' must see at least 2 simulations; got 0"):
        Tarp(5, 4).result()
    with pytest.raises(ValueError, match="'truth' must not exceed 3 simulations; got 4"):
        Tarp(5, 3).add(draws, truth)
    with pytest.raises(ValueError, match=r"'draws' must have shape \(6, 4, 3\)"):
        Tarp(6, 4).add(draws, truth)
