"""Whitenings: exact inverses, unit covariance of whitened samples, differentiable, independent of
batch shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import vfm_inverse as vi
from vfm_inverse.gaussian.shrinkage import WEIGHTS, shrinkage_weight
from vfm_inverse.gaussian.whitening import (
    WHITENINGS,
    DenseWhitening,
    LowRankWhitening,
    SpectralWhitening,
    cosine_basis,
    fit_whitening,
    stationary_correlation,
)
from vfm_inverse.operators import PointObservations


def smooth_fields(num: int, size: int = 8, channels: int = 2) -> Tensor:
    """Stationary random fields with a steep spectrum in the cosine basis, of known amplitudes."""
    rate = torch.arange(size).double()
    amplitude = 1 / (1 + rate[:, None] ** 2 + rate[None] ** 2)
    basis = cosine_basis(size).double()
    coefficients = torch.randn(num, channels, size, size, dtype=torch.float64) * amplitude
    return (basis.T @ coefficients @ basis + 3.0).float()


@pytest.mark.parametrize("kind", sorted(WHITENINGS))
def test_unwhiten_inverts_whiten_for_any_batch_shape(kind: str) -> None:
    torch.manual_seed(0)
    x = smooth_fields(600)
    whitening = fit_whitening(x, kind)
    batch = x[:12].unflatten(0, (3, 4))
    xi = whitening.whiten(batch)
    assert xi.shape == (3, 4, 128)
    torch.testing.assert_close(whitening.unwhiten(xi), batch, atol=2e-4, rtol=1e-4)
    zero = torch.zeros_like(xi)
    torch.testing.assert_close(
        whitening.unwhiten(xi) - whitening.unwhiten(zero),
        whitening.color(xi),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("kind", ["dense", "spectral"])
def test_fresh_samples_become_white(kind: str) -> None:
    torch.manual_seed(1)
    whitening = fit_whitening(smooth_fields(8000), kind)
    xi = whitening.whiten(smooth_fields(8000))
    covariance = xi.T @ xi / len(xi)
    assert xi.mean(0).abs().max() < 0.06
    # Relative Frobenius distance to I of a sample covariance of 8000 draws in 128-D is 0.126, once
    # for the test draws and once more for the dense fit.
    assert (covariance - torch.eye(128)).norm() / 128**0.5 < 0.2
    raw = smooth_fields(8000).flatten(1) - 3
    assert (raw.T @ raw / len(raw) - torch.eye(128)).norm() / 128**0.5 > 0.5


def test_dense_uses_stated_moments_exactly() -> None:
    torch.manual_seed(2)
    factor = torch.randn(5, 5, dtype=torch.float64)
    covariance, mean = factor @ factor.T + torch.eye(5), torch.arange(5.0).double()
    whitening = fit_whitening(torch.randn(3, 5), "dense", (mean, covariance))
    assert isinstance(whitening, DenseWhitening)
    root = whitening.color(torch.eye(5)).double()
    torch.testing.assert_close(root.T @ root, covariance, atol=1e-5, rtol=1e-5)
    # Of the standardised elements the root is symmetric.
    torch.testing.assert_close(whitening.root, whitening.root.T)
    torch.testing.assert_close(whitening.unwhiten(torch.zeros(5)), mean.float())


def test_low_rank_keeps_leading_directions_and_total_variance() -> None:
    torch.manual_seed(3)
    x = torch.randn(5000, 3) @ torch.randn(3, 20) * 2 + 0.1 * torch.randn(5000, 20)
    whitening = LowRankWhitening.fit(x, rank=3)
    root = whitening.color(torch.eye(20))
    covariance = torch.cov(x.T)
    assert (root.T @ root - covariance).norm() / covariance.norm() < 0.01
    torch.testing.assert_close((root.T @ root).diagonal(), covariance.diagonal())


def test_gradients_and_forward_mode_pass() -> None:
    x = smooth_fields(300, channels=1)
    whitening = SpectralWhitening.fit(x)
    tangent = torch.randn(64)
    _, rate = torch.func.jvp(whitening.unwhiten, (torch.zeros(64),), (tangent,))
    torch.testing.assert_close(rate, whitening.color(tangent))


def test_state_dict_restores_any_fit() -> None:
    torch.manual_seed(4)
    x = smooth_fields(300)
    for kind, cls in WHITENINGS.items():
        fitted, fresh = fit_whitening(x, kind), cls((2, 8, 8))
        fresh.load_state_dict(fitted.state_dict())
        torch.testing.assert_close(fresh.whiten(x[:5]), fitted.whiten(x[:5]))


def test_constant_direction_does_not_divide_by_zero() -> None:
    x = torch.randn(500, 4)
    x[:, 2] = 1.0
    assert torch.isfinite(DenseWhitening.fit(x).whiten(x)).all()


def test_unknown_kind_and_vector_spectrum_are_refused() -> None:
    with pytest.raises(ValueError, match="'whitening' must be 'auto' or one of"):
        fit_whitening(torch.randn(10, 3), "fourier")
    with pytest.raises(ValueError, match="'event_shape' must have space axes"):
        SpectralWhitening((7,))


def log_likelihood(whitening: DenseWhitening, x: Tensor) -> float:
    """Mean Gaussian log density of fields ``(n, *event)``, up to a constant."""
    root = whitening.root.double()
    xi = whitening.whiten(x).double()
    return float(-xi.square().sum(1).mean() / 2 - torch.linalg.slogdet(root)[1])


@pytest.mark.parametrize("num", [3, 20, 60, 400])
def test_few_samples_of_a_stationary_field_are_shrunk_as_far_as_a_search_would(num: int) -> None:
    torch.manual_seed(3)
    x, fresh = smooth_fields(num), smooth_fields(2000)
    z = ((x - x.mean(0)) / x.std(0)).flatten(1).double()
    correlation, target = z.T @ z / (num - 1), stationary_correlation(z, (2, 8, 8))
    chosen = shrinkage_weight(z, correlation, target)

    def score(weight: float) -> float:
        made = DenseWhitening._from_correlation(
            (2, 8, 8), (1 - weight) * correlation + weight * target, 1e-12, torch.float64
        )
        made.mean, made.spread = x.mean(0).flatten().double(), x.std(0).flatten().double()
        return log_likelihood(made, fresh.double())

    best = max(score(float(weight)) for weight in WEIGHTS[::4])
    assert score(chosen) > best - 0.02 * 128  # nats, of 128 numbers
    # The rule of thumb of other kinds of data is far off where samples are few.
    assert num >= 400 or score(chosen) > score(0.1 * 128 / (num + 128)) + 2


def test_left_out_samples_agree_with_fitting_without_them() -> None:
    torch.manual_seed(4)
    z = torch.randn(30, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    z -= z.mean(0)
    correlation, target = z.T @ z / 29, torch.eye(5, dtype=torch.float64) + 0.3
    means = []
    for w in WEIGHTS[30:]:
        total = 0.0
        for i in range(30):
            others = torch.cat([z[:i], z[i + 1 :]])
            law = MultivariateNormal(others.mean(0), (1 - w) * others.mT.cov() + w * target)
            total += float(law.log_prob(z[i]))
        means.append(total)
    best = WEIGHTS[30 + int(torch.tensor(means).argmax())]
    assert shrinkage_weight(z, correlation, target) == float(best)


def test_a_sample_that_is_drawn_often_is_one_sample() -> None:
    torch.manual_seed(5)
    fields = smooth_fields(60)
    physics = PointObservations((2, 8, 8), torch.rand(3, 2))
    problem = vi.InverseProblem(prior=fields, physics=physics)
    kept = fields[:54]  # the last tenth is for tests
    assert torch.equal(problem.held_fields(54), kept)
    assert problem.held_fields(53) is None
    whitening = vi.VariationalFlowMap.for_problem(problem, num_simulations=200).whitening
    assert torch.equal(whitening.root, DenseWhitening.fit(kept).root)
    recorded = problem.record(40, seed=0)
    assert torch.equal(recorded.held_fields(40), problem.simulate(40, seed=0)[0][:36])
    drawn = vi.InverseProblem(prior=smooth_fields, physics=physics)
    assert drawn.held_fields(10**6) is None
