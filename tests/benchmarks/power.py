"""Power of every diagnostic: planted fault x diagnostic x number of simulations.

A linear-Gaussian problem with four unknowns and three data, whose exact posterior is correlated.
Each entry of the table is the share of repetitions that reject at level 0.05: the level in the
column ``exact``, the power in the others.  Tests of ranks and scores take all repetitions at once;
reports, TARP, L-C2ST and the kernel Stein test are run one by one and less often.

Run with ``python -m tests.benchmarks.power``.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tests.benchmarks.common import run
from vfm_inverse import calibration
from vfm_inverse.correction.stein import stein_test
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics import ranks, scores
from vfm_inverse.statistics.joint_coverage import tarp
from vfm_inverse.statistics.local_c2st import local_c2st
from vfm_inverse.statistics.marginals import marginals
from vfm_inverse.statistics.quantities import default_quantities, evaluate

DESIGN = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
"""Data of the four unknowns: sums of neighbours, which leave the posterior correlated."""

SIGMA = 0.5

LEVEL = 0.05
"""Level of every test."""

NUMBERS = 2**24
"""Numbers in the draws of the repetitions that are computed together."""

FAULTS = ("exact", "shift 0.3", "std x 0.8", "std x 1.25", "prior", "correlation lost")


def simulate(
    fault: str, num_simulations: int, num_draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ``(num_draws, num_simulations, 4)`` of a faulty posterior, truths, data ``(*, 3)``.

    Raises:
        ValueError: an unknown fault.
    """
    if fault not in FAULTS:
        raise ValueError(f"'fault' must be one of {FAULTS}; got '{fault}'")
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(num_simulations, 4, generator=generator)
    y = truth @ DESIGN.T + SIGMA * torch.randn(num_simulations, 3, generator=generator)
    return posterior_draws(fault, y, num_draws, generator), truth, y


def gaussian_posterior(y: Tensor) -> tuple[Tensor, Tensor]:
    """Means ``(*, 4)`` and covariance ``(4, 4)`` of the exact posteriors of ``y`` ``(*, 3)``."""
    covariance = torch.linalg.inv(torch.eye(4) + DESIGN.T @ DESIGN / SIGMA**2)
    return y @ DESIGN @ covariance / SIGMA**2, covariance


def posterior_draws(
    fault: str, y: Tensor, num_draws: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws ``(num_draws, len(y), 4)`` of the faulty posterior of ``y`` ``(*, 3)``."""
    mean, covariance = gaussian_posterior(y)
    std = covariance.diagonal().sqrt()
    noise = torch.randn(num_draws, len(y), 4, generator=generator)
    if fault == "prior":
        return noise
    if fault == "correlation lost":
        return mean + noise * std
    spread = {"std x 0.8": 0.8, "std x 1.25": 1.25}.get(fault, 1.0)
    shift = 0.3 * std if fault == "shift 0.3" else 0.0
    return mean + shift + spread * noise @ torch.linalg.cholesky(covariance).T


# -- diagnostics ----------------------------------------------------------------------------------
#
# With ``repetitions``: the simulations of all of them, one after the other, to rejections
# ``(repetitions,)`` at level 0.05.


def log_likelihood(x: Tensor, y: Tensor, **params: Tensor) -> Tensor:
    """Up to a constant: ``(num, batch, 4)`` and ``(batch, 3)`` to ``(num, batch)``."""
    return -0.5 * (x @ DESIGN.T - y).square().sum(-1) / SIGMA**2


def rank_tests(
    draws: Tensor, truth: Tensor, y: Tensor, repetitions: int = 1
) -> dict[str, np.ndarray]:
    """Tests of the ranks, without and with the log-likelihood, after Bonferroni's correction.

    ``rank ECDF`` and ``HPD coverage`` are two families of a report: tests of ranks and of density
    ranks.  ``Kolmogorov`` spreads each rank uniformly over its cell, which makes the classical
    test exact.  ``central coverage`` tests that curve: the truth lies in the central interval of
    level k / 50 of 99 draws if its folded rank is below k, so that the coverage at all levels is
    the ECDF of folded ranks.
    """
    num_draws = len(draws)
    values = evaluate(
        default_quantities((4,), log_likelihood), torch.cat([truth[None], draws]), y, {}
    )
    stream = torch.Generator().manual_seed(draws.shape[1])
    count = values.shape[1] * values.shape[2]
    found_ranks = marginals(
        values.flatten(1).T.contiguous(), torch.rand(2, count, generator=stream)
    )
    rank, density = (  # (simulations, repetitions, quantities)
        value.reshape(repetitions, -1, values.shape[2]).transpose(0, 1).numpy()
        for value in (found_ranks.rank, found_ranks.density_rank)
    )
    num = len(rank)
    bins = max(2, min(20, num // 10, num_draws + 1))
    cell = rank * bins // (num_draws + 1)
    histogram = np.stack([(cell == b).sum(0) for b in range(bins)])
    spread = np.random.default_rng(num).uniform(size=rank.shape)
    u = np.sort((rank + spread) / (num_draws + 1), axis=0)
    steps = np.arange(num + 1).reshape(-1, 1, 1) / num
    distance = np.maximum((steps[1:] - u).max(0), (u - steps[:-1]).max(0))
    half = (num_draws + 1) // 2
    chi2, kolmogorov = ranks.chi2_test(histogram, num_draws)[1], stats.kstwo.sf(distance, num)
    found = {}
    for which, count in {"": -1, ", log-likelihood": values.shape[2]}.items():
        level = LEVEL / len(range(values.shape[2])[:count])
        tests = {
            "rank ECDF": outside(rank, num_draws, level),
            "chi2": chi2 <= level,
            "Kolmogorov": kolmogorov <= level,
            "central coverage": outside(
                np.maximum(rank, num_draws - rank) - half, half - 1, level
            ),
            "HPD coverage": outside(density, num_draws, level),
        }
        for name, rejected in tests.items():
            found[name + which] = rejected[:, :count].any(1)
    return found


def outside(rank: np.ndarray, num_draws: int, level: float) -> np.ndarray:
    """Whether the ECDF of ``rank`` ``(simulations, ...)`` leaves its band of this level."""
    positions, counts = ranks.ecdf_counts(rank, num_draws)
    lower, upper = band(num_draws, len(rank), level)
    shape = (-1, *[1] * (counts.ndim - 1))
    return ((counts < lower.reshape(shape)) | (counts > upper.reshape(shape))).any(0)


@cache
def band(num_draws: int, num_simulations: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """:func:`vfm_inverse.statistics.ranks.ecdf_band`, once for all repetitions and faults."""
    positions, _ = ranks.ecdf_counts(np.zeros((1, 1)), num_draws)
    return ranks.ecdf_band(positions, num_simulations, level)


def energy_test(
    draws: Tensor, truth: Tensor, y: Tensor, repetitions: int = 1
) -> dict[str, np.ndarray]:
    """Are truths as far from the draws as the draws from one another?

    The difference of the two mean distances has mean zero for an exact posterior; its normal test
    over the simulations is two-sided.
    """
    accuracy = torch.linalg.vector_norm(draws - truth, dim=-1).mean(0)
    # energy score = accuracy - spread / 2, so that accuracy - spread is this:
    gap = 2 * scores.field_scores(draws, truth)[:, 0] - accuracy
    gap = gap.double().reshape(repetitions, -1).numpy()
    return {"energy distance": stats.ttest_1samp(gap, 0, axis=1).pvalue <= LEVEL}


def report_tests(
    draws: Tensor, truth: Tensor, y: Tensor, seed: int, num_null: int = 199
) -> dict[str, float]:
    """Verdict of a report and its TARP, which uses the data, and TARP without data.

    The verdict as a p-value: the smallest one after correction for all tests.
    """
    quantities = default_quantities((4,), log_likelihood)
    report = calibration.from_draws(draws, truth, y=y, quantities=quantities, seed=seed)
    families = [report.p_adjusted, report.density_p_adjusted, report.tarp_p_adjusted]
    blind = tarp(draws, truth, num_null=num_null, num_bootstrap=2, seed=seed)
    return {
        "verdict of the report": min(float(family.min()) for family in families),
        "TARP": blind.attrs["p_value"],
        "TARP, with y": report.tarp_p_value.item(),
    }


def new_observation(seed: int) -> tuple[Tensor, torch.Generator]:
    """An observation ``(1, 3)`` that is not among the simulations of ``seed``; its generator."""
    generator = torch.Generator().manual_seed(seed + 2**20)
    observed = torch.randn(1, 4, generator=generator) @ DESIGN.T
    return observed + SIGMA * torch.randn(1, 3, generator=generator), generator


def local_test(
    fault: str, draws: Tensor, truth: Tensor, y: Tensor, seed: int, steps: int = 100
) -> dict[str, float]:
    """L-C2ST at one new observation of the same problem."""
    observed, generator = new_observation(seed)
    at = posterior_draws(fault, observed, 100, generator)
    quick: dict[str, Any] = {"num_null": 19, "steps": steps, "width": 16, "batch_size": 128}
    report = local_c2st(draws[0], truth, y, at, observed, seed=seed, **quick)
    return {"L-C2ST": report.p_value.item()}


def kernel_test(fault: str, num_draws: int, seed: int) -> dict[str, float]:
    """Kernel Stein test of ``num_draws`` draws at one observation: simulations are not needed."""
    observed, generator = new_observation(seed)
    mean, covariance = gaussian_posterior(observed)
    u = posterior_draws(fault, observed, num_draws, generator)[:, 0]
    score = -torch.linalg.solve(covariance, (u - mean).T).T
    with seeded(seed):
        return {"KSD": float(stein_test(u, score, 299)[1])}


# -- the table ------------------------------------------------------------------------------------


def fast_tests(
    fault: str, num_simulations: int, repetitions: int, num_draws: int = 99, seed: int = 0
) -> dict[str, np.ndarray]:
    """Rejections ``(repetitions,)`` by the tests of ranks and of the energy distance."""
    found = defaultdict(list)
    piece = max(1, NUMBERS // (4 * num_draws * num_simulations))
    for start in range(0, repetitions, piece):
        count = min(piece, repetitions - start)
        data = simulate(fault, count * num_simulations, num_draws, seed + start)
        for name, rejected in {**rank_tests(*data, count), **energy_test(*data, count)}.items():
            found[name].append(rejected)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def slow_tests(
    fault: str, num_simulations: int, repetitions: int, num_draws: int = 99, seed: int = 0
) -> dict[str, np.ndarray]:
    """Rejections ``(repetitions,)`` by reports, TARP, L-C2ST and the kernel Stein test."""
    found = defaultdict(list)
    for number in range(seed, seed + repetitions):
        data = simulate(fault, num_simulations, num_draws, number)
        single = {**report_tests(*data, number), **local_test(fault, *data, number)}
        for name, p_value in {**single, **kernel_test(fault, num_simulations, number)}.items():
            found[name].append(p_value <= LEVEL + 1e-9)  # 1 / 20 in single precision
    return {name: np.array(values) for name, values in found.items()}


def markdown(table: dict[str, dict[str, Sequence[float]]]) -> list[str]:
    """Lines of a table: a row a diagnostic, a column a fault, numbers of simulations in a cell."""
    faults = list(table)
    lines = ["| | " + " | ".join(faults) + " |", "|---" * (1 + len(faults)) + "|"]
    for name in table[faults[0]]:
        cells = (" / ".join(f"{share:.2f}" for share in table[fault][name]) for fault in faults)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main(args: argparse.Namespace) -> dict[str, Any]:
    table: dict[str, dict[str, list[float]]] = {fault: {} for fault in FAULTS}
    for num, repetitions, fewer in zip(args.simulations, args.repetitions, args.slow, strict=True):
        for fault in FAULTS:
            found = fast_tests(fault, num, repetitions) | slow_tests(fault, num, fewer)
            for name, rejected in found.items():
                table[fault].setdefault(name, []).append(float(rejected.mean()))
        # What there is so far, for who cannot wait.
        print(f"{num} simulations", *markdown(table), sep="\n", file=sys.stderr, flush=True)
    return {"simulations": args.simulations, "rejections": table, "markdown": markdown(table)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--repetitions", nargs="+", type=int, default=[200, 200, 100])
    parser.add_argument(
        "--slow",
        nargs="+",
        type=int,
        default=[60, 40, 20],
        help="repetitions of reports, TARP, L-C2ST and KSD",
    )
    arguments = parser.parse_args()
    run("power", lambda: main(arguments))
