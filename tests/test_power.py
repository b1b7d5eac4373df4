"""The power table: its problem is what it says, exact posteriors pass, every fault is caught."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from tests.benchmarks.power import (
    DESIGN,
    FAULTS,
    SIGMA,
    fast_tests,
    kernel_test,
    log_likelihood,
    markdown,
    posterior_draws,
    rank_tests,
    report_tests,
    simulate,
    slow_tests,
)
from vfm_inverse import InverseProblem, VariationalFlowMap, calibration, correction, problems
from vfm_inverse.statistics.joint_coverage import tarp
from vfm_inverse.statistics.quantities import default_quantities


def test_the_exact_posterior_is_that_of_the_joint_normal_law() -> None:
    """Conditioning the joint covariance of (x, y), another formula than the one in use."""
    y = torch.tensor([[1.0, -0.5, 2.0]])
    draws = posterior_draws("exact", y, 200_000, torch.Generator().manual_seed(0))[:, 0]
    gain = DESIGN.T @ torch.linalg.inv(DESIGN @ DESIGN.T + SIGMA**2 * torch.eye(3))
    covariance = torch.eye(4) - gain @ DESIGN
    # 200,000 draws: standard errors of 0.002 at most.
    torch.testing.assert_close(draws.mean(0), gain @ y[0], atol=0.01, rtol=0)
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.01, rtol=0)
    correlation = covariance / covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
    assert (correlation - torch.eye(4)).abs().max() > 0.5  # there is a correlation to lose


@pytest.mark.parametrize(
    ("fault", "shift", "width"),
    [("shift 0.3", 0.3, 1.0), ("std x 0.8", 0.0, 0.8), ("std x 1.25", 0.0, 1.25)],
)
def test_faults_have_the_size_in_their_name(fault: str, shift: float, width: float) -> None:
    y = torch.zeros(1, 3)
    faulty, exact = (
        posterior_draws(name, y, 200_000, torch.Generator().manual_seed(0))[:, 0]
        for name in (fault, "exact")
    )
    torch.testing.assert_close(
        (faulty.mean(0) - exact.mean(0)) / exact.std(0), torch.full((4,), shift), atol=0.01, rtol=0
    )
    torch.testing.assert_close(
        faulty.std(0) / exact.std(0), torch.full((4,), width), atol=0.01, rtol=0
    )


def test_a_lost_correlation_leaves_the_marginals() -> None:
    y = torch.zeros(1, 3)
    lost, exact = (
        posterior_draws(name, y, 200_000, torch.Generator().manual_seed(0))[:, 0]
        for name in ("correlation lost", "exact")
    )
    torch.testing.assert_close(lost.std(0), exact.std(0), atol=0.01, rtol=0)
    torch.testing.assert_close(lost.T.corrcoef(), torch.eye(4), atol=0.01, rtol=0)


# -- the table is what a user would get -----------------------------------------------------------


def test_repetitions_together_are_the_reports_one_by_one() -> None:
    data = simulate("shift 0.3", 12 * 40, 99, 1)
    found = rank_tests(*data, 12)
    for number in range(12):
        rows = slice(40 * number, 40 * (number + 1))
        draws, truth, y = data[0][:, rows], data[1][rows], data[2][rows]
        for which, density in {"": None, ", log-likelihood": log_likelihood}.items():
            quantities = default_quantities((4,), density)
            report = calibration.from_draws(draws, truth, y=y, quantities=quantities, joint=False)
            for name, p_value in {
                "rank ECDF": report.p_value,
                "chi2": report.chi2_p_value,
            }.items():
                rejected = p_value.min() <= 0.05 / len(quantities)
                assert rejected == found[name + which][number]
    assert 0 < np.mean(found["rank ECDF"]) < 1  # both outcomes were there


def test_the_coverage_test_is_about_the_coverage_of_the_report() -> None:
    """Too narrow a posterior: the curve that the report shows lies below the diagonal."""
    data = simulate("std x 0.8", 400, 99, 2)
    report = calibration.from_draws(*data[:2], quantities=default_quantities((4,)))
    assert (report.coverage.sel(level=[0.5, 0.9]) < report.level).all()
    assert rank_tests(*data)["central coverage"][0]


def test_lines_of_the_table() -> None:
    table = {"exact": {"a": [0.05, 0.1]}, "prior": {"a": [1.0, 0.0]}}
    assert markdown(table) == [
        "| | exact | prior |",
        "|---|---|---|",
        "| a | 0.05 / 0.10 | 1.00 / 0.00 |",
    ]


# -- level: 200 repetitions of exact posteriors ---------------------------------------------------


def near_nominal(found: dict[str, np.ndarray]) -> None:
    """A share of 0.05 give or take 2.6 standard errors, below rounded down to 0.02."""
    for name, rejected in found.items():
        assert rejected.shape == (200,) and rejected.dtype == bool
        assert 0.02 <= rejected.mean() <= 0.09, f"{name} rejects {rejected.mean()} of exact ones"


def test_rank_and_score_tests_reject_exact_posteriors_at_the_nominal_rate() -> None:
    found = fast_tests("exact", 100, 200)
    assert len(found) == 11
    near_nominal(found)


def test_the_kernel_test_rejects_exact_posteriors_at_the_nominal_rate() -> None:
    found = np.array([kernel_test("exact", 100, n)["KSD"] for n in range(200)])
    near_nominal({"KSD": found <= 0.05})


def test_the_kernel_test_of_an_exact_map_rejects_at_the_nominal_rate() -> None:
    """One map that is exact for its Gaussian problem, 200 observations, 100 draws for each."""
    problem = problems.load("linear-gaussian", dim=4, obs_dim=2, seed=0)
    vfm = VariationalFlowMap.for_problem(problem, adapter="full", observation="adapter")
    _, y, _ = problem.simulate(200, seed=0)
    found = correction.ksd(vfm, y, 100, num_bootstrap=199, seed=0)["p_value"]
    near_nominal({"KSD": (found <= 0.05).numpy()})


@pytest.mark.slow
def test_from_draws_fails_exact_posteriors_at_the_nominal_rate() -> None:
    reports = [verdict("exact", 50, 19, n, "from_draws") for n in range(200)]
    near_nominal(
        {
            "verdict": np.array([failed(report) for report in reports]),
            "TARP, with y": np.array([report.tarp_p_value.item() <= 0.05 for report in reports]),
        }
    )


@pytest.mark.slow
def test_calibrate_fails_exact_posteriors_at_the_nominal_rate() -> None:
    reports = [verdict("exact", 50, 19, n, "calibrate") for n in range(200)]
    near_nominal({"verdict": np.array([failed(report) for report in reports])})


@pytest.mark.slow
def test_posterior_sbc_fails_exact_posteriors_at_the_nominal_rate() -> None:
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2, sigma=(0.1, 1.0))
    y, sigma = torch.tensor([[1.5, 0.3]]), {"sigma": torch.tensor([0.4])}
    exact = problem.reference_posterior
    reports = [
        calibration.posterior_sbc(exact, problem, y, sigma, 50, 19, seed=n) for n in range(200)
    ]
    near_nominal({"posterior SBC": np.array([failed(report) for report in reports])})


def test_tarp_without_data_rejects_exact_posteriors_at_the_nominal_rate() -> None:
    quick: dict[str, Any] = {"num_null": 99, "num_bootstrap": 2}
    found = [tarp(*simulate("exact", 50, 19, n)[:2], seed=n, **quick) for n in range(200)]
    near_nominal({"TARP": np.array([report.attrs["p_value"] <= 0.05 for report in found])})


@pytest.mark.slow
def test_slow_diagnostics_of_the_table_reject_exact_posteriors_at_the_nominal_rate() -> None:
    near_nominal(slow_tests("exact", 100, 200))


# -- power: the faults that each diagnostic must see ----------------------------------------------

SEEN_BY_RANKS = ("shift 0.3", "std x 0.8", "std x 1.25")
MUST_SEE: dict[str, tuple[str, ...]] = {
    "rank ECDF": SEEN_BY_RANKS,
    "chi2": SEEN_BY_RANKS,
    "Kolmogorov": SEEN_BY_RANKS,
    "central coverage": ("std x 0.8", "std x 1.25"),
    "HPD coverage": ("std x 0.8", "std x 1.25"),
    **{f"{name}, log-likelihood": FAULTS[1:] for name in ("rank ECDF", "chi2", "Kolmogorov")},
    "central coverage, log-likelihood": ("std x 0.8", "std x 1.25", "prior", "correlation lost"),
    "HPD coverage, log-likelihood": ("std x 0.8", "std x 1.25", "prior", "correlation lost"),
    "energy distance": ("std x 0.8", "std x 1.25"),
}


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_faults_are_caught_by_the_diagnostics_that_should(fault: str) -> None:
    """Twenty repetitions of 400 simulations, at least 19 rejections."""
    found = {name: r.mean() for name, r in fast_tests(fault, 400, 20, seed=1).items()}
    assert set(found) == set(MUST_SEE)
    for name, faults in MUST_SEE.items():
        if fault in faults:
            assert found[name] >= 0.95, f"{name} sees {fault} in {found[name]}"
        elif fault == "prior":  # without the data it is a calibrated posterior
            assert found[name] <= 0.2, f"{name} cannot see the prior: {found[name]}"


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_the_kernel_test_catches_every_fault(fault: str) -> None:
    for number in range(2):
        assert kernel_test(fault, 1200, number)["KSD"] <= 0.05


@pytest.mark.parametrize("fault", FAULTS[1:])
@pytest.mark.parametrize("how", ["calibrate", "from_draws"])
def test_reports_fail_on_every_fault(fault: str, how: str) -> None:
    assert verdict(fault, 300, 99, 0, how).attrs["verdict"] == "fail"


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_tarp_needs_the_data_to_see_the_prior(fault: str) -> None:
    found = report_tests(*simulate(fault, 500, 99, 7), 7)
    assert found["TARP, with y"] <= 0.005
    assert (found["TARP"] > 0.01) == (fault == "prior")


def verdict(fault: str, num_simulations: int, num_draws: int, seed: int, how: str) -> xr.Dataset:
    """Report on the faulty posterior, with the log-likelihood among its quantities."""
    if how == "from_draws":
        draws, truth, y = simulate(fault, num_simulations, num_draws, seed)
        quantities = default_quantities((4,), log_likelihood)
        return calibration.from_draws(draws, truth, y=y, quantities=quantities, seed=seed)

    def posterior(y: Tensor, **params: Tensor) -> Any:
        return SimpleNamespace(sample=lambda shape: posterior_draws(fault, y, *shape))

    def likelihood(x: Tensor) -> Distribution:
        return Independent(Normal(x @ DESIGN.T, SIGMA), 1)

    problem = InverseProblem(prior=lambda num: torch.randn(num, 4), likelihood=likelihood)
    return calibration.calibrate(posterior, problem, num_simulations, num_draws, seed=seed)


def failed(report: xr.Dataset) -> bool:
    """The verdict, which must be that of the smallest corrected p-value."""
    found = [report.p_adjusted, report.density_p_adjusted, report.tarp_p_adjusted]
    smallest = min(float(value.min()) for value in found)
    assert (report.attrs["verdict"] == "fail") == (smallest <= report.attrs["alpha"])
    return bool(report.attrs["verdict"] == "fail")


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="'fault' must be one of .*; got 'none'"):
        simulate("none", 2, 2, 0)
