"""The checkerboard of the Variational Flow Maps paper (arXiv 2603.07276) against its exact
posterior.

Run with ``python -m tests.benchmarks.checkerboard``. Figures of ``draws`` draws for each of
``observations``:

* ``nlpd``: ``-log (1/n) sum_i N(y'; x_1i, 0.1^2)`` of a fresh observation ``y'`` of the same
  truth;
* ``crps``: energy score of the draws against the truth;
* ``support_accuracy``: share of draws on the board;
* ``mmd``: root of the mean squared maximum mean discrepancy to exact draws, Gaussian kernel of
  width 1.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.problems.checkerboard import on_board
from vfm_inverse.statistics import scores

SIGMA = 0.1


def figures_of(
    sample: Callable[[Tensor], Tensor], observations: int, draws: int
) -> dict[str, float]:
    problem = problems.load("checkerboard")
    x, y, _ = problem.simulate(observations, split="test", seed=11)
    torch.manual_seed(12)
    fresh = x[:, 0] + SIGMA * torch.randn(observations)
    ours = sample(y)
    exact = problem.reference_posterior(y).sample((draws,))
    density = -0.5 * ((fresh - ours[..., 0]) / SIGMA).square() - math.log(
        SIGMA * math.sqrt(2 * math.pi)
    )
    nlpd = -(torch.logsumexp(density, 0) - math.log(draws)).mean()
    return {
        "nlpd": float(nlpd),
        "crps": float(scores.energy_score(ours, x).mean()),
        "support_accuracy": float(on_board(ours).float().mean()),
        "mmd": squared_mmd(ours, exact).mean().clamp_min(0).sqrt().item(),
    }


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased squared MMD of draws ``(n, batch, d)`` for each of the batch, kernel
    ``exp(-r^2 / 2)``."""
    a, b = a.transpose(0, 1), b.transpose(0, 1)
    n = a.shape[1]

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (-0.5 * torch.cdist(u, v).square()).exp().sum((1, 2))

    return (kernel(a, a) + kernel(b, b) - 2 * n) / (n * (n - 1)) - 2 * kernel(a, b) / n**2


def main(args: argparse.Namespace) -> dict[str, Any]:
    problem = problems.load("checkerboard")
    exact = figures_of(
        lambda y: problem.reference_posterior(y).sample((args.draws,)),
        args.observations,
        args.draws,
    )
    figures: dict[str, Any] = {"exact": exact, "training_steps": args.steps}
    for observation in args.observation:
        begin = time.perf_counter()
        vfm = vi.VariationalFlowMap.for_problem(
            problem, observation=observation, width=args.width, adapter=args.adapter
        )
        vi.fit(
            vfm,
            problem,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            progress=False,
        )
        result: dict[str, Any] = {"training_seconds": time.perf_counter() - begin}
        for steps in (1, 2, 4):
            vfm.steps = steps
            result[f"{steps}_step"] = figures_of(
                lambda y, vfm=vfm: vfm(y).raw.sample((args.draws,)),
                args.observations,
                args.draws,
            )
        figures[observation] = result
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--observation", nargs="+", default=["both"])
    parser.add_argument("--observations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=100)
    arguments = parser.parse_args()
    run("checkerboard", lambda: main(arguments))
