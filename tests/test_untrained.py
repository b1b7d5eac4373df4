"""The map before its training is the Gaussian analysis that it starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import calibration, problems
from vfm_inverse.posterior.untrained import untrained

SMALL: dict[str, Any] = {"width": 8, "depth": 1, "num_simulations": 500}


@pytest.mark.parametrize("observation", ["adapter", "context", "both"])
def test_it_is_what_the_networks_start_from(observation: str) -> None:
    problem = problems.load("linear-gaussian", sigma=[0.1, 0.5])
    vfm = vi.VariationalFlowMap.for_problem(problem, observation=observation, **SMALL)
    _, y, params = problem.simulate(5, seed=1)

    def draws(of: vi.VariationalFlowMap) -> torch.Tensor:
        torch.manual_seed(0)
        return of(y, **params).sample((20,))

    before = draws(vfm)
    with torch.no_grad():
        for parameter in vfm.networks.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    weights = vfm.weights_fingerprint()
    trained = draws(vfm)
    torch.testing.assert_close(draws(untrained(vfm)), before, atol=1e-5, rtol=1e-5)
    # The map itself is left as it was.
    assert vfm.weights_fingerprint() == weights
    assert torch.equal(draws(vfm), trained) and not torch.allclose(trained, before)


def test_without_a_start_there_is_nothing_to_compare_with() -> None:
    problem = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(problem, gaussian_start=False, **SMALL)
    with pytest.raises(ValueError, match="'vfm' must have a Gaussian start"):
        untrained(vfm)
    assert "untrained_skill" not in calibration.calibrate(vfm, problem, 40, 20)


def test_a_calibration_says_what_the_training_added(tmp_path: Any) -> None:
    problem = problems.load("linear-gaussian", sigma=[0.1, 0.5])
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    report = calibration.calibrate(vfm, problem, 100, 99, chunk=4000)
    # Not trained at all: the same law, other draws of it.
    one = report.sel(score="crps")
    assert abs(one.untrained_skill.item()) < 0.05 and one.skill.item() > 0.2
    with torch.no_grad():
        for parameter in vfm.networks.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    worse = calibration.calibrate(vfm, problem, 100, 99, chunk=4000).sel(score="crps")
    assert worse.untrained_score.item() == pytest.approx(one.untrained_score.item(), rel=1e-5)
    assert worse.untrained_skill.item() < -3 * worse.untrained_skill_error.item()
    # In two parts, the same bits.
    whole = calibration.calibrate(vfm, problem, 100, 99, chunk=4000)
    for part in range(2):
        calibration.calibrate(
            vfm, problem, 100, 99, chunk=4000, shard=(part, 2), path=tmp_path / f"{part}.npz"
        )
    merged = calibration.merge([tmp_path / "0.npz", tmp_path / "1.npz"], problem)
    for name in ("untrained_score", "untrained_skill", "untrained_skill_error", "quantity_std"):
        np.testing.assert_array_equal(merged[name], whole[name])
