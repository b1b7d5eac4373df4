"""Which adapter family serves fields best for its cost, and what the conditional map adds.

Run with ``python -m tests.benchmarks.field_families``. Every setting is trained for as many steps
on the same problem; ``relative`` is its energy score over that of the Gaussian start, the
classical answer that all but the ``context`` map begin with.

``lognormal``: the exponential of a Matérn field on 32 x 32 nodes, 64 fixed stations. ``inpaint``:
patches of photographs, where mask and noise level change with every observation.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import vfm_inverse as vi
from tests.benchmarks.common import run, sbc
from vfm_inverse import problems

PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lognormal": ("lognormal-field", {"size": 32, "num_points": 64, "sigma": 0.2}),
    "inpaint": ("photo-inpaint", {"size": 32}),
}

SETTINGS = (
    "both contraction",
    "both diagonal",
    "both low-rank",
    "both spline",
    "context",
    "adapter contraction",
    "adapter diagonal",
    "adapter low-rank",
    "adapter spline",
)


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"training_steps": args.steps, "simulations": args.simulations}
    for name in args.problems:
        kind, options = PROBLEMS[name]
        problem = problems.load(kind, **options)
        start = sbc(vi.VariationalFlowMap.for_problem(problem), problem, args.simulations, 99)
        figures[name] = {"gaussian start": start}
        for setting in args.settings:
            observation, _, adapter = setting.partition(" ")
            vfm = vi.VariationalFlowMap.for_problem(
                problem, observation=observation, adapter=adapter or None
            )
            begin = time.perf_counter()
            log = vi.fit(
                vfm, problem, steps=args.steps, batch_size=64, num_validation=256, progress=False
            )
            seconds = time.perf_counter() - begin
            result = sbc(vfm, problem, args.simulations, 99)
            figures[name][setting] = {
                "training_seconds": seconds,
                "relative": result["energy_score"] / start["energy_score"],
                **result,
                "last_log_row": log[-1],
            }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--simulations", type=int, default=300)
    arguments = parser.parse_args()
    run("field_families", lambda: main(arguments))
