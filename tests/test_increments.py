"""Signals of heavy-tailed increments: the Gibbs sampler against quadrature."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems import increments

SETTINGS: dict[str, dict[str, Any]] = {
    "laplace": {"law": "laplace"},
    "student": {"law": "student", "blur": 0.4},
    "cauchy": {"law": "cauchy", "blur": 0.4},
}


def quadrature(problem: InverseProblem, y: Tensor, reach: float, size: int = 801) -> Tensor:
    """Mean, variance and mean absolute first increment, ``(3, 2)``, of two increments, on a grid
    whose points lie densely near 0."""
    steps = torch.linspace(-1, 1, size, dtype=torch.float64)
    u = reach * torch.sinh(6 * steps) / math.sinh(6.0)
    pace = torch.cosh(6 * steps)
    grid = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 1, 2)
    assert problem.log_prior is not None
    x = grid.cumsum(-1)
    weight = problem.log_prior(x) + problem.log_likelihood(x, y[0])
    share = ((weight - weight.max()).exp() * torch.outer(pace, pace).flatten()).unsqueeze(-1)
    share, x, grid = share / share.sum(), x[:, 0], grid[:, 0]
    mean = (share * x).sum(0)
    return torch.stack([mean, (share * (x - mean).square()).sum(0), (share * grid.abs()).sum(0)])


@pytest.mark.parametrize("law", SETTINGS)
def test_gibbs_draws_have_the_moments_of_quadrature(law: str) -> None:
    settings = SETTINGS[law]
    problem = problems.load("increments", length=2, sigma=0.7, **settings)
    y = torch.tensor([[[1.5, 4.0]]])
    exact = quadrature(problem, y, reach=40.0)

    def moments(chains: Tensor) -> Tensor:
        x = chains[:, 0, 0].double()
        u = x.diff(dim=-1, prepend=torch.zeros(len(x), 1))
        return torch.stack([x.mean(0), x.var(0), u.abs().mean(0)])

    def error(**changed: Any) -> float:
        chosen = settings | {"sigma": 0.7} | changed
        draws = increments.gibbs(y, 16000, 2, chains=400, warmup=50, chain_seed=0, **chosen)
        return float((moments(draws) - exact).abs().max())

    assert error() < 0.03
    # Planted: a noise level that is a tenth too high.
    assert error(sigma=0.85) > 0.05


def test_the_noise_is_that_of_the_ratio_asked_for() -> None:
    for law in increments.LAWS:
        problem = problems.load("increments", law=law, blur=2.0, snr=20.0)
        x, y, _ = problem.simulate(4000, seed=3)
        assert problem.physics is not None
        clean = problem.physics.A(x)
        power = clean.square().mean((1, 2)).median() / (y - clean).square().mean()
        assert abs(10 * math.log10(float(power)) - 20) < 0.5


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"length": 1}, "'length' must be at least 2, 'blur' at least 0 and 'df' positive; got 1"),
        ({"sigma": 0.0}, "'sigma' must be positive; got 0.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        increments.make(**settings)
    with pytest.raises(ValueError, match="'num_draws' must be a multiple of 16 chains; got 10"):
        increments.gibbs(torch.zeros(1, 1, 4), 10, sigma=1.0)
