"""Peak memory of the calibration of a 64 x 64 field, beyond that of preparing it.

Each case runs in a process of its own, whose peak resident memory (VmHWM of Linux) is compared
with that of a process with four simulations and two draws.  The synthetic posterior draws white
noise, as cheaply as can be; the default map of the field is an untrained U-Net with its Gaussian
start.  Draws are dropped block by block, so the peak must not grow with the number of simulations.

Run with ``python -m tests.benchmarks.calibration_memory``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import calibration, problems

MIB = 2**20


def synthetic(size: int) -> tuple[Any, vi.InverseProblem]:
    """White noise seen with noise of the same size, and its exact posterior."""

    def posterior(y: Tensor, **params: Tensor) -> Any:
        def sample(shape: tuple[int]) -> Tensor:
            return torch.randn(*shape, *y.shape).mul_(0.5**0.5).add_(0.5 * y)

        return SimpleNamespace(sample=sample)

    def likelihood(x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(x, 1.0), 3)

    problem = vi.InverseProblem(
        prior=lambda num: torch.randn(num, 1, size, size), likelihood=likelihood
    )
    return posterior, problem


def network(size: int) -> tuple[Any, vi.InverseProblem]:
    """The default map of a Gaussian field at stations."""
    problem = problems.load("gaussian-field", size=size, num_points=64)
    return vi.VariationalFlowMap.for_problem(problem, num_simulations=500), problem


POSTERIORS = {"synthetic": synthetic, "network": network}


def child(posterior: str, size: int, simulations: int, draws: int) -> None:
    """Calibrate in this process and print its peak memory and the time."""
    torch.set_num_threads(1)
    posterior_fn, problem = POSTERIORS[posterior](size)
    start = time.process_time()
    calibration.calibrate(posterior_fn, problem, simulations, draws)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    figures = {"peak": int(found[1]) * 1024, "seconds": time.process_time() - start}
    print(json.dumps(figures))


def peak(posterior: str, size: int, simulations: int, draws: int) -> dict[str, float]:
    """Figures of a process that calibrates."""
    given = [posterior, str(size), str(simulations), str(draws)]
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--child", *given]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(printed.splitlines()[-1])
    return figures


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for posterior, numbers in (("synthetic", args.simulations), ("network", args.network)):
        if not numbers:
            continue
        baseline = peak(posterior, args.size, 4, 2)["peak"]
        figures[posterior] = {"baseline MiB": baseline / MIB}
        for num in numbers:
            found = peak(posterior, args.size, num, args.draws)
            figures[posterior][f"{num} simulations"] = {
                "extra MiB": (found["peak"] - baseline) / MIB,
                "processor seconds": found["seconds"],
            }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--simulations", nargs="*", type=int, default=[24, 72])
    parser.add_argument("--network", nargs="*", type=int, default=[2], help="with the default map")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], *map(int, arguments.child[1:]))
    else:
        run("calibration_memory", lambda: main(arguments))
