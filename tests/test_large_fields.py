"""Fields too large for a d x d matrix: the starts by products against the dense closed form, with
the limit lowered so that both can be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepinv.physics import Blur, Denoising, GaussianNoise, Inpainting, LinearPhysics
from deepinv.physics.functional import gaussian_blur
from torch import Tensor

import vfm_inverse as vi
from vfm_inverse.gaussian.choose_start import fit_start, score
from vfm_inverse.gaussian.matrix_free import apply, noise_level
from vfm_inverse.gaussian.operator_start import FixedOperatorStart
from vfm_inverse.gaussian.regression_start import RegressionStart
from vfm_inverse.gaussian.spectral_start import SpectralStart
from vfm_inverse.gaussian.spectral_whitening import SpectralWhitening
from vfm_inverse.gaussian.truncated_start import TruncatedOperatorStart
from vfm_inverse.gaussian.whitening import (
    IdentityWhitening,
    LowRankWhitening,
    cosine_basis,
    fit_whitening,
)
from vfm_inverse.posterior.assembly import affordable

SIZES = (9, 12)


def lower(monkeypatch: pytest.MonkeyPatch, limit: int = 50) -> None:
    for module in (
        "posterior.coordinates",
        "gaussian.choose_start",
        "gaussian.operator_start",
        "gaussian.whitening",
    ):
        monkeypatch.setattr(f"vfm_inverse.{module}.DENSE_LIMIT", limit)
    monkeypatch.setattr("vfm_inverse.gaussian.choose_start.GRAM_LIMIT", 15)


def draw(num: int, channels: int = 1) -> Tensor:
    """Smooth fields whose channels are alike at low frequencies and not at high ones."""
    rates = [torch.arange(size) for size in SIZES]
    rate = rates[0][:, None] ** 2 + rates[1] ** 2
    noise = torch.randn(num, channels, *SIZES)
    shared = (1 / (1 + 0.1 * rate)).sqrt()
    noise = (1 - shared**2).sqrt() * noise + shared * noise.roll(1, 1)
    rows, columns = (cosine_basis(size) for size in SIZES)
    return rows.T @ (noise * 2 / (1 + 0.3 * rate)) @ columns + 3


def everywhere(num: int) -> dict[str, Tensor]:
    return {"sigma": 0.1 + 0.4 * torch.rand(num)}


def masks(num: int) -> dict[str, Tensor]:
    return {"mask": (torch.rand(num, 1, *SIZES) < 0.6).float(), **everywhere(num)}


class Filter(LinearPhysics):
    """Damps cosines."""

    def A(self, x: Tensor, **params: Tensor) -> Tensor:
        rows, columns = (cosine_basis(size).to(x) for size in SIZES)
        gain = torch.exp(-0.1 * torch.arange(SIZES[0])[:, None] - 0.2 * torch.arange(SIZES[1]))
        return rows.T @ ((rows @ x @ columns.T) * gain) @ columns

    def A_adjoint(self, y: Tensor, **params: Tensor) -> Tensor:
        return self.A(y)


class Points(LinearPhysics):
    """Every seventh number."""

    def A(self, x: Tensor, **params: Tensor) -> Tensor:
        return x.flatten(1)[:, ::7]

    def A_adjoint(self, y: Tensor, **params: Tensor) -> Tensor:
        x = y.new_zeros(len(y), SIZES[0] * SIZES[1])
        x[:, ::7] = y
        return x.unflatten(1, (1, *SIZES))


def problem_of(physics: LinearPhysics, params=None, channels: int = 1) -> vi.InverseProblem:
    physics.noise_model = GaussianNoise(0.2)
    return vi.InverseProblem(lambda num: draw(num, channels), physics=physics, params=params)


def exact(problem: vi.InverseProblem, whitening, y: Tensor, params: dict[str, Tensor], i: int):
    """Mean ``(d,)`` and covariance ``(d, d)`` of observation ``i`` under the whitened prior."""
    one = {name: value[i : i + 1] for name, value in params.items()}
    eye = torch.eye(whitening.dim)
    b = apply(problem.physics, whitening.color(eye), one).T.double()
    weight = noise_level(problem.likelihood, one, b).square().reciprocal()
    covariance = torch.linalg.inv(eye.double() + (b.T * weight) @ b)
    mean = apply(problem.physics, whitening.unwhiten(torch.zeros(1, whitening.dim)), one)
    residual = (weight * (y[i : i + 1].flatten(1) - mean).double()).squeeze(0)
    return covariance @ (b.T @ residual), covariance


def prepared(problem: vi.InverseProblem, kind: str = "spectral", num: int = 2000, rank: int = 8):
    x, y, params = problem.simulate(num, seed=0)
    whitening = fit_whitening(x, kind)
    torch.manual_seed(0)
    start = fit_start(problem, whitening, (x, y, params), rank)
    return start, whitening, *problem.simulate(3, seed=1)[1:]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("physics", [Denoising, Filter])
def test_a_spectral_start_is_exact_where_the_operator_is_diagonal(
    physics: type, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch)
    problem = problem_of(physics(), everywhere, channels)
    start, whitening, y, params = prepared(problem)
    assert isinstance(start, SpectralStart)
    q = start(y, params)
    eye = torch.eye(whitening.dim).double()
    for i in range(3):
        mean, covariance = exact(problem, whitening, y, params, i)
        found = q[i : i + 1].covariance_matrix.squeeze(0)
        torch.testing.assert_close(found.double(), covariance, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(
            q.variance[i].double(), covariance.diagonal(), atol=2e-3, rtol=0
        )
        error = q.loc[i].double() - mean
        assert float(error @ torch.linalg.solve(covariance, error)) < 0.02
        root = q[i : i + 1].contract(eye.float().unsqueeze(1), q.scale[i]).squeeze(1)
        torch.testing.assert_close(
            (root @ root.mT).squeeze(0).double(), covariance, atol=5e-3, rtol=0
        )
    assert start.rank == 8 and q.leading(4).shape == (whitening.dim, 4)


@pytest.mark.parametrize("params", [everywhere, masks], ids=["blur", "masks"])
def test_a_spectral_start_has_about_the_right_variance(
    params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blur with reflecting edges and random masks are diagonal on average only."""
    lower(monkeypatch)
    if params is masks:
        physics: LinearPhysics = Inpainting((1, *SIZES), mask=torch.ones(1, *SIZES))
    else:
        physics = Blur(gaussian_blur(sigma=(1.0, 1.0)), "reflect")
    problem = problem_of(physics, params)
    start, whitening, y, given = prepared(problem)
    assert isinstance(start, SpectralStart)
    q = start(y, given)
    for i in range(3):
        mean, covariance = exact(problem, whitening, y, given, i)
        error = q.loc[i].double() - mean
        assert float(error @ torch.linalg.solve(covariance, error)) < 0.1
        ratio = float(q.variance[i].mean() / covariance.diagonal().mean())
        assert 0.75 < ratio < 1.1, ratio


def test_few_data_of_a_large_field_have_the_exact_posterior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch)
    problem = problem_of(Points(), everywhere)
    start, whitening, y, params = prepared(problem)
    assert isinstance(start, FixedOperatorStart) and start.rank == 16
    q = start(y, params)
    for i in range(3):
        mean, covariance = exact(problem, whitening, y, params, i)
        torch.testing.assert_close(q.loc[i].double(), mean, atol=1e-3, rtol=1e-3)
        found = q[i : i + 1].covariance_matrix.squeeze(0)
        torch.testing.assert_close(found.double(), covariance, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("params", [None, masks], ids=["fixed", "varying"])
def test_leading_directions_by_products_are_those_of_the_hessian(
    params, monkeypatch: pytest.MonkeyPatch
) -> None:
    physics = Inpainting((1, *SIZES), mask=torch.ones(1, *SIZES)) if params is masks else Filter()
    problem = problem_of(physics, params)
    _, whitening, y, given = prepared(problem)
    draws = problem.sample_params(8, seed=3)
    starts = []
    for limit in (2048, 50):
        lower(monkeypatch, limit)
        start = TruncatedOperatorStart(problem.physics, problem.likelihood, whitening)
        torch.manual_seed(0)
        start.fit(y, y, draws, 6)
        starts.append(start)
    dense, free = starts
    overlap = torch.linalg.svdvals(dense.basis.T @ free.basis)
    assert overlap.min() > 0.99
    torch.testing.assert_close(free.truncation, dense.truncation, rtol=0.2, atol=0)
    a, b = (start(y, given) for start in starts)
    torch.testing.assert_close(a.variance, b.variance, atol=0.03, rtol=0)
    assert (a.loc - b.loc).norm() < 0.05 * a.loc.norm()


def test_the_better_of_two_starts_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a field that nothing is seen of is far from diagonal in cosines, of few numbers."""
    lower(monkeypatch)
    monkeypatch.setattr("vfm_inverse.gaussian.choose_start.BASIS_NUMBERS", 0)
    mask = torch.zeros(1, *SIZES)
    mask[..., :2] = 1
    problem = problem_of(Inpainting((1, *SIZES), mask=mask))
    start, whitening, _, _ = prepared(problem, rank=64)
    assert isinstance(start, TruncatedOperatorStart)
    problem = problem_of(Denoising())
    start, whitening, _, _ = prepared(problem)
    assert isinstance(start, SpectralStart)
    other = TruncatedOperatorStart(problem.physics, problem.likelihood, whitening)
    other.fit(*problem.simulate(4, seed=5)[:2], {}, 8)
    simulations = problem.simulate(20, seed=5)
    assert score(start, whitening, simulations) > score(other, whitening, simulations) + 5


def test_a_wide_regression_is_the_narrow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    xi = torch.randn(400, 30)
    y = xi[:, :5] @ torch.randn(5, 12) + 0.3 * torch.randn(400, 12)
    laws = []
    for limit in (2**22, 0):
        monkeypatch.setattr("vfm_inverse.gaussian.regression_start.WIDE", limit)
        start = RegressionStart(IdentityWhitening((30,)))
        start.regress(xi, y, 4)
        laws.append(start(y[:5], {}))
    torch.testing.assert_close(laws[0].loc, laws[1].loc, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        laws[0].covariance_matrix, laws[1].covariance_matrix, atol=1e-4, rtol=1e-3
    )


def test_colours_are_whitened_together() -> None:
    """At each frequency they have the covariance that they have."""
    torch.manual_seed(0)
    whitening = fit_whitening(draw(20_000, 3), "spectral")
    assert isinstance(whitening, SpectralWhitening)
    fresh = draw(20_000, 3)
    root = whitening.color(torch.eye(whitening.dim)).flatten(1)
    true = torch.cov(fresh.flatten(1).T)
    assert (root.T @ root - true).norm() / true.norm() < 0.05
    alone = SpectralWhitening((3, *SIZES))
    alone.load_state_dict(whitening.state_dict())
    alone.mixing, alone.amplitude = torch.ones(()), torch.ones_like(alone.amplitude)
    single = torch.stack(
        [fit_whitening(fresh[:, i : i + 1], "spectral").amplitude for i in range(3)]
    )
    alone.amplitude = single.squeeze(1)
    other = alone.color(torch.eye(whitening.dim)).flatten(1)
    assert (other.T @ other - true).norm() / true.norm() > 0.3


def test_leading_directions_of_long_vectors_are_randomised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(3)
    x = torch.randn(500, 3) @ torch.randn(3, 60) * 2 + 0.1 * torch.randn(500, 60)
    roots = []
    for limit in (2048, 10):
        lower(monkeypatch, limit)
        roots.append(LowRankWhitening.fit(x, rank=3).color(torch.eye(60)))
    torch.testing.assert_close(roots[1].T @ roots[1], roots[0].T @ roots[0], atol=1e-2, rtol=1e-3)


def test_a_dense_square_root_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of 65536 x 65536 needs 34\.4 GB.*'spectral'"):
        fit_whitening(torch.zeros(2, 1, 256, 256), "dense")


def test_simulations_are_bounded_by_the_numbers_they_hold() -> None:
    small = problem_of(Denoising())
    assert affordable(small, 20_000) == 20_000
    large = vi.InverseProblem(
        lambda num: torch.zeros(num, 1, 256, 256), physics=Denoising(GaussianNoise(0.1))
    )
    assert affordable(large, 20_000) == 512
    assert affordable(large, 100) == 100


@pytest.mark.parametrize("params", [None, masks], ids=["fixed", "varying"])
def test_a_map_of_a_large_field_trains_and_is_stored(
    params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What start it was built with is remembered, not chosen again."""
    lower(monkeypatch)
    mask = torch.ones(1, *SIZES)
    problem = problem_of(Inpainting((1, *SIZES), mask=mask), params)
    vfm = vi.VariationalFlowMap.for_problem(
        problem, num_simulations=300, width=8, max_rank=5, network="mlp"
    )
    assert isinstance(vfm.start, SpectralStart) and vfm.config["start"] == "spectral"
    assert vfm.adapter is not None and vfm.adapter.head.out_features == 10
    vi.fit(vfm, problem, steps=2, batch_size=8, seed=0)
    _, y, given = problem.simulate(2, seed=2)
    vfm.save(tmp_path / "map")
    again = vi.load(tmp_path / "map", problem, warn=False)
    draws = []
    for one in (vfm, again):
        torch.manual_seed(0)
        draws.append(one(y, **given).sample((3,)))
    torch.testing.assert_close(*draws, atol=0, rtol=0)
