"""The demo: the weights that ship, and a short run of all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vfm_inverse import problems
from vfm_inverse.cli.demo import PROBLEM, SEED, WEIGHTS, load_weights, run_demo
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.statistics.scores import crps, energy_score

pytest.importorskip("skimage")


def test_the_weights_that_ship_beat_the_start() -> None:
    assert WEIGHTS.stat().st_size <= 5_000_000
    problem = problems.load(**PROBLEM)
    vfm = VariationalFlowMap.for_problem(problem, start="gaussian", seed=SEED)
    x, y, params = problem.simulate(64, split="test", seed=5)
    scores = []
    for trained in (False, True):
        if trained:
            assert load_weights(vfm) > 0
        torch.manual_seed(0)
        draws = vfm(y, **params).sample((40,))
        assert draws.min() >= 0 and draws.max() <= 1
        scores.append([float(energy_score(draws, x).mean()), float(crps(draws, x).mean())])
    (energy_start, crps_start), (energy, crps_trained) = scores
    assert energy < 0.93 * energy_start
    assert crps_trained < 0.93 * crps_start


def test_all_of_it_in_short(tmp_path: Path) -> None:
    figures = run_demo(
        tmp_path,
        size=16,
        steps=4,
        batch_size=8,
        num_shown=2,
        num_draws=40,
        num_simulations=40,
        num_validation=16,
        quiet=True,
    )
    for name in ("posterior.png", "coverage.png", "ranks.png", "posterior.nc", "report.html"):
        assert (tmp_path / name).stat().st_size > 1000
    assert figures["verdict"] in ("pass", "fail")
    assert 0.5 < figures["energy_score"] / figures["energy_score_gaussian"] < 1.2
