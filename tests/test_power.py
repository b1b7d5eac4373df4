"""The power table: its problem is what it says, exact posteriors pass, every fault is caught."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.power import (
    DESIGN,
    FAULTS,
    SIGMA,
    energy_test,
    posterior_draws,
    rank_tests,
    simulate,
    table,
    tarp_tests,
)


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


def test_exact_posteriors_pass_every_diagnostic_at_about_the_nominal_rate() -> None:
    """Sixty repetitions: a rate of 0.05 has a standard error of 0.028."""
    rates = table(60, 60, faults=["exact"], num_draws=30, seed=100)["exact"]
    assert set(rates) >= {"TARP, with data", "L-C2ST", "energy distance"}
    for name, rate in rates.items():
        assert rate <= 0.05 + 3 * 0.028, f"{name} rejects {rate} of exact posteriors"


def test_every_fault_is_caught_by_some_diagnostic_and_the_prior_needs_the_data() -> None:
    for fault in FAULTS[1:]:
        data = simulate(fault, 500, 99, 7)
        found = {**rank_tests(*data, 7), **tarp_tests(*data, 7), **energy_test(*data, 7)}
        assert min(found.values()) <= 0.005, f"{fault}: {found}"
        assert found["TARP, with data"] <= 0.005
        if fault == "prior":
            assert found["rank ECDF, with log-likelihood"] < 1e-6
            assert found["rank ECDF, plain"] > 0.01 and found["TARP, no data"] > 0.01


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="'fault' must be one of .*; got 'none'"):
        simulate("none", 2, 2, 0)
