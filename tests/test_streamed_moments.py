"""Priors by draws and by samples: how many it takes, and what error is left."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor
from torch.distributions import MultivariateNormal

import vfm_inverse as vi
from vfm_inverse.gaussian import streamed_moments
from vfm_inverse.gaussian.streamed_moments import (
    FAR_OUT,
    sampling_error,
    stream_moments,
)
from vfm_inverse.gaussian.whitening import DenseWhitening
from vfm_inverse.posterior.card import told_of_prior
from vfm_inverse.problem.inverse_problem import InverseProblem

DIM, SIGMA = 24, 0.05


def correlated(dim: int = DIM) -> Tensor:
    """A root of an exponential covariance on a line."""
    t = torch.linspace(0, 1, dim, dtype=torch.float64)
    return torch.linalg.cholesky(torch.exp(-(t[:, None] - t).abs() / 0.1))


ROOT = correlated()


class Blur(LinearPhysics):
    """Neighbours in parts of 1/4, 1/2, 1/4."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__(noise_model=GaussianNoise(SIGMA))
        line = torch.eye(dim) / 2
        beside = torch.ones(dim - 1) / 4
        self.register_buffer("matrix", line + beside.diag(1) + beside.diag(-1))

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x @ self.matrix.to(x)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y @ self.matrix.mT.to(y)


def gaussian(num: int) -> Tensor:
    return 2 + torch.randn(num, DIM) @ ROOT.float().mT


def far_out_error(vfm: vi.VariationalFlowMap) -> float:
    """Of the start's mean where everything is 3 prior standard deviations out: RMS in posterior
    standard deviations."""
    matrix, prior = Blur().matrix.double(), ROOT @ ROOT.mT
    gain = (
        prior
        @ matrix
        @ torch.linalg.inv(matrix.mT @ prior @ matrix + SIGMA**2 * torch.eye(DIM).double())
    )
    std = (prior - gain @ matrix.mT @ prior).diagonal().sqrt()
    torch.manual_seed(1)
    x = 2 + FAR_OUT * torch.randn(50, DIM).double() @ ROOT.mT
    y = x @ matrix + SIGMA * torch.randn(50, DIM).double()
    exact = 2 + (y - 2 * matrix.sum(0)) @ gain.mT
    start = vfm.whitening.unwhiten(vfm.condition(y.float(), {}).start.mean)
    return float(((start.double() - exact) / std).square().mean().sqrt())


def test_a_callable_prior_is_drawn_from_until_far_out_observations_are_right() -> None:
    problem = vi.InverseProblem(prior=gaussian, physics=Blur())
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=4000, seed=3)
    found = vfm.config["prior_moments"]
    assert found["draws"] >= FAR_OUT**2 * DIM / 0.02**2
    assert found["error"] == pytest.approx(0.02, rel=0.15)
    assert far_out_error(vfm) < found["error"]
    few = InverseProblem(prior=gaussian(4000), physics=Blur())
    held = vi.VariationalFlowMap.for_problem(few, num_simulations=4000, seed=3)
    error = far_out_error(held)
    assert error > 4 * far_out_error(vfm)
    assert error < held.config["prior_moments"]["error"] < 4 * error


def test_exact_moments_and_held_samples_keep_their_coordinates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    law = MultivariateNormal(torch.full((DIM,), 2.0), scale_tril=ROOT.float())
    exact = vi.VariationalFlowMap.for_problem(
        InverseProblem(prior=law, physics=Blur()), num_simulations=200
    )
    assert "prior_moments" not in exact.config and told_of_prior(exact.config) == ""
    samples = gaussian(80)
    held = vi.VariationalFlowMap.for_problem(
        InverseProblem(prior=samples, physics=Blur()), num_simulations=200
    )
    assert torch.equal(held.whitening.root, DenseWhitening.fit(samples[:72]).root)
    assert held.config["prior_moments"]["samples"] == 72
    assert told_of_prior(held.config).startswith("The covariance of the prior is that of 72 samp")


def draw(num: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return gaussian(num)


def test_moments_are_those_of_all_draws_and_follow_the_seed() -> None:
    first = draw(1000, 1)
    found = stream_moments(draw, first, DIM, 5)
    again = stream_moments(draw, first, DIM, 5)
    other = stream_moments(draw, first, DIM, 6)
    assert found is not None and again is not None and other is not None
    assert torch.equal(found.correlation, again.correlation)
    assert not torch.equal(found.correlation, other.correlation)
    blocks, rest = divmod(found.num - 1000, streamed_moments.block_size(DIM))
    assert rest == 0 and found.num <= 150_000 + streamed_moments.block_size(DIM)
    alone = stream_moments(None, first, DIM, 5)
    assert alone is not None and alone.num == 1000
    torch.testing.assert_close(alone.correlation, first.double().mT.corrcoef(), rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.spread, first.std(0))
    covariance = found.spread[:, None] * found.correlation * found.spread
    error = covariance - ROOT @ ROOT.mT
    assert float(error.norm()) < 3 * DIM / math.sqrt(found.num)
    torch.testing.assert_close(found.mean, torch.full((DIM,), 2.0), rtol=0, atol=0.02)


def test_units_far_apart_lose_nothing() -> None:
    scale = torch.logspace(-12, 12, DIM)
    found = stream_moments(lambda n, s: draw(n, s) * scale, draw(1000, 1) * scale, DIM, 5)
    plain = stream_moments(draw, draw(1000, 1), DIM, 5)
    assert found is not None and plain is not None
    torch.testing.assert_close(found.correlation, plain.correlation, rtol=0, atol=1e-4)


def test_the_error_that_is_stated_sees_heavy_tails() -> None:
    def heavy(num: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        scale = torch.where(torch.rand(num, 1) < 0.01, 6.0, 1.0)
        return scale * torch.randn(num, DIM)

    def stated(law: object) -> float:
        first = law(1000, 1)  # type: ignore[operator]
        found = stream_moments(law, first, DIM, 5)  # type: ignore[arg-type]
        assert found is not None
        whitening = DenseWhitening.fit(first, found)
        return sampling_error(found.difference, whitening.inverse_root, DIM)

    assert stated(heavy) > 2 * stated(draw)


def test_what_has_no_variance_is_left_to_its_middle() -> None:
    def cauchy(num: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.randn(num, DIM) / torch.randn(num, DIM)

    assert stream_moments(cauchy, cauchy(1000, 1), DIM, 0) is None


def test_a_constant_element_keeps_its_value() -> None:
    def held(num: int, seed: int) -> Tensor:
        x = draw(num, seed)
        x[:, 3] = 0.1
        return x

    first = held(1000, 1)
    whitening = DenseWhitening.fit(first, stream_moments(held, first, DIM, 5))
    x = whitening.unwhiten(torch.randn(50, DIM))
    assert torch.equal(x[:, 3], torch.full((50,), 0.1))


def test_slow_draws_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def slow(num: int, seed: int) -> Tensor:
        clock[0] += 0.4 * streamed_moments.PATIENCE
        calls.append(num)
        return draw(num, seed)

    monkeypatch.setattr(streamed_moments.time, "monotonic", lambda: clock[0])
    found = stream_moments(slow, draw(1000, 1), DIM, 5)
    assert found is not None and len(calls) == 2
    assert found.num == 1000 + sum(calls)


def test_an_infinite_draw_is_named() -> None:
    def broken(num: int, seed: int) -> Tensor:
        x = draw(num, seed)
        x[0, 0] = torch.inf
        return x

    with pytest.raises(ValueError, match="'prior' must draw fields that are finite"):
        stream_moments(broken, draw(1000, 1), DIM, 5)


def test_few_draws_at_hand_ask_for_few_more() -> None:
    calls: list[int] = []

    def counted(num: int, seed: int) -> Tensor:
        calls.append(num)
        return draw(num, seed)

    stream_moments(counted, draw(100, 1), DIM, 5)
    assert 0 < sum(calls) <= 100 * streamed_moments.FOLD + streamed_moments.BLOCK_DRAWS


def test_simulations_that_are_left_out_leave_their_fields_out() -> None:
    def unstable(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 3, torch.nan, x)

    with pytest.warns(UserWarning, match="not finite"):
        problem = InverseProblem(prior=gaussian, simulator=unstable)
        vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=500)
    assert vfm.config["prior_moments"]["draws"] == 500
    assert float(vfm.whitening.mean[0]) < 1.9


def test_a_run_goes_on_where_fewer_draws_were_made_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = InverseProblem(prior=gaussian, physics=Blur())

    def run(seed: int) -> vi.VariationalFlowMap:
        vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=300, seed=seed, width=8)
        how = {"steps": 4, "batch_size": 8, "num_validation": 8, "resume": True}
        vi.fit(vfm, problem, **how, checkpoint_dir=tmp_path, progress=False)
        return vfm

    begun = run(0)
    monkeypatch.setattr(streamed_moments, "FOLD", 4)
    again = run(0)
    assert again.config["prior_moments"] != begun.config["prior_moments"]
    assert torch.equal(again.whitening.root, begun.whitening.root)
    with pytest.raises(ValueError, match="'features"):
        run(1)
