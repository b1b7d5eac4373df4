"""Heat, advection-diffusion, travel times, gravity and deconvolution against their exact
posteriors: untrained and trained.

Run with ``python -m tests.benchmarks.linear_fields``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import gaussian_errors, run, sbc
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem

NAMES = ("heat", "advection-diffusion", "travel-time", "gravity", "seismic-deconvolution")


def figures_of(
    vfm: vi.VariationalFlowMap, problem: InverseProblem, args: argparse.Namespace
) -> dict[str, Any]:
    """Errors of mean and covariance on fresh observations, and SBC over all cells."""
    _, y, _ = problem.simulate(args.observations, split="test", seed=3)
    exact = problem.reference_posterior(y)

    def draw(rows: Tensor) -> Tensor:
        return vfm(rows).sample((2000,)).flatten(2)

    errors = gaussian_errors(draw, y, exact.mean.flatten(1), exact.covariance_matrix[0], batch=1)
    return {**errors, "sbc": sbc(vfm, problem, simulations=args.simulations)}


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"training_steps": args.steps}
    for name in args.problems:
        settings = {} if name == "seismic-deconvolution" else {"size": args.size}
        problem = problems.load(name, **settings)
        start = time.perf_counter()
        vfm = vi.VariationalFlowMap.for_problem(problem)
        result: dict[str, Any] = {"build_seconds": time.perf_counter() - start}
        result["untrained"] = figures_of(vfm, problem, args)
        if args.steps:
            start = time.perf_counter()
            vi.fit(vfm, problem, steps=args.steps, batch_size=64, progress=False)
            result["training_seconds"] = time.perf_counter() - start
            result["trained"] = figures_of(vfm, problem, args)
        figures[name] = result
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--simulations", type=int, default=500)
    arguments = parser.parse_args()
    run("linear_fields", lambda: main(arguments))
