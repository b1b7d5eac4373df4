"""What a computation will cost."""

from __future__ import annotations

import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.training import cost
from vfm_inverse.training.objective import Objective


@pytest.fixture(scope="module")
def trained() -> tuple[Objective, vi.InverseProblem]:
    problem = problems.load("gaussian-field", size=8)
    return Objective(vi.VariationalFlowMap.for_problem(problem, num_simulations=500)), problem


def test_the_memory_of_a_step_grows_with_the_batch_as_said(
    trained: tuple[Objective, vi.InverseProblem],
) -> None:
    objective, problem = trained
    step = cost.memory_of_step(objective, problem)
    assert step is not None
    x, y, params = problem.simulate(128, seed=1)
    kept = cost._kept(objective, x, y, params)
    weights = sum(w.numel() * w.element_size() for w in objective.vfm.networks.parameters())
    assert step.of(128) / cost.MARGIN == pytest.approx(kept + 4 * weights, rel=0.1)
    assert step.per_simulation > 4 * problem.field_shape.numel()


@pytest.mark.parametrize("flow_loss", ["eulerian", "lagrangian", "semigroup"])
def test_every_loss_can_be_counted(flow_loss: str) -> None:
    """Some take derivatives whose tensors have no storage of their own."""
    problem = problems.load("linear-gaussian", dim=2, obs_dim=1)
    settings = {"num_simulations": 100, "width": 8, "depth": 1, "progress": False}
    objective = Objective(
        vi.VariationalFlowMap.for_problem(problem, **settings), flow_loss=flow_loss
    )
    step = cost.memory_of_step(objective, problem)
    assert step is not None and step.per_simulation > 0


def test_counting_leaves_no_trace(trained: tuple[Objective, vi.InverseProblem]) -> None:
    objective, problem = trained
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    state = torch.get_rng_state()
    cost.memory_of_step(objective, problem)
    assert torch.equal(state, torch.get_rng_state())
    assert all(value.equal(before[name]) for name, value in objective.state_dict().items())
    assert all(weight.grad is None for weight in objective.parameters())


def test_a_batch_larger_than_the_machine_is_refused_with_one_that_fits(
    trained: tuple[Objective, vi.InverseProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, problem = trained
    step = cost.memory_of_step(objective, problem)
    assert step is not None
    monkeypatch.setattr(cost, "memory_available", lambda device="cpu": int(step.of(100.5)))
    assert cost.require_batch(objective, problem, 100) == pytest.approx(step.of(100))
    words = r"'batch_size' of 4000 needs about .* of memory and .* are free; take 100 or less"
    with pytest.raises(MemoryError, match=words):
        vi.fit(objective.vfm, problem, steps=1, batch_size=4000, progress=False)


def test_this_machine_says_what_is_free() -> None:
    free = cost.memory_available()
    assert free is not None and 2**20 < free < 2**50
    cost.require_memory(free / 2, "half of it", "do nothing")
    with pytest.raises(MemoryError, match=r"twice that needs about .* are free; take half"):
        cost.require_memory(2 * free, "twice that", "take half")


@pytest.mark.parametrize(
    ("memory", "words"), [(12, "12 bytes"), (1.5e3, "1.5 kB"), (2.34e6, "2.34 MB"), (5e9, "5 GB")]
)
def test_memory_in_words(memory: float, words: str) -> None:
    assert cost.in_words(memory) == words


def test_the_speed_of_drawing_is_measured(trained: tuple[Objective, vi.InverseProblem]) -> None:
    objective, problem = trained
    _, y, params = problem.simulate(3, seed=0)
    first, draw = cost.cost_of_answers(objective.vfm, y, params, 0.02)
    assert 0 < first < 60 and 0 < draw < 1
