"""steps="auto" against 4000 fixed steps: held-out energy score on the same simulations, and steps.

``python -m tests.benchmarks.open_training [NAME ...]``; an hour or so for all of them on one core.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.training.loop import fit

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "linear-gaussian": ({}, 64),
    "gaussian-field": ({"size": 8}, 64),
    "lognormal-field": ({}, 64),
    "checkerboard": ({}, 128),
    "photo-deblur": ({"size": 16}, 32),
}
"""Settings of the problem, and simulations a step."""


def main() -> dict[str, Any]:
    """The figures by problem."""
    return {name: compared(name) for name in sys.argv[1:] or CASES}


def compared(name: str) -> dict[str, Any]:
    """Scores of the weights that each of the two keeps, and of the start."""
    settings, batch_size = CASES[name]
    problem, figures = problems.load(name, **settings), {}
    for steps in (4000, "auto"):
        vfm = VariationalFlowMap.for_problem(problem, seed=0)
        options: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "log_every": 10_000}
        history = fit(vfm, problem, **options, device="cpu", progress=False)
        scores = {int(row["step"]): row["validation"] for row in history if "validation" in row}
        figures[f"{steps}"] = {
            "steps": history[-1]["step"],
            "start": scores[0],
            "last": history[-1]["validation"],
            "seconds": history[-1]["seconds"],
            "note": vfm.training_note,
        }
    ratio = figures["auto"]["last"] / figures["4000"]["last"]
    return {**figures, "auto_over_fixed": ratio}


if __name__ == "__main__":
    run("open_training", main)
