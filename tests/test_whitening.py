"""Whitenings: exact inverses, unit covariance of whitened samples, differentiable, independent of
batch shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vfm_inverse.whitening import (
    WHITENINGS,
    DenseWhitening,
    LowRankWhitening,
    SpectralWhitening,
    cosine_basis,
    fit_whitening,
)


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
