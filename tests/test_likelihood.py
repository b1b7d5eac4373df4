"""Densities of the noise models: against deepinv's draws, closed forms, and under torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable

import deepinv.physics as dp
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.func import grad, jvp, vmap

from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.problem.noise_laws import PoissonGaussian
from vfm_inverse.runtime.randomness import seeded

CONTINUOUS: dict[str, Callable[[], dp.NoiseModel]] = {
    "gaussian": lambda: dp.GaussianNoise(0.3),
    "laplace": lambda: dp.LaplaceNoise(0.2),
    "uniform": lambda: dp.UniformNoise(0.4),
    "gamma": lambda: dp.GammaNoise(3.0),
    "fisher-tippett": lambda: dp.FisherTippettNoise(2.0),
    "poisson-gaussian": lambda: dp.PoissonGaussianNoise(gain=0.5, sigma=0.2),
    "poisson-gaussian, many": lambda: dp.PoissonGaussianNoise(gain=0.002, sigma=0.05),
}
COUNTS: dict[str, Callable[[], dp.NoiseModel]] = {
    "poisson": lambda: dp.PoissonNoise(gain=0.5),
    "poisson, not normalized": lambda: dp.PoissonNoise(gain=0.25, normalize=False),
    "log-poisson": lambda: dp.LogPoissonNoise(N0=20.0, mu=0.3),
}
NOISES = CONTINUOUS | COUNTS


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def denoising(noise: dp.NoiseModel) -> dp.Physics:
    return dp.Denoising(noise_model=noise)


def cdf_at(density: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> np.ndarray:
    """Distribution function of a density given on a fine grid."""
    grid = np.linspace(-6, 30, 40_001)
    cumulative = integrate.cumulative_trapezoid(density(grid), grid, initial=0)
    assert abs(cumulative[-1] - 1) < 1e-3, "the density does not integrate to one"
    return np.interp(points, grid, cumulative)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_deepinv_draws_have_the_density(name: str) -> None:
    """Kolmogorov-Smirnov at 20,000 draws: p = 1e-4 lies at a distance of 0.0156."""
    physics = denoising(CONTINUOUS[name]())
    mean = 1.3
    with seeded(1):
        draws = physics(torch.full((20_000, 1), mean)).flatten().double().numpy()

    def density(y: np.ndarray) -> np.ndarray:
        law = Likelihood(physics)(torch.full((1, 1), mean, dtype=torch.float64))
        return law.log_prob(torch.from_numpy(y)[:, None]).exp().numpy()

    assert stats.kstest(draws, lambda y: cdf_at(density, y)).pvalue > 1e-4
    # The test has power: a law of slightly other scale fails it.
    centre = draws.mean()
    wider = centre + 1.06 * (draws - centre)
    assert stats.kstest(wider, lambda y: cdf_at(density, y)).pvalue < 1e-2


@pytest.mark.parametrize("name", COUNTS)
def test_deepinv_counts_have_the_probabilities(name: str) -> None:
    physics = denoising(COUNTS[name]())
    with seeded(2):
        draws = physics(torch.full((20_000, 1), 1.3, dtype=torch.float64)).flatten()
    values, counts = torch.unique(draws, return_counts=True)
    law = Likelihood(physics)(torch.full((1, 1), 1.3, dtype=torch.float64))
    probability = law.log_prob(values[:, None]).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=2e-3)
    common = counts > 20
    expected = probability[common] * len(draws)
    chi2 = float(((counts[common] - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(chi2, int(common.sum()) - 1) > 1e-4


@pytest.mark.parametrize("name", NOISES)
def test_our_draws_are_deepinv_draws(name: str) -> None:
    """Two-sample test of what the problems draw against what deepinv draws, near zero too."""
    physics = denoising(NOISES[name]())
    x = torch.tensor([0.4, 1.3]).repeat_interleave(10_000)[:, None]
    with seeded(3):
        theirs = physics(x).flatten()
        ours = Likelihood(physics)(x).sample().flatten()
    for half in (slice(0, 10_000), slice(10_000, None)):
        assert stats.ks_2samp(theirs[half].numpy(), ours[half].numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("rate", "gain", "sigma"),
    [(0.3, 1.0, 0.05), (4.0, 0.1, 0.3), (50.0, 2.0, 0.5), (3e3, 1e-3, 0.2), (2e5, 1.0, 300.0)],
)
def test_poisson_gaussian_is_the_full_sum(rate: float, gain: float, sigma: float) -> None:
    """81 terms against all of them, in the bulk and ten standard deviations out on either side."""
    spread = math.sqrt(rate * gain**2 + sigma**2)
    y = gain * rate + spread * torch.tensor([-10.0, -3.0, -1.0, 0.0, 0.4, 2.0, 10.0]).double()
    law = PoissonGaussian(*(torch.tensor(v, dtype=torch.float64) for v in (rate, gain, sigma)))
    top = int(rate + 60 * math.sqrt(rate) + 60 + 20 * spread / gain)
    k = np.arange(top)
    terms = stats.poisson.logpmf(k, rate) + stats.norm.logpdf(y[:, None].numpy(), gain * k, sigma)
    expected = np.logaddexp.reduce(terms, axis=1)
    np.testing.assert_allclose(law.log_prob(y).numpy(), expected, rtol=1e-9, atol=1e-7)


def test_poisson_gaussian_gradient_is_that_of_the_sum() -> None:
    rate = torch.tensor([0.7, 30.0, 400.0], dtype=torch.float64, requires_grad=True)
    gain = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    sigma = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.5, 8.0, 130.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *values: PoissonGaussian(*values).log_prob(y), (rate, gain, sigma)
    )


def test_batches_events_and_parameters_line_up() -> None:
    """Draws (S, B, ...) with parameters (B, ...): every element as if it were alone."""
    physics = denoising(dp.GaussianNoise(0.1))
    likelihood = Likelihood(physics, event_dim=3)
    x, y = torch.randn(5, 4, 1, 3, 2), torch.randn(4, 1, 3, 2)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    law = likelihood(x, sigma=sigma)
    assert law.batch_shape == (5, 4) and law.event_shape == (1, 3, 2)
    value = law.log_prob(y)
    for s in range(5):
        for b in range(4):
            single = likelihood(x[s, b], sigma=sigma[b])
            assert single.batch_shape == ()
            torch.testing.assert_close(single.log_prob(y[b]), value[s, b])
            expected = stats.norm.logpdf(y[b].numpy(), x[s, b].numpy(), float(sigma[b])).sum()
            assert float(value[s, b]) == pytest.approx(float(expected), rel=1e-5)


def test_one_sigma_a_datum_is_heteroscedastic_noise() -> None:
    x = torch.zeros(3, 4)
    sigma = torch.rand(3, 4) + 0.5
    physics = denoising(dp.GaussianNoise(0.1))
    expected = torch.distributions.Normal(0.0, sigma).log_prob(torch.ones(3, 4)).sum(-1)
    law = Likelihood(physics)(x, sigma=sigma)
    torch.testing.assert_close(law.log_prob(torch.ones(3, 4)), expected)
    stored = denoising(dp.GaussianNoise(sigma[0]))  # as many fields as data: still one a datum
    law = Likelihood(stored)(torch.zeros(4, 4))
    torch.testing.assert_close(law.log_prob(torch.ones(4, 4)), expected[:1].expand(4))


def test_per_sample_values_reach_every_noise_model() -> None:
    """deepinv broadcasts b and l along the last axis; here they are one value a sample."""
    x = torch.full((2, 50_000), 2.0)
    with seeded(4):
        laplace = Likelihood(denoising(dp.LaplaceNoise(0.1)))(x, b=torch.tensor([0.1, 1.0]))
        gamma = Likelihood(denoising(dp.GammaNoise(1.0)))(x, l=torch.tensor([1.0, 100.0]))
        y_laplace, y_gamma = laplace.sample(), gamma.sample()
    torch.testing.assert_close(
        y_laplace.std(-1), math.sqrt(2) * torch.tensor([0.1, 1.0]), rtol=0.03, atol=0
    )
    torch.testing.assert_close(y_gamma.std(-1), torch.tensor([2.0, 0.2]), rtol=0.03, atol=0)


@pytest.mark.parametrize("noise", ["gaussian", "gamma", "poisson-gaussian", "poisson"])
def test_masked_data_are_zero_and_carry_nothing(noise: str) -> None:
    physics = dp.Inpainting((1, 4, 4), mask=torch.ones(1, 4, 4), noise_model=NOISES[noise]())
    likelihood = Likelihood(physics, event_dim=3)
    x = torch.rand(2, 1, 4, 4) + 0.5
    mask = torch.ones(2, 1, 4, 4)
    mask[0, 0, :2] = 0
    law = likelihood(x, mask=mask)
    y = law.sample()
    assert torch.equal(y == 0, mask == 0) or noise == "poisson"
    assert bool((y[mask == 0] == 0).all())
    garbage = torch.where(mask == 0, torch.full_like(y, 7.0), y)
    torch.testing.assert_close(law.log_prob(garbage), law.log_prob(y))
    alone = Likelihood(denoising(NOISES[noise]()), event_dim=1)(x[0, 0, 2:].reshape(1, 8))
    torch.testing.assert_close(law.log_prob(y)[:1], alone.log_prob(y[0, 0, 2:].reshape(1, 8)))
    gradient = grad(lambda field: likelihood(field, mask=mask).log_prob(y).sum())(x)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient[mask == 0] == 0).all())


def test_a_call_leaves_the_physics_and_the_defaults_as_they_were() -> None:
    physics = dp.Inpainting((1, 4, 4), noise_model=dp.GaussianNoise(0.25))
    likelihood = Likelihood(physics, event_dim=3)
    x = torch.rand(2, 1, 4, 4)
    likelihood(x, mask=torch.zeros(2, 1, 4, 4), sigma=torch.tensor([1.0, 2.0]))
    vmap(lambda m, one: likelihood(one, mask=m).log_prob(one))(torch.ones(2, 1, 4, 4), x)
    assert physics.mask is None
    assert float(physics.noise_model.sigma) == 0.25
    physics.noise_model(x, sigma=torch.tensor(9.0))  # what deepinv stores
    assert float(likelihood.noise_scale()) == 0.25
    assert float(likelihood.noise_scale(sigma=torch.tensor(0.5))) == 0.5
    assert Likelihood(denoising(dp.LaplaceNoise(0.1))).noise_scale() is None


@pytest.mark.parametrize("name", CONTINUOUS)
def test_derivatives_and_vmap_go_through(name: str) -> None:
    likelihood = Likelihood(denoising(CONTINUOUS[name]()), event_dim=1)
    x = torch.rand(3, 4, dtype=torch.float64) + 1
    y = x + 0.01

    def density(field: Tensor) -> Tensor:
        return likelihood(field).log_prob(y)

    tangent = torch.randn_like(x)
    value, forward = jvp(density, (x,), (tangent,))
    step = 1e-6
    numeric = (density(x + step * tangent) - density(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(forward, numeric, rtol=1e-5, atol=1e-5)
    each = vmap(lambda field, datum: likelihood(field).log_prob(datum))(x, y)
    torch.testing.assert_close(each, value)


@pytest.mark.parametrize("noise", ["poisson", "gamma"])
def test_a_mean_outside_the_law_is_refused_in_draws_and_finite_in_densities(noise: str) -> None:
    likelihood = Likelihood(denoising(NOISES[noise]()))
    x = torch.tensor([[-0.5, 1.0]])
    with pytest.raises(ValueError, match=r"A\(x\); got a minimum of -"):
        likelihood(x).sample()
    assert bool(torch.isfinite(likelihood(x).log_prob(torch.tensor([[0.5, 1.0]]))).all())
    clipped = Likelihood(denoising(dp.PoissonNoise(0.5, clip_positive=True)))
    assert float(clipped(x).sample()[0, 0]) == 0


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        (dp.Denoising(noise_model=dp.ZeroNoise()), "the physics has zero noise"),
        (
            dp.Denoising(noise_model=dp.SaltPepperNoise()),
            "no density.*SaltPepperNoise; choose one",
        ),
        (dp.Denoising(noise_model=dp.UniformGaussianNoise()), "GaussianNoise.*LaplaceNoise"),
        (
            dp.Denoising(noise_model=dp.GaussianNoise(0.1), sensor_model=lambda y: y.round()),
            "sensor non-linearity",
        ),
    ],
)
def test_what_has_no_density_is_refused(physics: dp.Physics, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Likelihood(physics)


def test_wrong_parameters_are_refused() -> None:
    likelihood = Likelihood(denoising(dp.GaussianNoise(0.0)))
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="'sigma' must be positive; got 0"):
        likelihood(x)
    with pytest.raises(ValueError, match="'sigma' must be positive; got -0.1"):
        likelihood(x, sigma=torch.tensor([0.1, -0.1, 0.2]))
    with pytest.raises(ValueError, match="one value for each of the 3 fields"):
        likelihood(x, sigma=torch.ones(2))
    with pytest.raises(ValueError, match=r"one value a datum of shape \(4,\); got shape \(3, 5\)"):
        likelihood(x, sigma=torch.ones(3, 5))
    assert likelihood(x, sigma=0.3).batch_shape == (3,)
    with pytest.raises(TypeError, match="'physics' must be a deepinv Physics; got str"):
        Likelihood("blur")  # type: ignore[arg-type]


def test_data_outside_the_support_have_no_density() -> None:
    """Minus infinity, neither an error nor NaN."""
    x = torch.ones(1, 1)
    for name in ("gamma", "uniform", "poisson"):
        value = Likelihood(denoising(NOISES[name]()))(x).log_prob(torch.full((1, 1), -1.0))
        assert value.tolist() == [-math.inf], name
