"""What calibration costs: against sbi on the same draws, and against the network of a field.

**Against sbi** (``pip install 'vfm-inverse[bench]'``): 1000 simulations x 1000 draws of ten
unknowns from the same exact posterior, which is as cheap as draws can be.  sbi's side is
``run_sbc`` and ``check_sbc``, ``run_sbc`` with the log density for coverage, and ``run_tarp``;
this package's side is ``calibrate``, with ranks, tests, coverage, maps and scores in one pass, and
``tarp``.

**Against a network**: what ``calibrate`` adds to the network evaluations of the default map of a
32 x 32 field.

Processor time of one thread, both sides in turns, medians.
Run with ``python -m tests.benchmarks.calibration_speed``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import calibration, problems
from vfm_inverse.statistics import ranks
from vfm_inverse.statistics.joint_coverage import tarp

SIGMA = 0.5


class Exact:
    """Posterior of x ~ N(0, I) seen with noise, with the methods that sbi and ``calibrate`` call.

    ``seconds`` is the processor time spent on draws so far.
    """

    seconds = 0.0

    def __init__(self) -> None:
        self.shrink, self.std = 1 / (1 + SIGMA**2), SIGMA / (1 + SIGMA**2) ** 0.5

    def draw(self, num: int, y: Tensor) -> Tensor:
        """Draws ``(num, len(y), dim)``."""
        start = time.process_time()
        draws = torch.randn(num, *y.shape).mul_(self.std).add_(self.shrink * y)
        self.seconds += time.process_time() - start
        return draws

    def sample_batched(self, shape: tuple[int], x: Tensor, **kwargs: object) -> Tensor:
        return self.draw(shape[0], x)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Up to a constant: ``(num, dim)`` to ``(num,)``."""
        return -0.5 * ((theta - self.shrink * x) / self.std).square().sum(-1)

    def __call__(self, y: Tensor, **params: Tensor) -> Bound:
        return Bound(self, y)


class Bound:
    """The posterior of the observations ``y``."""

    def __init__(self, posterior: Exact, y: Tensor) -> None:
        self.posterior, self.y = posterior, y

    def sample(self, shape: tuple[int]) -> Tensor:
        return self.posterior.draw(shape[0], self.y)


def against_sbi(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part, without the drawing, which is measured apart, and ratios."""
    from sbi.diagnostics import check_sbc, run_sbc, run_tarp  # type: ignore[import-not-found]

    warnings.filterwarnings("ignore", module="sbi")
    num, num_draws, posterior = args.simulations, args.draws, Exact()
    problem = vi.InverseProblem(
        prior=lambda num: torch.randn(num, args.dim),
        likelihood=lambda x: torch.distributions.Independent(
            torch.distributions.Normal(x, SIGMA), 1
        ),
    )
    x, y, _ = problem.simulate(num, seed=0)
    quiet: dict[str, Any] = {
        "num_posterior_samples": num_draws,
        "show_progress_bar": False,
    }
    kept: dict[str, Any] = {"draws": posterior.draw(num_draws, y)}

    def sbi_ranks() -> None:
        kept["ranks"] = run_sbc(x, y, posterior, **quiet)

    def sbi_checks() -> None:
        rank, averaged = kept["ranks"]
        check_sbc(rank, x, averaged, num_posterior_samples=num_draws)

    parts: dict[str, Callable[[], Any]] = {
        "sbi, run_sbc": sbi_ranks,
        "sbi, check_sbc": sbi_checks,
        "sbi, coverage": lambda: run_sbc(x, y, posterior, reduce_fns=posterior.log_prob, **quiet),
        "sbi, run_tarp": lambda: run_tarp(x, y, posterior, **quiet),
        "ranks alone": lambda: ranks.rank_of_truth(kept["draws"], x),
        "calibrate, joint=False": lambda: calibration.calibrate(
            posterior, problem, num, num_draws, joint=False
        ),
        "calibrate": lambda: calibration.calibrate(posterior, problem, num, num_draws),
        "from_draws": lambda: calibration.from_draws(kept["draws"], x),
        "tarp": lambda: tarp(kept["draws"], x, y=y),
    }
    if args.no_classifiers:
        del parts["sbi, check_sbc"]
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    drawing: list[float] = []
    for _ in range(args.repeats):
        for name, part in parts.items():
            posterior.seconds, start = 0.0, time.process_time()
            part()
            seconds[name].append(time.process_time() - start - posterior.seconds)
            if posterior.seconds:
                drawing.append(posterior.seconds)
    middle = {name: median(values) for name, values in seconds.items()}
    draw = median(drawing)
    # Ranks, their tests and coverage on both sides; ours has scores and maps besides.
    theirs = sum(middle.get(f"sbi, {name}", 0.0) for name in ("run_sbc", "check_sbc", "coverage"))
    ours = middle["calibrate, joint=False"]
    return {
        "seconds without drawing": middle,
        "drawing once": draw,
        "SBC and coverage, sbi to calibrate with joint=False": theirs / ours,
        "the same with drawing, which sbi does twice": (theirs + 2 * draw) / (ours + draw),
        "with TARP on both sides": (theirs + middle["sbi, run_tarp"]) / middle["calibrate"],
        "run_sbc to ranks alone": middle["sbi, run_sbc"] / middle["ranks alone"],
        "run_sbc to all of calibrate": middle["sbi, run_sbc"] / middle["calibrate"],
    }


def against_the_network(args: argparse.Namespace) -> dict[str, Any]:
    """Bookkeeping of ``calibrate`` over the evaluations of the default map of a field."""
    problem = problems.load("gaussian-field", size=32, num_points=64)
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=2000)
    network, drawing = 0.0, 0.0
    inner = vfm.flow_map._evaluate

    def evaluate(*given: Any) -> Tensor:
        nonlocal network
        start = time.process_time()
        value = inner(*given)
        network += time.process_time() - start
        return value

    vfm.flow_map._evaluate = evaluate  # type: ignore[method-assign]

    class Timed:
        def __init__(self, y: Tensor, **params: Tensor) -> None:
            self.posterior = self.timed(lambda: vfm(y, **params))

        def sample(self, shape: tuple[int]) -> Tensor:
            return self.timed(lambda: self.posterior.sample(shape))

        @staticmethod
        def timed(function: Callable[[], Any]) -> Any:
            nonlocal drawing
            start = time.process_time()
            value = function()
            drawing += time.process_time() - start
            return value

    shares = []
    for _ in range(1 + args.repeats):  # the first warms up
        network, drawing, start = 0.0, 0.0, time.process_time()
        calibration.calibrate(Timed, problem, args.fields, args.draws)
        total = time.process_time() - start
        shares.append((network, drawing, total - drawing))
    net, draw, kept = (median(column) for column in zip(*shares[1:], strict=True))
    return {
        "network seconds": net,
        "drawing seconds, network included": draw,
        "bookkeeping seconds": kept,
        "bookkeeping over network": median(c / a for a, _, c in shares[1:]),
    }


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "sbi" in args.parts:
        figures["dim 10"] = against_sbi(args)
    if "network" in args.parts:
        figures["field 32 x 32"] = against_the_network(args)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    both = ["sbi", "network"]
    parser.add_argument("--parts", nargs="+", choices=both, default=both)
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--fields", type=int, default=8, help="simulations of the field")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--no-classifiers", action="store_true", help="without check_sbc, the longest part"
    )
    arguments = parser.parse_args()
    run("calibration_speed", lambda: main(arguments))
