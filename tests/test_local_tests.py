"""L-C2ST: exact level, planted faults, a fault in one place only, networks that train apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from tests.benchmarks.power import DESIGN, FAULTS, SIGMA, posterior_draws, simulate
from vfm_inverse.statistics import local_c2st as local_tests
from vfm_inverse.statistics.local_c2st import local_c2st

QUICK: dict[str, Any] = {"num_null": 19, "steps": 15, "batch_size": 64, "width": 8}


def observation(num: int, num_draws: int, fault: str, seed: int) -> tuple[Tensor, Tensor]:
    """Draws ``(num_draws, num, 4)`` of the faulty posterior at observations ``(num, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(num, 4, generator=generator) @ DESIGN.T
    y = y + SIGMA * torch.randn(num, 3, generator=generator)
    return posterior_draws(fault, y, num_draws, generator), y


def test_exact_posteriors_are_rejected_at_the_nominal_rate() -> None:
    failed = []
    for seed in range(200):
        draws, truth, y = simulate("exact", 64, 1, seed)
        report = local_c2st(
            draws[0], truth, y, *observation(1, 20, "exact", 1000 + seed), seed=seed, **QUICK
        )
        failed.append(report.attrs["verdict"] == "fail")
        assert failed[-1] == (report.p_value.item() <= 0.05 + 1e-12)
    assert 0.02 <= np.mean(failed) <= 0.09


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str) -> None:
    draws, truth, y = simulate(fault, 1500, 1, seed=1)
    at = observation(1, 200, fault, seed=2)
    report = local_c2st(draws[0], truth, y, *at, num_null=39, steps=200)
    assert report.attrs["verdict"] == ("pass" if fault == "exact" else "fail"), report.reason


def test_a_fault_in_one_place_is_found_there() -> None:
    """The draws are shifted where the first datum is positive, and exact elsewhere."""
    exact, truth, y = simulate("exact", 1500, 1, seed=3)
    shifted, _, _ = simulate("shift 0.3", 1500, 1, seed=3)
    draws = torch.where(y[:, :1] > 0, exact + 3 * (shifted - exact), exact)[0]
    observed = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    at = torch.stack(
        [
            posterior_draws("exact", observed, 200, torch.Generator().manual_seed(4))[:, i]
            for i in range(2)
        ],
        dim=1,
    )
    at[:, 0] += 0.9 * at[:, 0].std(0)
    report = local_c2st(draws, truth, y, at, observed, num_null=39, steps=200)
    bad, good = report.statistic.values
    assert bad > 3 * good
    assert report.p_value.values[0] == pytest.approx(1 / 40)
    # Probability below one half says: too many draws here.
    assert report.probability.mean("draw").values[0] < 0.4


def test_small_fields() -> None:
    """Draws with right pixels and no correlation between them."""
    generator = torch.Generator().manual_seed(5)

    def field(*shape: int) -> Tensor:
        common = torch.randn(*shape, 1, 1, 1, generator=generator)
        return common + 0.5 * torch.randn(*shape, 1, 4, 4, generator=generator)

    truth, y = field(800), torch.randn(800, 2, 2, generator=generator)
    lost = 1.25**0.5 * torch.randn(800, 1, 4, 4, generator=generator)
    at = 1.25**0.5 * torch.randn(50, 1, 1, 4, 4, generator=generator)
    short: dict[str, Any] = {"num_null": 19, "steps": 100}
    observed = torch.zeros(1, 2, 2)
    assert local_c2st(lost, truth, y, at, observed, **short).attrs["verdict"] == "fail"
    exact = local_c2st(field(800), truth, y, field(50, 1), observed, **short)
    assert exact.attrs["verdict"] == "pass"
    assert exact.probability.shape == (50, 1) and exact.null_statistic.shape == (19, 1)


def test_networks_train_apart() -> None:
    """The statistic of the unswapped classifier does not depend on how many others there are."""
    draws, truth, y = simulate("shift 0.3", 100, 1, seed=6)
    points = draws[0].double(), truth.double(), y.double()
    at = observation(2, 10, "shift 0.3", seed=7)
    quick = {**QUICK, "alpha": 0.5}
    one = local_c2st(*points, *at, **quick)
    # Signs are drawn first: start the same weights and batches by hand.
    inputs = torch.cat([torch.stack(points[1::-1]), points[2].expand(2, -1, -1)], dim=-1)
    torch.manual_seed(0)
    weights = local_tests._initial(5, 7, 8, inputs)
    alone = [w[:1].detach().clone().requires_grad_() for w in weights]
    batches = [torch.randperm(100)[:64] for _ in range(15)]
    signs = torch.ones(5, 100, dtype=torch.float64)
    signs[1:] = torch.randint(2, (4, 100)) * 2 - 1
    local_tests._train(weights, inputs, signs, batches, 5e-3, 1e-3)
    local_tests._train(alone, inputs, signs[:1], batches, 5e-3, 1e-3)
    for stacked, single in zip(weights, alone, strict=True):
        torch.testing.assert_close(stacked[:1], single)
        assert not torch.equal(stacked[1], stacked[2])
    xr.testing.assert_identical(one, local_c2st(*points, *at, **quick))  # the seed fixes all


def test_pieces_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, truth, y = simulate("prior", 100, 1, seed=8)
    arguments = (draws[0], truth, y, *observation(2, 30, "prior", seed=9))
    whole = local_c2st(*arguments, **{**QUICK, "num_null": 39})
    monkeypatch.setattr(local_tests, "NUMBERS", 1)
    xr.testing.assert_allclose(whole, local_c2st(*arguments, **{**QUICK, "num_null": 39}))


def test_bad_input_is_refused() -> None:
    draws, truth, y = torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(5, 2)
    at, observed = torch.zeros(4, 1, 3), torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"'draws' and 'truth' must be \(num_simulations"):
        local_c2st(draws[:4], truth, y, at, observed)
    with pytest.raises(ValueError, match=r"'y' must hold 5 observations of shape \(2,\)"):
        local_c2st(draws, truth, y[:, :1], at, observed)
    with pytest.raises(ValueError, match=r"'observed_draws' must be \(num_draws, 1, \*event\)"):
        local_c2st(draws, truth, y, at[:, 0], observed)
    with pytest.raises(ValueError, match="'observed' must be finite"):
        local_c2st(draws, truth, y, at, observed / 0)
    with pytest.raises(ValueError, match="'steps' must be at least 1; got 0"):
        local_c2st(draws, truth, y, at, observed, steps=0)
    with pytest.raises(ValueError, match="'alpha' must lie between 0 and 1; got 0"):
        local_c2st(draws, truth, y, at, observed, alpha=0)
    with pytest.raises(ValueError, match="'num_null' must be at least 19 for 1 observations"):
        local_c2st(draws, truth, y, at, observed, num_null=18)
