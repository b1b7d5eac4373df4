"""Calibration at one observation, where it fails, what scores are compared with, any input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Uniform

from vfm_inverse import problems
from vfm_inverse.calibration import calibrate, from_draws, posterior_sbc
from vfm_inverse.problem.inverse_problem import InverseProblem


def linear() -> InverseProblem:
    return problems.load("linear-gaussian", dim=3, obs_dim=2, sigma=(0.1, 1.0))


def moved(problem: InverseProblem, where: float, shift: float) -> Any:
    """The exact posterior, too high by ``shift`` of its std where the first datum is that high."""

    def posterior(y: Tensor, **params: Tensor) -> Distribution:
        exact = problem.reference_posterior(y, **params)
        assert isinstance(exact, MultivariateNormal)
        by = shift * exact.stddev * (y[:, :1] > where)
        return MultivariateNormal(exact.mean + by, exact.covariance_matrix)

    return posterior


OBSERVED = torch.tensor([[1.5, 0.3]])
SIGMA = {"sigma": torch.tensor([0.4])}


def test_the_exact_posterior_passes_at_the_nominal_rate_and_the_average_is_right() -> None:
    problem = linear()
    failed = []
    for seed in range(40):
        report = posterior_sbc(
            problem.reference_posterior, problem, OBSERVED, SIGMA, 80, 40, seed=seed, alpha=0.2
        )
        failed.append(report.attrs["verdict"] == "fail")
    # 0.2 at most, as the tests are dependent and discrete: three standard errors above.
    assert np.mean(failed) <= 0.2 + 3 * 0.063
    assert report.attrs["kind"] == "posterior SBC" and "log_likelihood" in report.quantity


def test_a_fault_where_the_data_are_is_seen_and_one_elsewhere_is_not() -> None:
    problem = linear()
    here = posterior_sbc(moved(problem, 0.8, 1.0), problem, OBSERVED, SIGMA, 400, 100)
    assert here.attrs["verdict"] == "fail"
    elsewhere = posterior_sbc(moved(problem, 4.0, 1.0), problem, OBSERVED, SIGMA, 400, 100)
    assert elsewhere.attrs["verdict"] == "pass", elsewhere.attrs["reason"]


def test_a_posterior_given_both_may_be_handed_over() -> None:
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2, sigma=0.4)
    twin = linear()

    def both(y: Tensor, new: Tensor) -> Distribution:
        sigma = torch.full((len(y),), 0.4 / 2**0.5)
        found = twin.reference_posterior((y + new) / 2, sigma=sigma)
        assert found is not None
        return found

    def one(y: Tensor, new: Tensor) -> Any:
        return problem.reference_posterior(new)  # forgets the first observation

    exact = problem.reference_posterior
    report = posterior_sbc(exact, problem, OBSERVED, num_simulations=300, both=both)
    assert report.attrs["verdict"] == "pass", report.attrs["reason"]
    report = posterior_sbc(exact, problem, OBSERVED, num_simulations=300, both=one)
    assert report.attrs["verdict"] == "fail"
    with pytest.raises(ValueError, match="give 'both', the posterior given two observations"):
        posterior_sbc(exact, problem, OBSERVED)
    with pytest.raises(ValueError, match="'y' must hold one observation; got 2"):
        posterior_sbc(exact, problem, OBSERVED.expand(2, 2))


def test_local_tests_find_the_place_of_the_fault() -> None:
    problem = linear()
    report = calibrate(moved(problem, 0.5, 1.5), problem, 500, 40, local=True, joint=False)
    assert report.local_global_p_adjusted <= 0.05
    assert "a classifier tells draws from truths" in report.attrs["reason"]
    _, y, _ = problem.simulate(500, split="test", seed=0)
    bad = (y[:, 0] > 0.5).numpy()
    assert report.local_statistic[bad].mean() > 2 * report.local_statistic[~bad].mean()
    assert report.local_observation.shape == (500, 2)
    exact = calibrate(problem.reference_posterior, problem, 200, 40, local=True, joint=False)
    assert exact.attrs["families"] == "ranks, density, local"
    assert exact.local_global_p_value > 0.01 and exact.attrs["verdict"] == "pass"


def test_local_tests_take_impossible_draws() -> None:
    """Of draws that cannot have made the observation the log-likelihood is minus infinity."""
    problem = problems.load("two-moons")
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)

    def ignorant(y: Tensor) -> Distribution:
        return prior.expand((len(y),))

    report = calibrate(ignorant, problem, 200, 40, local=True, joint=False)
    assert report.local_global_p_adjusted <= 0.05


def test_scores_and_skill_of_an_exact_posterior() -> None:
    problem = linear()
    report = calibrate(problem.reference_posterior, problem, 1500, 50)
    x, y, params = problem.simulate(1500, split="test", seed=0)
    exact = problem.reference_posterior(y, **params)
    assert isinstance(exact, MultivariateNormal) and problem.log_prior is not None
    crps = exact.stddev.mean(1) / np.pi**0.5  # expectation at a truth drawn from the posterior
    prior = problem.prior_moments()
    assert prior is not None
    climate = prior[1].diagonal().sqrt().mean().item() / np.pi**0.5
    at = report.sel(score="crps")
    assert abs(at.score_value.item() - crps.mean().item()) < 4 * at.score_error.item()
    assert at.baseline_score.item() == pytest.approx(climate, rel=0.04)
    assert abs(at.skill.item() - (1 - crps.mean().item() / climate)) < 4 * at.skill_error.item()
    plain = report.sel(score="crps_plain").score_value.item()
    assert plain / at.score_value.item() == pytest.approx(1 + 1 / 50, rel=0.01)
    log = report.sel(score="log_score")
    gain = (exact.log_prob(x) - problem.log_prior(x)).mean().item()
    assert log.skill.item() == pytest.approx(gain, rel=1e-4)
    np.testing.assert_allclose(report.spread_skill, 1, atol=4 * report.spread_skill_error.item())
    # The error of a skill is that of paired simulations: other seeds scatter by it.
    found = [
        calibrate(problem.reference_posterior, problem, 100, 30, seed=s, joint=False).sel(
            score="energy"
        )
        for s in range(40)
    ]
    scatter = np.std([f["skill"].item() for f in found])
    claimed = np.mean([f["skill_error"].item() for f in found])
    assert scatter / claimed == pytest.approx(1, abs=0.4)


def test_a_posterior_has_no_skill_over_itself() -> None:
    problem = linear()
    exact = problem.reference_posterior
    report = calibrate(exact, problem, 200, 100, baseline=exact, joint=False)
    assert (abs(report["skill"]) <= 4 * report.skill_error + 1e-3).all()
    assert report.attrs["baseline"].endswith("reference_posterior")


def containers() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    draws, truth = generator.normal(size=(30, 40, 5, 4)), generator.normal(size=(40, 5, 4))
    dims = ("draw", "simulation", "lat", "lon")
    array = xr.DataArray(draws, dims=dims, name="x")
    truths = xr.DataArray(truth, dims=dims[1:], name="x")
    chains = xr.DataArray(draws.reshape(3, 10, 40, 5, 4), dims=("chain", *dims))
    shuffled = chains.transpose("lat", "simulation", "draw", "lon", "chain")
    group = xr.Dataset({"x": shuffled})
    tree = xr.DataTree.from_dict({"/posterior": group})
    return {
        "array": (array, truths),
        "transposed": (array.transpose("lat", "simulation", "draw", "lon"), truths.T),
        "dataset": (xr.Dataset({"x": array}), xr.Dataset({"x": truths})),
        "numpy truth": (array, truth),
        "ArviZ": (SimpleNamespace(posterior=group), truths),
        "tree": (tree, truths),
        "torch": (torch.from_numpy(draws)[:, :, None], torch.from_numpy(truth)[:, None]),
        "numpy": (draws[:, :, None], truth[:, None]),
    }


@pytest.mark.parametrize("kind", list(containers()))
def test_draws_of_every_kind_give_the_same_ranks(kind: str) -> None:
    draws, truth = containers()["numpy"]
    expected = from_draws(draws, truth)
    report = from_draws(*containers()[kind])
    np.testing.assert_array_equal(report["ranks"], expected["ranks"])
    np.testing.assert_allclose(report.crps_map, expected.crps_map)
    if kind not in ("torch", "numpy"):
        assert report.crps_map.dims == ("lat", "lon")


def test_labels_that_do_not_fit_are_named() -> None:
    array, truth = containers()["array"]
    with pytest.raises(ValueError, match="'truth' must have the dimensions"):
        from_draws(array, truth.rename(lat="y"))
    with pytest.raises(ValueError, match="the dimensions of 'draws' must include 'draw'"):
        from_draws(array.rename(draw="member"), truth)
    with pytest.raises(ValueError, match="must have the same coordinate 'lat'"):
        lat = np.arange(5)
        from_draws(array.assign_coords(lat=lat), truth.assign_coords(lat=lat + 1))
    two = xr.Dataset({"x": array, "z": array})
    with pytest.raises(ValueError, match=r"'variable' must name one of .*\['x', 'z'\]; got None"):
        from_draws(two, truth)
    assert from_draws(two, truth, variable="z").sizes["simulation"] == 40
    with pytest.raises(ValueError, match="'local' needs the observations 'y'"):
        from_draws(array, truth, local=True)
    with pytest.raises(ValueError, match="'baseline' must be"):
        from_draws(array, truth, baseline=np.zeros((3, 2)))
