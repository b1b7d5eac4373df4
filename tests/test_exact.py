"""Draws that are exact as they are sampled: where they are, against closed forms, and by planted
faults."""

from __future__ import annotations

import warnings
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, Uniform

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.calibration import calibrate, certify
from vfm_inverse.labelled import blocks
from vfm_inverse.labelled.blocks import sample_to_netcdf
from vfm_inverse.posterior.untrained import untrained
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.warnings import CalibrationWarning
from vfm_inverse.sampling import exact as sampling
from vfm_inverse.sampling.exact import AS_SAMPLED
from vfm_inverse.sampling.moves import State, differential
from vfm_inverse.sampling.target import Target

SIGMA = 0.5
SHRINK = 1 / (1 + SIGMA**2)
"""Of the posterior mean, and the posterior variance over that of the noise."""


def seen(x: Tensor) -> Distribution:
    """Both numbers with noise: no operator says that this is linear."""
    return Independent(Normal(x, SIGMA), 1)


def pair() -> InverseProblem:
    """Two numbers with a standard normal prior, each seen: the posterior is Gaussian."""
    return InverseProblem(MultivariateNormal(torch.zeros(2), torch.eye(2)), likelihood=seen)


@torch.no_grad()
def stirred(vfm: VariationalFlowMap, by: float = 0.2) -> VariationalFlowMap:
    """With random weights, so that its draws are wrong."""
    torch.manual_seed(6)
    for weight in vfm.flow_map.parameters():
        weight.add_(by * torch.randn_like(weight))
    return vfm


def small(**options: Any) -> dict[str, Any]:
    """A small network, fitted on few simulations."""
    return {"num_simulations": 2000, "width": 32, "depth": 2, "progress": False, **options}


@cache
def wrong(observation: str = "both") -> VariationalFlowMap:
    """A map whose own draws are wrong, which no test may change."""
    vfm = VariationalFlowMap.for_problem(pair(), **small(observation=observation))
    return stirred(vfm)


def drawn(posterior: Any, *shape: int, seed: int = 3) -> Tensor:
    """Draws with a seed of their own."""
    with seeded(seed):
        return posterior.sample(shape)


# Against closed forms -------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["both", "context", "adapter"])
def test_draws_are_those_of_the_exact_posterior_whatever_the_map(observation: str) -> None:
    vfm, y = wrong(observation), torch.tensor([[0.3, -1.0], [1.5, 2.0], [0.0, 0.0]])
    posterior = vfm(y)
    draws, raw = drawn(posterior, 4000), drawn(posterior.raw, 4000)
    std = SIGMA * SHRINK**0.5
    assert posterior.diagnostics["satisfied"].min() == 1
    # Four standard errors of 4000 draws, of which at least 8000 were effective.
    assert float((draws.mean(0) - SHRINK * y).abs().max()) < 0.065 * std
    assert float((draws.std(0) / std - 1).abs().max()) < 0.05
    assert float((raw.mean(0) - SHRINK * y).abs().max()) > 0.2 * std


def test_tempering_alone_is_exact_and_finds_modes_that_the_map_misses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "GOOD_SHAPE", -torch.inf)
    posterior = wrong()(torch.tensor([[0.3, -1.0]]))
    draws = drawn(posterior, 4000)[:, 0]
    std = SIGMA * SHRINK**0.5
    assert posterior.diagnostics["rung"].tolist() == [1]
    assert float((draws.mean(0) - SHRINK * torch.tensor([0.3, -1.0])).abs().max()) < 0.1 * std
    assert float((draws.std(0) / std - 1).abs().max()) < 0.06
    # Few draws come twice: each particle moved.
    assert len(draws.unique(dim=0)) > 3900


def test_each_observation_climbs_as_far_as_it_needs() -> None:
    """x^2 is seen: one mode at zero, two that a leaning map has in the wrong proportion."""
    problem = InverseProblem(
        Independent(Normal(torch.zeros(1), torch.ones(1)), 1),
        likelihood=lambda x: Independent(Normal(x.square(), 0.3), 1),
    )
    vfm = VariationalFlowMap.for_problem(problem, **small())
    with torch.no_grad():
        list(vfm.flow_map.parameters())[-1].add_(0.4)
    y = torch.tensor([[-0.2], [4.0]])
    posterior = vfm(y)
    draws = drawn(posterior, 2000)[..., 0]
    figures = posterior.diagnostics
    assert figures["rung"].tolist() == [0, 1]
    assert figures["satisfied"].tolist() == [1, 1]
    assert posterior.notes[0].startswith("weighted: k-hat")
    assert posterior.notes[1].startswith("tempered (")
    assert float(figures["ess"][0]) >= 2 * 2000
    assert abs(float((draws[:, 1] > 0).double().mean()) - 0.5) < 0.08
    # The posterior of each on a grid, which knows no map.
    grid = torch.linspace(-4, 4, 4001)
    for i in range(2):
        log = -0.5 * grid**2 - 0.5 * ((grid**2 - y[i]) / 0.3) ** 2
        second = float((log.softmax(0) * grid**2).sum())
        assert abs(float(draws[:, i].square().mean()) / second - 1) < 0.06


def test_differential_moves_leave_the_posterior_as_it_is() -> None:
    vfm, y = wrong(), torch.tensor([[0.3, -1.0]])
    target = Target(vfm, y, {}, known=True).around(1.2)
    torch.manual_seed(0)
    x = SHRINK * y + SIGMA * SHRINK**0.5 * torch.randn(8000, 1, 2)
    assert vfm.whitening.transform is None
    q = target.answer.frame
    assert q is not None
    u = (vfm.whitening.whiten(x) - q.mean) / q.variance.sqrt()
    torch.testing.assert_close(target.field(u), x, rtol=0.05, atol=0.05)
    log_prob = target.log_prob(u)
    state = State(u, log_prob, log_prob)
    one = torch.ones(1)
    move = differential(u, 4)
    for _ in range(10):
        state, accepted = move(target, state, one, one)
    assert 0.1 < float(accepted) < 0.9
    moved = target.field(state.u)
    assert float((moved.mean(0) - x.mean(0)).abs().max()) < 0.04
    assert float((moved.std(0) / x.std(0) - 1).abs().max()) < 0.04


# Planted faults -------------------------------------------------------------------------------


def verdict(vfm: Any, problem: InverseProblem) -> str:
    report = calibrate(vfm, problem, 200, 63, seed=1, joint=False)
    return str(report.attrs["verdict"])


def test_a_calibration_checks_what_is_sampled_and_finds_weights_that_are_left_out() -> None:
    vfm, problem = wrong(), pair()
    assert verdict(vfm, problem) == "pass"
    assert verdict(lambda y: vfm(y).raw, problem) == "fail"


def test_a_calibration_finds_a_wrong_density() -> None:
    problem = pair()
    vfm = VariationalFlowMap.for_problem(problem, **small())
    assert verdict(lambda y: vfm(y).raw, problem) == "pass"
    vfm.log_prior = MultivariateNormal(torch.zeros(2), 0.3 * torch.eye(2)).log_prob
    assert verdict(vfm, problem) == "fail"


def test_groups_that_disagree_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "GOOD_SHAPE", -torch.inf)
    monkeypatch.setattr(sampling, "AGREE", 0.9)
    monkeypatch.setattr(sampling, "AGREE_WELL", 0.9)
    posterior = wrong()(torch.tensor([0.3, -1.0]))
    with pytest.warns(CalibrationWarning, match="draws of 1 of 1 observation.* may not be exact"):
        assert drawn(posterior, 10).shape == (10, 2)
    assert float(posterior.diagnostics["satisfied"]) == 0
    assert "not arrived: do not trust these draws" in posterior.notes[0]
    assert float(posterior.diagnostics["ess"]) == 2 * 1024


def test_an_observation_that_nothing_explains_is_told() -> None:
    vfm, y = wrong(), torch.tensor([[0.3, -1.0], [1.0, 1.0]])

    class Never(NamedTuple):
        """Whoever sees a large first number cannot be explained."""

        law: Distribution

        def log_prob(self, value: Tensor) -> Tensor:
            return torch.where(value[..., 0] > 0.5, -torch.inf, self.law.log_prob(value))

    twin = copy(vfm)
    twin.likelihood = lambda x: Never(seen(x))  # type: ignore[assignment, return-value]
    posterior = twin(y)
    with pytest.warns(CalibrationWarning, match="draws of 1 of 2 observation"):
        drawn(posterior, 10)
    assert posterior.diagnostics["satisfied"].tolist() == [1, 0]


# Where, and where not -------------------------------------------------------------------------


def test_it_is_the_default_of_few_unknowns_with_densities_only() -> None:
    many = InverseProblem(MultivariateNormal(torch.zeros(17), torch.eye(17)), likelihood=seen)
    by_samples = InverseProblem(torch.randn(500, 2), likelihood=seen)
    simulated = InverseProblem(
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
        simulator=lambda x: x + SIGMA * torch.randn_like(x),
    )
    flat = InverseProblem(Independent(Uniform(-torch.ones(2), 1.0), 1), likelihood=seen)
    conjugate = problems.load("linear-gaussian", dim=4, obs_dim=2)
    expected = [(pair(), True), (flat, True), (many, False), (by_samples, False)]
    for problem, there in [*expected, (simulated, False), (conjugate, False)]:
        vfm = VariationalFlowMap.for_problem(problem, **small())
        assert vfm.exact == vfm.resamples == there
        assert vfm.config.get("exact", False) == ("auto" if there else False)
        if not there:
            assert vfm(problem.simulate(1, seed=0)[1]).diagnostics == {}


@pytest.mark.parametrize("value", [True, "always", 1])
def test_other_choices_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"'exact' must be 'auto' or False; got {value!r}"):
        VariationalFlowMap.for_problem(pair(), **small(exact=value))


def test_without_it_draws_are_the_maps_own_bit_for_bit() -> None:
    y = torch.tensor([[0.3, -1.0], [1.0, 1.0]])
    with_it = VariationalFlowMap.for_problem(pair(), **small())
    without = VariationalFlowMap.for_problem(pair(), **small(exact=False))
    expected = drawn(without(y), 50)
    assert torch.equal(drawn(with_it(y).raw, 50), expected)
    assert not torch.equal(drawn(with_it(y), 50), expected)
    with_it.exact = False
    assert torch.equal(drawn(with_it(y), 50), expected)
    assert with_it.weights_fingerprint() == without.weights_fingerprint()
    assert "draws" not in without.provenance()


def test_the_map_before_its_training_and_reparametrised_draws_stay_raw() -> None:
    vfm, y = wrong(), torch.tensor([[0.3, -1.0]])
    assert not untrained(vfm).resamples
    with seeded(3):
        draws = vfm(y).rsample((20,))
    assert draws.requires_grad
    with seeded(3):
        assert torch.equal(draws, vfm(y).raw.rsample((20,)))


def test_shapes_seeds_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vfm, y = wrong(), torch.tensor([[0.3, -1.0], [1.0, 1.0]])
    assert drawn(vfm(y)).shape == (2, 2)
    assert drawn(vfm(y[0])).shape == (2,)
    assert drawn(vfm(y), 0).shape == (0, 2, 2)
    assert drawn(vfm(y), 2, 3).shape == (2, 3, 2, 2)
    assert torch.equal(drawn(vfm(y), 30), drawn(vfm(y), 30))
    whole = vfm(y)
    drawn(whole, 100)
    monkeypatch.setattr(sampling, "BLOCK", 40)
    monkeypatch.setattr(sampling, "AT_ONCE", 1)
    parts = vfm(y)
    assert drawn(parts, 100).shape == (100, 2, 2)
    assert parts.diagnostics["ess"].shape == (2,)
    assert float(parts.diagnostics["ess"].min()) > 200
    assert len(parts.notes) == 2


# Files, cards and reports ---------------------------------------------------------------------


def test_a_checkpoint_keeps_it_and_one_of_before_has_none(tmp_path: Path) -> None:
    problem, y = pair(), torch.tensor([[0.3, -1.0]])
    vfm = VariationalFlowMap.for_problem(problem, **small())
    vfm.save(tmp_path / "map.safetensors")
    again = vi.load(tmp_path / "map.safetensors", problem, warn=False)
    assert again.resamples
    assert torch.equal(drawn(again(y), 50), drawn(vfm(y), 50))
    tensors, header = storage.read(tmp_path / "map.safetensors", "model", torch.device("cpu"))
    del header["config"]["exact"]
    storage.write(tmp_path / "before.safetensors", tensors, "model", header)
    before = vi.load(tmp_path / "before.safetensors", problem, warn=False)
    assert not before.resamples
    assert torch.equal(drawn(before(y), 50), drawn(vfm(y).raw, 50))
    header["config"]["exact"] = "always"
    storage.write(tmp_path / "broken.safetensors", tensors, "model", header)
    with pytest.raises(ValueError, match="'exact' in its header must be one of"):
        vi.load(tmp_path / "broken.safetensors", problem)


def test_the_card_and_the_report_say_so() -> None:
    problem = pair()
    vfm = VariationalFlowMap.for_problem(problem, **small())
    report = calibrate(vfm, problem, 20, 31, seed=1, joint=False)
    assert report.attrs["draws"] == AS_SAMPLED
    assert certify(vfm, problem, report).draws == AS_SAMPLED
    assert vfm.standing()[0] != "uncertified"
    assert vfm.provenance()["draws"] == AS_SAMPLED
    vfm.exact = False  # other draws than those that were checked
    assert vfm.standing()[0] == "uncertified"


def test_files_of_draws_say_how_each_observation_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = pair()
    vfm = VariationalFlowMap.for_problem(problem, **small())
    y = torch.tensor([[0.3, -1.0], [1.0, 1.0], [0.0, 2.0]])
    posterior = vfm(y)
    draws = drawn(posterior, 50)
    made = vi.to_xarray(draws, problem, y, diagnostics=posterior.diagnostics)
    assert made.k_hat.dims == ("observation",)
    np.testing.assert_array_equal(made.k_hat, posterior.diagnostics["k_hat"])
    assert made.attrs["exact_largest_k_hat"] == pytest.approx(float(made.k_hat.max()))
    assert made.attrs["exact_tempered_observations"] == 0
    assert "k_hat" not in vi.to_xarray(drawn(posterior.raw, 50), problem, y)
    for name, block in (("one", blocks.BLOCK), ("many", 100)):
        monkeypatch.setattr(blocks, "BLOCK", block)
        sample_to_netcdf(vfm, problem, y, 90, tmp_path / name)
        with xr.open_dataset(tmp_path / name) as file:
            assert file.attrs["draws"] == AS_SAMPLED
            assert file.attrs["exact_least_ess"] == pytest.approx(float(file.ess.min()))
            assert file.attrs["exact_unsatisfied_observations"] == 0
            assert file.rung.values.tolist() == [0, 0, 0]
            assert float(file.ess.min()) > 2 * 90
    sample_to_netcdf(vfm, problem, y, 90, tmp_path / "raw", raw=True)
    with xr.open_dataset(tmp_path / "raw") as file:
        assert "k_hat" not in file
        assert file.attrs["draws"] == "of the map alone"


# The checkerboard -----------------------------------------------------------------------------


def test_the_checkerboard_has_a_density_and_its_draws_stay_on_the_board() -> None:
    problem = problems.load("checkerboard")
    x, y, _ = problem.simulate(500, seed=0)
    assert problem.log_prior is not None
    torch.testing.assert_close(problem.log_prior(x), torch.full((500,), 0.125).log())
    off = x + torch.tensor([1.0, 0.0])
    assert float(problem.log_prior(off).max()) == -torch.inf
    vfm = VariationalFlowMap.for_problem(problem, **small())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        drawn(vfm(y[:3]).raw, 100)
    assert any("lie outside the prior's support" in str(one.message) for one in heard)
    posterior = vfm(y[:3])
    draws = drawn(posterior, 500)
    assert bool(torch.isfinite(problem.log_prior(draws)).all())
    exact = problem.reference_posterior(y[:3])
    assert exact is not None
    with seeded(1):
        truth = exact.sample((500,))
    for i in range(3):
        share = [(one[:, i, 1] > 0).double().mean() for one in (draws, truth)]
        assert abs(float(share[0] - share[1])) < 0.15
