"""Every problem of the pack keeps one contract; exact posteriors are checked by other means."""

from __future__ import annotations

import builtins
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.operators import verify
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.random_fields import matern_covariance
from vfm_inverse.problems import checkerboard
from vfm_inverse.problems.mri import draw_lines
from vfm_inverse.problems.shared import phantoms, photographs
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian
from vfm_inverse.problems.shared.gaussian_prior import fit_gaussian, gaussian_prior_posterior
from vfm_inverse.problems.shared.phantoms import draw_phantoms
from vfm_inverse.statistics.scores import energy_score

# Settings small enough for a test; one line a variant.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear-gaussian": ("linear-gaussian", {}),
    "linear-gaussian, more data than unknowns": ("linear-gaussian", {"dim": 3, "obs_dim": 5}),
    "linear-gaussian, sigma varies": ("linear-gaussian", {"dim": 6, "sigma": (0.1, 1.0)}),
    "rotated-gaussian": ("rotated-gaussian", {}),
    "gaussian-field": ("gaussian-field", {"size": 6, "num_points": 3}),
    "gaussian-field, sigma varies": (
        "gaussian-field",
        {"size": 5, "num_points": 4, "sigma": [0.05, 0.5]},
    ),
    "gaussian-field, networks change": (
        "gaussian-field",
        {"size": 5, "num_points": 4, "sigma": [0.1, 0.5], "networks": "changing"},
    ),
    "lognormal-field": ("lognormal-field", {}),
    "checkerboard": ("checkerboard", {}),
    "checkerboard, sigma varies": ("checkerboard", {"sigma": (0.05, 0.5)}),
    "heat": ("heat", {"size": 5, "num_points": 3, "sigma": 4.0}),
    "heat, one time, sigma varies": (
        "heat",
        {"size": 5, "num_points": 4, "times": [60.0], "sigma": [2.0, 20.0]},
    ),
    "advection-diffusion": (
        "advection-diffusion",
        {"size": 5, "num_points": 2, "times": [3600.0, 7200.0], "sigma": 0.5},
    ),
    "travel-time": (
        "travel-time",
        {"size": 6, "num_sources": 3, "num_receivers": 2, "sigma": 0.02},
    ),
    "gravity": ("gravity", {"size": 4, "sigma": 1.0}),
    "seismic-deconvolution": ("seismic-deconvolution", {"length": 9, "sigma": 0.2}),
    "seismic-deconvolution, sparse": (
        "seismic-deconvolution",
        {"length": 12, "prior": "sparse"},
    ),
    "darcy": ("darcy", {"size": 8, "num_points": 12}),
    "darcy, truncated expansion": (
        "darcy",
        {"size": 6, "num_points": 12, "prior": "expansion", "num_modes": 10},
    ),
    "darcy, channels": ("darcy", {"size": 8, "num_points": 12, "prior": "channels"}),
    "darcy-64": ("darcy-64", {}),
    "travel-time-eikonal": ("travel-time-eikonal", {"size": 8, "num_points": 3}),
    "fwi-small": ("fwi-small", {"size": 12, "num_shots": 2, "num_receivers": 3, "frequency": 3.0}),
    "lorenz96-window": ("lorenz96-window", {}),
    "ct": ("ct", {"size": 16}),
    "ct, limited arc, photographs": (
        "ct",
        {"size": 12, "num_angles": 5, "arc": 90.0, "sigma": [0.02, 0.2], "prior": "photographs"},
    ),
    "mri": ("mri", {"size": 16}),
    "mri, photographs, sigma varies": (
        "mri",
        {"size": 12, "sigma": [0.02, 0.2], "prior": "photographs"},
    ),
    "two-moons": ("two-moons", {}),
    "slcp": ("slcp", {}),
    "gaussian-mixture": ("gaussian-mixture", {}),
    "gaussian-linear-uniform": ("gaussian-linear-uniform", {}),
    "bernoulli-glm": ("bernoulli-glm", {"seed": 1}),
    "mixture-linear": ("mixture-linear", {}),
    "mixture-linear, sigma varies": ("mixture-linear", {"components": 3, "sigma": (0.1, 1.0)}),
    "student-t": ("student-t", {}),
    "increments": ("increments", {"length": 16}),
    "increments, cauchy, blurred": ("increments", {"law": "cauchy", "length": 16, "blur": 1.5}),
    "photo-deblur": ("photo-deblur", {"size": 16}),
    "photo-inpaint": ("photo-inpaint", {"size": 16}),
}
NO_REFERENCE = (
    "lognormal",
    "photo",
    "seismic-deconvolution, sparse",
    "darcy",
    "travel-time-eikonal",
    "fwi",
    "lorenz96",
    "ct",
    "mri",
    "slcp",
    "bernoulli",
    "student",
    "increments",
)
EXACT = [name for name in CASES if not name.startswith(NO_REFERENCE)]
UNIFORM = ("checkerboard", "two-moons", "gaussian-mixture", "gaussian-linear-uniform")
MODES = ("checkerboard", "two-moons", "mixture")
GAUSSIAN = [name for name in EXACT if not name.startswith((*UNIFORM, "mixture"))]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make(case: str) -> InverseProblem:
    name, kwargs = CASES[case]
    if name == "fwi-small":
        pytest.importorskip("deepwave")
    return problems.load(name, **kwargs)


def reference(problem: InverseProblem, y: Tensor, params: dict[str, Tensor]) -> Distribution:
    posterior = problem.reference_posterior(y, **params)
    assert posterior is not None
    return posterior


def test_every_problem_is_a_case() -> None:
    assert {name for name, _ in CASES.values()} == problems.available().keys()
    assert all(len(line) < 90 for line in problems.available().values())


@pytest.mark.parametrize("name", problems.available())
def test_every_problem_has_a_page(name: str) -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    page, table = (
        (docs / "problems" / f"{name}.md").read_text(),
        (docs / "problems.md").read_text(),
    )
    assert page.startswith(f"# {name}\n") and f'problems.load("{name}"' in page
    assert f"[`{name}`](problems/{name}.md)" in table and f"\nproblems/{name}\n" in table
    figures = page.partition("<!-- figures -->")[2].partition("<!-- end of figures -->")[0]
    for picture in re.findall(r"\]\(\.\./(_static/[^)]*)\)", figures):
        assert (docs / picture).is_file(), picture


@pytest.mark.parametrize("case", CASES)
def test_the_contract(case: str) -> None:
    problem = make(case)
    x, y, params = problem.simulate(50, seed=0)
    assert x.shape == (50, *problem.field_shape) and y.shape == (50, *problem.observation_shape)
    assert {k: v.shape[1:] for k, v in params.items()} == problem.param_shapes
    assert x.dtype == y.dtype == torch.float32
    assert len(problem.dims) == sum(size > 1 for size in problem.field_shape)
    assert problem.units is not None and problem.observation_labels.units is not None
    value = problem.log_likelihood(x, y, **params)
    assert value.shape == (50,) and bool(torch.isfinite(value).all())
    shuffled = problem.log_likelihood(x, y.roll(1, 0), **params)
    assert float(value.mean()) > float(shuffled.mean()) + 1, "the data say nothing of the field"
    x_test, _, _ = problem.simulate(50, split="test", seed=0)
    assert not torch.equal(x_test, x)


@pytest.mark.parametrize("case", CASES)
def test_name_and_settings_rebuild_the_problem(case: str) -> None:
    problem = make(case)
    settings = json.loads(json.dumps(problem.kwargs))  # as a checkpoint keeps them
    again = problems.load(problem.name or "", **settings)
    drawn, redrawn = problem.simulate(5, seed=3), again.simulate(5, seed=3)
    torch.testing.assert_close(redrawn, drawn, rtol=0, atol=0)


@pytest.mark.parametrize("case", EXACT)
def test_reference_has_the_interface_of_a_posterior(case: str) -> None:
    problem = make(case)
    _, y, params = problem.simulate(7, seed=0)
    posterior = reference(problem, y, params)
    assert posterior.batch_shape == (7,) and posterior.event_shape == problem.field_shape
    draws = posterior.sample((4,))
    assert draws.shape == (4, 7, *problem.field_shape) and draws.dtype == torch.float32
    assert posterior.log_prob(draws).shape == (4, 7)
    assert bool(torch.isfinite(posterior.log_prob(draws)).all())


@pytest.mark.parametrize("case", EXACT)
def test_reference_is_calibrated(case: str) -> None:
    """Ranks of the truth among 63 draws are uniform (simulation-based calibration; 8 bins)."""
    problem = make(case)
    x, y, params = problem.simulate(4000, seed=1)
    draws = reference(problem, y, params).sample((63,))
    ranks = (draws < x).sum(0).flatten(1)
    p_values = []
    for column in ranks.T:
        counts = torch.bincount(column // 8, minlength=8).numpy()
        p_values.append(stats.chisquare(counts).pvalue)
    assert min(p_values) * len(p_values) > 1e-3
    # Power: draws 10 % too narrow are found out, where the posterior has one mode.
    narrow = draws.mean(0) + 0.9 * (draws - draws.mean(0))
    counts = torch.bincount((narrow < x).sum(0).flatten(1)[:, 0] // 8, minlength=8).numpy()
    assert stats.chisquare(counts).pvalue < 1e-3 or case.startswith(MODES)


@pytest.mark.parametrize("case", EXACT)
def test_reference_is_prior_times_likelihood(case: str) -> None:
    """log p(x|y) - log p(x) - log p(y|x) is the evidence: the same for every x."""
    problem = make(case)
    x, y, params = problem.simulate(20, seed=2)
    posterior = reference(problem, y, params)
    draws = posterior.sample((10,))
    if case.startswith(UNIFORM):
        log_prior: Tensor | float = 0.0  # a constant on the box or board, where all draws lie
    elif case.startswith("mixture"):
        assert isinstance(problem._splits.prior, Distribution)
        log_prior = problem._splits.prior.log_prob(draws)
    else:
        mean, covariance = problem.prior_moments() or pytest.fail("a Gaussian prior has moments")
        law = MultivariateNormal(mean, covariance)
        log_prior = law.log_prob(draws.double().flatten(2))
    evidence = problem.log_likelihood(draws, y, **params) + log_prior - posterior.log_prob(draws)
    # Single precision: the prior precision of the smooth fields is large.
    smooth = ("field", "heat", "advection", "travel", "gravity")
    tolerance = 0.05 if any(word in case for word in smooth) else 2e-3
    assert float(evidence.std(0).max()) < tolerance


@pytest.mark.parametrize("case", GAUSSIAN)
def test_gaussian_reference_against_importance_sampling(case: str) -> None:
    """Posterior mean and variance once more, from prior draws weighted by the likelihood."""
    problem = make(case)
    _, y, params = problem.simulate(3, seed=7)
    if params:
        params |= {"sigma": params["sigma"].clamp_min(0.5)}
    posterior = reference(problem, y, params)
    x = problem.sample_prior(200_000, seed=5).unsqueeze(1).expand(-1, 3, *problem.field_shape)
    weight = torch.softmax(problem.log_likelihood(x, y, **params), 0)
    size = 1 / weight.square().sum(0)  # effective sample size
    assert float(size.min()) > 100
    flat, mean = x.flatten(2), posterior.mean.flatten(1)
    error = (weight.unsqueeze(-1) * (flat - mean)).sum(0)
    scale = posterior.variance.flatten(1).sqrt()
    assert float((error / scale * size.sqrt().unsqueeze(-1)).abs().max()) < 5
    variance = (weight.unsqueeze(-1) * (flat - mean) ** 2).sum(0)
    spread = (variance / scale**2 - 1) * (size.unsqueeze(-1) / 2).sqrt()
    assert float(spread.abs().max()) < 6


def test_rotated_gaussian_has_the_published_widths() -> None:
    problem = problems.load("rotated-gaussian")
    covariance = reference(problem, torch.zeros(1, 1), {}).covariance_matrix[0]
    angle = math.radians(36)
    along = torch.tensor([math.cos(angle), math.sin(angle)])
    across = torch.tensor([-math.sin(angle), math.cos(angle)])
    assert float(along @ covariance @ along) ** 0.5 == pytest.approx(0.0995, abs=1e-4)
    assert float(across @ covariance @ across) ** 0.5 == pytest.approx(1, abs=1e-4)


def test_linear_gaussian_has_the_condition_number_it_says() -> None:
    for condition in (1.0, 10.0, 1e4):
        problem = problems.load("linear-gaussian", dim=5, condition=condition)
        moments = problem.prior_moments()
        assert moments is not None
        eigenvalues = torch.linalg.eigvalsh(moments[1])
        assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(condition, rel=1e-2)
        assert float(eigenvalues.mean()) == pytest.approx(1)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_matern_covariance_has_its_closed_forms(nu: float) -> None:
    """Half-integer orders (Rasmussen and Williams 2006, eq. 4.17)."""
    size, length = 6, 0.3
    covariance = matern_covariance(size, nu, length)
    axis = torch.linspace(0, 1, size).double()
    nodes = torch.cartesian_prod(axis, axis)
    r = torch.cdist(nodes, nodes)
    s = math.sqrt(2 * nu) * r / length
    factor = {0.5: 1, 1.5: 1 + s, 2.5: 1 + s + s**2 / 3}[nu]
    closed = factor * torch.exp(-s) + 1e-5 * torch.eye(size**2).double()
    torch.testing.assert_close(covariance, closed, rtol=0, atol=1e-7)


def test_lognormal_field_is_the_exponential_of_the_gaussian_one() -> None:
    problem = problems.load("lognormal-field")
    x = problem.sample_prior(20_000, seed=0)
    assert float(x.min()) > 0 and problem.prior_moments() is None
    log = x.log().flatten(1)
    torch.testing.assert_close(log.mean(0), torch.zeros(64), rtol=0, atol=0.03)
    torch.testing.assert_close(log.std(0), torch.full((64,), 0.8), rtol=0.03, atol=0)
    assert problem.reference_posterior(torch.zeros(1, 12)) is None


def test_checkerboard_draws_lie_on_the_board() -> None:
    problem = problems.load("checkerboard")
    x = problem.sample_prior(80_000, seed=0)
    assert bool(checkerboard.on_board(x).all())
    cells = (x.floor() + 2).long()
    counts = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert int((counts > 0).sum()) == 8
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 1e-3
    y = torch.linspace(-4, 4, 41)[:, None]
    draws = reference(problem, y, {}).sample((500,))
    assert bool(checkerboard.on_board(draws).all())


def test_checkerboard_reference_is_what_rejection_gives() -> None:
    problem = problems.load("checkerboard")
    x = problem.sample_prior(2_000_000, seed=0)
    accept = torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    for y in (0.03, -1.96, 2.15):
        weight = torch.exp(-0.5 * ((y - x[:, 0]) / 0.1) ** 2)
        kept = x[accept < weight / weight.max()]
        drawn = reference(problem, torch.tensor([[y]]), {}).sample((10_000,))[:, 0]
        for axis in range(2):
            test = stats.ks_2samp(kept[:, axis].numpy(), drawn[:, axis].numpy())
            assert test.pvalue > 1e-4, f"y = {y}, axis {axis}"


def test_checkerboard_draws_far_from_the_board_lie_at_its_near_edge() -> None:
    """Where only the tail of the noise reaches the board: Phi(-10) has no digits in 1 + erf."""
    problem = problems.load("checkerboard")
    for y in (-3.0, 3.0):
        drawn = reference(problem, torch.tensor([[y]]), {}).sample((4000,))[:, 0, 0]
        exact = stats.truncnorm((-2 - y) / 0.1, (2 - y) / 0.1, y, 0.1)
        assert stats.kstest(drawn.numpy(), exact.cdf).pvalue > 1e-3


def test_noise_levels_are_log_uniform() -> None:
    sigma = problems.load("linear-gaussian", sigma=(0.05, 0.5)).sample_params(20_000, seed=0)[
        "sigma"
    ]
    u = (sigma.log() - math.log(0.05)) / math.log(10)
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_conjugate_gaussian_log_prob_and_moments() -> None:
    """Against torch's MultivariateNormal with the textbook formula."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    covariance = root @ root.T + 0.1 * torch.eye(5)
    operator = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mean = torch.randn(5, generator=generator, dtype=torch.float64)
    y, sigma = torch.randn(4, 3).double(), torch.tensor([0.1, 0.5, 1.0, 2.0]).double()
    posterior = ConjugateGaussian(mean, covariance, operator).posterior(y, sigma)
    for index in range(4):
        precision = covariance.inverse() + operator.T @ operator / sigma[index] ** 2
        expected = precision.inverse()
        centre = mean + expected @ operator.T @ (y[index] - operator @ mean) / sigma[index] ** 2
        torch.testing.assert_close(posterior.mean[index], centre)
        torch.testing.assert_close(posterior.covariance_matrix[index], expected)
        torch.testing.assert_close(posterior.variance[index], expected.diagonal())
    value = torch.randn(6, 4, 5, dtype=torch.float64)
    law = MultivariateNormal(posterior.mean, posterior.covariance_matrix)
    torch.testing.assert_close(posterior.log_prob(value), law.log_prob(value))
    draws = posterior.sample((50_000,))
    torch.testing.assert_close(draws.mean(0), posterior.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(draws.var(0), posterior.variance, rtol=0.05, atol=0)


@pytest.mark.parametrize("case", ["photo-deblur", "photo-inpaint", "ct"])
def test_the_baseline_is_the_posterior_of_its_gaussian_prior(case: str) -> None:
    """Exact for fields drawn from the fitted Gaussian: ranks, moments and density."""
    problem = make(case)
    mean, covariance = fit_gaussian(problem)
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance)
    noise = torch.randn(150, 256, generator=generator, dtype=torch.float64)
    x = (mean + noise @ root.T).float().reshape(-1, 1, 16, 16)
    params = problem.sample_params(150, seed=1)
    y = problem.observe(x, seed=2, **params)
    assert problem.reference_posterior(y, **params) is None
    posterior = gaussian_prior_posterior(problem, y, **params)
    draws = posterior.sample((63,))
    assert draws.shape == (63, 150, 1, 16, 16)
    z = (x - posterior.mean) / posterior.variance.sqrt()
    assert float(z.square().mean()) == pytest.approx(1, abs=0.03)
    ranks = (draws < x).sum(0).flatten()
    counts = torch.bincount(ranks // 8, minlength=8).double() / ranks.numel()
    assert float((counts - 1 / 8).abs().max()) < 0.01
    # The density, against torch's with the covariance that the textbook formula gives.
    sigma = params["sigma"][0].double() if "sigma" in params else 0.05
    mask = params["mask"][0].double().flatten() if "mask" in params else None
    columns = torch.eye(256).reshape(-1, 1, 16, 16)
    assert problem.physics is not None
    operator = (
        torch.diag(mask) if mask is not None else problem.physics.A(columns).flatten(1).T.double()
    )
    precision = covariance.inverse() + operator.T @ operator / sigma**2
    centre = mean + torch.linalg.solve(
        precision, operator.T @ (y[0].flatten() - operator @ mean) / sigma**2
    )
    torch.testing.assert_close(posterior.mean[0].flatten().double(), centre, rtol=0, atol=2e-4)
    exact = MultivariateNormal(centre, precision_matrix=(precision + precision.T) / 2)
    value = posterior.log_prob(draws)[:, 0].double()
    torch.testing.assert_close(
        value, exact.log_prob(draws[:, 0].double().flatten(1)), rtol=0, atol=2
    )
    assert float(value.std()) == pytest.approx(math.sqrt(256 / 2), rel=0.4)


def test_the_baseline_improves_on_the_data_on_photographs_never_trained_on() -> None:
    problem = make("photo-deblur")
    x, y, params = problem.simulate(300, split="test", seed=0)
    posterior = gaussian_prior_posterior(problem, y, **params)
    assert float((posterior.mean - x).square().mean()) < 0.6 * float((y - x).square().mean())


def test_the_baseline_refuses_what_has_no_closed_form() -> None:
    problem = InverseProblem(torch.rand(30, 1, 8, 8), simulator=torch.sqrt)
    with pytest.raises(ValueError, match="needs a linear physics with Gaussian noise"):
        gaussian_prior_posterior(problem, torch.zeros(1, 1, 8, 8))


def test_photographs_are_split_by_photograph() -> None:
    assert not set(photographs.TRAIN) & set(photographs.TEST)
    for split, names in photographs.PHOTOGRAPHS.items():
        pictures = [photographs.photograph(name) for name in names]
        for picture in pictures:
            assert picture.dim() == 2 and min(picture.shape) >= 64
            assert 0 <= float(picture.min()) < 0.4 < float(picture.max()) <= 1
        torch.manual_seed(0)
        patches = photographs.draw_patches(40, 24, split)
        assert patches.shape == (40, 1, 24, 24)
        # Each patch, or a flip of it, is found in a photograph of its own split.
        for patch in patches[:8, 0]:
            candidates = [patch, patch.flip(0), patch.flip(1), patch.flip(0, 1)]
            if split == "test":
                candidates = candidates[:1]
            assert any(contains(picture, one) for picture in pictures for one in candidates)


@pytest.mark.parametrize("case", ["ct", "mri", "fwi-small"])
def test_imaging_problems_train(case: str) -> None:
    """From the Gaussian start, which already beats the prior, a few steps do no harm."""
    problem = make(case)
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=1000, width=8)
    vi.fit(vfm, problem, steps=4, batch_size=8, num_validation=32, progress=False)
    x, y, params = problem.simulate(40, split="test", seed=0)
    draws = vfm(y, **params).sample((20,))
    assert draws.shape == (20, *x.shape) and bool(torch.isfinite(draws).all())
    prior = problem.sample_prior(20 * 40, seed=1).unflatten(0, (20, 40))
    ours, blind = energy_score(draws, x).mean(), energy_score(prior, x).mean()
    assert float(ours) < 0.85 * float(blind)


def test_phantoms_are_bodies_with_ellipses_in_them() -> None:
    pictures = draw_phantoms(500, 32)
    assert pictures.shape == (500, 1, 32, 32)
    assert float(pictures.min()) == 0 and 1 < float(pictures.max()) <= 1 + 5 * 0.5
    assert bool((pictures[..., [0, -1], :] == 0).all()), "the body touches the edge"
    # What is in the body adds as much as it takes away; pixels on its edge are partly outside.
    body = pictures[pictures > 0]
    assert 0.85 < float(body.mean()) < 1.05 and float((body == 1).double().mean()) > 0.3


def test_an_ellipse_has_its_area() -> None:
    axes, tilt = torch.tensor([[0.5, 0.2], [0.3, 0.7]]), torch.tensor([0.0, 1.0])
    for size in (32, 128):
        inside = phantoms._ellipse(phantoms.pixel_grid(size), torch.zeros(2, 2), axes, tilt)
        area = inside.sum((1, 2)) * (2 / size) ** 2
        torch.testing.assert_close(area, math.pi * axes.prod(-1), rtol=0.02, atol=0)


def test_a_sinogram_is_made_of_line_integrals() -> None:
    problem = problems.load("ct", size=32, num_angles=8)
    x = problem.sample_prior(20, seed=0)
    assert problem.physics is not None
    y = problem.physics.A(x)
    # At 0 degrees the rays run down the columns, in the middle of a wider detector.
    columns = x.sum(2)[:, 0]
    start = (y.shape[2] - 32 + 1) // 2
    torch.testing.assert_close(y[:, 0, start : start + 32, 0], columns, rtol=0, atol=1e-4)
    # Each direction meets all of the body: the sum over rays is the sum over pixels.
    total = x.sum((1, 2, 3))[:, None].expand(-1, 8)
    torch.testing.assert_close(y.sum(2)[:, 0], total, rtol=0.01, atol=0)
    assert verify(problem.physics, x[:2]).passed


def test_k_space_is_a_fourier_transform_behind_its_mask() -> None:
    problem = problems.load("mri", size=16, acceleration=2.5)
    assert problem.physics is not None and problem.likelihood is not None
    assert verify(problem.physics, problem.sample_prior(2, seed=1)).passed
    x = problem.sample_prior(30, seed=0)
    params = problem.sample_params(30, seed=0)
    picture = torch.complex(x[:, 0].double(), x[:, 1].double())
    shifted = torch.fft.ifftshift(picture, dim=(-2, -1))
    waves = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=(-2, -1))
    y = problem.physics.A(x, **params)
    expected = torch.stack([waves.real, waves.imag], 1).float() * params["mask"]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    noise = problem.observe(x, seed=0, **params) - y
    seen = params["mask"].expand_as(noise) > 0
    assert bool((noise[~seen] == 0).all())
    assert float(noise[seen].std()) == pytest.approx(0.05, rel=0.05)


def test_lines_of_k_space_have_the_acceleration() -> None:
    mask = draw_lines(4000, 32, acceleration=4.0, center=0.125)
    assert mask.shape == (4000, 1, 32, 32) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert bool((mask == mask[:, :, :1]).all())
    rates = mask[:, 0, 0].mean(0)
    assert bool((rates[14:18] == 1).all())  # zero wave number is number 16
    outer = torch.cat([rates[:14], rates[18:]])
    assert float(mask.mean()) == pytest.approx(1 / 4, abs=0.005)
    assert float((outer - 1 / 7).abs().max()) < 0.03


def test_magnitudes_are_phantoms_and_phases_smooth() -> None:
    x = problems.load("mri").sample_prior(100, seed=0)
    magnitude = x.square().sum(1).sqrt()
    inside = magnitude > 0.3
    assert 0.9 < float(magnitude[inside].mean()) < 1.1
    phase = torch.atan2(x[:, 1], x[:, 0])
    steps = phase.diff(dim=-1)[inside[..., 1:] & inside[..., :-1]]
    wrapped = torch.remainder(steps + math.pi, 2 * math.pi) - math.pi
    assert 0.01 < float(wrapped.square().mean().sqrt()) < 0.15


@pytest.mark.parametrize("case", ["photo-deblur", "photo-inpaint"])
def test_photo_problems_keep_the_splits_apart(case: str) -> None:
    problem = make(case)
    pictures = {
        split: [photographs.photograph(name) for name in names]
        for split, names in photographs.PHOTOGRAPHS.items()
    }
    for patch in problem.sample_prior(12, split="test", seed=0)[:, 0]:
        if float(patch.std()) > 0.05:  # a flat patch may occur anywhere
            assert any(contains(picture, patch) for picture in pictures["test"])
            assert not any(contains(picture, patch) for picture in pictures["train"])


def test_dequantized_patches_have_no_two_values_alike() -> None:
    torch.manual_seed(0)
    x = photographs.draw_patches(20, 16, "train", dequantize=True)
    assert 0 < float(x.min()) and float(x.max()) < 1
    assert float((x.flatten().sort().values.diff() == 0).float().mean()) < 0.01


def contains(picture: Tensor, patch: Tensor) -> bool:
    """Whether a patch is cut from a picture, up to where in a grey level its values lie."""
    windows = np.lib.stride_tricks.sliding_window_view(picture.numpy(), patch.shape)
    near = 1.001 / 256
    corners = (abs(windows[:, :, 0, 0] - float(patch[0, 0])) <= near) & (
        abs(windows[:, :, -1, -1] - float(patch[-1, -1])) <= near
    )
    return any((abs(windows[i, j] - patch.numpy()) <= near).all() for i, j in np.argwhere(corners))


def test_masks_are_pixels_or_boxes() -> None:
    problem = make("photo-inpaint")
    mask = problem.sample_params(2000, seed=0)["mask"]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    missing = (mask == 0)[:, 0]
    rows, columns = missing.any(2), missing.any(1)
    box = missing.sum((1, 2)) == rows.sum(1) * columns.sum(1)
    assert 0.45 < float(box.float().mean()) < 0.55
    sides = rows[box].sum(1)
    assert int(sides.min()) == 4 and int(sides.max()) == 8
    kept = mask[~box].mean((1, 2, 3))
    assert 0.15 < float(kept.min()) < 0.35 and 0.65 < float(kept.max()) < 0.85


def test_the_blur_keeps_constants_and_has_its_adjoint() -> None:
    physics = make("photo-deblur").physics
    assert physics is not None
    flat = torch.ones(1, 1, 16, 16)
    torch.testing.assert_close(physics.A(flat), flat)
    x, y = torch.randn(2, 1, 1, 16, 16)
    forward, backward = (physics.A(x) * y).sum(), (x * physics.A_adjoint(y)).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-4, atol=1e-4)


def test_without_scikit_image_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("skimage"):
            raise ImportError("No module named 'skimage'")
        return original(name, *args, **kwargs)

    photographs.photograph.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'vfm-inverse\[photos\]'"):
        problems.load("photo-deblur")


def test_without_deepwave_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepwave", None)
    with pytest.raises(ImportError, match=r"pip install 'vfm-inverse\[waves\]'"):
        problems.load("fwi-small")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("linear-gausian", {}, "unknown problem 'linear-gausian'; did you mean 'linear-gaussian'"),
        ("photo_deblur", {}, "did you mean 'photo-deblur'"),
        ("xyz", {}, "unknown problem 'xyz'.* Available: linear-gaussian, "),
        ("checkerboard", {"dim": 3}, r"unknown setting \['dim'\] of problem 'checkerboard'"),
        ("linear-gaussian", {"sigma": 0}, "'sigma' must be positive; got 0"),
        ("linear-gaussian", {"sigma": (0.5, 0.1)}, "'sigma' must be a number or a range"),
        ("linear-gaussian", {"dim": 0}, "'dim' and 'obs_dim' must be positive; got 0 and 2"),
        ("linear-gaussian", {"condition": 0.5}, "'condition' must be at least 1; got 0.5"),
        ("gaussian-field", {"num_points": 0}, "'num_points' must be positive; got 0"),
        ("gaussian-field", {"nu": 0}, "'nu' and 'length_scale' must be positive; got 0, 0.25"),
        ("darcy", {"prior": "facies"}, "'prior' must be 'matern', 'expansion' or 'channels'"),
        ("lorenz96-window", {"sites": 3}, "'sites' must be at least 4; got 3"),
        ("lognormal-field", {"scale": -1}, "'scale' must be positive; got -1"),
        ("heat", {"std": 0}, "'std' must be positive; got 0"),
        ("heat", {"times": [2.0, 1.0]}, "'times' must increase from 0"),
        ("advection-diffusion", {"speed": 0}, "'speed' must be positive; got 0"),
        ("travel-time", {"num_sources": 0}, "'num_sources', 'num_receivers' and 'mean' must"),
        ("gravity", {"depths": [200.0, 100.0]}, "'depths' must be 2 interfaces"),
        ("seismic-deconvolution", {"prior": "flat"}, "'prior' must be 'gaussian' or 'sparse'"),
        ("seismic-deconvolution", {"density": 0}, r"'density' must lie in \(0, 1\]; got 0"),
        ("seismic-deconvolution", {"length": 1}, "'length' must be at least 2"),
        ("photo-deblur", {"blur": 9}, "'blur' in .* got 32 and 9"),
        ("photo-deblur", {"size": 4}, "'size' must lie in"),
        ("ct", {"arc": 200.0}, r"'arc' in \(0, 180\]; got 32, 12 and 200.0"),
        ("ct", {"prior": "faces"}, "'prior' must be 'phantoms' or 'photographs'"),
        ("mri", {"phase": -1.0}, "'phase' not be negative; got 24 and -1.0"),
        ("mri", {"acceleration": 10.0}, r"'center' must lie in \(0, 1 / acceleration\]"),
        ("mri", {"prior": "faces"}, "'prior' must be 'phantoms' or 'photographs'"),
        ("fwi-small", {"num_shots": 0}, "'num_shots', 'num_receivers', .* must be positive"),
        ("fwi-small", {"num_times": 10}, "'num_times' must be at least 23 to resolve"),
        ("photo-inpaint", {"size": 4}, "'size' must lie in"),
        ("photo-inpaint", {"keep": (0.9, 0.2)}, "'keep' must be a range"),
    ],
)
def test_bad_settings_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems.load(name, **kwargs)
