"""The front door: exact before training, shaped as promised, and strict about what it is given."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pyro
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics
from torch import Tensor

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.flow.adapter import FAMILIES
from vfm_inverse.posterior.geometry import is_ordered
from vfm_inverse.posterior.push_forward import CHUNK_NUMBERS
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.warnings import CalibrationWarning
from vfm_inverse.sampling.target import Target
from vfm_inverse.training.objective import Objective

MODES = ["adapter", "context", "both"]


def build(name: str = "linear-gaussian", observation: str = "both", **kwargs: object):
    problem = problems.load(name, **kwargs)
    vfm = vi.VariationalFlowMap.for_problem(
        problem, observation=observation, width=16, depth=1, num_simulations=4000
    )
    return problem, vfm


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_untrained_map_gives_the_exact_linear_gaussian_posterior(mode: str, steps: int) -> None:
    problem, vfm = build(observation=mode, dim=5, obs_dim=3, sigma=(0.1, 0.5))
    vfm.steps = steps
    _, y, params = problem.simulate(3, seed=1)
    exact = problem.reference_posterior(y, **params)
    torch.manual_seed(0)
    draws = vfm(y, **params).sample((100_000,))
    torch.testing.assert_close(draws.mean(0), exact.mean, atol=0.02, rtol=0)
    deviation = (draws - exact.mean).transpose(0, 1)
    covariance = deviation.mT @ deviation / len(draws)
    torch.testing.assert_close(covariance, exact.covariance_matrix, atol=0.03, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_untrained_map_is_exact_on_a_field(mode: str) -> None:
    problem, vfm = build("gaussian-field", mode, size=8, num_points=6)
    _, y, _ = problem.simulate(2, seed=1)
    exact = problem.reference_posterior(y)
    torch.manual_seed(0)
    draws = vfm(y).sample((20_000,))
    assert draws.shape == (20_000, 2, 1, 8, 8)
    assert ((draws.mean(0) - exact.mean) / exact.variance.sqrt()).abs().max() < 0.04
    ratio = draws.var(0) / exact.variance
    assert 0.95 < ratio.min() < ratio.max() < 1.05


@pytest.mark.parametrize("mode", ["adapter", "both"])
@pytest.mark.parametrize("family", ["contraction", *FAMILIES])
def test_every_family_serves_a_field(family: str, mode: str) -> None:
    """It starts as kriging (the mixture and the factor of low rank a little apart) and can be
    trained, saved and loaded."""
    problem = problems.load("gaussian-field", size=16, num_points=6)
    vfm = vi.VariationalFlowMap.for_problem(
        problem, observation=mode, adapter=family, num_simulations=500, width=8
    )
    _, y, _ = problem.simulate(2, seed=1)
    exact = problem.reference_posterior(y)
    torch.manual_seed(0)
    draws = vfm(y).sample((1000,))
    shift = (draws.mean(0) - exact.mean) / exact.variance.sqrt()
    assert shift.square().mean().sqrt() < (0.2 if family == "mixture" else 0.05)
    log = vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    assert all(math.isfinite(value) for row in log for value in row.values())
    assert vfm(y).latent.log_prob(vfm(y).latent.sample((3,))).shape == (3, 2)


@pytest.mark.parametrize("family", ["contraction", *FAMILIES])
def test_half_precision_rounds_the_networks_and_nothing_else(family: str) -> None:
    problem = problems.load("linear-gaussian", dim=8, obs_dim=4)
    vfm = vi.VariationalFlowMap.for_problem(
        problem, observation="adapter", adapter=family, num_simulations=2000, precision="half"
    )
    torch.manual_seed(0)
    for parameter in vfm.networks.parameters():
        parameter.data.add_(0.03 * torch.randn_like(parameter))
    x, y, _ = problem.simulate(64, seed=1)
    mixture = family == "mixture"
    objective = Objective(vfm, reverse=0.0 if mixture else 1.0)
    results = {}
    for precision in ("half", "single"):
        vfm.precision = precision
        torch.manual_seed(1)
        objective.zero_grad()
        loss = objective(x, y)["loss"]
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in vfm.networks.parameters()])
        torch.manual_seed(2)
        results[precision] = loss.detach(), gradient, vfm(y).sample((50,))
    (loss, gradient, draws), (full_loss, full_gradient, full_draws) = results.values()
    assert draws.dtype == full_draws.dtype == torch.float32
    assert not torch.equal(draws, full_draws)
    torch.testing.assert_close(loss, full_loss, rtol=1e-2, atol=0)
    assert (gradient - full_gradient).norm() < 0.05 * full_gradient.norm()
    if not mixture:  # whose components may change
        assert (draws - full_draws).abs().max() < 0.05 * full_draws.std()
    u, targets = draws.flatten(2), []
    for precision in ("half", "single"):
        vfm.precision = precision
        targets.append(Target(vfm, y, {}).log_prob(u))
    assert torch.equal(*targets), "a correction computes in single precision"


@pytest.mark.parametrize("mode", MODES)
def test_it_is_a_pyro_distribution_over_fields(mode: str) -> None:
    problem, vfm = build(observation=mode, dim=4, obs_dim=2)
    _, y, _ = problem.simulate(7, seed=0)
    posterior = vfm(y)
    assert isinstance(posterior, pyro.distributions.TorchDistribution)
    assert posterior.batch_shape == (7,)
    assert posterior.event_shape == (4,)
    assert posterior.sample().shape == (7, 4)
    assert posterior.sample((2, 3)).shape == (2, 3, 7, 4)
    assert posterior.latent.log_prob(posterior.latent.sample((2,))).shape == (2, 7)
    assert vfm(y[0]).sample((5,)).shape == (5, 4)
    assert vfm(y[0]).batch_shape == ()
    assert pyro.sample("x", posterior).shape == (7, 4)
    with pytest.raises(ValueError, match="'batch_shape' must stay"):
        posterior.expand((2, 7))


def test_draws_depend_on_the_seed_alone() -> None:
    problem, vfm = build(dim=4, obs_dim=2)
    _, y, _ = problem.simulate(3, seed=0)
    torch.manual_seed(4)
    first = vfm(y).sample((50,))
    torch.manual_seed(4)
    torch.testing.assert_close(vfm(y).sample((50,)), first, rtol=0, atol=0)


def test_chunked_sampling_equals_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, vfm = build("gaussian-field", size=8, num_points=4)
    _, y, _ = problem.simulate(3, seed=0)
    torch.manual_seed(0)
    whole = vfm(y).sample((11,))
    monkeypatch.setitem(CHUNK_NUMBERS, "cpu", 500)
    torch.manual_seed(0)
    torch.testing.assert_close(vfm(y).sample((11,)), whole, atol=1e-5, rtol=1e-5)


def test_reparametrised_draws_carry_gradients() -> None:
    problem, vfm = build(dim=4, obs_dim=2)
    _, y, _ = problem.simulate(3, seed=0)
    vfm(y).rsample((2,)).sum().backward()
    assert any(p.grad is not None for p in vfm.flow_map.parameters())


def masked() -> tuple[InverseProblem, VariationalFlowMap]:
    physics = Inpainting((1, 4, 4), mask=torch.ones(1, 4, 4))
    from deepinv.physics import GaussianNoise

    physics.set_noise_model(GaussianNoise(0.1))

    def params(num: int) -> dict[str, Tensor]:
        return {"mask": (torch.rand(num, 1, 4, 4) < 0.7).float()}

    torch.manual_seed(0)
    problem = InverseProblem(torch.randn(2000, 1, 4, 4), physics=physics, params=params)
    return problem, vi.VariationalFlowMap.for_problem(
        problem, num_simulations=1000, network="u-net"
    )


def test_unbatched_observation_with_parameters() -> None:
    problem, vfm = masked()
    _, y, params = problem.simulate(1, seed=0)
    draws = vfm(y[0], mask=params["mask"][0]).sample((3,))
    assert draws.shape == (3, 1, 4, 4)
    seen = params["mask"][0].bool()
    assert (vfm(y, **params).sample((500,))[:, 0] - y[0])[:, seen].std() < 0.2


def test_bad_observations_are_refused_by_name() -> None:
    problem, vfm = masked()
    _, y, params = problem.simulate(2, seed=0)
    mask = params["mask"]
    hole = y.clone()
    hole[0, 0, 0, 0] = torch.nan
    for bad, extra, text in [
        (
            y[..., :3],
            {"mask": mask},
            r"'y' must have shape \(\*batch, 1, 4, 4\); got \(2, 1, 4, 3\)",
        ),
        (y, {}, r"takes the parameters \['mask'\]; missing \['mask'\]"),
        (y, {"mask": mask, "sigma": mask}, r"unknown \['sigma'\]"),
        (y, {"mask": mask[:1]}, "'mask' must have shape"),
        (hole, {"mask": mask}, "'y' must be finite; 1 of 32 values are not"),
        (y, {"mask": mask * torch.inf}, "'mask' must be finite"),
    ]:
        with pytest.raises(ValueError, match=text):
            vfm(bad, **extra)


def test_an_observation_far_from_training_warns_with_its_distance() -> None:
    problem, vfm = build(dim=4, obs_dim=2)
    _, y, _ = problem.simulate(50, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vfm(y)
    text = r"1 of 50 observations lie outside .* farthest .index \d+. at \d+\.\d times its edge"
    with pytest.warns(CalibrationWarning, match=text):
        vfm(torch.cat([y[1:], 100 * y[:1].sign()]))


def test_build_refuses_what_cannot_work() -> None:
    problem = problems.load("linear-gaussian")
    for options, text in [
        ({"observation": "all"}, "'observation' must be one of"),
        ({"adapter": "flow"}, "'adapter' must be one of"),
        ({"adapter": "contraction", "gaussian_start": False}, "without a Gaussian start"),
        ({"adapter": "full", "observation": "context"}, "'adapter' must be left out"),
        ({"network": "resnet"}, "'network' must be"),
        ({"whitening": "pca"}, "'whitening' must be"),
        ({"precision": "double"}, "'precision' must be one of"),
    ]:
        with pytest.raises(ValueError, match=text):
            vi.VariationalFlowMap.for_problem(problem, **options)


class Smoothing(LinearPhysics):
    """Vectors of 40 numbers and their moving averages, or every second of these."""

    def __init__(self, every: int) -> None:
        super().__init__(noise_model=GaussianNoise(0.1))
        self.register_buffer("matrix", torch.eye(40).unfold(0, 3, every).mean(-1))

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x @ self.matrix.T

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y @ self.matrix


@pytest.mark.parametrize("every", [1, 2])
def test_a_vector_in_order_is_a_signal(every: int, tmp_path: Path) -> None:
    """Convolutions by themselves, save and load included; not for the same numbers shuffled."""
    torch.manual_seed(0)
    walks = torch.randn(2000, 40).cumsum(-1)
    signal = InverseProblem(walks, physics=Smoothing(every))
    vfm = vi.VariationalFlowMap.for_problem(signal, width=8, num_simulations=2000)
    assert vfm.config["network"] == "u-net"
    vi.fit(vfm, signal, steps=3, batch_size=16, num_validation=16, progress=False)
    x, y, _ = signal.simulate(4, seed=1)
    features = vfm.features(y, {}, vfm.start(y, {}))
    assert features.shape == (4, 3, 40)  # mean and spread of the start, data brought to places
    vfm.save(tmp_path / "map.safetensors")
    again = vi.load(tmp_path / "map.safetensors", problem=signal, warn=False)
    draws = []
    for one in (vfm, again):
        torch.manual_seed(2)
        draws.append(one(y).sample((50,)))
    torch.testing.assert_close(*draws)
    assert draws[0].shape == (50, 4, 40)
    assert (draws[0].mean(0) - x).abs().mean() < 0.3 * x.std()

    shuffled = InverseProblem(walks[:, torch.randperm(40)], physics=Smoothing(every))
    vfm = vi.VariationalFlowMap.for_problem(shuffled, width=8, num_simulations=2000)
    assert vfm.config["network"] == "mlp"


@pytest.mark.parametrize(
    ("x", "ordered"),
    [
        ("smooth", True),
        ("white", False),
        ("one common factor", False),
        ("constant", False),
    ],
)
def test_what_is_in_order(x: str, ordered: bool) -> None:
    torch.manual_seed(0)
    white = torch.randn(500, 64)
    samples = {
        "smooth": white.cumsum(-1)[:, 20:] - 0.9 * white.cumsum(-1)[:, :-20],
        "white": white,
        "one common factor": 0.3 * white + torch.randn(500, 1),
        "constant": torch.ones(500, 64),
    }
    assert is_ordered(samples[x]) is ordered


@pytest.mark.parametrize(
    ("shape", "network"), [((1, 19, 23), "auto"), ((1, 127, 3), "auto"), ((1, 7, 8), "u-net")]
)
def test_sides_of_any_length_train(shape: tuple[int, ...], network: str) -> None:
    torch.manual_seed(0)
    physics = Denoising(GaussianNoise(0.3))
    problem = InverseProblem(torch.randn(200, *shape), physics=physics)
    vfm = vi.VariationalFlowMap.for_problem(
        problem, network=network, width=8, num_simulations=200, whitening="spectral"
    )
    assert vfm.config["network"] == "u-net"
    vi.fit(vfm, problem, steps=2, batch_size=4, num_validation=4, progress=False)
    y = problem.simulate(2, seed=1)[1]
    assert vfm(y).sample((3,)).shape == (3, 2, *shape)
