"""Power of every diagnostic: planted fault x diagnostic x number of simulations.

A linear-Gaussian problem with four unknowns and three data, whose exact posterior is correlated.
Each entry of the table is the share of repetitions that reject at level 0.05: the level in the row
``exact``, the power in the others.

Run with ``python -m tests.benchmarks.power``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from tests.benchmarks.common import run
from vfm_inverse import calibration, scores
from vfm_inverse.local_tests import local_c2st
from vfm_inverse.quantities import default_quantities
from vfm_inverse.tarp import tarp

#: Data of the four unknowns: sums of neighbours, which leave the posterior correlated.
DESIGN = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
SIGMA = 0.5
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


def posterior_draws(fault: str, y: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Draws ``(num_draws, len(y), 4)`` of the faulty posterior of ``y`` ``(*, 3)``."""
    covariance = torch.linalg.inv(torch.eye(4) + DESIGN.T @ DESIGN / SIGMA**2)
    mean, std = y @ DESIGN @ covariance / SIGMA**2, covariance.diagonal().sqrt()
    noise = torch.randn(num_draws, len(y), 4, generator=generator)
    if fault == "prior":
        return noise
    if fault == "correlation lost":
        return mean + noise * std
    spread = {"std x 0.8": 0.8, "std x 1.25": 1.25}.get(fault, 1.0)
    shift = 0.3 * std if fault == "shift 0.3" else 0.0
    return mean + shift + spread * noise @ torch.linalg.cholesky(covariance).T


# -- diagnostics: each gives the p-value of one data set ------------------------------------------


def log_likelihood(x: Tensor, y: Tensor, **params: Tensor) -> Tensor:
    """Up to a constant: ``(num, batch, 4)`` and ``(batch, 3)`` to ``(num, batch)``."""
    return -0.5 * (x @ DESIGN.T - y).square().sum(-1) / SIGMA**2


QUANTITIES: dict[str, dict[str, Any]] = {
    "plain": default_quantities((4,)),
    "with log-likelihood": default_quantities((4,), log_likelihood),
}


def rank_tests(draws: Tensor, truth: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """ECDF verdict and chi-square test of the ranks, both after Bonferroni's correction."""
    found = {}
    for name, quantities in QUANTITIES.items():
        report = calibration.from_draws(draws, truth, y=y, quantities=quantities, seed=seed)
        found[f"rank ECDF, {name}"] = float(report.p_adjusted.min())
        smallest = float(report.chi2_p_value.min()) * len(quantities)
        found[f"rank chi2, {name}"] = min(1.0, smallest)
    return found


def tarp_tests(draws: Tensor, truth: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """TARP without and with reference points that depend on the data."""
    quick: dict[str, Any] = {"num_null": 199, "num_bootstrap": 2, "seed": seed}
    return {
        "TARP, no data": tarp(draws, truth, **quick).attrs["p_value"],
        "TARP, with data": tarp(draws, truth, y=y, **quick).attrs["p_value"],
    }


def energy_test(draws: Tensor, truth: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Are truths as far from the draws as the draws from one another?

    The difference of the two mean distances has mean zero for an exact posterior; its normal test
    over the simulations is two-sided.
    """
    accuracy = torch.linalg.vector_norm(draws - truth, dim=-1).mean(0)
    # energy score = accuracy - spread / 2, so that accuracy - spread is this:
    gap = 2 * scores.energy_score(draws, truth) - accuracy
    return {"energy distance": float(stats.ttest_1samp(gap.double().numpy(), 0).pvalue)}


def local_test(
    fault: str, draws: Tensor, truth: Tensor, y: Tensor, seed: int, steps: int = 100
) -> dict[str, float]:
    """L-C2ST at one new observation of the same problem."""
    generator = torch.Generator().manual_seed(seed + 2**20)
    observed = torch.randn(1, 4, generator=generator) @ DESIGN.T
    observed = observed + SIGMA * torch.randn(1, 3, generator=generator)
    at = posterior_draws(fault, observed, 100, generator)
    quick: dict[str, Any] = {"num_null": 19, "steps": steps, "width": 16, "batch_size": 128}
    report = local_c2st(draws[0], truth, y, at, observed, seed=seed, **quick)
    return {"L-C2ST": report.p_value.item()}


def table(
    num_simulations: int,
    repetitions: int,
    *,
    faults: Sequence[str] = FAULTS,
    num_draws: int = 99,
    local: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Share of repetitions with a p-value of at most 0.05, by fault and diagnostic."""
    rates: dict[str, dict[str, float]] = {}
    for fault in faults:
        total: Counter[str] = Counter()
        for repetition in range(repetitions):
            number = seed + repetition
            data = simulate(fault, num_simulations, num_draws, number)
            found = {**rank_tests(*data, number), **tarp_tests(*data, number)}
            found |= energy_test(*data, number)
            if local:
                found |= local_test(fault, *data, number)
            total.update({name: int(p <= 0.05 + 1e-12) for name, p in found.items()})
        rates[fault] = {name: count / repetitions for name, count in total.items()}
    return rates


def main(args: argparse.Namespace) -> dict[str, Any]:
    rates = {
        num: table(num, args.repetitions, num_draws=args.draws, local=not args.no_local)
        for num in args.simulations
    }
    return {"repetitions": args.repetitions, "draws": args.draws, "rejections": rates}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--no-local", action="store_true", help="leave L-C2ST out")
    arguments = parser.parse_args()
    run("power", lambda: main(arguments))
