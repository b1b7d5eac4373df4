"""The three ways in which the observation can enter, on a field that is not Gaussian.

Run with ``python -m tests.benchmarks.lognormal_field``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import vfm_inverse as vi
from tests.benchmarks.common import run, sbc
from vfm_inverse import problems


def main(args: argparse.Namespace) -> dict[str, Any]:
    problem = problems.load("lognormal-field", sigma=0.2)
    figures: dict[str, Any] = {"training_steps": args.steps}
    start = vi.VariationalFlowMap.for_problem(problem)
    figures["gaussian_start"] = sbc(start, problem)
    for observation in args.observation:
        begin = time.perf_counter()
        vfm = vi.VariationalFlowMap.for_problem(
            problem,
            observation=observation,
            adapter=None if observation == "context" else args.adapter,
            network=args.network,
            width=args.width,
        )
        log = vi.fit(
            vfm,
            problem,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            progress=False,
        )
        result: dict[str, Any] = {
            "training_seconds": time.perf_counter() - begin,
            "last_log_row": log[-1],
        }
        for steps in args.map_steps:
            vfm.steps = steps
            result[f"{steps}_step"] = sbc(vfm, problem)
            result[f"{steps}_step"]["energy_ratio"] = (
                result[f"{steps}_step"]["energy_score"] / figures["gaussian_start"]["energy_score"]
            )
        figures[observation] = result
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--network", default="auto")
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--map-steps", type=int, nargs="+", default=[1])
    parser.add_argument("--observation", nargs="+", default=["adapter", "context", "both"])
    arguments = parser.parse_args()
    run("lognormal_field", lambda: main(arguments))
