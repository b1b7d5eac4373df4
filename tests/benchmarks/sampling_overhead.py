"""What drawing costs over the bare network evaluations in it; best of alternating repetitions in
one process.

Run with ``python -m tests.benchmarks.sampling_overhead``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.posterior.push_forward import CHUNK_NUMBERS

CASES: dict[str, tuple[str, dict[str, int], int]] = {
    "linear-gaussian, dim 32": ("linear-gaussian", {"dim": 32, "obs_dim": 16}, 4000),
    "gaussian-field 32x32": ("gaussian-field", {"size": 32, "num_points": 64}, 64),
}
"""Problem, its arguments, draws for each of 8 observations."""


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, (problem_name, kwargs, num) in CASES.items():
        problem = problems.load(problem_name, **kwargs)
        for observation in ("adapter", "context", "both"):
            vfm = vi.VariationalFlowMap.for_problem(
                problem, observation=observation, num_simulations=4000
            )
            _, y, params = problem.simulate(8, seed=0)
            posterior = vfm(y, **params)
            z = posterior.latent.sample((num,))
            context = None if observation == "adapter" else vfm.condition(y, params).features
            rows = max(1, CHUNK_NUMBERS["cpu"] // z[0].numel())
            s, t = torch.ones(()), torch.zeros(())

            def bare() -> None:
                with torch.no_grad():
                    for part in z.split(rows):  # noqa: B023
                        vfm.flow_map._evaluate(part, s, t, context)  # noqa: B023

            def draw() -> None:
                vfm(y, **params).sample((num,))  # noqa: B023

            bare(), draw()
            pairs = [(seconds(draw), seconds(bare)) for _ in range(7)]
            figures[f"{name}, {observation}"] = {
                "ratio": median(a / b for a, b in pairs),
                "draw_seconds": median(a for a, _ in pairs),
                "network_seconds": median(b for _, b in pairs),
            }
    return figures


if __name__ == "__main__":
    run("sampling_overhead", main)
