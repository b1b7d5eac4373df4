"""One sort: against the plain formulas, uniform density ranks at every number of draws, power."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vfm_inverse.statistics import ranks, scores
from vfm_inverse.statistics.climatology import Climatology
from vfm_inverse.statistics.marginals import _spacing, marginals
from vfm_inverse.statistics.quantities import default_quantities


def pools(num: int, num_draws: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(num, num_draws + 1, generator=generator, dtype=torch.float64)
    return pool, torch.rand(2, num, generator=generator)


def test_agrees_with_the_plain_formulas() -> None:
    pool, uniforms = pools(300, 50)
    pool = pool + 7.0
    draws, truth = pool[:, 1:].T, pool[:, 0]
    found = marginals(pool, uniforms)
    assert torch.equal(found.rank, ranks.rank_of_truth(draws, truth))
    torch.testing.assert_close(found.crps, scores.crps(draws, truth))
    torch.testing.assert_close(found.crps_plain, scores.crps(draws, truth, fair=False))
    torch.testing.assert_close(found.error, draws.mean(0) - truth)
    torch.testing.assert_close(found.variance, draws.var(0))


@pytest.mark.parametrize("num_draws", [2, 3, 4, 5, 20, 99])
def test_spacings_are_those_of_the_windows(num_draws: int) -> None:
    pool, uniforms = pools(50, num_draws)
    ordered = pool.sort(dim=-1).values
    half = max(1, min(num_draws // 2, round(0.25 * (num_draws + 1) ** 0.8)))
    i = torch.arange(num_draws + 1)
    low, high = (i - half).clamp(min=0), (i + half).clamp(max=num_draws)
    expected = (ordered[:, high] - ordered[:, low]) / (high - low) * 2 * half
    torch.testing.assert_close(_spacing(ordered), expected)
    # Where the spacing of the truth stands among them is its density rank.
    found = marginals(pool, uniforms)
    own = expected.gather(1, found.rank[:, None])
    sparser = (expected > own + 1e-12).sum(1)
    alike = ((expected - own).abs() <= 1e-12).sum(1)
    assert (sparser <= found.density_rank).all()
    assert (found.density_rank < sparser + alike).all()


@pytest.mark.parametrize("kind", ["normal", "two modes", "ties", "constant"])
@pytest.mark.parametrize("num_draws", [2, 9, 40])
def test_density_ranks_are_uniform_when_exchangeable(kind: str, num_draws: int) -> None:
    pool, uniforms = pools(20_000, num_draws, seed=1)
    if kind == "two modes":
        pool = pool * 0.1 + torch.where(pool.flip(0) > 0, 1.0, -1.0)
    if kind == "ties":
        pool = pool.mul(2).round()
    if kind == "constant":
        pool = torch.zeros_like(pool)
    found = marginals(pool, uniforms)
    for rank in (found.rank, found.density_rank):
        counts = np.bincount(rank.numpy(), minlength=num_draws + 1)
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("num_draws", [3, 20, 100])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.9, 0.99])
def test_hpd_coverage_is_nominal_at_every_number_of_draws(num_draws: int, level: float) -> None:
    every = torch.arange(num_draws + 1)
    weight = ranks.density_weight(every, num_draws, level)
    assert weight.mean().item() == pytest.approx(level, abs=1e-6)
    found = marginals(*pools(20_000, num_draws, seed=2))
    covered = ranks.density_weight(found.density_rank, num_draws, level).mean().item()
    assert covered == pytest.approx(level, abs=4 * (level * (1 - level) / 20_000) ** 0.5)


def test_the_shortest_interval_of_the_draws_covers_too_little() -> None:
    """Why the regions are made of truth and draws together."""
    pool, uniforms = pools(20_000, 40, seed=3)
    ordered = pool[:, 1:].sort(dim=-1).values
    inside = 20  # draws within: nominal 20 of 41 spacings
    widths = ordered[:, inside:] - ordered[:, :-inside]
    at = widths.argmin(1, keepdim=True)
    low, high = ordered.gather(1, at), ordered.gather(1, at + inside)
    naive = ((pool[:, :1] > low) & (pool[:, :1] < high)).float().mean().item()
    assert naive < 20 / 41 - 0.03
    found = marginals(pool, uniforms)
    covered = ranks.density_weight(found.density_rank, 40, 20 / 41).mean().item()
    assert covered == pytest.approx(20 / 41, abs=0.015)


def test_density_ranks_see_a_hole_between_modes() -> None:
    """Truths in the empty middle of draws with two modes: central intervals call them typical."""
    pool, uniforms = pools(2000, 200, seed=4)
    pool = pool * 0.1 + torch.where(pool.flip(0) > 0, 1.0, -1.0)
    pool[:, 0] = 0.0
    found = marginals(pool, uniforms)
    assert ranks.coverage_weight(found.rank, 200, 0.5).mean() > 0.9
    assert ranks.density_weight(found.density_rank, 200, 0.9).mean() < 0.05


def test_infinite_values_are_ranked() -> None:
    pool = torch.tensor([[-torch.inf, 0.0, 1.0, 2.0, 3.0], [1.5, -torch.inf, 1.0, 2.0, torch.inf]])
    found = marginals(pool, torch.zeros(2, 2))
    assert found.rank.tolist() == [0, 2]
    assert found.density_rank[0] == 0 and found.density_rank[1] > 0


@pytest.mark.parametrize("num", [5, 6, 40])
def test_field_scores_agree_with_the_scores(num: int) -> None:
    generator = torch.Generator().manual_seed(5)
    draws = torch.randn(num, 200, 3, generator=generator, dtype=torch.float64)
    truth = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    found = scores.field_scores(draws, truth)
    for column, fair in enumerate((True, False)):
        exact = scores.energy_score(draws, truth, fair=fair)
        if num <= 17:  # all lags: all pairs
            torch.testing.assert_close(found[:, column], exact)
        else:
            gap = found[:, column] - exact
            assert gap.abs().mean() > 0
            assert gap.mean().item() == pytest.approx(0, abs=4 * gap.std().item() / 200**0.5)
            assert gap.std() < 0.1 * exact.std()
    torch.testing.assert_close(found[:, 2], scores.variogram_score(draws, truth))


def test_climatology_scores_the_other_truths() -> None:
    generator = torch.Generator().manual_seed(6)
    truth = torch.randn(300, 1, 3, 2, generator=generator, dtype=torch.float64)
    baseline = Climatology(truth)
    assert len(baseline.index) == 256
    found = baseline.scores(truth[100:140], 100)
    assert set(range(100, 140)) - set(baseline.index) and set(range(100, 140)) & set(
        baseline.index
    )
    for row in range(40):
        others = [i for i in baseline.index if i != 100 + row]
        draws, x = truth[others][:, None], truth[100 + row][None]
        expected = [
            scores.crps(draws, x).mean().item(),
            scores.crps(draws, x, fair=False).mean().item(),
            scores.energy_score(draws, x).item(),
            scores.energy_score(draws, x, fair=False).item(),
            scores.variogram_score(draws, x).item(),
        ]
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


@pytest.mark.parametrize("event", [(1, 16), (1, 15), (1, 8, 8), (2, 6, 9), (1, 16, 4)])
def test_band_powers_add_up_to_the_variance(event: tuple[int, ...]) -> None:
    """Parseval: all wave numbers but zero hold the variance about the mean of each channel."""
    x = torch.randn(3, 2, *event, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    bands = [q for name, q in default_quantities(event).items() if name.startswith("band_power")]
    space = tuple(range(3, x.ndim))
    variance = (x - x.mean(space, keepdim=True)).square().mean(tuple(range(2, x.ndim)))
    torch.testing.assert_close(torch.stack([q(x, None) for q in bands]).sum(0), variance)


def test_a_wave_is_in_its_octave_and_distances_are_from_the_pool() -> None:
    row = torch.arange(32.0)
    x = torch.cos(2 * torch.pi * 5 * row / 32).expand(1, 1, 1, 32, 32).contiguous()
    quantities = default_quantities((1, 32, 32))
    power = [quantities[f"band_power[{b}]"](x, None).item() for b in range(4)]
    np.testing.assert_allclose(power, [0, 0, 0.5, 0], atol=1e-6)
    pair = torch.tensor([[[0.0, 0.0]], [[6.0, 8.0]]])
    assert default_quantities((2,))["distance"](pair, None).flatten().tolist() == [5.0, 5.0]
