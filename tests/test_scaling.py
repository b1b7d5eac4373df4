"""Elements standardised one by one: exact constants, any size, laws without variance, all digits
of double precision, and checkpoints from before."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor
from torch.distributions import (
    Cauchy,
    HalfCauchy,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Pareto,
    StudentT,
)

import vfm_inverse as vi
from vfm_inverse.gaussian.choose_start import RegressionStart
from vfm_inverse.gaussian.whitening import (
    WHITENINGS,
    DenseWhitening,
    IdentityWhitening,
    fit_whitening,
)
from vfm_inverse.posterior.validity import ValidRange
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.priors import moments
from vfm_inverse.runtime.scaling import center_and_spread, over, tamed

DOUBLE = torch.float64


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_center_and_spread_of_any_size(scale: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(1000, 3)
    z[:, 1] = 0.1
    center, spread = center_and_spread(scale * z)
    assert center[1] == (scale * z)[0, 1] and spread[1] == 0
    torch.testing.assert_close(spread[::2] / scale, z.std(0)[::2], rtol=1e-5, atol=0)
    torch.testing.assert_close(center / scale, z.mean(0), rtol=1e-4, atol=1e-6)
    assert bool((over(scale * z - center, spread)[:, 1] == 0).all())


def test_few_roundings_are_a_constant_where_asked() -> None:
    values = torch.tensor([1e5, 1e5 + 0.0078125, 1e5])
    assert center_and_spread(values)[1] > 0
    assert center_and_spread(values, roundings=8)[1] == 0
    assert center_and_spread(values[:1])[1] == 0


def test_only_laws_without_variance_are_tamed() -> None:
    torch.manual_seed(0)
    normal, rare = torch.randn(2000), (torch.rand(2000) < 0.01).float()
    exponential, cauchy = (
        torch.rand(2000).log().neg(),
        torch.distributions.Cauchy(3, 1).sample((2000,)),
    )
    samples = torch.stack([normal, rare, exponential, cauchy], 1)
    cut = tamed(samples)
    assert torch.equal(cut[:, :3], samples[:, :3])
    assert cut[:, 3].std() < 10 < samples[:, 3].std()
    assert abs(float(cut[:, 3].mean()) - 3) < 0.5


@pytest.mark.parametrize("kind", sorted(WHITENINGS))
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_constants_are_exact_and_the_rest_keeps_its_spread(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    axis = torch.linspace(0, 1, 12)
    smooth = torch.linalg.cholesky(
        torch.exp(-((axis[:, None] - axis) ** 2) / 0.05) + 0.1 * torch.eye(12)
    )
    unit = torch.tensor([1e-20, 1.0, 1e20], dtype=dtype)[:, None, None]
    x = unit * (smooth @ torch.randn(3000, 3, 12, 12) @ smooth.T).to(dtype)
    land = torch.zeros(3, 12, 12, dtype=torch.bool)
    land[:, :, :5] = True
    value = (0.1 * unit).expand(3, 12, 12)
    x = torch.where(land, value, x)
    whitening = fit_whitening(x, kind)
    draws = whitening.unwhiten(torch.randn(2000, whitening.dim, dtype=dtype))
    assert draws.dtype == dtype
    assert torch.equal(draws[:, land], value[land].expand(2000, -1))
    assert torch.equal(whitening.unwhiten(whitening.whiten(x[:3]))[:, land], x[:3, land])
    ratio = draws.div(unit).std(0)[~land] / x.div(unit).std(0)[~land]
    # One spread a channel in the cosine basis, one for each element elsewhere.
    least, most = (0.6, 1.6) if kind == "spectral" else (0.9, 1.1)
    assert abs(float(ratio.mean()) - 1) < 0.05 and least < ratio.min() < ratio.max() < most
    back = whitening.unwhiten(whitening.whiten(x[:3]))
    torch.testing.assert_close(back / unit, x[:3] / unit, rtol=1e-3, atol=1e-3)


def test_stated_moments_of_unlike_variables() -> None:
    std = torch.tensor([1e6, 1e-14], dtype=DOUBLE)
    correlation = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=DOUBLE)
    covariance = std[:, None] * correlation * std
    whitening = DenseWhitening.from_moments((2,), torch.zeros(2), covariance, dtype=DOUBLE)
    root = whitening.color(torch.eye(2, dtype=DOUBLE))
    torch.testing.assert_close((root.T @ root) / std[:, None] / std, correlation)


def test_three_variables_in_si_units() -> None:
    """What the data say nothing about keeps the prior's spread."""
    torch.manual_seed(0)
    spread = torch.tensor([10.0, 1e3, 1e-3])[:, None, None]
    mean = torch.tensor([280.0, 1e5, 5e-3])[:, None, None]
    problem = InverseProblem(
        mean + spread * torch.randn(2000, 3, 3, 3),
        likelihood=lambda x: Independent(Normal(x[..., :1, :, :], 1.0), 3),
    )
    vfm = vi.VariationalFlowMap.for_problem(problem, width=16)
    draws = vfm(problem.simulate(8, split="test", seed=1)[1]).sample((300,))
    ratio = draws.std(0).mean((0, 2, 3)) / spread.squeeze()
    assert 0.05 < ratio[0] < 0.15
    torch.testing.assert_close(ratio[1:], torch.ones(2), rtol=0.15, atol=0)


@pytest.mark.parametrize("value", [0.0, 5.0, 0.1])
@pytest.mark.parametrize("start", [True, False])
def test_draws_of_a_constant_equal_it(value: float, start: bool) -> None:
    samples = torch.cat([torch.randn(500, 2), torch.full((500, 1), value)], 1)
    problem = InverseProblem(samples, likelihood=lambda x: Independent(Normal(x[..., :2], 0.3), 1))
    vfm = vi.VariationalFlowMap.for_problem(
        problem, num_simulations=500, gaussian_start=start, width=8, depth=1
    )
    vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    draws = vfm(problem.simulate(4, seed=1)[1]).sample((100,))
    assert bool((draws[..., 2] == torch.tensor(value)).all())
    assert draws[..., :2].std() > 0.1


@pytest.mark.parametrize(
    "samples", [torch.ones(30, 3), torch.ones(1, 2), torch.tensor([[0.0], [1.0]])]
)
def test_priors_of_next_to_nothing(samples: Tensor) -> None:
    problem = InverseProblem(samples, simulator=lambda x: x + torch.randn_like(x))
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=50, width=8, depth=1)
    draws = vfm(problem.simulate(2, seed=0)[1]).sample((5,))
    assert draws.isfinite().all()
    if len(samples.unique()) == 1:
        assert bool((draws == 1).all())


ONE = torch.ones(2)
HEAVY = {
    "Cauchy": Cauchy(0 * ONE, ONE),
    "StudentT(2)": StudentT(2 * ONE),
    "HalfCauchy": HalfCauchy(ONE),
    "Pareto(0.8)": Pareto(ONE, 0.8 * ONE),
}


@pytest.mark.parametrize("name", sorted(HEAVY))
@pytest.mark.parametrize("start", [True, False])
def test_priors_without_a_variance(name: str, start: bool) -> None:
    prior = Independent(HEAVY[name], 1)
    assert moments(prior) is None
    problem = InverseProblem(prior, simulator=lambda x: x + 0.1 * torch.randn_like(x))
    vfm = vi.VariationalFlowMap.for_problem(
        problem, num_simulations=500, gaussian_start=start, width=8, depth=1
    )
    vi.fit(vfm, problem, steps=2, batch_size=16, num_validation=8, progress=False)
    draws = vfm(problem.simulate(2, split="test", seed=1)[1]).sample((3,))
    assert draws.isfinite().all()


def test_moments_whose_squares_leave_the_range() -> None:
    std = torch.tensor([1e-30, 1e30])
    for prior in (
        Independent(Normal(torch.zeros(2), std), 1),
        MultivariateNormal(torch.zeros(2), scale_tril=std.diag()),
        Independent(Laplace(torch.zeros(2), std / math.sqrt(2)), 1),
    ):
        stated = moments(prior)
        assert stated is not None
        torch.testing.assert_close(stated[1].diagonal().sqrt(), std.double(), rtol=1e-6, atol=0)
    # A variance in single precision would be 0 here: not stated, rather than a constant.
    assert moments(Independent(StudentT(5 * ONE, 0.0, 1e-30 * ONE), 1)) is None


class Matrix(LinearPhysics):
    def __init__(self, matrix: Tensor, sigma: Tensor) -> None:
        super().__init__(noise_model=GaussianNoise(sigma))
        self.register_buffer("matrix", matrix)

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x @ self.matrix.T

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y @ self.matrix


@pytest.mark.parametrize("num_data, per_datum", [(300, False), (300, True), (40, True)])
def test_precise_data_in_double_precision(num_data: int, per_datum: bool) -> None:
    torch.manual_seed(0)
    matrix, sigma = torch.randn(num_data, 5, dtype=DOUBLE), torch.tensor(1e-7, dtype=DOUBLE)
    prior = MultivariateNormal(torch.zeros(5, dtype=DOUBLE), torch.eye(5, dtype=DOUBLE))
    physics = Matrix(matrix, sigma.expand(num_data).clone() if per_datum else sigma)
    problem = InverseProblem(prior, physics=physics, dtype=DOUBLE)
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=200, width=8, depth=1)
    _, y, _ = problem.simulate(1, seed=0)
    law = vfm.condition(y, {}).start
    assert law is not None
    root = vfm.whitening.color(torch.eye(5, dtype=DOUBLE))
    # All five directions are informed: their scales say it all, and to the last digit.
    basis = law.basis if law.basis.dim() == 2 else law.basis[0]
    factor = (basis * law.scale[0]).T @ root
    exact = torch.linalg.inv(matrix.T @ matrix / sigma**2 + torch.eye(5))
    std = exact.diagonal().sqrt()
    torch.testing.assert_close(factor.norm(dim=0), std, rtol=1e-2, atol=0)
    mean = vfm.whitening.unwhiten(law.loc)[0] - exact @ (matrix.T @ y[0] / sigma**2)
    assert float((mean / std).abs().max()) < 0.1
    draws = vfm(y).sample((20_000,))[:, 0]
    torch.testing.assert_close(draws.std(0), std, rtol=3e-2, atol=0)


def test_data_that_never_vary_say_nothing() -> None:
    torch.manual_seed(0)
    xi, y = torch.randn(400, 2), torch.randn(400, 3)
    y = torch.cat([y, torch.full((400, 50), 1e6)], 1)
    y[:, 0] = xi[:, 0] + 0.1 * y[:, 0]
    lean, full = (RegressionStart(IdentityWhitening((2,))) for _ in range(2))
    lean.regress(xi, y[:, :3], 4)
    full.regress(xi, y, 4)
    torch.testing.assert_close(full(y[:5], {}).loc, lean(y[:5, :3], {}).loc)
    torch.testing.assert_close(full.scale, lean.scale)


def test_a_constant_that_changes_is_out_of_range() -> None:
    torch.manual_seed(0)
    y = torch.cat([1e-20 * torch.randn(400, 2), torch.zeros(400, 1), torch.ones(400, 1)], 1)
    found = ValidRange()
    found.fit(y, {})
    usual, moved, far = y[:1], y[:1].clone(), y[:1].clone()
    moved[0, 2], far[0, 0] = 1e-30, 1e-18
    assert float(found.distance(usual, {})[0]) < 1
    assert float(found.distance(moved, {})[0]) > 1
    assert float(found.distance(far, {})[0]) > 1


def test_a_checkpoint_without_the_later_buffers_is_read(tmp_path: Path) -> None:
    """Maps saved before a spread was stored are those whose spread is 1, with the same weights'
    fingerprint after a round trip."""
    x = torch.randn(300, 5)
    fitted = fit_whitening(x, "dense")
    earlier = {name: value for name, value in fitted.state_dict().items() if name != "spread"}
    read = DenseWhitening((5,))
    read.load_state_dict(earlier)
    assert read.spread.dim() == 0 and read.spread == 1
    assert read.state_dict().keys() == earlier.keys()
    again = DenseWhitening((5,))
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.spread, fitted.spread)
    again.load_state_dict(earlier)
    assert torch.equal(again.whiten(x), read.whiten(x))
