"""Priors with bounds: the coordinates have none, and the draws keep to them."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, LogNormal, Normal, Uniform
from torch.distributions.transforms import ExpTransform

import vfm_inverse as vi
from vfm_inverse.bounded import Box, transform_of
from vfm_inverse.problem import InverseProblem
from vfm_inverse.whitening import DenseWhitening


def uniform(dim: int = 2, low: float = -1.0, high: float = 3.0) -> Independent:
    return Independent(Uniform(torch.full((dim,), low), torch.full((dim,), high)), 1)


def observe(x: torch.Tensor) -> Independent:
    return Independent(Normal(x, 0.5), 1)


def test_uniform_draws_have_normal_coordinates() -> None:
    torch.manual_seed(0)
    v = Box(-1.0, 3.0).inv(uniform(1).sample((100_000,)))
    assert abs(float(v.mean())) < 0.02
    assert abs(float(v.std()) - 1) < 0.01
    assert abs(float((v > 1.645).double().mean()) - 0.05) < 0.004


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_have_finite_coordinates(dtype: torch.dtype) -> None:
    box = Box(-1.0, 3.0)
    ends = torch.tensor([-1.0, 3.0], dtype=dtype)
    v = box.inv(ends)
    assert torch.isfinite(v).all()
    torch.testing.assert_close(box(v), ends)


def test_log_derivative() -> None:
    box = Box(torch.tensor([0.0, -2.0]), torch.tensor([1.0, 5.0]))
    v = torch.randn(7, 2, dtype=torch.float64)
    rate = torch.func.jvp(box, (v,), (torch.ones_like(v),))[1]
    torch.testing.assert_close(box.log_abs_det_jacobian(v, box(v)), rate.log())


def test_a_box_is_found_in_a_prior() -> None:
    assert transform_of(uniform(3)) == Box(torch.full((3,), -1.0), torch.full((3,), 3.0))
    assert transform_of(uniform(3)) != Box(torch.zeros(3), torch.ones(3))
    assert transform_of(Normal(0.0, 1.0)) is None
    assert transform_of(torch.zeros(5, 2)) is None
    with pytest.raises(ValueError, match="'low' must lie below 'high'"):
        Box(1.0, 1.0)


def test_whitened_density_with_bounds() -> None:
    """log p(x) + log |dx / dxi| is the density of the coordinates: normal for a uniform prior."""
    whitening = DenseWhitening((2,))
    whitening.transform = Box(-1.0, 3.0)
    xi = torch.randn(50, 2)
    x = whitening.unwhiten(xi)
    torch.testing.assert_close(whitening.whiten(x), xi, atol=1e-3, rtol=1e-3)
    log_density = uniform().log_prob(x) + whitening.log_det(xi)
    exact = Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(xi)
    torch.testing.assert_close(log_density, exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["adapter", "context", "both"])
def test_draws_stay_in_the_box(mode: str) -> None:
    problem = InverseProblem(uniform(), likelihood=observe)
    vfm = vi.VariationalFlowMap.for_problem(problem, observation=mode, num_simulations=2000)
    _, y, _ = problem.simulate(50, seed=0)
    draws = vfm(y).sample((200,))
    assert -1 <= draws.min() < draws.max() <= 3
    # Even untrained it answers: the error of its mean is well below the prior's.
    x, _, _ = problem.simulate(50, seed=0)
    assert (draws.mean(0) - x).square().mean() < 0.4 * uniform().variance.mean()


def test_a_transform_of_ones_own(tmp_path: object) -> None:
    prior = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)
    problem = InverseProblem(prior, likelihood=observe, transform=ExpTransform())
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=2000, width=16, depth=1)
    _, y, _ = problem.simulate(5, seed=0)
    draws = vfm(y).sample((100,))
    assert draws.min() > 0
    vfm.save(f"{tmp_path}/model.safetensors")
    again = vi.load(f"{tmp_path}/model.safetensors", problem, warn=False)
    torch.manual_seed(0)
    first = vfm(y).sample((4,))
    torch.manual_seed(0)
    torch.testing.assert_close(again(y).sample((4,)), first)
