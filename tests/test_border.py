"""What users hand to a problem and to a map: served whatever it is made of, or refused by name."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import deepinv as dinv
import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, Poisson

import vfm_inverse as vi
from vfm_inverse import correction, problems
from vfm_inverse.problem import InverseProblem, SimulationWarning
from vfm_inverse.runtime.warnings import CalibrationWarning

SMALL = {"num_simulations": 200, "width": 8, "depth": 1, "seed": 0}
LAW = MultivariateNormal(torch.zeros(3), torch.eye(3))
SAMPLES = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))


def noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def normal_around(x: Tensor) -> Independent:
    return Independent(Normal(x, 0.1), 1)


@pytest.fixture
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def scaled(sigma_of: Callable[[int], Any] = lambda num: torch.rand(num) + 0.1) -> InverseProblem:
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    return InverseProblem(LAW, physics=physics, params=lambda num: {"sigma": sigma_of(num)})


# Observations and parameters ------------------------------------------------------------------


def test_a_map_takes_observations_of_any_kind() -> None:
    problem = scaled()
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    _, y, params = problem.simulate(4, seed=1)

    def drawn(*given: Any, **values: Any) -> Tensor:
        torch.manual_seed(0)
        return vfm(*given, **values).sample((5,))

    expected = drawn(y, **params)
    sigma = params["sigma"]
    for same in (y.numpy(), y.double(), y.numpy().astype(">f4"), y.tolist(), xr.DataArray(y)):
        assert torch.equal(drawn(same, sigma=sigma.numpy()), expected)
        problem.check_observation(same, {"sigma": sigma.tolist()})
    number = drawn(y, sigma=0.3)
    assert torch.equal(number, drawn(y, sigma=torch.full((4,), 0.3)))
    assert torch.equal(number, drawn(y, sigma=np.float64(0.3)))
    assert drawn(y[0].numpy(), sigma=0.3).shape == (5, 3)
    assert drawn(y.long(), sigma=1).shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("y", "params", "error", "said"),
    [
        (torch.zeros(0, 3), {"sigma": 0.1}, ValueError, "'y' must hold at least one observation"),
        (torch.zeros(2, 4), {"sigma": 0.1}, ValueError, r"'y' must have shape \(\*batch, 3\)"),
        (torch.zeros(2, 3) * 1j, {"sigma": 0.1}, TypeError, "'y' must hold real numbers"),
        ("abc", {"sigma": 0.1}, TypeError, "'y' must hold real numbers; got str 'abc'"),
        (None, {"sigma": 0.1}, TypeError, "'y' must hold real numbers; got NoneType"),
        (np.array([["1", "2", "3"]]), {"sigma": 0.1}, TypeError, "got text"),
        (torch.full((2, 3), torch.nan), {"sigma": 0.1}, ValueError, "6 of 6 values are not"),
        (torch.zeros(2, 3), {"sigma": "small"}, TypeError, "'sigma' must hold real numbers"),
        (torch.zeros(2, 3), {"sigma": [0.1]}, ValueError, r"'sigma' must have shape \(2\)"),
        (torch.zeros(2, 3), {"gain": 0.1}, ValueError, r"unknown \['gain'\]; missing \['sigma'\]"),
        (np.full((2, 3), 1e300), {"sigma": 0.1}, ValueError, "'y' holds 1e.300, beyond the range"),
    ],
)
def test_other_observations_are_refused_by_name(
    y: Any, params: dict[str, Any], error: type[Exception], said: str
) -> None:
    problem = scaled()
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    for entry in (
        lambda: vfm(y, **params),
        lambda: correction.psis(vfm, y, 64, seed=0, **params),
        lambda: correction.auto(vfm, y, 128, seed=0, **params),
    ):
        with pytest.raises(error, match=said):
            entry()


def test_parameters_that_are_integers_stay_integers() -> None:
    def pick(x: Tensor, which: Tensor) -> Tensor:
        return noisy(x[torch.arange(len(x)), which].unsqueeze(1))

    problem = InverseProblem(
        SAMPLES, simulator=pick, params=lambda num: {"which": torch.randint(3, (num,))}
    )
    assert problem.sample_params(2)["which"].dtype == torch.int64
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    assert vfm([[0.1], [0.2]], which=[0, 2]).sample((3,)).shape == (3, 2, 3)
    assert problem.observe(SAMPLES[:2], which=np.array([0, 2])).shape == (2, 1)


def test_an_observation_may_be_one_number() -> None:
    problem = InverseProblem(SAMPLES, simulator=lambda x: x.sum(1) + 0.1 * torch.randn(len(x)))
    assert problem.observation_shape == (1,)
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    for y, shape in (
        (0.3, (5, 3)),
        ([0.3], (5, 3)),
        ([0.3, 0.1], (5, 2, 3)),
        ([[0.3]], (5, 1, 3)),
    ):
        assert vfm(y).sample((5,)).shape == shape


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((0,), (0, 2, 3)),
        ((), (2, 3)),
        (4, (4, 2, 3)),
        (np.int64(4), (4, 2, 3)),
        ((2, 3), (2, 3, 2, 3)),
    ],
)
def test_any_number_of_draws_may_be_asked_for(shape: Any, expected: tuple[int, ...]) -> None:
    vfm = vi.VariationalFlowMap.for_problem(InverseProblem(LAW, likelihood=normal_around), **SMALL)
    assert vfm(torch.zeros(2, 3)).sample(shape).shape == expected
    for wrong in (-1, (2.5,), "3", None):
        with pytest.raises(ValueError, match="'sample_shape' must be|'sample_shape'"):
            vfm(torch.zeros(2, 3)).sample(wrong)


# Types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "dtype", "expected"),
    [
        (SAMPLES, None, torch.float32),
        (SAMPLES.double(), None, torch.float64),
        (SAMPLES.double(), torch.float32, torch.float32),
        (SAMPLES, torch.float64, torch.float64),
        (SAMPLES.numpy().astype("f8"), None, torch.float32),
        (SAMPLES.numpy().astype(">f4"), torch.float64, torch.float64),
        ((10 * SAMPLES).long(), None, torch.float32),
        (SAMPLES.half(), None, torch.float32),
        (lambda num: np.random.normal(size=(num, 3)), None, torch.float32),
        (lambda num: torch.randn(num, 3, dtype=torch.float64), None, torch.float64),
        (MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()), None, torch.float64),
        (LAW, torch.float64, torch.float64),
        (xr.DataArray(SAMPLES, dims=("sample", "x")), torch.float64, torch.float64),
    ],
)
def test_a_problem_has_one_type(prior: Any, dtype: Any, expected: torch.dtype) -> None:
    def simulator(x: Tensor, gain: Tensor) -> np.ndarray:
        return (x * gain[:, None]).numpy().astype(np.float64) + 0.1 * np.random.normal(
            size=x.shape
        )

    problem = InverseProblem(
        prior,
        simulator=simulator,
        params=lambda num: {"gain": np.random.uniform(size=num)},
        dtype=dtype,
    )
    x, y, params = problem.simulate(4, seed=0)
    assert problem.dtype == x.dtype == y.dtype == params["gain"].dtype == expected
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    draws = vfm(y.numpy().astype("f8"), gain=1.0).sample((3,))
    assert draws.dtype == expected and bool(draws.isfinite().all())


@pytest.mark.parametrize("prior", [LAW, SAMPLES])
def test_a_likelihood_of_another_type_is_corrected(prior: Any) -> None:
    scale = torch.tensor([0.1] * 3, dtype=torch.float64)
    problem = InverseProblem(prior, likelihood=lambda x: Independent(Normal(x, scale), 1))
    assert problem.log_likelihood(SAMPLES[:2], SAMPLES[:2]).dtype == torch.float32
    if prior is LAW:
        vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
        y = problem.simulate(2, seed=1)[1]
        assert correction.auto(vfm, y.double(), 128, seed=0).samples.dtype == torch.float32


def test_physics_of_another_type_are_copied() -> None:
    mask = (torch.rand(1, 8, 8) > 0.3).float()
    physics = dinv.physics.Inpainting((1, 8, 8), mask, noise_model=dinv.physics.GaussianNoise(0.1))
    problem = InverseProblem(torch.randn(50, 1, 8, 8).double(), physics=physics)
    assert problem.simulate(2)[1].dtype == torch.float64
    assert problem.physics is not physics and physics.mask.dtype == torch.float32
    assert InverseProblem(torch.randn(50, 1, 8, 8), physics=physics).physics is physics


def test_a_simulator_of_another_precision_is_refused_with_the_way_out() -> None:
    matrix = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"'simulator' failed .*float64: .*dtype=torch.float32"):
        InverseProblem(SAMPLES.double(), simulator=lambda x: noisy(x @ matrix.T))
    problem = InverseProblem(
        SAMPLES.double(), simulator=lambda x: noisy(x @ matrix.T), dtype=torch.float32
    )
    assert problem.dtype == torch.float32
    with pytest.raises(ValueError, match="'dtype' must be torch.float32 or torch.float64"):
        InverseProblem(SAMPLES, simulator=noisy, dtype=torch.float16)


@pytest.mark.parametrize("name", ["linear-gaussian", "two-moons", "gaussian-linear-uniform"])
def test_a_map_of_double_precision_is_loaded_as_one(
    name: str, tmp_path: Any, double_by_default: None
) -> None:
    problem = problems.load(name)
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    vfm.save(tmp_path / "model.safetensors")
    _, y, params = problem.simulate(2, seed=1)
    torch.manual_seed(0)
    draws = vfm(y, **params).sample((3,))
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        loaded = vi.load(tmp_path / "model.safetensors")
    torch.manual_seed(0)
    again = loaded(y.float().double(), **params).sample((3,))
    assert draws.dtype == again.dtype == torch.float64
    assert torch.allclose(draws, again, rtol=1e-4, atol=1e-4)


# Likelihoods and simulators ------------------------------------------------------------------


def test_data_that_are_no_event_are_one_observation() -> None:
    plain = InverseProblem(LAW, likelihood=lambda x: Normal(x, 0.1))
    declared = InverseProblem(LAW, likelihood=normal_around)
    x, y, _ = declared.simulate(5, seed=0)
    assert torch.equal(plain.simulate(5, seed=0)[1], y)
    assert torch.equal(plain.log_likelihood(x, y), declared.log_likelihood(x, y))
    many = x.expand(7, 5, 3)
    assert torch.equal(plain.log_likelihood(many, y), declared.log_likelihood(many, y))
    one = InverseProblem(LAW, likelihood=lambda x: Normal(x.sum(-1), 0.1))
    assert one.observation_shape == (1,)
    law = Normal(x.sum(-1), 0.1)
    assert torch.equal(one.log_likelihood(x, y[:, :1]), law.log_prob(y[:, 0]))


@pytest.mark.parametrize(
    "likelihood",
    [
        lambda x: Independent(Categorical(logits=torch.stack([x, -x], -1)), 1),
        lambda x: Independent(Poisson(x.exp()), 1),
        lambda x: Categorical(logits=x),
    ],
)
def test_data_that_are_counts_or_categories_become_numbers(likelihood: Any) -> None:
    problem = InverseProblem(LAW, likelihood=likelihood)
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    x, y, _ = problem.simulate(3, seed=1)
    assert y.dtype == torch.float32
    assert problem.log_likelihood(x, y).isfinite().all()
    assert correction.auto(vfm, y, 128, seed=0).samples.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"likelihood": lambda x: x}, TypeError, "'likelihood' must return a torch Distribution"),
        ({"likelihood": lambda x: Normal(0.0, 1.0)}, ValueError, "batch shape begins with that"),
        ({"likelihood": 3}, TypeError, "'likelihood' must be callable; got 3"),
        ({"simulator": lambda x: x.sum()}, ValueError, "one observation for each field"),
        (
            {"simulator": lambda x: x * 1j},
            TypeError,
            "'simulator' must hold real numbers; .*co",
        ),
        ({"simulator": lambda x: None}, TypeError, "'simulator' must hold real numbers; got None"),
        ({"simulator": lambda x: "y"}, TypeError, "'simulator' must hold real numbers; got str"),
        ({"simulator": lambda x: torch.stack([x[0], x[1]])}, ValueError, "'simulator' failed on"),
        ({"simulator": lambda x: x[:2]}, ValueError, "one observation for each field|failed"),
        ({"simulator": lambda x: {}["a"]}, ValueError, "'simulator' failed on a batch .*KeyError"),
        ({"simulator": lambda x: noisy(x), "params": 3}, TypeError, "'params' must be callable"),
        ({"simulator": noisy, "params": lambda n: None}, TypeError, "'params' must return a dict"),
        (
            {"simulator": lambda x, a: x, "params": lambda n: {"a": torch.full((n,), torch.nan)}},
            ValueError,
            "'params' must be finite; 'a' is not",
        ),
        (
            {"simulator": lambda x, y: x, "params": lambda n: {"y": torch.ones(n)}},
            ValueError,
            "'params' must not call a parameter 'y'",
        ),
        (
            {"simulator": lambda x, a: x, "params": lambda n: {"a": [None] * n}},
            TypeError,
            "'a' must hold real numbers",
        ),
    ],
)
def test_what_is_no_observation_model_is_refused(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        problem = InverseProblem(SAMPLES, **arguments)
        problem.simulate(5)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float64, torch.float16])
def test_simulators_return_any_type(kind: torch.dtype) -> None:
    problem = InverseProblem(SAMPLES, simulator=lambda x: (3 * noisy(x)).to(kind))
    y = problem.simulate(5, seed=0)[1]
    assert y.dtype == torch.float32
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    assert vfm(y).sample((2,)).isfinite().all()


# Axes -------------------------------------------------------------------------------------------


def test_images_with_other_axes_are_refused_with_the_way_out() -> None:
    mask = torch.ones(1, 16, 12)
    noise = dinv.physics.GaussianNoise(0.1)
    physics = dinv.physics.Inpainting((1, 16, 12), mask, noise_model=noise)
    with pytest.raises(ValueError, match=r"prior.unsqueeze\(1\)"):
        InverseProblem(torch.rand(30, 16, 12), physics=physics)
    with pytest.raises(ValueError, match=r"channels last: prior.movedim\(-1, 1\)"):
        InverseProblem(torch.rand(30, 16, 12, 3).numpy(), physics=dinv.physics.Denoising(noise))
    with pytest.raises(ValueError, match=r"one observation|failed"):
        InverseProblem(torch.rand(30, 16 * 12), physics=physics)
    grey = (255 * torch.rand(30, 1, 16, 12)).to(torch.uint8)
    assert InverseProblem(grey, physics=physics).field_shape == (1, 16, 12)
    series = InverseProblem(
        torch.rand(30, 16, 12), simulator=noisy, dims=("channel", "time")
    )  # the axes are named, so they are meant
    assert series.field_shape == (16, 12)


# Simulations that fail -----------------------------------------------------------------------


def fails_above(level: float) -> Callable[..., Tensor]:
    def simulator(x: Tensor, gain: Tensor) -> Tensor:
        y = x * gain[:, None]
        y[x[:, 0] > level, 1] = torch.nan
        return y

    return simulator


@pytest.mark.parametrize("start", [True, False])
def test_simulations_that_are_not_finite_are_left_out_and_counted(start: bool) -> None:
    with pytest.warns(SimulationWarning, match=r"\d+ of \d+ simulations were not finite"):
        problem = InverseProblem(
            SAMPLES, simulator=fails_above(1.0), params=lambda num: {"gain": 1 + torch.rand(num)}
        )
        x, y, params = problem.simulate(1000, seed=0)
    assert bool(y.isfinite().all()) and float(x[:, 0].max()) <= 1.0
    assert torch.equal(y, x * params["gain"][:, None])  # each with its own parameter
    share = float((SAMPLES[:, 0] > 1.0).float().mean())
    count = problem.simulations
    assert count.left_out / count.made == pytest.approx(share, abs=0.05)
    again = problem.simulate(1000, seed=0)
    assert torch.equal(again[1], y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimulationWarning)
        vfm = vi.VariationalFlowMap.for_problem(problem, gaussian_start=start, **SMALL)
        vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    assert vfm(y[:2], gain=1.5).sample((5,)).isfinite().all()


def test_more_than_half_of_them_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'simulator' gave values that are not finite in \d+ of"):
        problem = InverseProblem(
            SAMPLES,
            simulator=fails_above(-0.5),
            params=lambda num: {"gain": 1 + torch.rand(num)},
        )
        problem.simulate(1000)


def test_beams_without_photons_are_told_of() -> None:
    noise = dinv.physics.LogPoissonNoise(N0=100.0, mu=1.0)
    with pytest.raises(ValueError, match=r"LogPoissonNoise.*more photons"):
        problem = InverseProblem(
            3 * torch.rand(50, 1, 8, 8) + 2, physics=dinv.physics.Denoising(noise)
        )
        problem.simulate(100, seed=0)


# Seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda shape: torch.randn(shape),
        lambda shape: np.random.normal(size=tuple(shape)),
        lambda shape: np.reshape([random.gauss(0, 1) for _ in range(shape.numel())], shape),
    ],
)
def test_a_seed_fixes_every_global_generator(draw: Callable[[Any], Any]) -> None:
    problem = InverseProblem(SAMPLES, simulator=lambda x: x + torch.as_tensor(draw(x.shape)))
    np.random.seed(3)
    random.seed(3)
    before = np.random.get_state()[1].copy(), random.getstate()
    assert torch.equal(problem.simulate(3, seed=0)[1], problem.simulate(3, seed=0)[1])
    assert np.array_equal(np.random.get_state()[1], before[0]) and random.getstate() == before[1]


@pytest.mark.parametrize("argument", ["prior", "params", "simulator"])
def test_what_does_not_follow_the_seed_is_told_of(argument: str) -> None:
    rng = np.random.default_rng(0)
    own = {
        "prior": lambda num: rng.normal(size=(num, 3)),
        "params": lambda num: {"gain": rng.uniform(1, 2, size=num)},
        "simulator": lambda x, gain: x * gain[:, None] + torch.tensor(rng.normal(size=x.shape)),
    }
    follows: dict[str, Any] = {
        "prior": SAMPLES,
        "params": lambda num: {"gain": 1 + torch.rand(num)},
        "simulator": lambda x, gain: noisy(x * gain[:, None]),
    }
    with pytest.warns(SimulationWarning, match=f"'{argument}' does not follow the seed"):
        InverseProblem(**follows | {argument: own[argument]})


@pytest.mark.parametrize("seed", [1.5, "a", True, 2**70, float("nan")])
def test_seeds_are_integers(seed: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="'seed' must"):
        scaled().simulate(3, seed=seed)


# Copies -----------------------------------------------------------------------------------------


def own_problem() -> InverseProblem:
    noise = dinv.physics.PoissonNoise(0.1)
    physics = dinv.physics.Inpainting((1, 8, 8), mask=0.5, noise_model=noise)
    return InverseProblem(torch.rand(100, 1, 8, 8), physics=physics)


@pytest.mark.parametrize(
    "make",
    [
        own_problem,
        lambda: InverseProblem(LAW, likelihood=normal_around),
        lambda: problems.load("two-moons"),
        lambda: problems.load("heat", size=8),
        lambda: problems.load("photo-inpaint", size=16),
        lambda: problems.load("lorenz96-window", sites=8).record(30, seed=0),
        lambda: problems.load("bernoulli-glm"),
    ],
)
def test_problems_and_maps_are_pickled_and_copied(make: Callable[[], InverseProblem]) -> None:
    problem = make()
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    x, y, params = problem.simulate(3, seed=1)
    torch.manual_seed(0)
    expected = vfm(y, **params).sample((2,))
    for way in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert torch.equal(way(problem).simulate(3, seed=1)[1], y)
        torch.manual_seed(0)
        assert torch.equal(way(vfm)(y, **params).sample((2,)), expected)
