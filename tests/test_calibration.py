"""Calibration: exact tests, power against planted faults, size, independence of the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vfm_inverse.calibration import calibrate, from_draws, merge, simulations
from vfm_inverse.calibration.tally import ExactSum
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics import ranks
from vfm_inverse.statistics.quantities import default_quantities


def gaussian_problem(
    event: tuple[int, ...] = (4,), noise: float = 0.5, labelled: bool = False, density: bool = True
) -> Any:
    """x ~ N(0, I), y = x + sigma e, sigma drawn per sample around ``noise``: exact posterior."""
    ndim = len(event)

    def scale(sigma: Tensor) -> Tensor:
        return sigma.reshape(-1, *[1] * ndim)

    def simulate(
        num: int, *, split: str = "train", seed: int | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert split in ("train", "test")
        with seeded(seed):
            x = torch.randn(num, *event)
            sigma = noise * (0.5 + torch.rand(num))
            return x, x + scale(sigma) * torch.randn(num, *event), {"sigma": sigma}

    def log_likelihood(x: Tensor, y: Tensor, *, sigma: Tensor) -> Tensor:
        return Independent(Normal(x, scale(sigma)), ndim).log_prob(y)

    def reference_posterior(y: Tensor, *, sigma: Tensor) -> Distribution:
        gain = 1 / (1 + scale(sigma) ** 2)
        return Independent(Normal(gain * y, (1 - gain).sqrt().expand_as(y)), ndim)

    names = ("lat", "lon")[: ndim - 1] if ndim > 1 else ("component",)
    coords = {
        name: 10.0 * np.arange(n) for name, n in zip(names, event[-len(names) :], strict=True)
    }
    return SimpleNamespace(
        field_shape=torch.Size(event),
        simulate=simulate,
        log_likelihood=log_likelihood,
        log_prior=lambda x: Independent(Normal(torch.zeros_like(x), 1.0), ndim).log_prob(x),
        likelihood=log_likelihood if density else None,
        reference_posterior=reference_posterior,
        dims=names if labelled else None,
        coords=coords if labelled else None,
        units="m s-1" if labelled else None,
    )


def faulty(problem: Any, shift: float = 0.0, scale: float = 1.0) -> Callable[..., Distribution]:
    """The exact posterior, moved by ``shift`` of its own std and stretched by ``scale``."""

    def posterior(y: Tensor, **params: Tensor) -> Distribution:
        base = problem.reference_posterior(y, **params).base_dist
        return Independent(
            Normal(base.loc + shift * base.scale, scale * base.scale), len(problem.field_shape)
        )

    return posterior


class Quantiles:
    """Draws that are a function of y alone: random numbers cannot hide a difference."""

    def __init__(self, problem: Any, y: Tensor, **params: Tensor) -> None:
        self.base = problem.reference_posterior(y, **params).base_dist

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        number = torch.arange(shape[0] * self.base.loc[0].numel())
        noise = ((0.5 + number * 0.6180339887) % 1).reshape(-1, 1, *self.base.loc.shape[1:])
        return (self.base.loc + self.base.scale * torch.special.ndtri(noise)).mul(8).round().div(8)


# -- exact tests of uniformity -----------------------------------------------------------------


@pytest.mark.parametrize(("num", "num_draws"), [(60, 20), (500, 99), (1000, 1000)])
def test_ecdf_band_holds_its_simultaneous_coverage(num: int, num_draws: int) -> None:
    generator = np.random.default_rng(0)
    uniform = generator.integers(0, num_draws + 1, size=(num, 8000), dtype=np.int32)
    positions, counts = ranks.ecdf_counts(uniform[:, :1], num_draws)
    counts = np.stack([(uniform < round(z * (num_draws + 1))).sum(0) for z in positions])
    lower, upper = ranks.ecdf_band(positions, num, 0.05)
    inside = ((counts >= lower[:, None]) & (counts <= upper[:, None])).all(0).mean()
    # Four Monte-Carlo standard errors, and what the discreteness of the counts costs.
    assert 0.94 < inside < 0.965
    # The pointwise band of the same level must not hold: this is what "simultaneous" buys.
    point = stats.binom.ppf([[0.025], [0.975]], num, positions)
    naive = ((counts >= point[0][:, None]) & (counts <= point[1][:, None])).all(0).mean()
    assert naive < 0.8


def test_ecdf_p_values_are_exact_and_agree_with_the_band() -> None:
    generator = np.random.default_rng(1)
    uniform = generator.integers(0, 51, size=(80, 1000))
    positions, counts = ranks.ecdf_counts(uniform, 50)
    p_values = ranks.ecdf_p_value(counts, positions, 80)
    for level in (0.01, 0.05, 0.2, 0.5):
        error = 4 * np.sqrt(level * (1 - level) / 1000)
        assert (p_values <= level).mean() == pytest.approx(level, abs=error + 0.02 * level)
        lower, upper = ranks.ecdf_band(positions, 80, level)
        leaves = ((counts < lower[:, None]) | (counts > upper[:, None])).any(0)
        np.testing.assert_array_equal(leaves, p_values <= level)


def test_probability_inside_a_band_by_enumeration() -> None:
    # Three values, cuts at 1/4 and 1/2: the counts are multinomial with 3 cells.
    positions = np.array([0.25, 0.5])
    expected = 0.0
    for first in range(4):
        for second in range(4 - first):
            if first <= 1 and 1 <= first + second <= 2:
                cells = [first, second, 3 - first - second]
                expected += stats.multinomial.pmf(cells, 3, [0.25, 0.25, 0.5])
    value = ranks._inside_probability(np.array([0, 1]), np.array([1, 2]), positions, 3)
    assert value == pytest.approx(expected, rel=1e-12)


def test_p_values_by_enumeration() -> None:
    """Five values, cuts at 0.1, 0.3 and 0.8: every path of counts and its probability."""
    positions, cells = np.array([0.1, 0.3, 0.8]), [0.1, 0.2, 0.5, 0.2]
    paths = [c for c in product(range(6), repeat=3) if c[0] <= c[1] <= c[2]]
    probability = [stats.multinomial.pmf([a, b - a, c - b, 5 - c], 5, cells) for a, b, c in paths]
    counts = np.array(paths).T
    law = stats.binom(5, positions[:, None])
    statistic = np.minimum(2 * np.minimum(law.cdf(counts), law.sf(counts - 1)), 1).min(0)
    expected = [np.dot(probability, statistic <= s * (1 + 1e-9)) for s in statistic]
    np.testing.assert_allclose(ranks.ecdf_p_value(counts, positions, 5), expected, rtol=1e-6)


def test_extreme_ranks_have_tiny_p_values_and_no_warning() -> None:
    positions, counts = ranks.ecdf_counts(np.zeros((1000, 1), dtype=int), 1000)
    assert ranks.ecdf_p_value(counts, positions, 1000)[0] < 1e-100


def test_chi2_is_one_for_uniform_ranks_also_in_unequal_bins() -> None:
    generator = np.random.default_rng(2)
    uniform = generator.integers(0, 24, size=(400, 3000))  # 24 ranks in 7 bins
    counts = np.stack([(uniform * 7 // 24 == b).sum(0) for b in range(7)])
    statistic, p_values = ranks.chi2_test(counts, 23)
    assert statistic.mean() == pytest.approx(1, abs=0.03)
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_ties_are_broken_uniformly() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(3, (9, 20_000), generator=generator)
    truth = torch.randint(3, (20_000,), generator=generator)
    rank = ranks.rank_of_truth(draws, truth, torch.rand(20_000, generator=generator))
    assert stats.chisquare(np.bincount(rank.numpy(), minlength=10)).pvalue > 1e-3
    lowest = ranks.rank_of_truth(draws, truth)
    assert stats.chisquare(np.bincount(lowest.numpy(), minlength=10)).pvalue < 1e-10


@pytest.mark.parametrize("num_draws", [2, 10, 99, 100])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.9, 0.99])
def test_coverage_is_unbiased_at_every_number_of_draws(num_draws: int, level: float) -> None:
    weight = ranks.coverage_weight(torch.arange(num_draws + 1), num_draws, level)
    assert weight.mean().item() == pytest.approx(level, abs=1e-6)
    assert weight[num_draws // 2] >= weight[0]


# -- size and power -----------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(4,), (1, 16), (1, 8, 8), (2, 4, 4)])
def test_exact_posterior_passes(event: tuple[int, ...]) -> None:
    problem = gaussian_problem(event)
    # Any one seed fails with probability alpha: leave it little.
    report = calibrate(problem.reference_posterior, problem, 400, 99, alpha=0.01)
    assert report.attrs["verdict"] == "pass", report.attrs["reason"]
    assert abs(report.hpd_coverage_map.mean(report.crps_map.dims) - report.level).max() < 0.05
    elements = report.chi2_per_dof_map.size
    deviation = np.sqrt(2 / (report.attrs["num_bins"] - 1) / elements)
    assert report.chi2_per_dof_map.mean().item() == pytest.approx(1, abs=4 * deviation)
    np.testing.assert_allclose(report["coverage"].mean("quantity"), report.level, atol=0.05)
    np.testing.assert_allclose(report["offset"], 0, atol=4 / 20)
    np.testing.assert_allclose(report["width"], 1, atol=4 / np.sqrt(800))
    ratio = (report.spread_map.mean() / report.skill_map.mean()).item()
    assert ratio == pytest.approx(1, abs=4 * 1.2 / np.sqrt(2 * 400 * elements))


@pytest.mark.parametrize("event", [(4,), (1, 8, 8)])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"shift": 0.3}, "too high"),
        ({"shift": -0.3}, "too low"),
        ({"scale": 0.8}, "too narrow"),
        ({"scale": 1.25}, "too wide"),
    ],
)
def test_planted_faults_are_caught_and_named(
    event: tuple[int, ...], fault: dict[str, float], words: str
) -> None:
    problem = gaussian_problem(event)
    report = calibrate(faulty(problem, **fault), problem, 500, 99)
    assert report.attrs["verdict"] == "fail"
    # The likelihood of a shifted posterior is off in a way of its own: read the plain elements.
    plain = report.sel(quantity="x[0]" if len(event) == 1 else "pixel[2,2]")
    assert min(plain.p_value, plain.density_p_value) < 1e-3
    assert plain["offset"].item() == pytest.approx(fault.get("shift", 0.0), abs=0.17)
    assert plain["width"].item() == pytest.approx(fault.get("scale", 1.0), abs=0.12)
    only = {"first": lambda x, y, **params: x.flatten(2)[..., 0]}
    report = calibrate(faulty(problem, **fault), problem, 500, 99, quantities=only)
    assert words in report.attrs["reason"] and "'first'" in report.attrs["reason"]


@pytest.mark.parametrize("event", [(4,), (1, 8, 8)])
def test_prior_for_posterior_is_seen_by_the_log_likelihood_alone(event: tuple[int, ...]) -> None:
    problem = gaussian_problem(event)

    def prior(y: Tensor, **params: Tensor) -> Distribution:
        return Independent(Normal(torch.zeros_like(y), 1.0), len(event))

    report = calibrate(prior, problem, 500, 99)
    assert report.attrs["verdict"] == "fail"
    assert report.quantity[report.p_adjusted <= 0.05].values.tolist() == ["log_likelihood"]
    blind = calibrate(prior, gaussian_problem(event, density=False), 500, 99)
    assert "log_likelihood" not in blind.quantity
    assert (blind.p_adjusted > 0.05).all()
    # Reference points that depend on the data see it without a density.
    assert blind.tarp_p_adjusted <= 0.05 and "joint coverage" in blind.attrs["reason"]
    joint = calibrate(prior, gaussian_problem(event, density=False), 500, 99, joint=False)
    assert joint.attrs["verdict"] == "pass" and "tarp_coverage" not in joint


def test_a_curve_leaves_the_band_exactly_when_its_quantity_fails() -> None:
    outcomes = set()
    for seed in range(12):
        samples = torch.randn(40, 60, 12, generator=torch.Generator().manual_seed(seed))
        bias = 0.45 * torch.linspace(
            0, 1, 12
        )  # from right to wrong: failures on both sides of alpha
        report = from_draws(samples[1:] + bias, samples[0])
        curve, slack = report.ecdf_difference, 1e-9
        outside = (curve > report.ecdf_upper + slack) | (curve < report.ecdf_lower - slack)
        failing = report.p_adjusted <= report.attrs["alpha"]
        np.testing.assert_array_equal(outside.any("position"), failing)
        others = [report.density_p_adjusted.values.min(), report.tarp_p_adjusted.item()]
        assert (report.attrs["verdict"] == "fail") == bool(failing.any() or min(others) <= 0.05)
        outcomes |= set(failing.values.tolist())
    assert outcomes == {False, True}


def test_wrong_correlations_are_seen_though_every_pixel_is_right() -> None:
    problem = gaussian_problem((1, 8, 8), density=False)

    def blurred(y: Tensor, **params: Tensor) -> Any:
        base = problem.reference_posterior(y, **params).base_dist

        def sample(shape: tuple[int, ...]) -> Tensor:
            return base.loc + base.scale * torch.randn(*shape, len(y), 1, 1, 1)

        return SimpleNamespace(sample=sample)

    report = calibrate(blurred, problem, 300, 99)
    pixels = report.quantity.str.startswith("pixel")
    assert (report.p_adjusted[pixels] > 0.05).all()
    assert report.p_adjusted.sel(quantity=["block_mean[0,0]", "gradient_energy"]).max() < 1e-6


def test_rejection_rate_is_near_nominal() -> None:
    """160 reports of an exact posterior at alpha 0.2, with independent quantities."""
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(20, 160, 120, 3, generator=generator)  # draws and truth, repetition, ...
    quantities = {f"x[{i}]": lambda x, y, i=i, **params: x[..., i] for i in range(3)}
    failed = [
        from_draws(block[1:], block[0], quantities=quantities, alpha=0.2).attrs["verdict"]
        == "fail"
        for block in samples.unbind(1)
    ]
    # Bonferroni and discreteness lower it a little: 1 - (1 - 0.2/3)^3 = 0.187, give or take 0.03.
    assert 0.08 < np.mean(failed) < 0.31


@pytest.mark.slow
def test_every_family_keeps_its_level() -> None:
    """200 repetitions of exchangeable vectors: the whole verdict, and the density family alone."""
    generator = torch.Generator().manual_seed(8)
    failed, density = [], []
    for seed in range(200):
        samples = torch.randn(30, 60, 3, generator=generator)
        report = from_draws(samples[1:], samples[0], seed=seed)
        failed.append(report.attrs["verdict"] == "fail")
        density.append(report.density_p_value.sel(quantity="x[0]").item())
    assert 0.005 <= np.mean(failed) <= 0.09  # at most 0.05, and three standard errors
    assert np.mean(np.array(density) <= 0.2) == pytest.approx(0.2, abs=3 * 0.0283)


def test_the_verdict_names_every_family_that_fails() -> None:
    problem = gaussian_problem((4,))
    wide = calibrate(faulty(problem, scale=1.4), problem, 400, 99)
    assert "quantities fail" in wide.attrs["reason"] and "joint coverage" in wide.attrs["reason"]
    assert wide.attrs["families"] == "ranks, density, joint"
    assert wide.attrs["num_tests"] == 2 * wide.sizes["quantity"] + 1
    one = {"first": lambda x, y, **params: x[..., 0]}
    report = calibrate(faulty(problem, scale=1.2), problem, 400, 99, quantities=one, joint=False)
    assert "highest-density regions" in report.attrs["reason"] or report.p_adjusted <= 0.05
    assert report.hpd_coverage.sel(level=0.5).item() > 0.54
    assert (report.hpd_coverage_map.sel(level=0.5) > 0.54).all()


# -- streaming, labels, reproducibility ---------------------------------------------------------


def compare(one: xr.Dataset, two: xr.Dataset) -> None:
    xr.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one["ranks"], two["ranks"])
    assert one.attrs["reason"] == two.attrs["reason"]


@pytest.mark.parametrize("event", [(3,), (1, 4, 6)])
def test_draws_from_elsewhere_give_the_report_of_the_loop(event: tuple[int, ...]) -> None:
    problem = gaussian_problem(event)
    simulate = problem.simulate

    def coarse(num: int, **kwargs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        x, y, params = simulate(num, **kwargs)
        return x.mul(8).round().div(8), y, params  # truths and draws on one grid: many ties

    problem.simulate = coarse

    def posterior(y: Tensor, **params: Tensor) -> Quantiles:
        return Quantiles(problem, y, **params)

    one = 40 * math.prod(event)  # numbers of one simulation: units of one
    whole, single = (calibrate(posterior, problem, 50, 40, chunk=size) for size in (2**20, one))
    x, y, params = problem.simulate(50, split="test", seed=0)
    draws = posterior(y, **params).sample((40,))
    quantities = default_quantities(event, problem.log_likelihood)
    for other in (
        single,
        *(
            from_draws(draws, x, y=y, params=params, quantities=quantities, memory=memory)
            for memory in (2**30, 1)
        ),
    ):
        compare(whole, other)


@pytest.mark.parametrize("event", [(3,), (1, 8, 8)])
def test_a_seed_gives_the_same_bits_whatever_the_memory(event: tuple[int, ...]) -> None:
    problem = gaussian_problem(event)
    reports = [
        calibrate(problem.reference_posterior, problem, 30, 40, memory=memory, chunk=2**11)
        for memory in (2**30, 10**5, 1)
    ]
    for report in reports[1:]:
        xr.testing.assert_identical(reports[0], report)


@pytest.mark.parametrize("local", [False, True])
def test_parts_of_a_run_add_up_to_the_same_bits(tmp_path: Any, local: bool) -> None:
    problem = gaussian_problem((1, 4, 4), labelled=True)
    options: dict[str, Any] = {"chunk": 2**10, "provenance": {"checkpoint": "ab"}, "local": local}
    whole = calibrate(problem.reference_posterior, problem, 40, 20, **options)
    paths = [tmp_path / f"part{index}.npz" for index in range(3)]
    for index, path in enumerate(paths):
        part = calibrate(
            problem.reference_posterior, problem, 40, 20, path=path, shard=(index, 3), **options
        )
        assert 0 < part.sizes["simulation"] < 40
    xr.testing.assert_identical(whole, merge(paths[::-1], problem))
    assert merge(paths).crps_map.dims == ("row", "column")
    with pytest.raises(ValueError, match="simulation 0 is in two of the parts"):
        merge([paths[0], paths[0]])
    with pytest.raises(ValueError, match="'paths' must name at least one file"):
        merge([])
    with pytest.raises(ValueError, match="'shard' must be"):
        calibrate(problem.reference_posterior, problem, 40, 20, shard=(3, 3))


def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = gaussian_problem((1, 4, 4))
    monkeypatch.setattr(simulations, "SAVE_SECONDS", 0.0)
    path, calls = tmp_path / "tally.npz", []

    def dying(y: Tensor, **params: Tensor) -> Distribution:
        calls.append(len(y))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return problem.reference_posterior(y, **params)

    options: dict[str, Any] = {"chunk": 2**10, "path": path}
    with pytest.raises(KeyboardInterrupt):
        calibrate(dying, problem, 40, 20, **options)
    resumed = calibrate(dying, problem, 40, 20, **options)
    # Nothing twice but the unit that was interrupted and the few draws that tell whose file it is.
    assert sum(calls) == 40 + calls[4] + 2 * sum(calls[:2])
    whole = calibrate(problem.reference_posterior, problem, 40, 20, chunk=2**10)
    xr.testing.assert_identical(whole, resumed)
    with pytest.raises(ValueError, match="num_draws = 20; expected 30"):
        calibrate(problem.reference_posterior, problem, 40, 30, **options)
    again = calibrate(problem.reference_posterior, problem, 40, 30, resume=False, **options)
    assert again.attrs["num_draws"] == 30
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no readable calibration file"):
        calibrate(problem.reference_posterior, problem, 40, 30, **options)


def test_another_program_s_simulations_are_not_gone_on_with(tmp_path: Any) -> None:
    path = tmp_path / "tally.npz"
    one, two = gaussian_problem(noise=0.5), gaussian_problem(noise=0.4)
    calibrate(one.reference_posterior, one, 10, 20, path=path)
    with pytest.raises(ValueError, match="holds a calibration with data ="):
        calibrate(two.reference_posterior, two, 10, 20, path=path)


def test_a_call_asks_for_no_more_than_a_chunk() -> None:
    problem = gaussian_problem((1, 8, 8))
    asked: list[int] = []

    def posterior(y: Tensor, **params: Tensor) -> Any:
        exact = problem.reference_posterior(y, **params)

        def sample(shape: tuple[int]) -> Tensor:
            asked.append(shape[0] * len(y))
            return exact.sample(shape)

        return SimpleNamespace(sample=sample)

    calibrate(posterior, problem, 20, 100, chunk=30 * 64, baseline=None)
    assert max(asked) == 30 and sum(asked) == 2000


def test_sums_do_not_depend_on_the_order() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(200, 50)) * 10.0 ** generator.integers(-9, 9, size=(200, 50))
    one, two = ExactSum(values[0]), ExactSum(values[-1])
    for value in values[1:]:
        one.add(value)
    for value in values[-2::-1]:
        two.add(value)
    np.testing.assert_array_equal(one.value, two.value)
    np.testing.assert_array_equal(one.value, [math.fsum(column) for column in values.T])
    plain = values.cumsum(0)[-1]
    assert (plain != one.value).any()  # ordinary sums do


def test_a_seed_fixes_the_report_and_leaves_the_global_stream_alone() -> None:
    problem = gaussian_problem()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = calibrate(problem.reference_posterior, problem, 30, 20, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    xr.testing.assert_identical(
        one, calibrate(problem.reference_posterior, problem, 30, 20, seed=5)
    )
    other = calibrate(problem.reference_posterior, problem, 30, 20, seed=6)
    assert not np.array_equal(one["ranks"], other["ranks"])
    free = calibrate(problem.reference_posterior, problem, 30, 20, seed=None)
    seed = free.attrs["seed"]
    xr.testing.assert_identical(
        free, calibrate(problem.reference_posterior, problem, 30, 20, seed=seed)
    )


def test_labels_of_the_problem_reach_the_maps(tmp_path: Any) -> None:
    problem = gaussian_problem((1, 4, 6), labelled=True)
    report = calibrate(
        problem.reference_posterior, problem, 30, 20, provenance={"checkpoint": "ab"}
    )
    assert report.coverage_map.dims == ("level", "lat", "lon")
    np.testing.assert_array_equal(report.lon, 10.0 * np.arange(6))
    assert report.crps_map.attrs["units"] == "m s-1"
    assert report.attrs["checkpoint"] == "ab"
    assert report.coverage.sel(level=0.9, quantity="mean").item() > 0.5
    report.to_netcdf(tmp_path / "report.nc")
    with xr.open_dataset(tmp_path / "report.nc") as read:
        xr.testing.assert_identical(read.load(), report)


def test_from_draws_takes_numpy_torch_and_labelled_arrays() -> None:
    generator = np.random.default_rng(0)
    draws, truth = generator.normal(size=(30, 40, 5, 4)), generator.normal(size=(40, 5, 4))
    dims = ("draw", "simulation", "level", "lon")
    labelled = xr.DataArray(
        draws, dims=dims, coords={"level": [1, 2, 3, 4, 5]}, attrs={"units": "K"}
    )
    report = from_draws(
        labelled.transpose("simulation", "level", "draw", "lon"),
        xr.DataArray(truth, dims=dims[1:]).transpose("lon", ...),
    )
    # A pressure level must not be taken for the level of an interval.
    assert report.crps_map.dims == ("field_level", "lon")
    assert report.crps_map.attrs["units"] == "K"
    np.testing.assert_array_equal(report.field_level, [1, 2, 3, 4, 5])
    plain = from_draws(draws[:, :, None], truth[:, None])
    np.testing.assert_array_equal(report["ranks"], plain["ranks"])
    xr.testing.assert_identical(
        plain, from_draws(torch.from_numpy(draws)[:, :, None], torch.from_numpy(truth)[:, None])
    )
    scalar = from_draws(draws[:, :, 0, 0], truth[:, 0, 0])
    assert scalar.quantity.values.tolist() == ["x[0]"]


def test_default_quantities_on_known_fields() -> None:
    x = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    values = {name: q(x, None).item() for name, q in default_quantities((1, 4, 4)).items()}
    assert values["mean"] == 7.5 and values["max"] == 15
    assert values["gradient_energy"] == 1 + 16
    assert values["block_mean[0,1]"] == pytest.approx(np.mean([2, 3, 6, 7]))
    assert values["pixel[1,3]"] == 7
    assert len(default_quantities((100,))) == 34 and len(default_quantities((100,), limit=4)) == 6


def test_scores_of_the_report_are_those_of_the_exact_posterior() -> None:
    problem = gaussian_problem((4,))
    report = calibrate(problem.reference_posterior, problem, 2000, 50)
    _, _, params = problem.simulate(2000, split="test", seed=0)
    std = (params["sigma"] / (1 + params["sigma"] ** 2).sqrt()).mean().item()
    assert report.crps.mean().item() == pytest.approx(std / np.sqrt(np.pi), rel=0.03)
    # E|X - X'|/2 of a 4-vector: sqrt(2) Gamma(5/2) / Gamma(2) * std / sqrt(2).
    assert report.energy_score.mean().item() == pytest.approx(1.3293 * std, rel=0.03)


def test_spread_and_error_agree_at_few_draws() -> None:
    samples = torch.randn(5, 2000, 8, generator=torch.Generator().manual_seed(0))
    report = from_draws(samples[1:], samples[0])
    ratio = (report.spread_map / report.skill_map).mean().item()
    assert ratio == pytest.approx(1, abs=0.02)  # 0.89 if the draws' own noise were left out


def test_wrong_input_is_named() -> None:
    problem = gaussian_problem()
    exact = problem.reference_posterior
    with pytest.raises(ValueError, match="'num_draws' must be at least 2; got 1"):
        calibrate(exact, problem, 10, 1)
    with pytest.raises(ValueError, match="'num_simulations' must be at least 2; got 0"):
        calibrate(exact, problem, 0, 10)
    with pytest.raises(ValueError, match="'alpha' must lie between 0 and 1; got 1.5"):
        calibrate(exact, problem, 10, 10, alpha=1.5)
    with pytest.raises(ValueError, match="must return a posterior; got None"):
        calibrate(lambda y, **params: None, problem, 10, 10)
    with pytest.raises(ValueError, match=r"draws of shape \(10, 10, 4\); got \(10, 10\)"):
        calibrate(lambda y, **params: Normal(y[:, 0], 1.0), problem, 10, 10)
    with pytest.raises(ValueError, match="quantity 'bad' must return shape"):
        calibrate(exact, problem, 10, 10, quantities={"bad": lambda x, y, **params: x})
    with pytest.raises(ValueError, match="quantity 'bad' must not be NaN"):
        bad = {"bad": lambda x, y, **params: x[..., 0].log()}
        calibrate(exact, problem, 10, 10, quantities=bad)
    draws, truth = torch.zeros(10, 5, 3), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(10, 5, 3\)"):
        from_draws(draws, truth[:4])
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(1,\)"):
        from_draws([1.0], truth)
    draws[2, 3, 1] = torch.nan
    with pytest.raises(ValueError, match="'draws' of simulation 3 must be finite"):
        from_draws(draws, truth, memory=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(100, 60, 1, 8, 8, generator=generator)
    host = from_draws(samples[1:], samples[0])
    compare(host, from_draws(samples[1:].cuda(), samples[0].cuda()))
