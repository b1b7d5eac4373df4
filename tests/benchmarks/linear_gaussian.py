"""Linear-Gaussian posteriors against the exact ones, with and without the Gaussian start, and the
paper's preset.

Run with ``python -m tests.benchmarks.linear_gaussian [--dim 4 --obs-dim 2]``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import vfm_inverse as vi
from tests.benchmarks.common import gaussian_errors, run, sbc
from vfm_inverse import problems

SETTINGS: dict[str, dict[str, Any]] = {
    "start_off": {"model": {"gaussian_start": False}},
    "start_on": {"model": {}},
    "paper_preset": {
        "model": {"gaussian_start": False, "observation": "adapter", "adapter": "diagonal"},
        "fit": {"objective": "vfm"},
    },
}


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "dim": args.dim,
        "obs_dim": args.obs_dim,
        "training_steps": args.steps,
    }
    for name in args.settings:
        for seed in range(args.seeds):
            problem = problems.load(
                "linear-gaussian", dim=args.dim, obs_dim=args.obs_dim, sigma=0.3, seed=seed
            )
            start = time.perf_counter()
            vfm = vi.VariationalFlowMap.for_problem(problem, seed=seed, **SETTINGS[name]["model"])
            vi.fit(
                vfm,
                problem,
                steps=args.steps,
                batch_size=256,
                learning_rate=2e-3,
                seed=seed,
                progress=False,
                **SETTINGS[name].get("fit", {}),
            )
            result: dict[str, Any] = {"training_seconds": time.perf_counter() - start}
            x, y, _ = problem.simulate(500, split="test", seed=1000 + seed)
            exact = problem.reference_posterior(y)
            for steps in args.map_steps:
                vfm.steps = steps
                errors = gaussian_errors(
                    lambda y, vfm=vfm: vfm(y).sample((2000,)),
                    y,
                    exact.mean,
                    exact.covariance_matrix[0],
                )
                result[f"{steps}_step"] = {**errors, "sbc": sbc(vfm, problem)}
            figures.setdefault(name, []).append(result)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=4)
    parser.add_argument("--obs-dim", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--map-steps", type=int, nargs="+", default=[1])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    run("linear_gaussian", lambda: main(arguments))
