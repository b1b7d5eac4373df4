"""The problems that posterior correction is judged on: densities, symmetries, exact posteriors."""

from __future__ import annotations

import bz2
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, biject_to

from tests.benchmarks import c2st
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems import bernoulli_glm, student_t
from vfm_inverse.problems.shared.boxes import TruncatedNormal, uniform_box
from vfm_inverse.problems.slcp import four_points
from vfm_inverse.problems.two_moons import Crescent, TwoMoonsPosterior

ALL = [
    "two-moons",
    "slcp",
    "gaussian-mixture",
    "gaussian-linear-uniform",
    "bernoulli-glm",
    "mixture-linear",
    "student-t",
]
PLANE = ["two-moons", "gaussian-mixture"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def likelihood(problem: InverseProblem, x: Tensor) -> Distribution:
    assert problem.likelihood is not None
    return problem.likelihood(x)


def prior_of(problem: InverseProblem) -> Distribution:
    assert isinstance(problem._splits.prior, Distribution)
    return problem._splits.prior


def reference(problem: InverseProblem, y: Tensor) -> Distribution:
    posterior = problem.reference_posterior(y)
    assert posterior is not None
    return posterior


def grid(low: Any, high: Any, size: int) -> tuple[Tensor, float]:
    """Midpoints ``(size^2, 2)`` of the cells of a rectangle, and a cell's area.

    The limits are numbers or ``(2,)``.
    """
    low, high = (torch.as_tensor(limit).double().expand(2) for limit in (low, high))
    step = (high - low) / size
    unit = torch.arange(size, dtype=torch.float64) + 0.5
    return low + step * torch.cartesian_prod(unit, unit), float(step.prod())


# What every one of them has


@pytest.mark.parametrize("name", ALL)
def test_the_prior_is_a_distribution_over_one_vector(name: str) -> None:
    problem = problems.load(name)
    prior = prior_of(problem)
    assert prior.batch_shape == () and prior.event_shape == problem.field_shape
    x = problem.sample_prior(200, seed=0)
    assert bool(torch.isfinite(prior.log_prob(x)).all())
    transform = biject_to(prior.support) if name != "mixture-linear" else None
    if transform is not None:
        u = transform.inv(x)
        assert u.shape == x.shape and bool(torch.isfinite(u).all())
        torch.testing.assert_close(transform(u), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "half"),
    [("two-moons", 1), ("slcp", 3), ("gaussian-mixture", 10), ("gaussian-linear-uniform", 1)],
)
def test_the_box(name: str, half: float) -> None:
    problem = problems.load(name)
    prior, d = prior_of(problem), problem.field_shape[0]
    x = problem.sample_prior(20_000, seed=0)
    assert min(stats.kstest(c.numpy(), "uniform", (-half, 2 * half)).pvalue for c in x.T) > 1e-3
    outside = torch.zeros(2, d)
    outside[0, -1], outside[1, 0] = 1.01 * half, -1.01 * half
    value = prior.log_prob(torch.cat([outside, 0.99 * half * torch.ones(1, d)]))
    assert value[:2].tolist() == [-math.inf] * 2
    assert float(value[2]) == pytest.approx(-d * math.log(2 * half))


@pytest.mark.parametrize("name", ALL)
def test_likelihoods_broadcast_over_draws(name: str) -> None:
    problem = problems.load(name)
    x, y, params = problem.simulate(6, seed=0)
    draws = problem.sample_prior(18, seed=1).reshape(3, 6, -1)
    value = problem.log_likelihood(draws, y, **params)
    assert value.shape == (3, 6)
    one = problem.log_likelihood(draws[2, 4:5], y[4:5], **params)
    torch.testing.assert_close(value[2, 4:5], one, rtol=1e-4, atol=1e-4)
    law = likelihood(problem, x)
    assert law.sample((4,)).shape == (4, *y.shape)
    wide = law.expand((3, 6))
    torch.testing.assert_close(wide.log_prob(y)[1], law.log_prob(y))


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_everywhere(name: str) -> None:
    """Inside and outside of the prior's box, near to and far from the data."""
    problem = problems.load(name)
    x, y, _ = problem.simulate(500, seed=0)
    points = torch.cat([x, x.roll(1, 0), 3 * x, -x, torch.zeros_like(x)])
    points.requires_grad_()
    value = problem.log_likelihood(points, y.repeat(5, 1))
    (gradient,) = torch.autograd.grad(value.sum(), points)
    assert bool(torch.isfinite(gradient).all())
    assert not bool(value.isnan().any()) and bool((value < math.inf).all())
    if name != "two-moons":
        assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("name", ALL)
def test_gradient_of_the_log_likelihood(name: str) -> None:
    """Against central differences, in double precision."""
    problem = problems.load(name)
    x, y, _ = problem.simulate(40, seed=0)
    x, y = x.double().requires_grad_(), y.double()
    (gradient,) = torch.autograd.grad(problem.log_likelihood(x, y).sum(), x)
    x = x.detach()
    for axis in range(x.shape[1]):
        step = torch.zeros_like(x)
        step[:, axis] = 1e-6
        rise = problem.log_likelihood(x + step, y) - problem.log_likelihood(x - step, y)
        # The curvature of slcp near a vanishing variance is large.
        torch.testing.assert_close(rise / 2e-6, gradient[:, axis], rtol=1e-3, atol=1e-2)


# Densities of the data


@pytest.mark.parametrize("name", PLANE)
def test_densities_in_the_plane_integrate_to_one(name: str) -> None:
    problem = problems.load(name)
    theta = torch.tensor([[0.31, -0.12]], dtype=torch.float64)
    # The grid has the middle on an edge of cells, where the crescent's density jumps.
    half, middle = (0.2, Crescent(theta).centre) if name == "two-moons" else (6.0, theta)
    points, area = grid(-half, half, 600)
    points = points + middle
    density = likelihood(problem, theta).log_prob(points).exp()
    assert float(density.sum() * area) == pytest.approx(1, abs=1e-4)
    # And the first two moments of the draws are those of the density.
    draws = likelihood(problem, theta).sample((100_000,))[:, 0]
    mean = (density.unsqueeze(1) * points).sum(0) * area
    square = (density.unsqueeze(1) * points**2).sum(0) * area
    error = 5 * draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - mean).abs() < error).all())
    error = 5 * draws.square().std(0) / len(draws) ** 0.5
    assert bool(((draws.square().mean(0) - square).abs() < error).all())


def test_crescent_in_polar_coordinates() -> None:
    theta = torch.tensor([0.4, -0.9], dtype=torch.float64).expand(50_000, 2)
    y = Crescent(theta).sample()
    centre = torch.tensor([0.25 - 0.5 / 2**0.5, -1.3 / 2**0.5], dtype=torch.float64)
    p = y - centre
    r, a = p.norm(dim=1), torch.atan2(p[:, 1], p[:, 0])
    assert stats.kstest(r.numpy(), "norm", (0.1, 0.01)).pvalue > 1e-3
    assert stats.kstest(a.numpy(), "uniform", (-math.pi / 2, math.pi)).pvalue > 1e-3
    expected = stats.norm(0.1, 0.01).logpdf(r.numpy()) - np.log(math.pi * r.numpy())
    np.testing.assert_allclose(Crescent(theta).log_prob(y).numpy(), expected, rtol=1e-9)
    left = centre - torch.tensor([0.1, 0.0])
    assert float(Crescent(theta[0]).log_prob(left)) == -math.inf


def test_slcp_is_four_normal_points() -> None:
    theta = problems.load("slcp").sample_prior(30, seed=0).double()
    law = four_points(theta)
    y = law.sample((50_000,))
    s_1, s_2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    covariance = torch.stack([s_1**2, rho * s_1 * s_2, rho * s_1 * s_2, s_2**2], -1)
    covariance = covariance.reshape(-1, 2, 2) + 1e-6 * torch.eye(2)
    value = sum(
        MultivariateNormal(theta[:, :2], covariance).log_prob(y[:20, :, 2 * i : 2 * i + 2])
        for i in range(4)
    )
    torch.testing.assert_close(law.log_prob(y[:20]), value, rtol=1e-6, atol=1e-6)
    # The draws have that law: Mahalanobis distances are chi-squared with 8 degrees.
    whitened = torch.linalg.solve(
        torch.linalg.cholesky(covariance).unsqueeze(1),
        (y[:2000].reshape(2000, 30, 4, 2) - theta[:, None, :2]).unsqueeze(-1),
    )
    distance = whitened.square().sum((2, 3, 4)).flatten()
    assert stats.kstest(distance.numpy(), "chi2", (8,)).pvalue > 1e-3


def test_slcp_has_four_symmetric_modes() -> None:
    problem = problems.load("slcp")
    x, y, _ = problem.simulate(200, seed=0)
    value = problem.log_likelihood(x, y)
    for signs in ([1, 1, -1, 1, 1], [1, 1, 1, -1, 1], [1, 1, -1, -1, 1]):
        mirrored = problem.log_likelihood(x * torch.tensor(signs), y)
        torch.testing.assert_close(mirrored, value, rtol=0, atol=0)
    # They are modes apart: between them, where a variance vanishes, hardly any density.
    between = x.clone()
    between[:, 2] = 0.01
    assert float((value - problem.log_likelihood(between, y)).median()) > 100
    # No other sign is free.
    for axis in (0, 1, 4):
        signs = torch.ones(5)
        signs[axis] = -1
        assert float((problem.log_likelihood(x * signs, y) - value).abs().median()) > 0.5


def test_bernoulli_glm_is_logistic_regression_up_to_a_constant() -> None:
    """Summed over all spike trains of a small design the density of each train is right."""
    design = torch.randn(5, 3, dtype=torch.float64)
    theta = torch.randn(7, 3, dtype=torch.float64)
    trains = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 5)
    law = bernoulli_glm.SpikeSum(theta, design)
    value = law.log_prob((trains @ design).unsqueeze(1))
    rate = torch.sigmoid(theta @ design.T)
    exact = torch.distributions.Bernoulli(rate).log_prob(trains.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(value.exp().sum(0), torch.ones(7).double())
    draws = law.sample((100_000,))
    torch.testing.assert_close(draws.mean(0), rate @ design, rtol=0, atol=0.05)
    variance = (rate * (1 - rate)) @ design**2
    torch.testing.assert_close(draws.var(0), variance, rtol=0.05, atol=0.02)


def test_bernoulli_glm_prior_and_design(tmp_path: Path) -> None:
    prior = bernoulli_glm.filter_prior(9)
    # Written out entry by entry: second differences, plus sqrt(i/9) on the diagonal.
    f = np.zeros((9, 9))
    for i in range(9):
        f[i, i] = 1 + math.sqrt(i / 9)
        if i >= 1:
            f[i, i - 1] = -2
        if i >= 2:
            f[i, i - 2] = 1
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, f.T @ f
    actual = prior.covariance_matrix.double().numpy() @ precision
    np.testing.assert_allclose(actual, np.eye(10), atol=2e-5)
    design = bernoulli_glm.draw_design(3)
    assert design.shape == (100, 10) and bool((design[:, 0] == 1).all())
    assert torch.equal(design[1:, 2:], design[:-1, 1:-1])  # a lag later, the same stimulus
    assert float(design[0, 2:].abs().max()) == 0 and abs(float(design[:, 1].std()) - 1) < 0.2
    assert not torch.equal(design, bernoulli_glm.draw_design(4))
    file = tmp_path / "design.csv"
    np.savetxt(file, design.numpy(), delimiter=",")
    read = problems.load("bernoulli-glm", design=str(file)).simulate(5, seed=0)
    torch.testing.assert_close(read, problems.load("bernoulli-glm", seed=3).simulate(5, seed=0))


# Exact posteriors


@pytest.mark.parametrize("name", PLANE)
def test_references_in_the_plane_against_quadrature(name: str) -> None:
    """Densities integrate to one and draws fall into cells as often as prior times likelihood."""
    problem = problems.load(name)
    _, y, _ = problem.simulate(30, seed=1)
    # One in the middle, and the two whose posterior comes closest to the edge of the box.
    reach = reference(problem, y).sample((300,)).abs().amax((0, 2))
    for row in (0, *reach.topk(2).indices.tolist()):
        law = reference(problem, y[row : row + 1])
        draws = law.sample((50_000,))[:, 0].double()
        low, high = draws.amin(0), draws.amax(0)
        points, area = grid(low, high, 800)  # all inside of the box, for the draws are
        density = law.log_prob(points.float()).exp().double()
        assert float(density.sum() * area) == pytest.approx(1, abs=5e-3)
        target = likelihood(problem, points).log_prob(y[row].double()).exp()
        expected = (target / target.sum()).reshape(10, 80, 10, 80).sum((1, 3)).flatten()
        cell = ((draws - low) / (high - low) * 10).floor().long().clamp(0, 9)
        counts = torch.bincount(cell[:, 0] * 10 + cell[:, 1], minlength=100)
        error = 5 * (expected / len(draws)).sqrt() + 2e-3 * expected.max() + 1e-4
        assert bool(((counts / len(draws) - expected).abs() < error).all())


def test_gaussian_linear_uniform_reference_is_independent_quadrature() -> None:
    problem = problems.load("gaussian-linear-uniform")
    _, y, _ = problem.simulate(4, seed=2)
    law = reference(problem, y)
    axis = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    density = torch.exp(-0.5 * (axis[:, None, None] - y) ** 2 / 0.1)
    density = density / torch.trapezoid(density, axis, dim=0)
    mean = torch.trapezoid(density * axis[:, None, None], axis, dim=0)
    square = torch.trapezoid(density * axis[:, None, None] ** 2, axis, dim=0)
    draws = law.sample((100_000,)).double()
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.006)
    torch.testing.assert_close(draws.square().mean(0), square, rtol=0, atol=0.006)
    at = torch.full((4, 10), 0.25)
    node = int((axis - 0.25).abs().argmin())
    torch.testing.assert_close(
        law.log_prob(at).double(), density[node].log().sum(-1), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ["two-moons", "gaussian-mixture", "gaussian-linear-uniform"])
def test_reference_draws_stay_inside_the_box(name: str) -> None:
    problem = problems.load(name)
    _, y, _ = problem.simulate(300, seed=3)
    draws = reference(problem, y).sample((300,))
    transform = biject_to(prior_of(problem).support)
    assert bool(torch.isfinite(prior_of(problem).log_prob(draws)).all())
    assert bool(torch.isfinite(transform.inv(draws)).all())


def test_two_moons_modes_mirror_each_other() -> None:
    _, y, _ = problems.load("two-moons").simulate(20, seed=0)
    law = TwoMoonsPosterior(y)
    draws = law.sample((2000,))
    share = (draws.sum(-1) > 0).double().mean(0)
    assert float((share - 0.5).abs().max()) < 5 * 0.5 / 2000**0.5
    mirrored = -draws.flip(-1)
    # The crescent of 1e-2 is stiff: rounding in single precision shows.
    torch.testing.assert_close(law.log_prob(mirrored), law.log_prob(draws), rtol=0, atol=1e-2)
    # Where the box cuts nothing, both crescents have all their mass: the evidence is 2/4.
    free = TwoMoonsPosterior(torch.tensor([[-0.3, 0.1]], dtype=torch.float64))
    assert float(free.log_normalizer) == pytest.approx(math.log(2), abs=1e-9)
    with pytest.raises(ValueError, match="'y' must lie within reach of a theta"):
        TwoMoonsPosterior(torch.tensor([[-3.0, 0.0]]))


def test_mixture_linear_reference_against_importance_sampling() -> None:
    problem = problems.load("mixture-linear", dim=3, obs_dim=1, components=3, sigma=(0.3, 0.6))
    _, y, params = problem.simulate(4, seed=3)
    posterior = problem.reference_posterior(y, **params)
    assert posterior is not None
    x = problem.sample_prior(400_000, seed=5).unsqueeze(1).expand(-1, 4, 3)
    weight = torch.softmax(problem.log_likelihood(x, y, **params).double(), 0).unsqueeze(-1)
    size = 1 / weight.square().sum(0)
    assert float(size.min()) > 5000
    mean = (weight * x).sum(0)
    variance = (weight * (x - mean) ** 2).sum(0)
    error = 5 * (variance / size).sqrt()
    assert bool(((posterior.mean - mean).abs() < error).all())
    torch.testing.assert_close(posterior.variance.double(), variance, rtol=0.1, atol=0)


def test_mixture_linear_leaves_several_modes() -> None:
    problem = problems.load("mixture-linear")
    _, y, _ = problem.simulate(500, seed=0)
    posterior: Any = reference(problem, y)
    weights = posterior.mixture_distribution.probs
    assert float(weights.amax(-1).median()) < 0.9
    # Means are far apart in units of the components' widest direction, 1.
    means = posterior.component_distribution.mean[0]
    distance = torch.pdist(means)
    assert float(distance.min()) > 4


# Heavy tails


def test_student_t_prior_is_heavy_tailed_in_a_rotated_frame() -> None:
    problem = problems.load("student-t", dim=4)
    prior: Any = prior_of(problem)
    rotation = prior.transforms[0].matrix
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(4), rtol=0, atol=1e-5)
    assert float(rotation.abs().max()) < 0.95
    x = problem.sample_prior(50_000, seed=0)
    t = x @ rotation * 3**0.5
    for column in t.T:
        assert stats.kstest(column.numpy(), "t", (3,)).pvalue > 1e-3
    exact = stats.t(3, scale=3**-0.5).logpdf((x[:50] @ rotation).numpy()).sum(-1)
    np.testing.assert_allclose(prior.log_prob(x[:50]).numpy(), exact, rtol=1e-4, atol=1e-4)


def test_gibbs_is_the_gold_standard_of_student_t() -> None:
    """Against quadrature in the plane, at an outlying datum too."""
    problem = problems.load("student-t", dim=2, obs_dim=1, seed=1)
    y = torch.tensor([[0.3], [6.0]])
    draws = student_t.gibbs(y, 8000, 60, dim=2, seed=1, chain_seed=0)
    assert draws.shape == (8000, 2, 2) and draws.dtype == y.dtype
    # The outlier has two explanations: the rarer one lies 50 units out.
    size, reach = 1600, 80
    points, _ = grid(-reach, reach, size)
    x = points.float()
    log_target = prior_of(problem).log_prob(x).unsqueeze(1) + problem.log_likelihood(
        x.unsqueeze(1).expand(-1, 2, 2), y
    )
    weight = torch.softmax(log_target.double(), 0).reshape(size, size, 2)
    edges = torch.linspace(-reach, reach, size + 1)[1:]
    for row in range(2):
        for axis in range(2):
            exact = weight[..., row].sum(1 - axis).cumsum(0)
            ordered = draws[:, row, axis].sort().values
            empirical = torch.searchsorted(ordered, edges) / len(ordered)
            assert float((empirical - exact).abs().max()) < 1.95 / len(draws) ** 0.5


# Parts


@pytest.mark.parametrize("loc", [0.0, 0.9, 3.0, -3.0, 40.0])
def test_truncated_normal(loc: float) -> None:
    """Against scipy, far out in the tails too."""
    law = TruncatedNormal(torch.tensor([loc]).double(), 0.5, -1.0, 2.0)
    other = stats.truncnorm((-1 - loc) / 0.5, (2 - loc) / 0.5, loc, 0.5)
    x = torch.linspace(-0.999, 1.999, 30).double().unsqueeze(1)
    np.testing.assert_allclose(
        law.log_prob(x)[:, 0].numpy(), other.logpdf(x[:, 0].numpy()), rtol=1e-6, atol=1e-6
    )
    outside = torch.tensor([[-1.01], [2.01]]).double()
    assert law.log_prob(outside).flatten().tolist() == [-math.inf] * 2
    if loc < 10:
        draws = law.sample((20_000,))[:, 0]
        assert stats.kstest(draws.numpy(), other.cdf).pvalue > 1e-3
        mass = stats.norm(loc, 0.5).cdf(2) - stats.norm(loc, 0.5).cdf(-1)
        assert float(law.log_mass) == pytest.approx(math.log(mass), rel=1e-6)
    else:
        assert float(law.sample((100,)).min()) > 1.99
    empty = TruncatedNormal(torch.zeros(1), 1.0, 1.0, 0.5)
    assert float(empty.log_mass) == -math.inf


def test_uniform_box() -> None:
    box = uniform_box(3, 2.5)
    assert float(box.log_prob(torch.zeros(3))) == pytest.approx(-3 * math.log(5))
    assert float(box.log_prob(torch.tensor([0.0, 0.0, 2.6]))) == -math.inf


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("two-moons", {"dim": 3}, r"unknown setting \['dim'\] of problem 'two-moons'"),
        ("mixture-linear", {"components": 0}, "'components' must be positive; got 16, 8 and 0"),
        ("mixture-linear", {"sigma": -1}, "'sigma' must be positive; got -1"),
        ("student-t", {"df": 2}, "'df' must be above 2; got 2"),
        ("student-t", {"obs_dim": 0}, "'dim' and 'obs_dim' must be positive; got 8 and 0"),
    ],
)
def test_bad_settings_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems.load(name, **kwargs)


@pytest.mark.parametrize("text", ["1\n2\n", "1,nan\n1,2\n"])
def test_a_bad_design_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "design.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match="'design' must hold finite numbers in two columns"):
        problems.load("bernoulli-glm", design=str(file))


# The benchmark's helper


def test_published_observations_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "two_moons" / "num_observation_2"
    folder.mkdir(parents=True)
    (folder / "observation.csv").write_text("data_1,data_2\n0.5,-0.25\n")
    (folder / "true_parameters.csv").write_text("parameter_1,parameter_2\n0.1,0.2\n")
    with bz2.open(folder / "reference_posterior_samples.csv.bz2", "wt") as file:
        file.write("parameter_1,parameter_2\n0.1,0.3\n-0.2,0.4\n0,1\n")
    published = c2st.load_observation(tmp_path, "two-moons", 2)
    assert published.y.tolist() == [[0.5, -0.25]] and published.truth.shape == (1, 2)
    torch.testing.assert_close(
        published.reference, torch.tensor([[0.1, 0.3], [-0.2, 0.4], [0.0, 1.0]])
    )
    with pytest.raises(ValueError, match="'task' must be one of .* got 'checkerboard'"):
        c2st.load_observation(tmp_path, "checkerboard", 1)
    with pytest.raises(FileNotFoundError):
        c2st.load_observation(tmp_path, "slcp", 1)
    assert c2st.load_problem(tmp_path, "slcp").name == "slcp"


def test_c2st_finds_what_differs_and_nothing_else() -> None:
    pytest.importorskip("sklearn")
    draws, same = torch.randn(2, 500, 2)
    assert abs(c2st.c2st(draws, same) - 0.5) < 0.05
    # The best classifier of N(0, 1) and N(2, 1) is right with probability Phi(1), in any units.
    scale = torch.tensor([1e4, 1e-4])
    shifted = same + torch.tensor([2.0, 0.0])
    assert c2st.c2st(shifted * scale, draws * scale) == pytest.approx(0.841, abs=0.04)
    with pytest.raises(ValueError, match="must have one shape"):
        c2st.c2st(draws[:10], same)
