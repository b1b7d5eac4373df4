"""Chains over conditional laws, and draws that end with a few of their moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import Cauchy, Laplace, Normal, StudentT, TransformedDistribution
from torch import Tensor
from torch.distributions import AffineTransform, ExpTransform

from vfm_inverse import correction, problems
from vfm_inverse.gaussian.scale_mixtures import ScaleMixture, precisions
from vfm_inverse.operators import MatrixObservations
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.quantiles import elements_of
from vfm_inverse.problems import student_t


def law_of(name: str) -> Any:
    zeros = torch.zeros(2)
    prior = {"laplace": Laplace(zeros, 1.0), "student": StudentT(3.0, zeros)}.get(
        name, Cauchy(zeros, torch.ones(2))
    )
    found = elements_of(prior.to_event(1))
    assert found is not None
    return found.law


def test_precisions_are_those_of_the_mixtures() -> None:
    torch.manual_seed(0)
    t = torch.full((400_000,), 0.8, dtype=torch.float64)
    # Means of the conditional laws: 1 / |t|, and (nu + 1) / (nu + t^2).
    for name, mean in (("laplace", 1.25), ("student", 4 / 3.64), ("cauchy", 2 / 1.64)):
        w = precisions(t, law_of(name))
        assert abs(float(w.mean()) - mean) < 0.01
        assert bool((w > 0).all())
    # Inverse Gaussian of shape 1 has the variance mean^3.
    assert abs(float(precisions(t, law_of("laplace")).var()) - 1.25**3) < 0.1
    assert bool(precisions(torch.zeros(10).double(), law_of("laplace")).isfinite().all())


def test_which_posteriors_have_known_conditional_laws() -> None:
    zeros = torch.zeros(3)
    physics = MatrixObservations(torch.eye(3), GaussianNoise(0.1))

    def suits(prior: Any) -> bool:
        problem = InverseProblem(prior=prior, physics=physics)
        return ScaleMixture.suits(problem.log_prior, problem.likelihood)

    heavy = Laplace(zeros, 1.0).to_event(1)
    assert suits(heavy)
    assert suits(TransformedDistribution(heavy, [AffineTransform(1.0, 2.0)]))
    assert not suits(Normal(zeros, 1.0).to_event(1))
    assert not suits(lambda num: torch.randn(num, 3))
    bent = TransformedDistribution(heavy, [ExpTransform()])
    problem = InverseProblem(prior=bent, physics=physics)
    assert not ScaleMixture.suits(problem.log_prior, problem.likelihood)


def mean_error(draws: Tensor, exact: Tensor) -> float:
    """Mean squared error of means over the mean variance of exact draws."""
    gap = (draws.mean(0) - exact.mean(0)).square().sum()
    return float(gap / exact.var(0).sum())


def test_draws_of_student_t_end_near_the_exact_posterior() -> None:
    problem = problems.load("student-t", sigma=(0.1, 0.5))
    vfm = VariationalFlowMap.for_problem(problem, exact=False, num_simulations=4000, seed=0)
    assert vfm.config["sweeps"] == 8
    _, y, params = problem.simulate(40, seed=1)
    exact = student_t.gibbs(y, 600, 60, sigma=params["sigma"], chain_seed=0)
    torch.manual_seed(0)
    swept = vfm(y, **params).sample((600,))
    assert mean_error(swept, exact) < 0.01
    # Planted: without its end the draw is the Gaussian answer.
    vfm.config["sweeps"] = 0
    assert mean_error(vfm(y, **params).sample((600,)), exact) > 0.1
    chains = correction.gibbs(vfm, y, 640, seed=0, **params)
    assert mean_error(chains.samples, exact) < 0.01
    assert float(chains.diagnostics["rhat"].median()) < 1.1
    one = correction.auto(vfm, y[:1], 512, seed=0, sigma=params["sigma"][:1])
    assert "over conditional laws" in one.notes[0]


def test_a_wrong_noise_level_is_found_out() -> None:
    problem = problems.load("student-t")
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=2000, seed=0)
    _, y, _ = problem.simulate(40, seed=1)
    exact = student_t.gibbs(y, 400, 60, sigma=0.6, chain_seed=0)
    torch.manual_seed(0)
    assert mean_error(vfm(y).sample((400,)), exact) > 0.02


def test_other_problems_are_refused() -> None:
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2)
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=500)
    assert "sweeps" not in vfm.config
    with pytest.raises(ValueError, match="must be of a problem with Laplace, Student-t or Cauchy"):
        correction.gibbs(vfm, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="must be a multiple of 'num_chains'"):
        correction.gibbs(vfm, torch.zeros(1, 2), 33)
