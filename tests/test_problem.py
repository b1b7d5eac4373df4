"""InverseProblem: priors of every kind, three ways to observe, seeds, splits, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from deepinv.physics import Denoising, GaussianNoise, Inpainting, SaltPepperNoise, ZeroNoise
from pyro import distributions as dist
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def denoising(sigma: float = 0.1) -> Denoising:
    return Denoising(noise_model=GaussianNoise(sigma))


def normal(dim: int = 3) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


PRIORS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.randn(50, 3),
    "callable": lambda: lambda num: torch.randn(num, 3),
    "distribution": normal,
    "data array": lambda: xr.DataArray(RNG.normal(size=(50, 3)), dims=("sample", "depth")),
    "dataset": lambda: xr.Dataset({"t": (("depth", "sample"), RNG.normal(size=(3, 50)))}),
    "dask": lambda: xr.DataArray(RNG.normal(size=(50, 3)), dims=("sample", "depth")).chunk(
        sample=7
    ),
}


@pytest.mark.parametrize("kind", PRIORS)
def test_every_kind_of_prior_gives_fields(kind: str) -> None:
    problem = InverseProblem(PRIORS[kind](), physics=denoising())
    assert problem.field_shape == problem.observation_shape == (3,)
    for split in ("train", "test"):
        x, y, params = problem.simulate(40, split=split, seed=3)
        assert x.shape == y.shape == (40, 3) and x.dtype == y.dtype == torch.float32
        assert params == {} and 0.05 < float((y - x).std()) < 0.15


@pytest.mark.parametrize("kind", PRIORS)
def test_a_seed_fixes_the_draws_and_the_splits_differ(kind: str) -> None:
    problem = InverseProblem(PRIORS[kind](), physics=denoising())
    first, second = problem.simulate(20, seed=1), problem.simulate(20, seed=1)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(problem.simulate(20, seed=2)[0], first[0])
    assert not torch.equal(problem.simulate(20, seed=1, split="test")[0], first[0])
    state = torch.get_rng_state()
    problem.simulate(20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_construction_leaves_the_random_stream_alone() -> None:
    state = torch.get_rng_state()
    InverseProblem(lambda num: torch.randn(num, 3), physics=denoising())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_tenth_of_the_samples_is_held_out(lazy: bool) -> None:
    samples = np.arange(40.0)[:, None] * np.ones(2)
    prior = xr.DataArray(samples, dims=("sample", "x"))
    problem = InverseProblem(prior.chunk(sample=8) if lazy else prior, physics=denoising())
    assert set(problem.sample_prior(2000, seed=0)[:, 0].int().tolist()) == set(range(36))
    held_out = problem.sample_prior(200, split="test", seed=0)[:, 0]
    assert set(held_out.int().tolist()) == set(range(36, 40))
    few = InverseProblem(torch.arange(19.0)[:, None], physics=denoising())
    for split in ("train", "test"):
        drawn = few.sample_prior(2000, split=split, seed=0).int().flatten().tolist()
        assert set(drawn) == set(range(19))


def test_a_test_prior_is_used_for_tests() -> None:
    problem = InverseProblem(torch.zeros(30, 2), test_prior=torch.ones(3, 2), physics=denoising())
    assert float(problem.sample_prior(30).sum()) == 0
    assert float(problem.sample_prior(30, split="test").sum()) == 60


def test_a_lazy_prior_reads_the_chunks_it_needs_and_no_others() -> None:
    import dask.array as da

    read = []

    def block(block_id: tuple[int, ...]) -> np.ndarray:
        read.append(block_id[0])
        return np.full((10, 4, 5), float(block_id[0]))

    def prior(num: int) -> xr.DataArray:
        chunks = ((10,) * num, (4,), (5,))
        values = da.map_blocks(block, chunks=chunks, dtype=float, meta=np.empty((0, 0, 0)))
        return xr.DataArray(values, dims=("sample", "lat", "lon"))

    problem = InverseProblem(prior(1000), physics=denoising())
    assert problem.field_shape == (1, 4, 5)
    read.clear()
    x = problem.sample_prior(6, seed=0)
    assert sorted(set(read)) == sorted(set(x[:, 0, 0, 0].int().tolist()))
    assert len(read) <= 6


def test_labels_come_with_a_labelled_prior() -> None:
    lat = xr.Variable("lat", np.linspace(50, 60, 4), {"units": "degrees_north"})
    prior = xr.DataArray(
        RNG.normal(size=(25, 5, 4)),
        dims=("sample", "lon", "lat"),
        coords={"lat": lat, "lon": np.arange(5), "sample": np.arange(25)},
        attrs={"units": "K", "long_name": "surface temperature"},
        name="tas",
    )
    problem = InverseProblem(prior, physics=denoising())
    assert problem.field_shape == (1, 5, 4) and problem.dims == ("lon", "lat")
    assert (problem.units, problem.long_name) == ("K", "surface temperature")
    assert problem.coords["lat"].attrs == {"units": "degrees_north"}
    assert "sample" not in problem.coords
    assert problem.field_labels.name == "tas"
    assert problem.observation_labels.dims == ("lon", "lat")
    winds = prior.expand_dims(channel=["u", "v"], axis=-1)
    assert InverseProblem(winds, physics=denoising()).field_shape == (2, 5, 4)
    profiles = winds.isel(lat=0, drop=True)
    assert InverseProblem(profiles, physics=denoising()).dims == ("channel", "lon")


def test_parameters_are_drawn_per_sample_and_passed_on() -> None:
    def params(num: int) -> dict[str, Tensor]:
        return {
            "sigma": torch.linspace(0.1, 2, num),
            "mask": (torch.rand(num, 1, 4, 4) < 0.5).float(),
        }

    physics = Inpainting((1, 4, 4), mask=torch.ones(1, 4, 4), noise_model=GaussianNoise(0.1))
    problem = InverseProblem(torch.rand(30, 1, 4, 4), physics=physics, params=params)
    assert problem.param_shapes == {"sigma": (), "mask": (1, 4, 4)}
    x, y, drawn = problem.simulate(5000, seed=0)
    assert torch.equal(y == 0, drawn["mask"] == 0)
    quiet, loud = (y - x)[:1000], (y - x)[-1000:]
    assert float(quiet[drawn["mask"][:1000] > 0].std()) == pytest.approx(0.32, rel=0.15)
    assert float(loud[drawn["mask"][-1000:] > 0].std()) == pytest.approx(1.81, rel=0.05)
    again = problem.observe(
        x[:7].expand(3, 7, 1, 4, 4), seed=1, **{k: v[:7] for k, v in drawn.items()}
    )
    assert again.shape == (3, 7, 1, 4, 4) and not torch.equal(again[0], again[1])
    value = problem.log_likelihood(x, y, **drawn)
    z = ((y - x) / drawn["sigma"].view(-1, 1, 1, 1))[drawn["mask"] > 0]
    expected = (
        dist.Normal(0.0, 1.0).log_prob(z).sum()
        - (drawn["sigma"].log() * drawn["mask"].flatten(1).sum(1)).sum()
    )
    torch.testing.assert_close(value.sum(), expected, rtol=1e-4, atol=0)


def test_a_likelihood_of_ones_own() -> None:
    """Correlated noise through likelihood=: drawn from and evaluated."""
    root = torch.tensor([[1.0, 0.0], [0.9, 0.1]])

    def likelihood(x: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(x, scale_tril=scale[:, None, None] * root)

    problem = InverseProblem(
        normal(2), likelihood=likelihood, params=lambda num: {"scale": torch.full((num,), 0.5)}
    )
    assert problem.physics is None
    x, y, params = problem.simulate(4000, seed=0)
    torch.testing.assert_close(torch.cov((y - x).T), 0.25 * root @ root.T, rtol=0.1, atol=0.01)
    torch.testing.assert_close(
        problem.log_likelihood(x, y, **params), likelihood(x, **params).log_prob(y)
    )
    assert "likelihood" in problem.describe_physics()


def test_a_simulator_simulates_and_refuses_what_needs_a_density() -> None:
    problem = InverseProblem(
        normal(), simulator=lambda x: (x + torch.randn_like(x)).round()[:, :2]
    )
    x, y, _ = problem.simulate(10, seed=0)
    assert y.shape == (10, 2) and problem.likelihood is None
    with pytest.raises(ValueError, match="a simulator and no likelihood"):
        problem.log_likelihood(x, y)


def test_moments_are_stated_by_distributions_only() -> None:
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    plain = dist.MultivariateNormal(torch.tensor([1.0, 2.0]), covariance)
    shaped = dist.TransformedDistribution(
        plain, [dist.transforms.ReshapeTransform(torch.Size([2]), torch.Size([1, 2]))]
    )
    for prior in (plain, shaped):
        moments = InverseProblem(prior, physics=denoising()).prior_moments()
        assert moments is not None and moments[0].dtype == torch.float64
        torch.testing.assert_close(moments[1], covariance.double())
    independent = InverseProblem(normal(), physics=denoising()).prior_moments()
    assert independent is not None and torch.equal(independent[1], torch.eye(3).double())
    curved = dist.TransformedDistribution(plain, [dist.transforms.ExpTransform()])
    assert InverseProblem(curved, physics=denoising()).prior_moments() is None
    assert InverseProblem(torch.rand(9, 2), physics=denoising()).prior_moments() is None


def test_the_reference_sees_checked_observations() -> None:
    problem = InverseProblem(
        normal(), physics=denoising(), reference=lambda y: dist.Normal(y, 1.0).to_event(1)
    )
    posterior = problem.reference_posterior(torch.zeros(4, 3, dtype=torch.float64))
    assert posterior is not None and posterior.sample((2,)).dtype == torch.float32
    with pytest.raises(ValueError, match="'y' must have shape"):
        problem.reference_posterior(torch.zeros(4, 2))
    assert (
        InverseProblem(normal(), physics=denoising()).reference_posterior(torch.zeros(1, 3))
        is None
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", PRIORS)
def test_draws_are_made_on_the_device(kind: str) -> None:
    problem = InverseProblem(PRIORS[kind](), physics=denoising()).to("cuda")
    x, y, _ = problem.simulate(10, seed=0)
    assert x.is_cuda and y.is_cuda
    assert problem.log_likelihood(x, y).is_cuda
    assert problem.check_observation(y.cpu())[0].is_cuda


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (torch.zeros(0, 3), ValueError, r"'prior' is empty; got shape \(0, 3\)"),
        (torch.tensor([[1.0, torch.nan]]), ValueError, "'prior' must be finite; 1 of 2 values"),
        (torch.zeros(5), ValueError, r"'prior' must hold samples .* got \(5,\)"),
        (lambda num: torch.full((num, 2), torch.inf), ValueError, "'prior' must be finite"),
        (lambda num: torch.zeros(num + 1, 2), ValueError, r"'prior' must draw .*\(2, \*event\)"),
        (lambda num: np.zeros((num, 2), "M8[s]"), TypeError, "real numbers; got dates"),
        (dist.Normal(torch.zeros(3), 1.0), ValueError, r"got batch shape \(3,\).*Independent"),
        ([1.0, 2.0], TypeError, "'prior' must be samples .* got list"),
        (xr.DataArray(np.zeros((4, 2))), ValueError, "'prior' must have a dimension 'sample'"),
        (xr.DataArray(np.zeros((0, 2)), dims=("sample", "x")), ValueError, "'prior' is empty"),
        (xr.DataArray(np.zeros((4, 2), "U1"), dims=("sample", "x")), TypeError, "real numbers"),
        (
            xr.Dataset({"u": ("sample", [1.0]), "v": ("sample", [1.0])}),
            ValueError,
            r"one data variable; got \['u', 'v'\].*to_dataarray",
        ),
    ],
)
def test_bad_priors_are_refused(prior: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InverseProblem(prior, physics=denoising())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "exactly one of 'physics', 'likelihood' and 'simulator'; got none"),
        ({"physics": denoising(), "simulator": abs}, "got 'physics' and 'simulator'"),
        ({"physics": Denoising(noise_model=ZeroNoise())}, "the physics has zero noise"),
        ({"physics": denoising(0.0)}, "'sigma' must be positive; got 0"),
        ({"physics": Denoising(noise_model=SaltPepperNoise())}, "no density is known"),
        ({"physics": denoising(), "test_prior": torch.zeros(5, 4)}, "'test_prior' has fields"),
        ({"physics": denoising(), "dims": ("a", "b")}, r"'dims' must name the 1 axes"),
        ({"physics": denoising(), "obs_dims": ("a", "b")}, r"'obs_dims' must name the 1 axes"),
        (
            {"physics": denoising(), "dims": ("x",), "coords": {"x": np.arange(4)}},
            "coordinate 'x' has 4 values along 'x'",
        ),
        (
            {"physics": denoising(), "params": lambda num: {"sigma": torch.ones(())}},
            "'params' must return tensors with leading dimension 2; 'sigma' has shape",
        ),
        (
            {"simulator": lambda x: x / 0},
            "'simulator' gave values that are not finite in 32 of 32",
        ),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InverseProblem(normal(), **kwargs)


def test_bad_observations_are_refused() -> None:
    problem = InverseProblem(
        normal(),
        physics=denoising(),
        params=lambda num: {"sigma": torch.rand(num) + 0.1},
    )
    y, sigma = torch.zeros(4, 3), torch.ones(4)
    checked, params = problem.check_observation(y.double(), {"sigma": sigma.double()})
    assert checked.dtype == params["sigma"].dtype == torch.float32
    _, params = problem.check_observation(y, {"sigma": torch.tensor(0.5)})
    assert params["sigma"].shape == (4,)
    for bad, given, message in [
        (y[0], {"sigma": sigma}, r"'y' must have shape \(batch, 3\); got \(3,\); add a batch"),
        (y[:, :2], {"sigma": sigma}, r"'y' must have shape \(batch, 3\); got \(4, 2\)"),
        (y.fill_(1).clone() * torch.nan, {"sigma": sigma}, "12 of 12 values are not.*labelled"),
        (y, {}, r"takes the parameters \['sigma'\]; missing \['sigma'\]"),
        (y, {"sigma": sigma, "gain": sigma}, r"unknown \['gain'\]"),
        (y, {"sigma": sigma[:3]}, r"'sigma' must have shape \(4\); got \(3,\)"),
        (y, {"sigma": sigma * torch.inf}, "'sigma' must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            problem.check_observation(bad, given)
    with pytest.raises(TypeError, match="'y' must hold real numbers; got complex"):
        problem.check_observation(torch.zeros(4, 3, dtype=torch.complex64), {"sigma": sigma})
    with pytest.raises(ValueError, match=r"'x' must have shape \(\*batch, 3\); got \(3,\)"):
        problem.observe(torch.zeros(3), sigma=sigma)
    with pytest.raises(ValueError, match="'sigma' must be positive; got 0"):
        problem.observe(torch.zeros(4, 3), sigma=torch.zeros(4))
    with pytest.raises(ValueError, match="'split' must be 'train' or 'test'; got 'val'"):
        problem.simulate(3, split="val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'num' must be an integer of at least 1; got 0"):
        problem.simulate(0)
