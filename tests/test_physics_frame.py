"""The frame with the physics in it: exact where physics and noise are linear and Gaussian,
invertible and with the right density elsewhere, and a start whose draws fit the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepinv.physics import GaussianNoise, Physics, PoissonNoise
from torch import Tensor
from torch.distributions import Independent, LogNormal, Normal

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.gaussian import physics_frame
from vfm_inverse.gaussian.choose_start import STARTS, fit_start
from vfm_inverse.gaussian.frames import standardize
from vfm_inverse.gaussian.gauss_newton import laplace, mode, objective
from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.gaussian.misfit import Misfit
from vfm_inverse.gaussian.normals import standard_normal
from vfm_inverse.gaussian.physics_frame import PhysicsFrame
from vfm_inverse.gaussian.whitening import IdentityWhitening, fit_whitening
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.training.objective import Objective

DARCY = {"size": 8, "num_points": 20}
SMALL = {"num_simulations": 2000, "width": 8, "depth": 1, "progress": False}


def started(problem: InverseProblem, kind: str = "frame", num: int = 2000):
    """A start of a kind, and the coordinates it is fitted in."""
    x, y, params = problem.simulate(num, seed=0)
    free = x if problem.transform is None else problem.transform.inv(x)
    whitening = fit_whitening(free, "auto", problem.prior_moments())
    whitening.transform = problem.transform
    return fit_start(problem, whitening, (x, y, params), 64, kind), whitening


@pytest.fixture(scope="module")
def darcy():
    """Frames of 200 observations of darcy, and the whitened truths."""
    problem = problems.load("darcy", **DARCY)
    start, whitening = started(problem)
    x, y, params = problem.simulate(200, split="test", seed=1)
    return problem, start, start(y, params), whitening.whiten(x)


# Linear physics ---------------------------------------------------------------------------------


LINEAR = {
    "one noise": {"size": 6, "num_points": 8},
    "noise by observation": {"size": 6, "num_points": 8, "sigma": (0.05, 0.5)},
    "noise and mask by datum": {"size": 6, "num_points": 8, "networks": "changing"},
}


@pytest.mark.parametrize("case", LINEAR)
@pytest.mark.parametrize("off", [0.0, 1.0])
def test_linear_physics_has_the_frame_of_the_exact_start(case: str, off: float) -> None:
    """Wherever the mode was taken to be: y enters through the true residual."""
    torch.manual_seed(0)
    problem = problems.load("gaussian-field", **LINEAR[case]).to(dtype=torch.float64)
    start, whitening = started(problem, num=500)
    exact = fit_start(problem, whitening, problem.simulate(500, seed=0), 64)
    x, y, params = problem.simulate(20, split="test", seed=1)
    xi, gauss = whitening.whiten(x), exact(y, params)
    q = moved(start(y, params), off)
    assert ((q.mean - gauss.mean).abs().max() > 1e-5) == (off > 0)
    zeta = torch.randn(3, *xi.shape, dtype=torch.float64)
    for ours, truth in [
        (q.standardize(xi), gauss.standardize(xi)),
        (q.unstandardize(zeta), gauss.unstandardize(zeta)),
        (q.log_prob(xi), gauss.log_prob(xi)),
        (q.variance, gauss.variance),
    ]:
        torch.testing.assert_close(ours, truth, atol=1e-5, rtol=0)


def moved(q: PhysicsFrame, off: float) -> PhysicsFrame:
    """The frame around points off the mode."""
    xi = q.mean + off * torch.randn_like(q.mean)
    law, weighted = laplace(xi, q.misfit.linearize(xi)[1])
    return PhysicsFrame(law, weighted, q.misfit, q.minimum, q.chords)


# Back and density -------------------------------------------------------------------------------


class Bent(Physics):
    """Two numbers, each seen through a cubic, and the second by way of the first."""

    def __init__(self, sigma: float = 0.5, bend: float = 0.3) -> None:
        super().__init__(noise_model=GaussianNoise(sigma))
        self.bend = bend

    def A(self, x: Tensor, **params: object) -> Tensor:
        first = x[:, :1] + self.bend * x[:, :1] ** 3
        if x.shape[1] == 1:
            return first
        return torch.cat([first, x[:, 1:] + self.bend * x[:, :1] ** 2], 1)


class BentByHand(Bent):
    """The same, with the Jacobian that its author worked out."""

    def jacobian(self, x: Tensor, **params: object) -> Tensor:
        rows = torch.zeros(len(x), 2, 2, dtype=x.dtype)
        rows[:, 0, 0] = 1 + 3 * self.bend * x[:, 0] ** 2
        rows[:, 1, 0], rows[:, 1, 1] = 2 * self.bend * x[:, 0], 1
        return rows


class Cube(torch.autograd.Function):
    """``x^3`` with a gradient that vmap cannot batch."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.numpy() ** 2) * gradient


class BentOutside(Bent):
    """The same, in part computed outside of torch."""

    def A(self, x: Tensor, **params: object) -> Tensor:
        first = x[:, :1] + self.bend * Cube.apply(x[:, :1])
        return torch.cat([first, x[:, 1:] + self.bend * x[:, :1] ** 2], 1)


def bent(dim: int, physics: type[Physics] = Bent) -> InverseProblem:
    law = Independent(Normal(torch.zeros(dim, dtype=torch.float64), 1.0), 1)
    return InverseProblem(law, physics=physics(), dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_integrates_to_one_and_has_the_moments_of_the_draws(dim: int) -> None:
    torch.manual_seed(0)
    problem = bent(dim)
    start, _ = started(problem)
    y = torch.tensor([[0.4, -0.2], [1.5, 1.0], [-2.5, 0.3]], dtype=torch.float64)[:, :dim]
    q = start(y, {})
    q.chords = 30
    axis = torch.linspace(-6, 6, 201 if dim == 2 else 4001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, 1, dim).expand(-1, 3, -1)
    mass = q.log_prob(grid).exp() * (axis[1] - axis[0]) ** dim
    torch.testing.assert_close(mass.sum(0), torch.ones(3).double(), atol=2e-3, rtol=0)
    draws = q.sample((40_000,))
    assert float(q.unsolved(torch.randn(1000, 3, dim).double()).max()) < 0.01
    for power in (1, 2, 3):
        exact = (mass.unsqueeze(-1) * grid**power).sum(0)
        error = (draws**power).std(0) / 200
        assert ((draws.pow(power).mean(0) - exact).abs() < 4.5 * error + 2e-3).all()


def test_the_frame_is_bent_so_that_its_draws_are_nearer_than_the_gaussian_at_the_mode() -> None:
    """Importance weights towards the posterior are more even."""
    torch.manual_seed(0)
    start, _ = started(bent(2))
    q = start(torch.tensor([[1.0, 0.5], [-3.0, 1.0]], dtype=torch.float64), {})
    shares = []
    for law in (q, q.laplace):
        draws = law.sample((4000,))
        log_p = -objective(draws, q.misfit(draws), 1.0)
        weights = (log_p - law.log_prob(draws)).softmax(0)
        shares.append(1 / weights.square().sum(0) / 4000)
    assert (shares[0] > shares[1]).all() and shares[0].min() > 0.7


@pytest.mark.parametrize("physics", [BentByHand, BentOutside])
def test_jacobians_by_hand_and_without_vmap(physics: type[Physics]) -> None:
    ours, theirs = started(bent(2))[0], started(bent(2, physics))[0]
    y = torch.randn(5, 2, dtype=torch.float64)
    xi = torch.randn(5, 2, dtype=torch.float64)
    for one, other in zip(
        ours.misfit(y, {}).linearize(xi), theirs.misfit(y, {}).linearize(xi), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(ours(y, {}).log_prob(xi), theirs(y, {}).log_prob(xi))


def test_a_jacobian_goes_through_the_link() -> None:
    """Of a positive prior, whose field is the exponential of what the map works in."""
    law = Independent(LogNormal(torch.zeros(2).double(), 0.5), 1)
    found = []
    for physics in (Bent, BentByHand):
        problem = InverseProblem(law, physics=physics(), dtype=torch.float64)
        start, whitening = started(problem, num=500)
        assert problem.transform is not None and whitening.dim == 2
        y = torch.ones(3, 2, dtype=torch.float64)
        found.append(start.misfit(y, {}).linearize(torch.ones_like(y))[1])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["darcy", "lognormal-field", "travel-time-eikonal"])
def test_back_and_forth(name: str) -> None:
    torch.manual_seed(0)
    kwargs = {"size": 6, "num_points": 3 if name == "travel-time-eikonal" else 6}
    problem = problems.load(name, **kwargs).to(dtype=torch.float64)
    start, whitening = started(problem, num=500)
    x, y, params = problem.simulate(10, split="test", seed=1)
    q, xi = start(y, params), whitening.whiten(x)
    q.chords = 40
    zeta = torch.randn(20, 10, 36, dtype=torch.float64)
    away = (q.standardize(q.unstandardize(zeta)) - zeta).square().mean(-1)
    assert away.quantile(0.95) < 1e-8
    torch.testing.assert_close(q.unstandardize(q.standardize(xi)), xi, atol=1e-3, rtol=0)
    torch.testing.assert_close(q[2:4].standardize(xi[2:4]), q.standardize(xi)[2:4])


# What a draw is worth ---------------------------------------------------------------------------


def misfits(q: PhysicsFrame, draws: Tensor) -> float:
    """Mean squared residual in noise variances; the truths have 1."""
    return float(q.misfit(draws).square().mean())


def test_untrained_draws_fit_the_data(darcy) -> None:
    problem, start, q, _ = darcy
    _, y, params = problem.simulate(200, split="test", seed=1)
    zeta = torch.randn(50, 200, 64, generator=torch.Generator().manual_seed(0))
    two = PhysicsFrame(q.laplace, q.weighted, q.misfit, q.minimum, chords=2)
    assert misfits(q, two.unstandardize(zeta)) < 1.05
    assert misfits(q, start.regression(y, params).unstandardize(zeta)) > 50
    assert misfits(q, q.laplace.unstandardize(zeta)) > 4
    assert float(q.unsolved(zeta).mean()) < 0.01 < float(two.unsolved(zeta).mean())


def health(q: PhysicsFrame, xi: Tensor) -> float:
    """``|T_y|^2 / d`` of the truths."""
    return float(q.standardize(xi).square().mean())


def test_truths_are_standard_in_the_frame(darcy) -> None:
    _, _, q, xi = darcy
    # Of 200 x 64 numbers; truths are far from N(0, I) in the frame of the Gaussian at the mode.
    assert abs(health(q, xi) - 1) < 0.04
    assert float(q.laplace.standardize(xi).square().mean()) > 1.5


def noisier(q: PhysicsFrame, factor: float) -> PhysicsFrame:
    """The frame of one who takes the noise for larger than it is."""
    old = q.misfit
    misfit = Misfit(old.physics, old.whitening, old.y, factor * old.noise, old.params)
    xi, _ = mode(misfit, q.mean, q.mean.unsqueeze(0)[:0])
    law, weighted = laplace(xi, misfit.linearize(xi)[1])
    return PhysicsFrame(law, weighted, misfit, q.minimum, q.chords)


FAULTS: dict[str, Callable[[PhysicsFrame], PhysicsFrame]] = {
    "sign of the adjoint": lambda q: PhysicsFrame(q.laplace, -q.weighted, q.misfit, q.minimum, 2),
    "noise too large": lambda q: noisier(q, 2.0),
    "noise too small": lambda q: noisier(q, 0.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, darcy) -> None:
    """By the misfit of the draws or by the truths in the frame, and by the exact start of linear
    physics. A wrong sign leaves truths standard: field and noise are independent."""
    _, _, q, xi = darcy
    zeta = torch.randn(20, 200, 64, generator=torch.Generator().manual_seed(0))
    wrong = FAULTS[fault](q)
    assert (misfits(q, wrong.unstandardize(zeta)) > 1.05) == (fault != "noise too small")
    assert (abs(health(wrong, xi) - 1) > 0.04) == (fault != "sign of the adjoint")
    linear = problems.load("gaussian-field", size=6, num_points=8)
    start, whitening = started(linear)
    exact = fit_start(linear, whitening, linear.simulate(500, seed=0), 64)
    x, y, params = linear.simulate(20, split="test", seed=1)
    wrong = FAULTS[fault](start(y, params))
    away = wrong.standardize(whitening.whiten(x)) - exact(y, params).standardize(
        whitening.whiten(x)
    )
    assert away.abs().max() > 0.1


def test_beginnings_find_the_lower_of_two_minima() -> None:
    """``A = x^2 + x / 4``: from below, a descent to y = 4 ends at the wrong root."""

    class Square(Physics):
        def A(self, x: Tensor, **params: object) -> Tensor:
            return x**2 + x / 4

    whitening = IdentityWhitening((1,)).double()
    y = torch.full((3, 1), 4.0, dtype=torch.float64)
    misfit = Misfit(Square(), whitening, y, torch.full_like(y, 0.05), {})
    low = torch.full((3, 1), -1.0, dtype=torch.float64)
    there, high = mode(misfit, low, low.unsqueeze(0)[:0])
    found, minimum = mode(misfit, low, torch.stack([low, -low, low]))
    assert (there < 0).all() and (found > 0).all() and (minimum < high).all()


def test_a_density_of_many_directions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(physics_frame, "DENSITY_LIMIT", 3)
    problem = problems.load("gaussian-field", size=6, num_points=4)
    start, whitening = started(problem, num=400)
    x, y, params = problem.simulate(2, seed=1)
    q = start(y, params)
    with pytest.raises(NotImplementedError, match="up to 3 informed directions; got 4"):
        q.log_prob(whitening.whiten(x))
    with pytest.raises(ValueError, match="'batch_shape' must stay"):
        q.expand((3,))
    assert q.expand((2,)) is q


# In a map ---------------------------------------------------------------------------------------


def test_an_untrained_map_draws_what_the_frame_brings_back(tmp_path: Path) -> None:
    problem = problems.load("darcy", size=6, num_points=5)
    vfm = vi.VariationalFlowMap.for_problem(problem, start="frame", **SMALL)
    assert vfm.config["start"] == "frame" and isinstance(vfm.start, FrameStart)
    _, y, params = problem.simulate(4, split="test", seed=1)
    torch.manual_seed(3)
    draws = vfm(y, **params).sample((5,))
    torch.manual_seed(3)
    zeta = torch.randn(5, 4, 36)
    torch.testing.assert_close(
        draws, vfm.whitening.unwhiten(vfm.start(y, params).unstandardize(zeta)), atol=0, rtol=0
    )
    # An answer depends on its observation alone, and comes back from the file.
    alone = vfm.start(y[2:3], {})
    torch.testing.assert_close(alone.mean, vfm.start(y, params).mean[2:3], atol=1e-3, rtol=0)
    vfm.save(tmp_path / "frame.safetensors")
    again = vi.load(tmp_path / "frame.safetensors", warn=False)
    torch.manual_seed(3)
    torch.testing.assert_close(again(y, **params).sample((5,)), draws, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["regression", "laplace"])
def test_a_start_that_was_asked_for_comes_back(kind: str, tmp_path: Path) -> None:
    problem = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(problem, start=kind, **SMALL)
    assert type(vfm.start) is type(STARTS[kind](problem, vfm.whitening))
    vfm.save(tmp_path / "map.safetensors")
    again = vi.load(tmp_path / "map.safetensors", warn=False)
    assert type(again.start) is type(vfm.start) and again.config == vfm.config
    _, y, _ = problem.simulate(3, seed=1)
    torch.testing.assert_close(again.start(y, {}).mean, vfm.start(y, {}).mean, atol=0, rtol=0)


def test_a_map_with_a_frame_trains() -> None:
    problem = bent(2).to(dtype=torch.float32)
    vfm = vi.VariationalFlowMap.for_problem(problem, start="frame", **SMALL)
    x, y, params = problem.simulate(64, seed=5)
    objective = Objective(vfm)
    terms, figures = objective(x, y, **params), objective.health(x, y, **params)
    terms["loss"].backward()
    assert any(part.grad is not None for part in vfm.flow_map.parameters())
    assert 0.7 < figures["dispersion"] < 1.4 and figures["mean_sigma"] < 1
    vi.fit(vfm, problem, steps=3, batch_size=16, num_validation=8, progress=False)
    with pytest.raises(ValueError, match="'forward' must be 0 for a start with the physics"):
        Objective(vfm, forward=1.0)


def test_a_frame_at_start_is_taken_as_it_is() -> None:
    start, _ = started(bent(2))
    q = start(torch.zeros(3, 2, dtype=torch.float64), {})
    assert standardize(q, q.mean).abs().max() < 0.1
    assert type(q.standard()) is type(standard_normal(3, q.mean))


def test_what_cannot_work_is_refused() -> None:
    field = problems.load("darcy", **DARCY)
    counted = InverseProblem(
        Independent(Normal(torch.ones(3), 0.1), 1), physics=Physics(noise_model=PoissonNoise(1.0))
    )
    simulated = InverseProblem(
        Independent(Normal(torch.zeros(3), 1.0), 1), simulator=lambda x: x + torch.randn_like(x)
    )
    for problem, options, text in [
        (field, {"start": "newton"}, "'start' must be one of"),
        (field, {"start": "frame", "observation": "context"}, "'start' must not be 'frame'"),
        (field, {"start": "frame", "adapter": "full"}, "'start' must not be 'frame'"),
        (field, {"start": "laplace", "gaussian_start": False}, "'start' must be 'auto' without"),
        (simulated, {"start": "frame"}, "without a physics and Gaussian noise"),
        (counted, {"start": "laplace"}, "without a physics and Gaussian noise"),
    ]:
        with pytest.raises(ValueError, match=text):
            vi.VariationalFlowMap.for_problem(problem, **SMALL, **options)


class Counted(Physics):
    """Rounded: autograd has nothing to say of it."""

    def A(self, x: Tensor, **params: object) -> Tensor:
        return torch.from_numpy(x.detach().numpy().round())


def test_a_physics_without_derivatives_is_refused() -> None:
    problem = InverseProblem(
        Independent(Normal(torch.zeros(3), 1.0), 1),
        physics=Counted(noise_model=GaussianNoise(0.1)),
    )
    with pytest.raises(ValueError, match="autograd cannot differentiate .* got Counted"):
        vi.VariationalFlowMap.for_problem(problem, start="frame", **SMALL)
