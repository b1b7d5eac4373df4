"""Matern fields seen at stations, against kriging: untrained and trained, at one noise level and
at many.

Run with ``python -m tests.benchmarks.gaussian_field``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import gaussian_errors, run, sbc
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem

SIZES = {16: 24, 32: 64}
"""Side of the grid: number of stations."""
SIGMAS = (0.05, 0.2, 0.5)


def figures_of(
    vfm: vi.VariationalFlowMap, problem: InverseProblem, args: argparse.Namespace
) -> dict[str, Any]:
    """Errors for every noise level asked for, each on fresh observations, and SBC over all
    pixels."""
    result: dict[str, Any] = {}
    for sigma in SIGMAS if problem.param_shapes else (0.2,):
        x = problem.sample_prior(args.observations, split="test", seed=3)
        params = {"sigma": torch.full((len(x),), sigma)} if problem.param_shapes else {}
        y = problem.observe(x, seed=4, **params)
        exact = problem.reference_posterior(y, **params)

        def draw(rows: Tensor, sigma: float = sigma) -> Tensor:
            level = {"sigma": torch.full((len(rows),), sigma)} if problem.param_shapes else {}
            return vfm(rows, **level).sample((2000,)).flatten(2)

        result[f"sigma_{sigma}"] = gaussian_errors(
            draw, y, exact.mean.flatten(1), exact.covariance_matrix[0], batch=1
        )
    result["sbc"] = sbc(vfm, problem, simulations=args.simulations)
    return result


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"training_steps": args.steps}
    for size in args.sizes:
        for sigma in (0.2, [0.05, 0.5]):
            problem = problems.load(
                "gaussian-field", size=size, num_points=SIZES[size], sigma=sigma
            )
            start = time.perf_counter()
            vfm = vi.VariationalFlowMap.for_problem(problem)
            result: dict[str, Any] = {"build_seconds": time.perf_counter() - start}
            result["untrained"] = figures_of(vfm, problem, args)
            start = time.perf_counter()
            vi.fit(vfm, problem, steps=args.steps, batch_size=64, progress=False)
            result["training_seconds"] = time.perf_counter() - start
            result["trained"] = figures_of(vfm, problem, args)
            figures[f"{size}x{size}, sigma {sigma}"] = result
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--simulations", type=int, default=500)
    arguments = parser.parse_args()
    run("gaussian_field", lambda: main(arguments))
