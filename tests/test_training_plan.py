"""How long an open training goes on: held-out scores given by formula, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vfm_inverse.training.objective import phases_of
from vfm_inverse.training.plan import (
    GAIN,
    LONGEST,
    SHORTEST,
    TAIL,
    WARMUP,
    FixedPlan,
    OpenPlan,
    doubling,
)

Curve = Callable[[int], float]
NOISE = torch.linspace(-0.1, 0.1, 64)


def follow(
    plan: OpenPlan, curve: Curve, seconds: float = 0.0, cut: int | None = None, noise: float = 0.0
) -> tuple[dict[int, Tensor], list[float], list[str]]:
    """Scores, rates and phases of a training whose score is ``curve(step)`` and whose step takes
    ``seconds``; at step ``cut`` the plan is written down and read again."""
    scores = {0: curve(0) + NOISE}
    rates, phases, step = [], [], 0
    while not plan.ended(step):
        if step == cut:
            state = json.loads(json.dumps(plan.state))
            plan = OpenPlan(plan.phases, plan.minutes)
            plan.state = state
        rates.append(plan.rate(step))
        phases.append(plan.phase(step))
        step += 1
        if plan.due(step, step * seconds):
            jitter = noise * torch.randn(64, generator=torch.Generator().manual_seed(step))
            scores[step] = curve(step) + NOISE + jitter
            plan.judge(scores)
    return scores, rates, phases


def test_a_score_that_stands_still_ends_the_training_soon() -> None:
    scores, rates, phases = follow(OpenPlan(phases_of(0.0)), lambda step: 1.0)
    assert max(scores) == len(rates) <= 1.3 * SHORTEST * (1 + TAIL)
    assert set(phases) == {"joint"}
    assert rates[0] == 1 / WARMUP and max(rates) == 1.0 and 0.01 <= rates[-1] < 0.02
    assert all(b <= a for a, b in zip(rates[WARMUP:], rates[WARMUP + 1 :], strict=False))
    assert len(scores) < 15


def test_a_score_that_follows_a_power_law_is_followed_as_long_as_doubling_pays() -> None:
    """1 + 20 / n gains 20 / n over a doubling, which is 1 % at n = 2000."""
    scores, _, _ = follow(OpenPlan(phases_of(0.0)), lambda step: 1.0 + 20.0 / max(step, 1))
    fell = max(scores) / (1 + TAIL)
    assert 2000 * 0.98 / 1.26 < fell < 2000 * 1.26**2
    last = max(n for n in scores if n <= round(fell) + 1)
    assert doubling(scores, 0, last).gain < GAIN


def test_a_single_bad_score_and_a_bad_beginning_end_nothing() -> None:
    def curve(step: int) -> float:
        bump = 0.5 if 900 < step < 1100 else 0.0
        return 0.9 if step == 0 else 1.0 + 40.0 / step + bump

    scores, _, _ = follow(OpenPlan(phases_of(0.0)), curve)
    assert max(scores) > 3000


def test_gains_within_the_noise_do_not_count() -> None:
    plan = OpenPlan(phases_of(0.0))
    scores, _, _ = follow(plan, lambda step: 1.0 + 3.0 / (10 + step), noise=0.3)
    assert max(scores) < 2000


def test_what_never_stalls_ends_all_the_same_and_so_do_scores_that_are_not_numbers() -> None:
    scores, _, _ = follow(OpenPlan(phases_of(0.0)), lambda step: 0.5 ** (step / 500))
    assert LONGEST * (1 + TAIL) <= max(scores) <= 1.3 * LONGEST * (1 + TAIL)
    scores, _, _ = follow(OpenPlan(phases_of(0.0)), lambda step: float("nan") if step else 1.0)
    assert max(scores) < 1.3 * SHORTEST * (1 + TAIL)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_budget_of_time_is_kept_with_the_rate_down_at_its_end(share: float) -> None:
    plan = OpenPlan(phases_of(share), minutes=10.0)
    scores, rates, phases = follow(plan, lambda step: 0.5 ** (step / 500), seconds=0.3)
    assert max(scores) == len(rates) == pytest.approx(2000, rel=0.02)
    assert rates[-1] < 0.02
    assert set(phases) == (
        {"joint"} if share == 0 else {"adapter"} if share == 1 else {"adapter", "map"}
    )
    assert all(phase.why == "time" for phase in plan.stages)


def test_adapter_and_map_are_trained_one_after_the_other() -> None:
    plan = OpenPlan(phases_of(0.25))
    scores, rates, phases = follow(plan, lambda step: 1.0)
    switch = phases.index("map")
    assert phases == ["adapter"] * switch + ["map"] * (len(phases) - switch)
    assert switch in scores and rates[switch] == 1 / WARMUP and rates[switch - 1] < 0.02
    assert {phase for phase in follow(OpenPlan(phases_of(1.0)), lambda step: 1.0)[2]} == {
        "adapter"
    }


@pytest.mark.parametrize("cut", [1, 130, 600, 700])
def test_a_plan_that_was_written_down_goes_on_alike(cut: int) -> None:
    whole, again = (
        follow(OpenPlan(phases_of(0.5)), lambda step: 1.0, cut=at) for at in (None, cut)
    )
    assert whole[0].keys() == again[0].keys() and whole[1:] == again[1:]


def test_a_fixed_plan_is_evenly_scored_and_falls_along_a_cosine() -> None:
    plan = FixedPlan(1000, phases_of(0.5), 4)
    assert [step for step in range(1, 1001) if plan.due(step, 0.0)] == [250, 500, 750, 1000]
    assert [plan.phase(step) for step in (0, 499, 500)] == ["adapter", "adapter", "map"]
    assert plan.rate(0) == plan.rate(500) == 0.1 and plan.rate(10) == plan.rate(510) == 1.0
    assert plan.rate(499) == pytest.approx(0.01, abs=1e-4)
    assert plan.rate(255) == pytest.approx(0.01 + 0.99 / 2)
    assert plan.ended(1000) and not plan.ended(999)
    assert FixedPlan(10, phases_of(0.0), 1).phase(0) == "joint"
