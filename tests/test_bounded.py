"""Priors with bounds: the coordinates have none, and the draws keep to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pyro.distributions import constraints as pyro_constraints
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    LKJCholesky,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
    constraints,
)
from torch.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    ExpTransform,
    ReshapeTransform,
    SigmoidTransform,
)

import vfm_inverse as vi
from vfm_inverse.gaussian.whitening import DenseWhitening
from vfm_inverse.labelled.blocks import sample_to_netcdf
from vfm_inverse.problem.bounded import Box, SoftBox
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.random_fields import MaternField
from vfm_inverse.problem.supports import support_of, transform_of


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


@pytest.mark.parametrize("box", [Box(-1.0, 3.0), SoftBox(-1.0, 3.0, 0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_have_finite_coordinates(dtype: torch.dtype, box: Any) -> None:
    ends = torch.tensor([-1.0, 3.0], dtype=dtype)
    v = box.inv(ends)
    assert torch.isfinite(v).all()
    torch.testing.assert_close(box(v), ends)


@pytest.mark.parametrize(
    "box",
    [Box(torch.tensor([0.0, -2.0]), torch.tensor([1.0, 5.0])), SoftBox(-0.5, 1.0, 0.3)],
)
def test_log_derivative(box: Any) -> None:
    v = torch.randn(20, 2, dtype=torch.float64)
    rate = torch.func.jvp(box, (v,), (torch.ones_like(v),))[1]
    torch.testing.assert_close(box.log_abs_det_jacobian(v, box(v)), rate.log())
    torch.testing.assert_close(box.inv(box(v)), v)


def test_a_soft_box_changes_what_is_near_its_ends_alone() -> None:
    box = SoftBox(0.0, 1.0, 0.1)
    v = torch.linspace(-2, 3, 5001, dtype=torch.float64)
    x = box(v)
    inside = (v >= 0.1) & (v <= 0.9)
    assert torch.equal(x[inside], v[inside])
    assert (x >= 0).all() and (x <= 1).all() and (x.diff() >= 0).all()
    assert box == SoftBox(0.0, 1.0, 0.1) != SoftBox(0.0, 1.0, 0.2)
    with pytest.raises(ValueError, match="'margin' must lie between 0 and half of high - low"):
        SoftBox(0.0, 1.0, 0.5)


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


ONE = torch.ones(3)


def half_open(law: Distribution) -> Independent:
    return Independent(law, 1)


SUPPORTS = {
    "gamma": half_open(Gamma(2 * ONE, ONE)),
    "half-normal": half_open(HalfNormal(ONE)),
    "pareto": half_open(Pareto(ONE, 3 * ONE)),
    "beta": half_open(Beta(2 * ONE, 5 * ONE)),
    "log-uniform": half_open(
        TransformedDistribution(Uniform(-9 * ONE, 0 * ONE), [ExpTransform()])
    ),
    "below 5": half_open(
        TransformedDistribution(Normal(0 * ONE, ONE), [ExpTransform(), AffineTransform(5.0, -2.0)])
    ),
    "logit-normal": half_open(TransformedDistribution(Normal(0 * ONE, ONE), [SigmoidTransform()])),
    "reshaped box": TransformedDistribution(
        Independent(Uniform(torch.zeros(6), torch.ones(6)), 1), [ReshapeTransform((6,), (1, 2, 3))]
    ),
    "mixture": MixtureSameFamily(
        Categorical(torch.ones(2)), Independent(LogNormal(torch.zeros(2, 3), 1.0), 1)
    ),
    "dirichlet": Dirichlet(torch.tensor([0.5, 1.0, 3.0])),
    "correlations": LKJCholesky(3, 1.0),
}


class Product(Distribution):
    """A rate, three shares and an angle."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.cat(
        [constraints.positive, constraints.simplex, constraints.interval(-1.0, 2.0)], -1, [1, 3, 1]
    )

    def __init__(self) -> None:
        self.parts = [
            Independent(Gamma(2 * ONE[:1], ONE[:1]), 1),
            Dirichlet(2 * ONE),
            Independent(Uniform(-ONE[:1], 2 * ONE[:1]), 1),
        ]
        super().__init__(event_shape=torch.Size([5]), validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        pieces = zip(self.parts, value.split([1, 3, 1], -1), strict=True)
        return torch.stack([part.log_prob(piece) for part, piece in pieces]).sum(0)


SUPPORTS["product"] = Product()


@pytest.mark.parametrize("name", sorted(SUPPORTS))
def test_every_support_with_a_bijection_is_kept_to(name: str, tmp_path: Path) -> None:
    prior = SUPPORTS[name]
    event = len(prior.event_shape)
    problem = InverseProblem(
        prior,
        likelihood=lambda x: Independent(Normal(x.flatten(x.dim() - event)[..., :3], 0.3), 1),
    )
    vfm = vi.VariationalFlowMap.for_problem(
        problem, exact=False, num_simulations=500, width=8, depth=1
    )
    vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    x, y, _ = problem.simulate(20, seed=1)
    draws = vfm(y).sample((50,))
    assert draws.shape == (50, 20, *prior.event_shape) and draws.isfinite().all()
    assert problem.log_prior is not None
    assert problem.log_prior(draws).isfinite().all()
    torch.testing.assert_close(
        vfm.whitening.unwhiten(vfm.whitening.whiten(x)), x, atol=1e-3, rtol=1e-3
    )
    vfm.save(tmp_path / "model.safetensors")
    again = vi.load(tmp_path / "model.safetensors", problem, warn=False)
    torch.manual_seed(0)
    first = vfm(y).sample((4,))
    torch.manual_seed(0)
    assert torch.equal(again(y).sample((4,)), first)


@pytest.mark.parametrize("name", ["dirichlet", "gamma", "product", "below 5", "log-uniform"])
def test_density_in_coordinates_without_bounds(name: str) -> None:
    """The derivative that corrections use is that of the transform, by autodiff."""
    prior = SUPPORTS[name]
    whitening = DenseWhitening(tuple(transform_of(prior).inverse_shape(prior.event_shape)))
    whitening.transform = transform_of(prior)
    xi = torch.randn(whitening.dim, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda u: whitening.to(u).unwhiten(u))(xi)
    # Of numbers that sum to 1, all but the last of them are coordinates.
    kept = {"dirichlet": [0, 1], "product": [0, 1, 2, 4]}.get(name, list(range(len(jacobian))))
    expected = torch.linalg.slogdet(jacobian[kept])[1]
    torch.testing.assert_close(whitening.log_det(xi[None])[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_open_ends_are_never_reached(dtype: torch.dtype) -> None:
    inf = torch.inf
    box = Box(torch.tensor([0.0, 5.0, -inf, -inf, 0.0]), torch.tensor([inf, inf, 3.0, inf, 1.0]))
    v = torch.tensor([-1e4, -3.0, 0.0, 3.0, 80.0, 1e4], dtype=dtype)[:, None].expand(-1, 5)
    x = box(v)
    assert x.isfinite().all()
    assert bool((x[:, 0] > 0).all() and (x[:, 1] > 5).all() and (x[:, 2] < 3).all())
    assert torch.equal(x[:, 3], v[:, 3])
    inner = box.inv(x[1:4])
    torch.testing.assert_close(inner, v[1:4], rtol=1e-4, atol=1e-4)
    assert box.inv(torch.tensor([0.0, 5.0, 3.0, 0.0, 1.0], dtype=dtype)).isfinite().all()


def test_laws_without_bounds_have_no_transform() -> None:
    for prior in (
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
        half_open(StudentT(3 * ONE)),
        half_open(Gumbel(0 * ONE, ONE)),
        half_open(TransformedDistribution(Normal(0 * ONE, ONE), [AffineTransform(5.0, 2.0)])),
        MaternField((4, 4)),
    ):
        assert transform_of(prior) is None and support_of(prior) is None


def test_what_a_chain_of_transforms_is_not_known_of() -> None:
    """Its own support then counts: neither a base without ends nor a fold has bounds to follow."""
    low, high = torch.tensor(0.0, dtype=torch.float64), torch.tensor(torch.inf)
    folded = TransformedDistribution(Uniform(-ONE, ONE), [AbsTransform()])
    grown = TransformedDistribution(Circle(), [ExpTransform()])
    for prior in (half_open(folded), grown):
        found = transform_of(prior)
        assert isinstance(found, Box) and found.low == low and found.high == high


@pytest.mark.parametrize("law", [Poisson(ONE), Bernoulli(0.5 * ONE)])
def test_discrete_priors_are_refused(law: Distribution) -> None:
    with pytest.raises(ValueError, match="'prior' must be a law of real numbers"):
        InverseProblem(half_open(law), simulator=lambda x: x + torch.randn_like(x))


class Circle(Distribution):
    """Unit vectors: a support that no transform is known for."""

    arg_constraints: ClassVar[dict] = {}
    support = pyro_constraints.sphere

    def __init__(self) -> None:
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:
        x = torch.randn(*sample_shape, 2)
        return x / x.norm(dim=-1, keepdim=True)


def test_draws_outside_a_support_without_a_bijection_are_reported(tmp_path: Path) -> None:
    problem = InverseProblem(Circle(), simulator=lambda x: x + 0.1 * torch.randn_like(x))
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=200, width=8, depth=1)
    _, y, _ = problem.simulate(3, seed=0)
    said = r"30 of 30 draws lie outside .* give the problem a 'tr"
    with pytest.warns(UserWarning, match=said):
        vfm(y).sample((10,))
    with pytest.warns(UserWarning, match=said):  # the draws of a file are the same
        sample_to_netcdf(vfm, problem, y, 10, tmp_path / "draws.nc")


def test_samples_on_which_a_transform_has_no_inverse() -> None:
    problem = InverseProblem(
        torch.randn(50, 2), simulator=lambda x: x.exp(), transform=ExpTransform()
    )
    with pytest.raises(ValueError, match="'transform' must have a finite inverse"):
        vi.VariationalFlowMap.for_problem(problem, num_simulations=100)
