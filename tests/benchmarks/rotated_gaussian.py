"""Two unknowns, one datum at 36 degrees, sigma 0.1: the direction that the data leave free must
stay free.

Run with ``python -m tests.benchmarks.rotated_gaussian``. The paper's preset stands beside the
default.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import problems

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "default"),
    "start_off": ({"gaussian_start": False}, "default"),
    "paper_preset": (
        {"gaussian_start": False, "observation": "adapter", "adapter": "diagonal"},
        "vfm",
    ),
}


def main(args: argparse.Namespace) -> dict[str, Any]:
    problem = problems.load("rotated-gaussian")
    angle = math.radians(36)
    directions = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    _, y, _ = problem.simulate(500, split="test", seed=1)
    figures: dict[str, Any] = {"exact": {"measured_std": 0.1 / math.sqrt(1.01), "null_std": 1.0}}
    for name, (options, objective) in SETTINGS.items():
        start = time.perf_counter()
        vfm = vi.VariationalFlowMap.for_problem(problem, **options)
        vi.fit(
            vfm,
            problem,
            steps=args.steps,
            batch_size=256,
            learning_rate=2e-3,
            objective=objective,
            progress=False,
        )
        draws = vfm(y).sample((2000,)) @ directions.T
        measured, null = draws.var(0).mean(0).sqrt().tolist()
        figures[name] = {
            "measured_std": measured,
            "null_std": null,
            "training_seconds": time.perf_counter() - start,
        }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    run("rotated_gaussian", lambda: main(arguments))
