"""Corrections, held against exact posteriors that a damaged map misses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor, nn
from torch.distributions import Independent, Normal, Uniform

import vfm_inverse as vi
from vfm_inverse import calibration, correction, problems
from vfm_inverse.correction.hamiltonian import restart
from vfm_inverse.correction.ladder import stages_needed
from vfm_inverse.correction.recalibration import Tempered
from vfm_inverse.correction.stein import stein_test
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.sampling.ensemble import systematic
from vfm_inverse.sampling.moves import State
from vfm_inverse.sampling.target import Target
from vfm_inverse.sampling.tempering import next_rise, split_rhat
from vfm_inverse.sampling.weights import smooth

MODES = ["adapter", "context", "both"]


def damaged(
    observation: str, dim: int = 3, weight: float = 0.0, **kwargs: object
) -> tuple[InverseProblem, VariationalFlowMap]:
    """A linear-Gaussian problem and a map that is wrong about it: ``weight`` is the size of random
    weights in the flow map, and the adapter is shifted and rescaled."""
    problem = problems.load("linear-gaussian", dim=dim, obs_dim=2, **kwargs)
    vfm = VariationalFlowMap.for_problem(
        problem, observation=observation, width=16, depth=1, num_simulations=2000
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in vfm.flow_map.parameters():
            parameter.add_(weight * torch.randn_like(parameter))
        if vfm.adapter is not None:
            vfm.adapter.head.bias.add_(torch.tensor([0.6, -0.4, 0.3, 0.4]))
    return problem, vfm


def errors(ensemble: correction.Ensemble, exact: object) -> tuple[float, float, float]:
    """Largest mean error in posterior standard deviations; least and largest variance ratio."""
    shift = (ensemble.mean - exact.mean).abs() / exact.variance.sqrt()
    ratio = ensemble.variance / exact.variance
    return float(shift.max()), float(ratio.min()), float(ratio.max())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["context", "both"])
def test_target_of_a_conditional_map_is_the_exact_posterior(mode: str, steps: int) -> None:
    """Its density in noise coordinates is p(x | y) |dx / du|, the determinant taken by hand."""
    problem, vfm = damaged(mode, weight=0.2)
    vfm.steps = steps
    _, y, _ = problem.simulate(2, seed=0)
    target = Target(vfm, y, {})
    u = target.sample(20)
    exact = problem.reference_posterior(y)
    jacobian = torch.stack(
        [
            torch.stack(
                [
                    torch.autograd.functional.jacobian(
                        lambda v, i=i, j=j: target.field(
                            torch.cat([u[i : i + 1, :j], v[None, None], u[i : i + 1, j + 1 :]], 1)
                        )[0, j],
                        u[i, j],
                    )
                    for j in range(2)
                ]
            )
            for i in range(20)
        ]
    )
    wanted = exact.log_prob(target.field(u)) + torch.linalg.slogdet(jacobian).logabsdet
    gap = (target.log_prob(u) - wanted).detach()
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), atol=2e-3, rtol=0)
    direct = Target(vfm, y, {}, direct=True)
    v = direct.sample(20)
    gap = direct.log_prob(v) - exact.log_prob(direct.field(v))
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="density of this map's draws is unknown"):
        direct.log_reference(v)


def test_target_of_a_prior_map_needs_no_density_of_the_prior() -> None:
    problem, vfm = damaged("adapter")
    _, y, _ = problem.simulate(4, seed=0)
    vfm.log_prior = None
    target = Target(vfm, y, {})
    u = target.sample(30)
    gap = target.log_prob(u) - problem.reference_posterior(y).log_prob(target.field(u))
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), atol=2e-3, rtol=0)


def test_target_with_bounds() -> None:
    prior = Independent(Uniform(torch.zeros(2), torch.tensor([1.0, 3.0])), 1)
    problem = InverseProblem(prior, likelihood=lambda x: Independent(Normal(x, 0.3), 1))
    vfm = VariationalFlowMap.for_problem(problem, observation="context", num_simulations=2000)
    y = torch.tensor([[0.5, 2.8]])
    ensemble = correction.psis(vfm, y, 20_000, seed=0)
    x = torch.linspace(0, 3, 3001)
    weight = torch.exp(-0.5 * ((x - 2.8) / 0.3) ** 2)
    exact = float((weight * x).sum() / weight.sum())
    assert abs(float(ensemble.mean[0, 1]) - exact) < 0.01


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["psis", "smc", "pcn", "mala", "hmc", "auto"])
def test_corrected_draws_are_the_posterior(method: str, mode: str) -> None:
    problem, vfm = damaged(mode, weight=0.0 if mode == "adapter" else 0.1)
    _, y, _ = problem.simulate(3, seed=2)
    exact = problem.reference_posterior(y)
    raw = vfm(y).sample((4000,))
    assert float(((raw.mean(0) - exact.mean).abs() / exact.variance.sqrt()).max()) > 0.25
    ensemble = {
        "psis": lambda: correction.psis(vfm, y, 8192, seed=0),
        "smc": lambda: correction.smc(vfm, y, 4096, seed=0),
        "auto": lambda: correction.auto(vfm, y, 4096, seed=0),
    }.get(
        method,
        lambda: correction.mcmc(
            vfm, y, 8192, method=method, num_chains=256, warmup=100, thin=4, seed=0
        ),
    )()
    shift, low, high = errors(ensemble, exact)
    assert shift < 0.1, method
    assert 0.88 < low < high < 1.13, method
    assert ensemble.samples.shape[1:] == (3, 3)
    torch.testing.assert_close(ensemble.weights.sum(0), torch.ones(3))


def test_hamiltonian_chains_learn_the_metric() -> None:
    """The map's widths are off by factors of e^-4 to e^4 and the chains begin away from the
    posterior: single steps of one size get nowhere, trajectories in the learned metric do."""
    problem, vfm = damaged("adapter", dim=8)
    with torch.no_grad():
        vfm.adapter.head.bias.copy_(torch.tensor([3.0, -3.0, 4.0, -4.0]))
    _, y, _ = problem.simulate(2, seed=0)
    exact = problem.reference_posterior(y)
    ensemble = correction.mcmc(vfm, y, 8192, num_chains=128, seed=0)
    assert ensemble.diagnostics["rhat"].max() < 1.03
    shift, low, high = errors(ensemble, exact)
    assert shift < 0.1
    assert 0.88 < low < high < 1.13
    single = correction.mcmc(vfm, y, 8192, method="mala", num_chains=128, seed=0)
    assert single.diagnostics["rhat"].min() > 1.1


def test_chains_that_have_not_arrived_start_again_elsewhere() -> None:
    torch.manual_seed(0)
    u = torch.arange(6.0).reshape(6, 1, 1).expand(6, 2, 1)
    log_prob = torch.tensor([[0.0, -1.0, -2.0, -1e9, -torch.inf, -3.0], [-torch.inf] * 6]).T
    state, found = restart(State(u, log_prob, log_prob, u))
    assert found[[0, 1, 2, 5], 0].tolist() == [0, 1, 2, 5]  # near the median: they stay
    assert {3, 4}.isdisjoint(found[:, 0].tolist())
    torch.testing.assert_close(state.u[:, :, 0], found.float())
    assert state.log_prob[:, 0].min() == -3
    assert found[:, 1].tolist() == list(range(6))  # of the second, no chain has a density


def test_nuts_agrees() -> None:
    problem, vfm = damaged("adapter", dim=2)
    _, y, _ = problem.simulate(1, seed=3)
    ensemble = correction.mcmc(vfm, y[0], 300, method="nuts", num_chains=1, warmup=50, seed=0)
    exact = problem.reference_posterior(y)
    assert ensemble.samples.shape == (300, 2)
    assert ((ensemble.mean - exact.mean[0]).abs() / exact.variance[0].sqrt()).max() < 0.3
    assert 0.6 < (ensemble.variance / exact.variance[0]).min()


def test_a_separated_second_mode_is_filled_by_tempering() -> None:
    """x^2 is observed: two mirrored modes. The map knows both, in the wrong proportion."""
    problem = InverseProblem(
        Independent(Normal(torch.zeros(1), torch.ones(1)), 1),
        likelihood=lambda x: Independent(Normal(x.square(), 0.3), 1),
    )
    vfm = VariationalFlowMap.for_problem(problem, observation="context", num_simulations=2000)
    y = torch.tensor([[1.5]])
    with torch.no_grad():  # the draws lean to one side
        list(vfm.flow_map.parameters())[-1].add_(0.4)
    share = float((vfm(y).raw.sample((4000,)) > 0).double().mean())
    assert abs(share - 0.5) > 0.08
    ensemble = correction.smc(vfm, y, 4096, seed=0)
    assert abs(float((ensemble.samples > 0).double().mean()) - 0.5) < 0.05
    assert ensemble.diagnostics["power"].eq(1).all()


def test_auto_says_which_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, vfm = damaged("adapter")
    _, y, _ = problem.simulate(2, seed=0)
    with torch.no_grad():
        vfm.adapter.head.bias.mul_(0.2)
    light = correction.auto(vfm, y, 1024, seed=0)
    assert light.diagnostics["rung"].eq(0).all()
    assert "k-hat" in light.notes[0]
    with torch.no_grad():
        vfm.adapter.head.bias.copy_(torch.tensor([1.5, -1.5, -0.7, -0.7]))
    heavy = correction.auto(vfm, y, 1024, seed=0)
    assert heavy.diagnostics["k_hat"].gt(0.7).all()
    assert heavy.diagnostics["rung"].ge(1).all()
    assert heavy.diagnostics["satisfied"].eq(1).all()
    assert "agree" in heavy.notes[0]
    # Where tempering could not arrive in time, the chains come next.
    monkeypatch.setattr("vfm_inverse.correction.ladder.MOST_STAGES", 0.0)
    lost = correction.auto(vfm, y, 1024, seed=0)
    assert lost.diagnostics["rung"].eq(2).all()
    assert errors(lost, problem.reference_posterior(y))[0] < 0.25


def test_auto_starts_with_chains_where_the_density_of_draws_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, vfm = damaged("both")
    _, y, _ = problem.simulate(2, seed=0)
    monkeypatch.setattr("vfm_inverse.sampling.target.TRANSPORT_LIMIT", 1)
    ensemble = correction.auto(vfm, y, 4096, seed=0)
    assert ensemble.diagnostics["rung"].eq(2).all()
    assert "Markov chains (the density of the draws is unknown" in ensemble.notes[0]
    shift, low, high = errors(ensemble, problem.reference_posterior(y))
    assert shift < 0.2 and 0.75 < low < high < 1.3
    with pytest.raises(ValueError, match="use correction.mcmc"):
        correction.psis(vfm, y, 1024)


def test_chains_that_disagree_go_on_with_more_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, vfm = damaged("both")
    _, y, _ = problem.simulate(2, seed=0)
    calls: list[tuple[int, int]] = []

    def run(
        target: Target, u: Tensor, length: int, warmup: int, thin: int, tick: object
    ) -> object:
        calls.append((target.num, thin))
        chains = torch.randn(length, *u.shape)
        # The first observation's chains agree at once, the second's after more moves.
        if thin == 2:
            chains[:, ::2, 1] += 5.0
        return chains, torch.ones(target.num)

    monkeypatch.setattr("vfm_inverse.sampling.target.TRANSPORT_LIMIT", 1)
    monkeypatch.setattr("vfm_inverse.correction.ladder.hamiltonian", run)
    ensemble = correction.auto(vfm, y, 1024, seed=0)
    assert calls == [(2, 2), (1, 8)]
    assert ensemble.diagnostics["satisfied"].eq(1).all()


def test_stages_of_tempering_are_foreseen() -> None:
    """Log-weights of a Gaussian likelihood of d data, far narrower than the draws."""
    torch.manual_seed(0)
    for dim in (4, 16):
        u = torch.randn(512, 1, dim)
        log_ratio = -0.5 * (u / 0.02).square().sum(-1)
        foreseen = float(stages_needed(log_ratio, dim))
        power, stages = 0.0, 0
        while power < 1:
            # Of the tempered posteriors exact draws are known.
            width = 1 / math.sqrt(1 + power / 0.02**2)
            log_ratio = -0.5 * (width * torch.randn(2048, 1, dim) / 0.02).square().sum(-1)
            power += float(next_rise(log_ratio, torch.tensor([1 - power]), 0.5))
            power, stages = (1.0 if power > 1 - 1e-6 else power), stages + 1
        assert 0.5 < foreseen / stages < 2, (foreseen, stages)


def test_pareto_fit_is_that_of_pyro_and_finds_the_tail() -> None:
    torch.manual_seed(0)
    for shape in (0.3, 0.8):
        weights = torch.rand(200_000, 2, dtype=torch.float64).pow(-shape)  # Pareto of that shape
        smoothed, k_hat = smooth(weights.log())
        assert (k_hat - shape).abs().max() < 0.1
        scaled = weights / weights.max(0).values
        ordered = scaled[:, 0].sort().values
        tail = math.ceil(3 * 200_000**0.5)
        k, _ = fit_generalized_pareto(ordered[-tail:] - ordered[-tail - 1])
        assert abs(float(k_hat[0]) - float(k)) < 0.02
        # Order is kept, and only the tail is touched.
        assert (smoothed.argsort(0) == weights.argsort(0)).all()
        assert smoothed.max() <= 0


def test_equal_weights_stay_equal() -> None:
    smoothed, _ = smooth(torch.zeros(1000, 1))
    torch.testing.assert_close(smoothed.softmax(0), torch.full((1000, 1), 1e-3))
    with pytest.raises(ValueError, match="at least 25"):
        smooth(torch.zeros(10, 1))


def test_systematic_resampling_is_within_one_of_the_expected_count() -> None:
    torch.manual_seed(0)
    weights = torch.rand(50, 3).softmax(0)
    index = systematic(weights, 1000)
    counts = torch.stack([index[:, i].bincount(minlength=50) for i in range(3)], 1)
    assert ((counts - 1000 * weights).abs() < 1 + 1e-3).all()


def test_rhat_sees_groups_that_disagree() -> None:
    torch.manual_seed(0)
    groups = torch.randn(4, 500, 2, 3)
    assert split_rhat(groups).max() < 1.02
    groups[0, :, 1, 2] += 1
    assert split_rhat(groups)[0] < 1.02 < 1.05 < split_rhat(groups)[1]


@pytest.mark.parametrize(("scale", "caught"), [(1.0, False), (0.8, True), (1.25, True)])
def test_stein_test_catches_a_wrong_width(scale: float, caught: bool) -> None:
    torch.manual_seed(0)
    p_values = []
    for _ in range(3 if caught else 20):
        u = scale * torch.randn(800, 8)
        p_values.append(float(stein_test(u, -u, 300)[1]))
    if caught:
        assert max(p_values) < 0.01
    else:  # uniform: the least of twenty is rarely below 0.001, the mean about a half
        assert min(p_values) > 0.002
        assert 0.3 < np.mean(p_values) < 0.7


def test_ksd_of_a_map() -> None:
    problem, vfm = damaged("adapter")
    _, y, _ = problem.simulate(2, seed=0)
    assert correction.ksd(vfm, y, 500, seed=0)["p_value"].max() < 0.01
    with torch.no_grad():
        vfm.adapter.head.bias.zero_()
    right = correction.ksd(vfm, y, 500, seed=0)
    assert right["p_value"].min() > 0.01
    assert correction.ksd(vfm, y[0], 100, seed=0)["ksd"].shape == ()


def test_conformal_intervals_cover_whatever_the_draws() -> None:
    problem, vfm = damaged("adapter")
    with torch.no_grad():
        vfm.adapter.head.bias.copy_(torch.tensor([1.0, 0.0, -2.0, -2.0]))
    raw = calibration.calibrate(vfm, problem, 500, 100, seed=1)
    assert float(raw.coverage_map.sel(level=0.9).min()) < 0.8
    intervals = correction.conformal(vfm, problem, 0.9, num_simulations=999, seed=0)
    covered = intervals.coverage(problem, 2000, seed=5)
    assert 0.87 < covered.min() < covered.max() < 0.93
    _, y, _ = problem.simulate(1, seed=0)
    lower, upper = intervals(y[0])
    assert lower.shape == (3,) and (lower < upper).all()
    with pytest.raises(ValueError, match="at least 99"):
        correction.conformal(vfm, problem, 0.99, num_simulations=50)


def test_temperature_undoes_a_wrong_width() -> None:
    problem, vfm = damaged("adapter", dim=2)
    with torch.no_grad():
        vfm.adapter.head.bias.copy_(torch.tensor([0.0, 0.0, -0.5, -0.5]))
    _, y, _ = problem.simulate(2, seed=0)
    exact = problem.reference_posterior(y).variance.sqrt()
    torch.manual_seed(0)
    width = vfm(y).sample((4000,)).std(0) / exact
    torch.testing.assert_close(width, torch.full_like(width, 0.62), atol=0.03, rtol=0)
    tempered = correction.temperature(vfm, problem, num_simulations=2000, seed=0)
    assert isinstance(tempered, Tempered)
    width = tempered(y).sample((4000,)).std(0) / exact
    torch.testing.assert_close(width, torch.ones_like(width), atol=0.08, rtol=0)
    with pytest.raises(ValueError, match="'largest' must be a number above 1"):
        correction.temperature(vfm, problem, largest=0.5)


def test_ensembles_go_where_draws_go() -> None:
    problem, vfm = damaged("adapter")
    _, y, _ = problem.simulate(2, seed=0)
    ensemble = correction.psis(vfm, y, 2048, seed=0)
    dataset = vi.to_xarray(ensemble, problem, y)
    assert dataset["weight"].dims == ("draw", "observation")
    assert dataset["k_hat"].shape == (2,)
    one = vi.to_xarray(correction.psis(vfm, y[0], 2048, seed=0), problem)
    assert one["weight"].dims == ("draw",)
    torch.manual_seed(0)
    assert ensemble.sample((5, 2)).shape == (5, 2, 2, 3)
    assert ensemble.sample().shape == (2, 3)
    report = calibration.calibrate(
        lambda y: correction.auto(vfm, y, 512), problem, 200, 99, seed=0
    )
    assert report.attrs["verdict"] == "pass", report.attrs["reason"]
    assert calibration.calibrate(vfm, problem, 200, 99, seed=0).attrs["verdict"] == "fail"


def test_a_seed_fixes_a_correction_and_leaves_the_global_stream() -> None:
    problem, vfm = damaged("adapter")
    _, y, _ = problem.simulate(2, seed=0)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = correction.smc(vfm, y, 256, seed=3).samples
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(correction.smc(vfm, y, 256, seed=3).samples, first, rtol=0, atol=0)


def test_what_cannot_be_corrected_is_refused() -> None:
    samples = torch.randn(500, 3)
    simulated = InverseProblem(samples, simulator=lambda x: x + torch.randn_like(x))
    blind = VariationalFlowMap.for_problem(simulated, num_simulations=200)
    with pytest.raises(ValueError, match="needs a likelihood"):
        correction.psis(blind, torch.zeros(1, 3))
    sampled = InverseProblem(samples, likelihood=lambda x: Independent(Normal(x, 1.0), 1))
    vfm = VariationalFlowMap.for_problem(sampled, num_simulations=200)
    with pytest.raises(ValueError, match="needs the prior's density"):
        correction.auto(vfm, torch.zeros(1, 3), 128)
    problem, vfm = damaged("adapter")
    _, y, _ = problem.simulate(1, seed=0)
    for arguments, text in [
        ({"num_samples": 130}, "multiple of 32"),
        ({"num_samples": 64}, "at least 128"),
    ]:
        with pytest.raises(ValueError, match=text):
            correction.auto(vfm, y, **arguments)
    with pytest.raises(ValueError, match="multiple of 4"):
        correction.smc(vfm, y, 101)
    with pytest.raises(ValueError, match="'method' must be one of"):
        correction.mcmc(vfm, y, 128, method="gibbs")
    with pytest.raises(ValueError, match="multiple of 'num_chains'"):
        correction.mcmc(vfm, y, 100)


def test_unbatched_parameters_of_the_networks_are_not_touched() -> None:
    problem, vfm = damaged("both", weight=0.1)
    before = nn.utils.parameters_to_vector(vfm.parameters()).clone()
    _, y, _ = problem.simulate(1, seed=0)
    correction.mcmc(vfm, y, 128, num_chains=16, warmup=5, thin=1, seed=0)
    assert torch.equal(nn.utils.parameters_to_vector(vfm.parameters()), before)
    assert all(p.grad is None for p in vfm.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mode", MODES)
def test_corrections_on_a_gpu(mode: str) -> None:
    problem, vfm = damaged(mode, weight=0.0 if mode == "adapter" else 0.1)
    problem.to("cuda")
    vfm.to("cuda")
    _, y, _ = problem.simulate(3, seed=2)
    exact = problem.reference_posterior(y)
    for ensemble in (
        correction.psis(vfm, y, 8192, seed=0),
        correction.smc(vfm, y, 4096, seed=0),
        correction.auto(vfm, y, 4096, seed=0),
    ):
        assert ensemble.samples.is_cuda
        shift, low, high = errors(ensemble, exact)
        assert shift < 0.1
        assert 0.88 < low < high < 1.13
    assert correction.ksd(vfm, y, 200, seed=0)["p_value"].is_cuda


def test_a_map_that_folds_over_itself_is_found_out() -> None:
    """The weights of a folding map are wrong without a sign in k-hat: they must not be trusted."""
    problem = problems.load("linear-gaussian", dim=1, obs_dim=1)
    vfm = VariationalFlowMap.for_problem(problem, observation="context", num_simulations=2000)
    _, y, _ = problem.simulate(2, seed=0)
    target, u = Target(vfm, y, {}), torch.randn(100, 2, 1)
    log_prob, folded = target.log_prob_and_folds(u)
    assert folded.eq(0).all()
    torch.testing.assert_close(log_prob, target.log_prob(u))

    class Fold(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, context: object) -> Tensor:
            return 2 * torch.sin(2 * x)  # one step: x - 2 sin 2x, which is not monotonic

    vfm.flow_map.network = Fold()
    weighted = correction.psis(vfm, y, 2048, seed=0)
    assert weighted.diagnostics["folded"].min() > 0.1
    assert "do not trust" in weighted.notes[0]
    tempered = correction.smc(vfm, y, 256, seed=0)
    assert tempered.diagnostics["folded"].min() > 0.1
    # More steps unfold it.
    climbed = correction.auto(vfm, y, 2048, seed=0)
    assert climbed.diagnostics["folded"].max() < 0.01
    assert climbed.diagnostics["satisfied"].eq(1).all()
    exact = problem.reference_posterior(y)
    assert ((climbed.mean - exact.mean).abs() / exact.variance.sqrt()).max() < 0.1
