"""Deblurring patches of photographs never trained on, against the Gaussian-prior posterior.

Run with ``python -m tests.benchmarks.photo_deblur``; ``--out RUN`` keeps the run and resumes it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.photo_deblur import gaussian_prior_posterior
from vfm_inverse.statistics import scores


def figures_of(
    posterior: Any, problem: InverseProblem, observations: int, draws: int
) -> dict[str, float]:
    """Energy score, CRPS and 90 % coverage over pixels, on patches of the test photographs."""
    x, y, params = problem.simulate(observations, split="test", seed=21)
    energy, crps, covered = [], [], []
    for rows in torch.arange(observations).split(50):
        torch.manual_seed(int(rows[0]))
        seen = {name: value[rows] for name, value in params.items()}
        sample: Tensor = posterior(y[rows], **seen).sample((draws,))
        energy.append(scores.energy_score(sample, x[rows]))
        crps.append(scores.crps(sample, x[rows]).flatten(1).mean(1))
        ranks = (sample < x[rows]).sum(0)
        # Central 90 % of the draws + 1 equally likely ranks.
        tail = round(0.05 * (draws + 1))
        covered.append(((ranks >= tail) & (ranks <= draws - tail)).float().flatten(1).mean(1))
    figures = {"energy_score": energy, "crps": crps, "coverage_90": covered}
    return {name: float(torch.cat(values).mean()) for name, values in figures.items()}


def main(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    problem = problems.load("photo-deblur", size=args.size)
    figures: dict[str, Any] = {
        "size": args.size,
        "training_steps": args.steps,
        "draws": args.draws,
    }
    baseline = figures_of(
        lambda y, **p: gaussian_prior_posterior(problem, y, **p),
        problem,
        args.observations,
        args.draws,
    )
    figures["gaussian_prior"] = baseline
    begin = time.perf_counter()
    vfm = (
        vi.VariationalFlowMap.for_problem(problem, width=args.width)
        if args.init is None
        else vi.load(args.init, problem, warn=False)
    )
    figures["build_seconds"] = time.perf_counter() - begin
    figures["untrained" if args.init is None else "init"] = figures_of(
        vfm, problem, args.observations, args.draws
    )
    begin = time.perf_counter()
    vi.fit(
        vfm,
        problem,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        checkpoint_dir=args.out,
        resume=args.out is not None,
        num_validation=256,
        progress=args.progress,
    )
    figures["training_seconds"] = time.perf_counter() - begin
    for steps in args.map_steps:
        vfm.steps = steps
        result: dict[str, Any] = figures_of(vfm, problem, args.observations, args.draws)
        for name in ("energy_score", "crps"):
            result[f"{name}_ratio"] = result[name] / baseline[name]
        figures[f"{steps}_step"] = result
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--observations", type=int, default=500)
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--map-steps", type=int, nargs="+", default=[1])
    parser.add_argument("--out", default=None)
    parser.add_argument("--init", default=None, help="a model.safetensors to train on from")
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    run("photo_deblur", lambda: main(arguments))
