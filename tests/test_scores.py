"""Scores against closed forms, against brute force over all pairs, and against scoringrules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vfm_inverse.statistics import scores


def draws_and_truth(
    num: int = 40, batch: int = 3, event: tuple[int, ...] = (2, 5), seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(num, batch, *event, generator=generator, dtype=torch.float64)
    truth = 3 + torch.randn(batch, *event, generator=generator, dtype=torch.float64)
    return draws, truth


def gaussian_crps(mean: float, std: float, truth: float) -> float:
    """Gneiting and Raftery (2007), eq. 5 of section 4.2, with the sign of a penalty."""
    z = (truth - mean) / std
    density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return std * (z * math.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def test_crps_of_a_gaussian_has_the_closed_form() -> None:
    # Mid-point quantiles are 1e5 draws without Monte-Carlo error.
    levels = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    quantiles = 0.3 + 2.0 * torch.special.ndtri(levels)
    for truth in (-4.0, 0.3, 1.7):
        value = scores.crps(quantiles[:, None], torch.tensor([truth], dtype=torch.float64))
        assert value.item() == pytest.approx(gaussian_crps(0.3, 2.0, truth), rel=1e-4)


@pytest.mark.parametrize("fair", [True, False])
def test_crps_equals_the_double_sum(fair: bool) -> None:
    draws, truth = draws_and_truth()
    num = len(draws)
    pairs = (draws[:, None] - draws[None]).abs().sum((0, 1)) / (num * (num - 1 if fair else num))
    expected = (draws - truth).abs().mean(0) - pairs / 2
    torch.testing.assert_close(scores.crps(draws, truth, fair=fair), expected)


def test_fair_scores_do_not_reward_or_punish_few_draws() -> None:
    draws, _ = draws_and_truth(num=3, batch=40_000, event=(4,))
    truth = draws_and_truth(batch=40_000, event=(4,), seed=1)[1] - 3
    # E crps = E|X-Y|/2 = 1/sqrt(pi); energy score = E|X-Y|/2 = Gamma(5/2)/Gamma(2).
    assert scores.crps(draws, truth).mean().item() == pytest.approx(
        1 / math.sqrt(math.pi), rel=0.01
    )
    assert scores.energy_score(draws, truth).mean().item() == pytest.approx(
        math.gamma(2.5), rel=0.01
    )
    assert scores.crps(draws, truth, fair=False).mean() > 1.2 / math.sqrt(math.pi)


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("pairs", [scores.PAIRS, 1000])
def test_energy_score_equals_the_double_sum_in_any_chunking(
    fair: bool, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "PAIRS", pairs)
    draws, truth = draws_and_truth()
    num = len(draws)
    norm = torch.linalg.vector_norm
    spread = norm((draws[:, None] - draws[None]).flatten(3), dim=-1).sum((0, 1))
    expected = norm((draws - truth).flatten(2), dim=-1).mean(0)
    expected -= spread / (2 * num * (num - 1 if fair else num))
    torch.testing.assert_close(scores.energy_score(draws, truth, fair=fair), expected)


def test_energy_score_of_points() -> None:
    truth = torch.zeros(1, 3)
    # All draws at distance 5 of the truth: the score is 5.  Two draws at +-5: fair 5 - 10/2 = 0.
    one = torch.tensor([3.0, 4.0, 0.0]).expand(2, 1, 3)
    torch.testing.assert_close(scores.energy_score(one, truth), torch.tensor([5.0]))
    both = torch.stack([one[0], -one[0]])
    torch.testing.assert_close(scores.energy_score(both, truth), torch.tensor([0.0]))
    torch.testing.assert_close(scores.energy_score(both, truth, fair=False), torch.tensor([2.5]))


def test_energy_score_in_one_dimension_is_crps() -> None:
    draws, truth = draws_and_truth(event=())
    torch.testing.assert_close(scores.energy_score(draws, truth), scores.crps(draws, truth))
    single = scores.energy_score(draws.float() + 1000, truth.float() + 1000)
    torch.testing.assert_close(single, scores.crps(draws, truth).float(), rtol=1e-3, atol=1e-3)


def test_variogram_score_against_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, truth = draws_and_truth(num=7, batch=2, event=(6,))
    weights = torch.rand(6, 6, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for a in range(6):
        for b in range(6):
            forecast = (draws[..., a] - draws[..., b]).abs().sqrt().mean(0)
            seen = (truth[..., a] - truth[..., b]).abs().sqrt()
            expected += weights[a, b] * (seen - forecast) ** 2
    torch.testing.assert_close(scores.variogram_score(draws, truth, weights=weights), expected)
    monkeypatch.setattr(scores, "PAIRS", 100)
    torch.testing.assert_close(scores.variogram_score(draws, truth, weights=weights), expected)


def test_spread_equals_skill_for_exchangeable_draws_and_not_for_narrow_ones() -> None:
    draws, _ = draws_and_truth(num=4, batch=40_000, event=(3,))
    truth = draws_and_truth(batch=40_000, event=(3,), seed=1)[1] - 3
    spread, skill = scores.spread_skill(draws, truth)
    torch.testing.assert_close(spread, skill, rtol=0.02, atol=0)
    spread, skill = scores.spread_skill(0.5 * draws, truth)
    assert (spread < 0.6 * skill).all()


def test_sliced_wasserstein_of_a_translation_and_of_unequal_sets() -> None:
    draws, _ = draws_and_truth(num=500, batch=2, event=(2,))
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    value = scores.sliced_wasserstein(draws, draws + shift, num_projections=4000)
    # E (w . s)^2 = |s|^2 / 2 over the unit circle.
    torch.testing.assert_close(value, torch.full_like(value, 5 / math.sqrt(2)), rtol=0.03, atol=0)
    twice = torch.cat([draws, draws, draws[:250]])[torch.randperm(1250)]
    assert (scores.sliced_wasserstein(draws, draws.repeat(3, 1, 1)) < 1e-6).all()
    assert (scores.sliced_wasserstein(draws, twice) < 0.2).all()
    ordered = torch.arange(6.0)[:, None]
    halves = torch.tensor([0.5, 2.5, 4.5])[:, None]  # each stands for two of the six: cost 0.5
    value = scores.sliced_wasserstein(ordered, halves, order=1)
    torch.testing.assert_close(value, torch.tensor([0.5]))


def test_mmd_closed_form_and_unbiasedness() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 150, generator=generator)
    z = 1.0 + torch.randn(160, 150, generator=generator)
    # In one dimension E k(X, X') = 1/sqrt(1 + 2/h^2), E k(X, Z) = that exp(-m^2 / (2 (h^2 + 2))).
    within = 1 / math.sqrt(3)
    across = within * math.exp(-1 / 6)
    value = scores.mmd(x, z, bandwidth=1.0, squared=True)
    error = value.std().item() / math.sqrt(150)
    assert value.mean().item() == pytest.approx(2 * within - 2 * across, abs=3 * error)
    null = scores.mmd(x, z - 1, bandwidth=1.0, squared=True)
    error = null.std().item() / math.sqrt(150)
    # With the pairs (i, i) left in, the mean would be (1 - within) (1/200 + 1/160) = 0.0048.
    assert abs(null.mean().item()) < 3 * error < 0.0016
    assert scores.mmd(x, z).shape == (150,)


def test_against_scoringrules() -> None:
    oracle = pytest.importorskip("scoringrules")
    draws, truth = draws_and_truth(event=(6,))
    members, seen = draws.movedim(0, -1).numpy(), truth.numpy()
    for fair, estimator in ((True, "fair"), (False, "nrg")):
        expected = torch.from_numpy(oracle.crps_ensemble(seen, members, estimator=estimator))
        torch.testing.assert_close(scores.crps(draws, truth, fair=fair), expected)
    fields = draws.movedim(0, 1).numpy()
    for fair, estimator in ((True, "fair"), (False, "nrg")):
        expected = torch.from_numpy(oracle.es_ensemble(seen, fields, estimator=estimator))
        torch.testing.assert_close(scores.energy_score(draws, truth, fair=fair), expected)
    expected = torch.from_numpy(oracle.vs_ensemble(seen, fields, p=0.5))
    torch.testing.assert_close(scores.variogram_score(draws, truth), expected)


def test_wrong_input_is_named() -> None:
    draws, truth = draws_and_truth()
    with pytest.raises(ValueError, match="'truth' must have the shape of one draw"):
        scores.crps(draws, truth[:2])
    with pytest.raises(ValueError, match="at least 2 draws; got 1"):
        scores.energy_score(draws[:1], truth)
    with pytest.raises(ValueError, match="'order' must be positive; got -1"):
        scores.variogram_score(draws, truth, order=-1)
    with pytest.raises(ValueError, match="'reference' must have the batch and event shape"):
        scores.mmd(draws, draws[:, :1])
    with pytest.raises(ValueError, match="'bandwidth' must be positive; got 0"):
        scores.mmd(draws, draws, bandwidth=0.0)
