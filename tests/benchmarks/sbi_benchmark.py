"""The simulation-based-inference benchmark: classifier two-sample scores against its published
reference draws, of one-step draws, of draws as ``vfm(y).sample`` gives them, and of those that
``correction.auto`` makes of a given number of proposals.

Run with ``python -m tests.benchmarks.sbi_benchmark --truth DIR``; see :mod:`tests.benchmarks.c2st`
for the protocol and the folder. Training sees ``--simulations`` simulations and nothing of the
observations that are scored.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import vfm_inverse as vi
from tests.benchmarks.c2st import TASKS, c2st, load_observation, load_problem
from tests.benchmarks.common import run
from vfm_inverse import correction

DRAWS = 10_000


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"simulations": args.simulations, "training_steps": args.steps}
    for task in args.tasks:
        problem = load_problem(args.truth, task).record(args.simulations, seed=args.seed)
        begin = time.perf_counter()
        vfm = vi.VariationalFlowMap.for_problem(
            problem, observation=args.observation, adapter=args.adapter
        )
        log = vi.fit(
            vfm,
            problem,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            seed=args.seed,
            progress=args.progress,
        )
        result: dict[str, Any] = {
            "training_seconds": time.perf_counter() - begin,
            "last_log_row": log[-1],
        }
        if args.out:
            vfm.save(f"{args.out}/{task}.safetensors")
        raw, sampled, corrected, seconds, notes = [], [], [], 0.0, []
        answered: list[str] = []
        for number in args.numbers:
            observation = load_observation(args.truth, task, number)
            torch.manual_seed(number)
            posterior = vfm(observation.y)
            draws = posterior.raw.sample((DRAWS,)).squeeze(1)
            raw.append(c2st(draws, observation.reference[:DRAWS]))
            torch.manual_seed(number)
            draws = posterior.sample((DRAWS,)).squeeze(1)
            sampled.append(c2st(draws, observation.reference[:DRAWS]))
            answered += posterior.notes
            if args.correct:
                begin = time.perf_counter()
                ensemble = correction.auto(vfm, observation.y, args.proposals, seed=number)
                seconds += time.perf_counter() - begin
                notes += ensemble.notes
                better = ensemble.sample((DRAWS,)).squeeze(1)
                corrected.append(c2st(better, observation.reference[:DRAWS]))
        result["raw"] = {"mean": sum(raw) / len(raw), "each": raw}
        mean = sum(sampled) / len(sampled)
        result["as_sampled"] = {"mean": mean, "each": sampled, "notes": answered}
        if args.correct:
            mean = sum(corrected) / len(corrected)
            result["corrected"] = {"mean": mean, "each": corrected, "notes": notes}
            result["correction_seconds"] = seconds / len(corrected)
        figures[task] = result
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--numbers", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--simulations", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--observation", default="both")
    parser.add_argument("--adapter", default="spline")
    parser.add_argument("--proposals", type=int, default=65_536)
    parser.add_argument("--no-correct", dest="correct", action="store_false")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None)
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    run("sbi_benchmark", lambda: main(arguments))
