"""The objective: its terms against hand-made values, where gradients go, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.training.objective import PRESETS, Objective

MODES = ["adapter", "context", "both"]


def build(
    observation: str = "adapter", **options: object
) -> tuple[InverseProblem, VariationalFlowMap]:
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2)
    options = {"num_simulations": 2000, "width": 16, "depth": 1} | options
    return problem, vi.VariationalFlowMap.for_problem(problem, observation=observation, **options)


def shake(vfm: VariationalFlowMap) -> None:
    """Weights away from their zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in vfm.networks.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("flow_loss", ["lagrangian", "eulerian", "semigroup", "diagonal"])
@pytest.mark.parametrize("mode", MODES)
def test_every_loss_in_every_mode_is_finite_and_reaches_every_parameter(
    mode: str, flow_loss: str
) -> None:
    problem, vfm = build(mode)
    shake(vfm)
    objective = Objective(vfm, flow_loss=flow_loss, forward=None if mode == "context" else 1.0)
    x, y, params = problem.simulate(64, seed=0)
    terms = objective(x, y, **params)
    assert all(torch.isfinite(value) for value in terms.values())
    named = [value for name, value in terms.items() if name != "loss"]
    torch.testing.assert_close(terms["loss"].detach(), torch.stack(named).sum())
    terms["loss"].backward()
    dead = [
        n
        for n, p in vfm.networks.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not dead


def test_reverse_term_is_the_evidence_bound_and_spares_the_map() -> None:
    """With the exact Gaussian start as q, -ELBO equals -log p(y), for every y."""
    problem, vfm = build("adapter")
    objective = Objective(vfm, flow=0.0, forward=0.0, reverse=1.0)
    _, y, _ = problem.simulate(1, seed=3)
    x = problem.sample_prior(1)
    mean, covariance = problem.prior_moments()
    matrix = problem.physics.A(torch.eye(3)).T.double()
    evidence = torch.distributions.MultivariateNormal(
        matrix @ mean, matrix @ covariance @ matrix.T + 0.09 * torch.eye(2)
    ).log_prob(y.double())
    bound = torch.stack([objective(x, y)["loss"].detach() for _ in range(20)])
    torch.testing.assert_close(bound.double(), -evidence.expand(20), atol=1e-3, rtol=1e-3)
    shake(vfm)
    objective(x, y)["loss"].backward()
    assert all(p.grad is None for p in vfm.flow_map.parameters())
    assert all(p.grad is None for p in objective.average.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in vfm.adapter.parameters())


def test_forward_term_encodes_the_truth() -> None:
    problem, vfm = build("adapter", adapter="diagonal", gaussian_start=False)
    objective = Objective(vfm, flow=0.0)
    x, y, _ = problem.simulate(32, seed=1)
    # An untrained map leaves standardised x alone, and q is N(0, I).
    xi = vfm.whitening.whiten(x)
    expected = 0.5 * (xi.square().sum(1) + 3 * torch.log(torch.tensor(2 * torch.pi))).mean()
    torch.testing.assert_close(objective(x, y)["forward"], expected)


def test_sums_over_dimensions() -> None:
    """Twice the dimensions of the same kind double the flow loss."""
    values = []
    for dim in (8, 16):
        problem = problems.load("linear-gaussian", dim=dim, obs_dim=2)
        vfm = vi.VariationalFlowMap.for_problem(
            problem, observation="adapter", num_simulations=2000
        )
        x, y, _ = problem.simulate(8192, seed=0)
        with torch.no_grad():
            values.append(
                float(Objective(vfm, forward=0.0, flow_loss="diagonal")(x, y)["diagonal"])
            )
    assert abs(values[1] / values[0] - 2) < 0.1


def test_adaptive_scale_normalises_the_total() -> None:
    problem, vfm = build("adapter", adapter="diagonal")
    x, y, _ = problem.simulate(32, seed=0)
    total = Objective(vfm, **PRESETS["vfm"])(x, y)["loss"]
    assert 0.9 < float(total.detach().abs()) <= 1


def test_average_follows_the_networks() -> None:
    _, vfm = build("adapter")
    objective = Objective(vfm)
    before = [p.clone() for p in objective.average.parameters()]
    shake(vfm)
    objective.update_average(0.75)
    for old, mean, new in zip(
        before, objective.average.parameters(), vfm.networks.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, 0.75 * old + 0.25 * new)


@pytest.mark.parametrize("mode", MODES)
def test_health_of_an_exact_start(mode: str) -> None:
    problem, vfm = build(mode)
    x, y, _ = problem.simulate(2000, seed=0)
    figures = Objective(vfm).health(x, y)
    assert figures["semigroup"] < 1e-5
    if mode == "adapter":
        assert figures["round_trip"] < 1e-5
    if mode != "context":
        assert abs(figures["dispersion"] - 1) < 0.15
        assert 0 < figures["mean_sigma"] < 1
        assert figures["kl_per_dim"] > 0.1


def test_refusals_name_the_argument() -> None:
    _, vfm = build("both")
    _, mixture = build("adapter", adapter="mixture")
    blind = InverseProblem(torch.randn(500, 3), simulator=lambda x: x + 1)
    simulated = vi.VariationalFlowMap.for_problem(
        blind, observation="adapter", num_simulations=200
    )
    for model, arguments, text in [
        (vfm, {"flow_loss": "euler"}, "'flow_loss' must be one of"),
        (vfm, {"coupling": "sinkhorn"}, "'coupling' must be one of"),
        (vfm, {"reverse": 1.0}, "need observation='adapter'"),
        (vfm, {"coupling": "adapter"}, "need observation='adapter'"),
        (vfm, {"coupling": "minibatch-ot"}, "need observation='adapter'"),
        (mixture, {"reverse": 1.0}, "reparametrised draws"),
        (simulated, {"reverse": 1.0}, "simulator only"),
    ]:
        with pytest.raises(ValueError, match=text):
            Objective(model, **arguments)
