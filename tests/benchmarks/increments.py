"""How far posterior means of signals with heavy-tailed increments are from the best possible ones.

Run with ``python -m tests.benchmarks.increments [--law cauchy] [--blur 2] ...``. The gold standard
is long Gibbs chains from the prior. ``gap`` is the mean squared error of a posterior mean over
that of the gold standard's, in dB, through

    E |m - x|^2 = E |m* - x|^2 + E |m - m*|^2,

with the posterior variance in place of the first term on the right, which tells the same from
fewer signals; ``gap_of_truths`` is the quotient of the errors themselves, ``gap_by_signal`` the
mean of the gap of each. Means of N draws miss by 1 / N of the variance, 4.3 / N dB. ``coverage``
is the share of true values in central 90 % intervals, ``gold_error`` what is left of the error in
the gold standard, from its chains, in dB.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.common import run
from vfm_inverse import correction, problems
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problems import increments
from vfm_inverse.training.loop import fit

CHAINS, AT_ONCE = 8, 8


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--law", nargs="+", default=increments.LAWS, choices=increments.LAWS)
    parser.add_argument("--blur", nargs="+", type=float, default=[0.0, 2.0])
    parser.add_argument("--signals", type=int, default=48)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--sweeps", type=int, default=1200, help="of each chain of the gold")
    parser.add_argument("--steps", type=int, default=1000, help="of the training; 0 for none")
    parser.add_argument("--corrected", type=int, default=8, help="signals that are corrected")
    return parser.parse_args()


def gold_standard(y: Tensor, sweeps: int, **law: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance ``(n, 1, length)`` of each posterior, and the variance of the mean."""
    parts = [
        increments.gibbs(
            part, sweeps * CHAINS // 4, 4, chains=CHAINS, warmup=200, chain_seed=i, **law
        )
        for i, part in enumerate(y.split(AT_ONCE))
    ]
    draws = torch.cat(parts, 1).double()
    by_chain = draws.unflatten(0, (-1, CHAINS)).mean(0)
    return draws.mean(0), draws.var(0), by_chain.var(0) / CHAINS


def figures(draws: Tensor, x: Tensor, mean: Tensor, variance: Tensor) -> dict[str, float]:
    """Those of equally weighted draws ``(num, n, 1, length)``."""
    own, many = draws.double().mean(0), len(x)
    error, total = (own - mean).square(), variance.sum((1, 2))
    by_signal = 10 * (1 + error.sum((1, 2)) / total).log10()
    inside = (x >= draws.quantile(0.05, 0)) & (x <= draws.quantile(0.95, 0))
    truths = (own - x).square().sum() / (mean - x).square().sum()
    return {
        "gap": 10 * math.log10(1 + float(error.sum() / total.sum())),
        "gap_of_truths": 10 * math.log10(float(truths)),
        "gap_by_signal": float(by_signal.mean()),
        "gap_median_signal": float(by_signal.median()),
        "gap_worst_signal": float(by_signal.max()),
        "coverage": float(inside.double().mean()),
        "signals": many,
    }


def case(law: Any, blur: float, asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of one law and observation."""
    problem = problems.load("increments", law=law, blur=blur)
    assert problem.physics is not None
    sigma = float(problem.physics.noise_model.sigma)
    x, y, _ = problem.simulate(asked.signals, seed=101, split="test")
    begun = time.perf_counter()
    mean, variance, miss = gold_standard(y, asked.sweeps, sigma=sigma, law=law, blur=blur)
    found: dict[str, Any] = {
        "sigma": sigma,
        "gold_error": 10 * math.log10(1 + float(miss.sum() / variance.sum())),
        "gold_seconds": time.perf_counter() - begun,
    }
    vfm = VariationalFlowMap.for_problem(problem, seed=0, progress=False)
    few = slice(asked.corrected)

    def measure(name: str) -> None:
        sweeps = vfm.config["sweeps"]
        for ending, number in (("", sweeps), (" without sweeps", 0)):
            vfm.config["sweeps"] = number
            torch.manual_seed(0)
            begun = time.perf_counter()
            draws = vfm(y).sample((asked.draws,))
            spent = 1e3 * (time.perf_counter() - begun) / draws.shape[:2].numel()
            found[name + ending] = figures(draws, x, mean, variance) | {"ms_per_draw": spent}
        vfm.config["sweeps"] = sweeps

    measure("untrained")
    if asked.steps:
        begun = time.perf_counter()
        fit(vfm, problem, steps=asked.steps, batch_size=128, seed=0, progress=False)
        found["training_seconds"] = time.perf_counter() - begun
        measure("trained")
    for name, corrector in (("psis", correction.psis), ("auto", correction.auto)):
        if not asked.corrected:
            break
        begun = time.perf_counter()
        ensemble = corrector(vfm, y[few], asked.draws, seed=0)
        spent = (time.perf_counter() - begun) / len(y[few])
        draws = ensemble.sample((asked.draws,))
        told = {
            key: float(value.median())
            for key, value in ensemble.diagnostics.items()
            if key in ("k_hat", "rhat", "satisfied")
        }
        found[name] = figures(draws, x[few], mean[few], variance[few]) | told
        found[name]["seconds_per_signal"] = spent
    return found


def main() -> dict[str, Any]:
    """The table."""
    asked = parsed()
    return {
        f"{law}, {'deconvolved' if blur else 'denoised'} (blur {blur:g})": case(law, blur, asked)
        for law in asked.law
        for blur in asked.blur
    }


if __name__ == "__main__":
    run("increments", main)
