"""The noise-space model runs under Pyro's own machinery, and agrees with the objective."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.correction import guide, model, refine
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.training.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*")


def built(
    observation: str, adapter: str | None = None, shift: float = 0.5
) -> tuple[InverseProblem, VariationalFlowMap]:
    pyro.clear_param_store()
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2)
    vfm = vi.VariationalFlowMap.for_problem(
        problem,
        observation=observation,
        adapter=adapter,
        width=16,
        depth=1,
        num_simulations=1000,
    )
    with torch.no_grad():
        if vfm.adapter is not None:
            vfm.adapter.head.bias.add_(shift)
        if observation == "context":
            list(vfm.flow_map.parameters())[-1].add_(shift)
    return problem, vfm


def test_the_reverse_objective_is_the_negative_elbo() -> None:
    """Value and gradient, with the same random numbers."""
    problem, vfm = built("adapter")
    x, y, _ = problem.simulate(6, seed=0)
    objective = Objective(vfm, flow=0.0, forward=0.0, reverse=1.0)
    parameters = list(vfm.adapter.parameters())
    torch.manual_seed(0)
    ours = objective(x, y)["loss"]
    gradients = torch.autograd.grad(ours, parameters)
    torch.manual_seed(0)
    theirs = Trace_ELBO().differentiable_loss(model, guide, vfm, y) / 6
    torch.testing.assert_close(theirs, ours)
    for one, other in zip(torch.autograd.grad(theirs, parameters), gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_svi_improves_the_adapter() -> None:
    problem, vfm = built("adapter")
    _, y, _ = problem.simulate(64, seed=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    torch.manual_seed(0)
    losses = [svi.step(vfm, y) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize(
    "observation",
    ["adapter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("context", "both"))],
)
def test_importance_predictive_and_nuts(observation: str) -> None:
    problem, vfm = built(observation, shift=0.3)
    _, y, _ = problem.simulate(1, seed=1)
    exact = problem.reference_posterior(y)
    torch.manual_seed(0)
    weighted = Importance(model, guide, num_samples=600).run(vfm, y)
    fields = torch.stack([trace.nodes["x"]["value"] for trace in weighted.exec_traces])
    weights = torch.tensor(weighted.log_weights).softmax(0)
    mean = (weights[:, None, None] * fields).sum(0)
    assert ((mean - exact.mean).abs() / exact.variance.sqrt()).max() < 0.3
    drawn = Predictive(model, guide=guide, num_samples=7, return_sites=["x"])(vfm, y)
    assert drawn["x"].shape == (7, 1, 3)
    sampler = MCMC(NUTS(model), num_samples=150, warmup_steps=50, disable_progbar=True)
    sampler.run(vfm, y)
    z = sampler.get_samples()["z"]
    answer = vfm.answer(vfm.condition(y, {}))
    fields = vfm.decode(z, answer)
    assert ((fields.mean(0) - exact.mean).abs() / exact.variance.sqrt()).max() < 0.4


@pytest.mark.parametrize(
    ("observation", "adapter"),
    [("adapter", "full"), ("adapter", "contraction"), ("adapter", "spline"), ("context", None)],
)
def test_refinement_reaches_the_posterior(observation: str, adapter: str | None) -> None:
    problem, vfm = built(observation, adapter)
    if adapter == "spline":  # whose numbers are a context that an untrained flow ignores
        with torch.no_grad():
            for transform in vfm.adapter.family.flow.transform.transforms:
                transform.hyper[-1].weight.normal_(std=0.05)
    _, y, _ = problem.simulate(3, seed=2)
    exact = problem.reference_posterior(y)

    def error(posterior: object) -> float:
        torch.manual_seed(0)
        draws = posterior.sample((4000,))
        return float(((draws.mean(0) - exact.mean).abs() / exact.variance.sqrt()).max())

    before = {k: v.clone() for k, v in vfm.state_dict().items()}
    raw, refined = error(vfm(y)), error(refine(vfm, y, 300, seed=0))
    assert refined < (0.6 * raw if adapter == "spline" else 0.12)
    assert raw > 0.25 or adapter == "spline"
    assert all(torch.equal(v, before[k]) for k, v in vfm.state_dict().items())
    assert refine(vfm, y[0], 2, seed=0).sample((5,)).shape == (5, 3)


def test_a_mixture_cannot_be_refined() -> None:
    problem, vfm = built("adapter", "mixture")
    _, y, _ = problem.simulate(1, seed=2)
    with pytest.raises(ValueError, match="reparametrised draws"):
        refine(vfm, y)
