"""Trainings in the coordinates of frames: which starts are taken, the pool of frames, and the
weights that are kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepinv.physics import GaussianNoise, Physics
from torch import Tensor
from torch.distributions import MultivariateNormal

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.calibration.certification import certify
from vfm_inverse.calibration.simulations import calibrate
from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.gaussian.physics_frame import PhysicsFrame
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.symmetries import check_symmetries
from vfm_inverse.runtime.interruption import Interrupted
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.training import frame_pool
from vfm_inverse.training.frame_pool import FramePool, Frames, metropolis
from vfm_inverse.training.held_out import HeldOut, Score, offset_of
from vfm_inverse.training.loop import fit
from vfm_inverse.training.objective import Objective
from vfm_inverse.training.plan import FixedPlan
from vfm_inverse.training.state import TrainingState

QUICK: dict[str, Any] = {"steps": 20, "batch_size": 64, "num_validation": 32, "log_every": 5}
QUICK |= {"progress": False, "device": "cpu", "num_frames": 256}
SMALL = {"num_simulations": 500, "width": 16, "depth": 1, "progress": False}


class Bent(Physics):
    """A vector, each number seen through a cubic; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(noise_model=GaussianNoise(0.3))
        self.calls = 0

    def A(self, x: Tensor, **params: object) -> Tensor:
        self.calls += 1
        return x + 0.3 * x**3


class Jagged(Bent):
    """The same with ripples far steeper than it."""

    def A(self, x: Tensor, **params: object) -> Tensor:
        return x + 2 * torch.sin(40 * x)


class Stepped(Bent):
    """The same on NumPy, which autograd does not see."""

    def A(self, x: Tensor, **params: object) -> Tensor:
        return torch.from_numpy((x + 0.3 * x**3).detach().numpy())


def bent(kind: type[Bent] = Bent, **settings: Any) -> InverseProblem:
    prior = MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5)
    return InverseProblem(prior, physics=kind(), **settings)


def build(problem: InverseProblem, **settings: Any) -> vi.VariationalFlowMap:
    return vi.VariationalFlowMap.for_problem(problem, **SMALL, **settings)


# Which start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "framed"),
    [
        (Bent, {}, True),
        (Jagged, {}, False),  # its draws are worse than a regression's
        (Stepped, {}, False),
        (Bent, {"observation": "adapter"}, False),
        (Bent, {"adapter": "spline"}, False),
        (Bent, {"start": "regression"}, False),
    ],
)
def test_the_frame_is_taken_where_it_can_be_and_serves(
    kind: type[Bent], settings: dict[str, str], framed: bool, tmp_path: Path
) -> None:
    problem = bent(kind)
    vfm = build(problem, **settings)
    assert isinstance(vfm.start, FrameStart) == framed
    vfm.save(tmp_path / "map.safetensors")
    again = vi.VariationalFlowMap.from_config(problem, vfm.config)
    again.load_state_dict(vfm.state_dict())
    _, y, _ = problem.simulate(4, split="test", seed=1)
    for one in (vfm, again):
        torch.manual_seed(0)
        draws = one(y).sample((8,))
        assert draws.isfinite().all()
    torch.manual_seed(0)
    assert torch.equal(vfm(y).sample((8,)), draws)


def test_the_networks_are_told_of_the_mode() -> None:
    problem = bent()
    vfm = build(problem)
    _, y, params = problem.simulate(6, split="test", seed=1)
    condition = vfm.condition(y, params)
    q = condition.start
    assert isinstance(q, PhysicsFrame)
    raw = torch.cat([y, q.mean, q.variance.sqrt(), q.excess.log().unsqueeze(1)], 1)
    expected = (raw - vfm.features.center) / vfm.features.spread
    torch.testing.assert_close(condition.features, expected)


# The pool ---------------------------------------------------------------------------------------


def test_a_step_on_frames_is_the_step_on_their_simulations() -> None:
    problem = bent()
    vfm = build(problem)
    objective = Objective(vfm)
    x, y, params = problem.simulate(32, seed=3)
    condition = vfm.condition(y, params)
    assert isinstance(condition.start, PhysicsFrame)
    zeta = condition.start.standardize(vfm.whitening.whiten(x))
    with seeded(1):
        direct = objective(x, y, **params)
    with seeded(1):
        framed = objective.of_frames(Frames(condition.features, zeta))
    torch.testing.assert_close(framed, direct)


def test_the_pool_grows_and_is_kept_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_pool, "FIRST", 256)
    problem = bent()
    vfm = build(problem)

    def batches(seed: int = 0, folder: Path | None = tmp_path) -> list[Frames]:
        pool = FramePool(vfm, problem, seed, 512, folder)
        with seeded(0):
            return [pool.batch(step, 10_000) for step in (0, 1, 1000)]

    first = batches()
    seen = [len(batch.features.unique(dim=0)) for batch in first]
    assert 250 <= seen[0] <= 256 and 500 <= seen[1] == seen[2] <= 512
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["0000.safetensors", "0001.safetensors"]
    before = problem.physics.calls
    for one, other in zip(batches(), first, strict=True):
        assert torch.equal(one.zeta, other.zeta) and torch.equal(one.features, other.features)
    assert problem.physics.calls == before  # all was read
    files[1].write_bytes(files[1].read_bytes()[:-9])
    for one, other in zip(batches(), first, strict=True):
        assert torch.equal(one.zeta, other.zeta)
    assert problem.physics.calls > before  # the damaged block was computed again
    assert not torch.equal(batches(seed=1)[0].zeta, first[0].zeta)
    for one, other in zip(batches(folder=None), first, strict=True):
        assert torch.equal(one.zeta, other.zeta)


def test_training_takes_no_physics_but_for_frames_and_scores() -> None:
    problem = bent()
    counts = []
    for steps in (20, 100):
        vfm = build(problem)
        pool = FramePool(vfm, problem, 0, 256)
        objective = Objective(vfm)
        before = problem.physics.calls
        for step in range(steps):
            objective.of_frames(pool.batch(step, 16))
        counts.append(problem.physics.calls - before)
    assert counts[0] == counts[1] > 0


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    problem = bent()
    whole, cut, resumed = (build(problem) for _ in range(3))
    fit(whole, problem, **QUICK)

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 10:
            raise Interrupted("here", "go on")

    with pytest.raises(Interrupted):
        fit(cut, problem, checkpoint_dir=tmp_path, callbacks=[stop], **QUICK)
    assert (tmp_path / "frames" / "0000.safetensors").is_file()
    fit(resumed, problem, checkpoint_dir=tmp_path, resume=True, **QUICK)
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_symmetries_make_more_frames_without_a_search() -> None:
    turns = [(partial(torch.roll, shifts=k, dims=-1),) * 2 for k in (1, 2)]
    problem = bent(symmetries=turns)
    vfm = build(problem)
    pool = FramePool(vfm, problem, 0, 256)
    frames = pool._computed(0)
    assert len(frames.zeta) > 0.95 * 3 * frame_pool.BLOCK
    # A third of them are the block, the others are its turns: frames of their own observations.
    x, y, params = problem.simulate(frame_pool.BLOCK, split="train", seed=0)
    own = vfm.condition(y, params)
    turned = vfm.condition(y.roll(1, -1), params)
    assert isinstance(turned.start, PhysicsFrame) and isinstance(own.start, PhysicsFrame)
    expected = turned.start.standardize(vfm.whitening.whiten(x.roll(1, -1)))
    nearest = torch.cdist(expected, frames.zeta[:, 0]).amin(1)
    assert nearest.median() < 1e-3
    before = own.start.standardize(vfm.whitening.whiten(x))
    assert (expected - before).square().mean() > 0.1  # they are not the same


def test_the_shipped_symmetries_are_some() -> None:
    problem = problems.load("lorenz96-window", sites=8)
    x, _, _ = problem.simulate(4, seed=0)
    assert len(problem.symmetries) == 3
    check_symmetries(problem.symmetries, problem.physics.A, x)


def test_a_symmetry_that_is_none_is_refused() -> None:
    turn = partial(torch.roll, shifts=1, dims=-1)
    problem = bent(symmetries=[(turn, turn), (turn, torch.neg)])
    vfm = build(problem)
    with pytest.raises(ValueError, match=r"'symmetries\[1\]' must turn the data"):
        FramePool(vfm, problem, 0, 256)


def test_the_states_of_a_chain_are_draws_of_the_posterior() -> None:
    """Of one number seen through a cubic, whose posterior is known on a grid."""
    problem = InverseProblem(MultivariateNormal(torch.zeros(1), torch.eye(1)), physics=Bent())
    vfm = build(problem)
    num = 2000
    y = torch.full((num, 1), 0.9)
    q = vfm.condition(y, {}).start
    assert isinstance(q, PhysicsFrame)

    def log_posterior(xi: Tensor) -> Tensor:
        x = vfm.whitening.unwhiten(xi)
        return problem.log_prior(x) + problem.log_likelihood(x, y)

    grid = torch.linspace(-3, 3, 4001).unsqueeze(1)
    density = (problem.log_prior(grid) + problem.log_likelihood(grid, y[:1])).exp()
    density = density / density.sum()
    mean = (density * grid[:, 0]).sum()
    std = (density * (grid[:, 0] - mean) ** 2).sum().sqrt()
    with seeded(0):
        rows = torch.multinomial(density, num, replacement=True)
        exact = metropolis(q, vfm.whitening.whiten(grid[rows]), log_posterior)
        # Planted: what the chain begins with is no draw of the posterior.
        far = metropolis(q, vfm.whitening.whiten(grid[rows]) + 1, log_posterior)
    error = float(std) / num**0.5
    last = vfm.whitening.unwhiten(exact[-1])[:, 0]
    assert (last != grid[rows, 0]).float().mean() > 0.9
    assert abs(last.mean() - mean) < 4 * error
    assert abs(last.std() - std) < 4 * error
    assert abs(vfm.whitening.unwhiten(far[1])[:, 0].mean() - mean) > 4 * error


# Which weights ----------------------------------------------------------------------------------


def test_the_offset_sees_draws_that_are_off_and_draws_that_are_narrow() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(512, 8, generator=generator)
    noise = torch.randn(16, 512, 8, generator=generator)

    def offset(draws: Tensor) -> float:
        return offset_of((draws < truth).sum(0))

    assert offset(noise) < 4
    assert offset(noise + 0.4) > 6
    assert offset(0.7 * noise) > 6
    assert offset(1.5 * noise) > 6


def test_held_out_simulations_tell_a_wrong_noise_level() -> None:
    """The energy score hardly sees it; the log-likelihood does."""
    problem = bent()
    vfm = build(problem)
    held_out = HeldOut(vfm, problem, 256, 0)
    assert held_out.score(vfm.networks).offset < 4
    vfm.start._likelihood = bent_likelihood(0.15)
    other = HeldOut(vfm, problem, 256, 0)
    assert other.score(vfm.networks).offset > 8


def bent_likelihood(sigma: float) -> Any:
    physics = Bent()
    physics.noise_model = GaussianNoise(sigma)
    problem = InverseProblem(MultivariateNormal(torch.zeros(3), torch.eye(3)), physics=physics)
    return problem.likelihood


@pytest.mark.parametrize(("offset", "kept"), [(3.0, 1), (8.0, 0)])
def test_weights_with_a_better_score_and_worse_ranks_are_not_kept(
    offset: float, kept: int
) -> None:
    problem = bent()
    vfm = build(problem)
    objective = Objective(vfm)
    state = TrainingState(vfm, objective, FixedPlan(1, objective.phases, 1), 1e-3, 0.0)
    energy = torch.linspace(1, 2, 32)
    state.take_score(Score(energy, 2.5))
    state.step = 1
    state.take_score(Score(energy - 0.5, offset))
    assert state.kept_step == kept


# What is said of it -----------------------------------------------------------------------------


def test_the_card_tells_how_good_the_frames_are() -> None:
    problem = bent()
    cards = []
    for chords in (3, 0):
        vfm = build(problem)
        report = calibrate(vfm, problem, 50, 19, progress=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PhysicsFrame, "solve", with_chords(PhysicsFrame.solve, chords))
            cards.append(certify(vfm, problem, report).figures)
    good, bad = cards
    assert good["frame_health"] == pytest.approx(1, abs=0.3)
    assert good["unsolved_draws"] < 0.02 < bad["unsolved_draws"]


def with_chords(solve: Any, chords: int) -> Any:
    """Planted: fewer steps than it takes."""

    def short(self: PhysicsFrame, zeta: Tensor) -> Any:
        self.chords = chords
        return solve(self, zeta)

    return short
