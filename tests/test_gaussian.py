"""The contracted normal against torch's dense normal, and Gaussian starts against closed-form
posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, Inpainting, PoissonNoise
from torch import Tensor

from vfm_inverse import problems
from vfm_inverse.gaussian.amplitude_mixture import AmplitudeMixture
from vfm_inverse.gaussian.choose_start import STARTS, fit_start
from vfm_inverse.gaussian.normals import ContractedNormal, standard_normal
from vfm_inverse.gaussian.operator_start import FixedOperatorStart, VaryingOperatorStart
from vfm_inverse.gaussian.physics_frame import PhysicsFrame
from vfm_inverse.gaussian.regression_start import RegressionStart
from vfm_inverse.gaussian.truncated_start import TruncatedOperatorStart
from vfm_inverse.gaussian.whitening import IdentityWhitening, fit_whitening
from vfm_inverse.problem.inverse_problem import InverseProblem


def contracted(shared: bool) -> ContractedNormal:
    torch.manual_seed(0)
    shape = (6, 2) if shared else (3, 6, 2)
    basis = torch.linalg.qr(torch.randn(shape, dtype=torch.float64))[0]
    return ContractedNormal(
        torch.randn(3, 6, dtype=torch.float64), basis, torch.rand(3, 2, dtype=torch.float64) + 0.1
    )


@pytest.mark.parametrize("shared", [True, False])
def test_density_moments_and_draws_equal_the_dense_normal(shared: bool) -> None:
    q = contracted(shared)
    dense = torch.distributions.MultivariateNormal(q.loc, q.covariance_matrix)
    z = torch.randn(5, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), dense.log_prob(z))
    torch.testing.assert_close(q.variance, dense.variance)
    draws = q.sample((200_000,))
    deviation = (draws - q.loc).transpose(0, 1)
    sample_covariance = deviation.mT @ deviation / draws.shape[0]
    torch.testing.assert_close(sample_covariance, q.covariance_matrix, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.mean(0), q.loc, atol=0.02, rtol=0)
    torch.testing.assert_close(q.unstandardize(q.standardize(z)), z)
    torch.testing.assert_close(q[1:].log_prob(z[:, 1:]), q.log_prob(z)[:, 1:])


def test_draws_are_differentiable() -> None:
    q = contracted(True)
    loc, scale = q.loc.clone().requires_grad_(), q.scale.clone().requires_grad_()
    ContractedNormal(loc, q.basis, scale).rsample((4,)).square().sum().backward()
    assert loc.grad.abs().sum() > 0
    assert scale.grad.abs().sum() > 0


def fitted(problem: InverseProblem, max_rank: int = 64, num: int = 20_000):
    x, y, params = problem.simulate(num, seed=0)
    whitening = fit_whitening(x, "auto", problem.prior_moments())
    return fit_start(problem, whitening, (x, y, params), max_rank), whitening


@pytest.mark.parametrize("kind", sorted(STARTS))
def test_the_contract_of_a_start(kind: str) -> None:
    """A law for each observation that knows more than the prior, and comes back from its state."""
    torch.manual_seed(0)
    problem = problems.load("gaussian-field", size=6, num_points=8, seed=0)
    x, y, params = problem.simulate(2000, seed=0)
    whitening = fit_whitening(x, "dense" if kind == "amplitudes" else "spectral")
    start = STARTS[kind](problem, whitening)
    start.fit(x, y, params, 16)
    x, y, params = problem.simulate(100, split="test", seed=1)
    q, xi = start(y, params), whitening.whiten(x)
    laws = {"frame": PhysicsFrame, "amplitudes": AmplitudeMixture}
    assert isinstance(q, laws.get(kind, ContractedNormal))
    assert q.batch_shape == (100,) and q.event_shape == (36,) and 1 <= start.rank <= 36
    assert q.log_prob(xi).mean() > standard_normal(100, xi).log_prob(xi).mean() + 1
    again = STARTS[kind](problem, whitening)
    again.load_state_dict(start.state_dict())
    torch.testing.assert_close(again(y, params).log_prob(xi), q.log_prob(xi), rtol=0, atol=0)


def in_field_units(q: ContractedNormal, whitening) -> tuple[Tensor, Tensor]:
    """Mean ``(n, d)`` and covariances ``(n, d, d)`` of the flattened field."""
    mean = whitening.unwhiten(q.loc).flatten(1)
    root = whitening.color(torch.eye(whitening.dim)).flatten(1)
    return mean, root.T @ q.covariance_matrix @ root


@pytest.mark.parametrize("sigma", [0.3, (0.05, 0.5)])
@pytest.mark.parametrize("name", ["linear-gaussian", "gaussian-field"])
def test_fixed_operator_start_is_the_exact_posterior(name: str, sigma: object) -> None:
    kwargs = {"size": 8, "num_points": 6} if name == "gaussian-field" else {}
    problem = problems.load(name, sigma=sigma, **kwargs)
    start, whitening = fitted(problem)
    assert isinstance(start, FixedOperatorStart)
    _, y, params = problem.simulate(5, seed=1)
    exact = problem.reference_posterior(y, **params)
    mean, covariance = in_field_units(start(y, params), whitening)
    torch.testing.assert_close(mean, exact.mean.flatten(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(covariance, exact.covariance_matrix, atol=1e-3, rtol=1e-3)


def masked_problem() -> tuple[InverseProblem, Tensor]:
    """A correlated 1 x 4 x 4 field seen through a random mask, with a sigma of its own per
    observation."""
    torch.manual_seed(5)
    factor = torch.randn(16, 16, dtype=torch.float64) / 4
    covariance = factor @ factor.T + 0.1 * torch.eye(16)
    normal = torch.distributions.MultivariateNormal(torch.ones(16), covariance.float())
    prior = torch.distributions.TransformedDistribution(
        normal, [torch.distributions.transforms.ReshapeTransform((16,), (1, 4, 4))]
    )

    def params(num: int) -> dict[str, Tensor]:
        return {
            "mask": (torch.rand(num, 1, 4, 4) < 0.6).float(),
            "sigma": 0.1 + 0.4 * torch.rand(num),
        }

    physics = Inpainting((1, 4, 4), mask=torch.ones(1, 4, 4), noise_model=GaussianNoise(0.2))
    return InverseProblem(prior, physics=physics, params=params), covariance


@pytest.mark.parametrize("kind", [VaryingOperatorStart, TruncatedOperatorStart])
def test_a_start_for_varying_operators_is_exact(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few data have a decomposition each; many share a basis, which here is complete."""
    if kind is TruncatedOperatorStart:
        monkeypatch.setattr("vfm_inverse.gaussian.choose_start.GRAM_LIMIT", 15)
    problem, covariance = masked_problem()
    start, whitening = fitted(problem)
    assert isinstance(start, kind)
    _, y, params = problem.simulate(4, seed=3)
    mean, found = in_field_units(start(y, params), whitening)
    for i in range(4):
        seen = params["mask"][i].flatten().double() / params["sigma"][i].double() ** 2
        exact = torch.linalg.inv(torch.linalg.inv(covariance) + torch.diag(seen))
        torch.testing.assert_close(found[i].double(), exact, atol=2e-3, rtol=2e-3)
        shift = 1 + exact @ (seen * (y[i].flatten().double() - 1))
        torch.testing.assert_close(mean[i].double(), shift, atol=2e-3, rtol=2e-3)


def test_a_noise_level_per_datum_is_seen() -> None:
    exact = problems.load("linear-gaussian", dim=4, obs_dim=3)
    levels = torch.tensor([0.05, 0.3, 2.0])
    exact.physics.set_noise_model(GaussianNoise(levels))
    problem = InverseProblem(exact._splits.prior, physics=exact.physics)
    start, whitening = fitted(problem)
    assert isinstance(start, VaryingOperatorStart)
    _, y, _ = problem.simulate(2, seed=0)
    _, covariance = in_field_units(start(y, {}), whitening)
    matrix = exact.physics.A(torch.eye(4)).T.double()
    _, prior = exact.prior_moments()
    precision = torch.linalg.inv(prior) + matrix.T @ torch.diag(levels.double() ** -2) @ matrix
    torch.testing.assert_close(
        covariance[0].double(), torch.linalg.inv(precision), atol=1e-3, rtol=1e-3
    )


def test_truncated_start_is_not_overconfident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfm_inverse.gaussian.choose_start.GRAM_LIMIT", 15)
    problem, _ = masked_problem()
    start, whitening = fitted(problem, max_rank=6)
    x, y, params = problem.simulate(4000, seed=4)
    zeta = start(y, params).standardize(whitening.whiten(x))
    along = zeta @ start.basis
    # What is left out counts as white noise, which errs on the wide side.
    assert 0.5 < along.square().mean() < 1.1


def test_truncated_start_has_the_exact_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = masked_problem()
    exact, whitening = fitted(problem)
    monkeypatch.setattr("vfm_inverse.gaussian.choose_start.GRAM_LIMIT", 15)
    start, _ = fitted(problem, max_rank=3)
    _, y, params = problem.simulate(50, seed=4)
    q, rough = exact(y, params), start(y, params)
    assert start.rank == 3 and rough.scale.shape == (50, 3)
    # In posterior standard deviations, over the whole field.
    assert float(q.contract(q.loc - rough.loc, 1 / q.scale).norm(dim=-1).max()) < 0.15
    within = start.basis @ (start.basis.T @ q.loc.unsqueeze(-1))
    assert float((within.squeeze(-1) - q.loc).norm(dim=-1).mean()) > 1


def test_regression_start_matches_the_exact_linear_posterior() -> None:
    """Hidden behind a simulator, a linear problem has to be regressed; the answer is known all the
    same."""
    exact = problems.load("linear-gaussian", dim=6, obs_dim=3)
    blind = InverseProblem(exact._splits.prior, simulator=lambda x: exact.observe(x))
    start, whitening = fitted(blind, num=100_000)
    assert isinstance(start, RegressionStart)
    _, y, _ = exact.simulate(200, seed=9)
    posterior = exact.reference_posterior(y)
    mean, covariance = in_field_units(start(y, {}), whitening)
    std = posterior.variance.sqrt()
    assert ((mean - posterior.mean) / std).square().mean().sqrt() < 0.03
    error = (covariance[0] - posterior.covariance_matrix[0]).norm() / posterior.covariance_matrix[
        0
    ].norm()
    assert error < 0.03


def test_regression_start_is_no_surer_than_its_errors_on_fresh_simulations() -> None:
    """Sharp data and few simulations, whose strongest directions vary more than by one."""
    generator = torch.Generator().manual_seed(0)
    operator = torch.logspace(0, -3, 150)[:, None] * torch.randn(150, 200, generator=generator)

    def simulate(num: int) -> tuple[Tensor, Tensor]:
        xi = torch.randn(num, 200, generator=generator)
        return xi, xi @ operator.T + 0.01 * torch.randn(num, 150, generator=generator)

    start = RegressionStart(IdentityWhitening((200,)))
    start.regress(*simulate(2000), 128)
    xi, y = simulate(2000)
    code = (xi - start(y, {}).loc) @ start.basis / start.scale
    dispersion = code.square().mean(0)
    assert 0.7 < float(dispersion.min()) and float(dispersion.max()) < 1.3


def test_regression_of_pure_noise_informs_nothing() -> None:
    torch.manual_seed(6)
    blind = InverseProblem(
        torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4)),
        simulator=lambda x: torch.randn(x.shape[0], 3),
    )
    start, _ = fitted(blind, num=5000)
    assert start(torch.randn(2, 3), {}).scale.min() > 0.97


def test_non_gaussian_noise_goes_through_regression() -> None:
    physics = Denoising(noise_model=PoissonNoise(0.1))
    problem = InverseProblem(torch.rand(500, 1, 4, 4) + 0.5, physics=physics)
    x, y, params = problem.simulate(2000, seed=0)
    start = fit_start(problem, IdentityWhitening((1, 4, 4)), (x, y, params), 16)
    assert isinstance(start, RegressionStart)
    assert math.isfinite(float(start(y, params).loc.sum()))
