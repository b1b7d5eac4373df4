"""Draws of few unknowns as they are sampled: calibrated, and timed beside those of the map alone.

Run with ``python -m tests.benchmarks.exact_draws [NAME ...]``. Each problem is trained as the
gallery trains it, in a minute or two of one core. Then 1000 held-out simulations are checked, with
99 draws each, of the map alone and as ``vfm(y).sample`` gives them. Times are processor time of a
thousand draws of one observation, the median of seven.

With ``--maps DIR`` trained maps are kept in a folder and taken from there. With ``--truth DIR``
(:mod:`tests.benchmarks.c2st`) bernoulli-glm has its published design, and 10,000 draws of
published observations are told from the published ones by a classifier.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.c2st import TASKS, c2st, load_observation, load_problem
from tests.benchmarks.common import run
from vfm_inverse import calibration, problems
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem

NAMES = (
    "two-moons",
    "gaussian-mixture",
    "checkerboard",
    "gaussian-linear-uniform",
    "bernoulli-glm",
    "student-t",
    "slcp",
    "mixture-linear",
)
RUNGS = ("weighted", "tempered")


class Watched:
    """The posterior function of a map, which counts how observations are answered."""

    def __init__(self, vfm: VariationalFlowMap) -> None:
        self.vfm, self.counts = vfm, Counter[str]()

    def __call__(self, y: Tensor, **params: Any) -> Watched:
        self.posterior = self.vfm(y, **params)
        return self

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        """Draws of the observations that were asked about last."""
        draws = self.posterior.sample(shape)
        found = self.posterior.diagnostics
        self.counts.update(RUNGS[int(rung)] for rung in found["rung"])
        self.counts["satisfied"] += int(found["satisfied"].sum())
        return draws


def trained(name: str, problem: InverseProblem, folder: Path | None) -> VariationalFlowMap:
    """The map of the gallery's settings, from ``folder`` if it is there."""
    path = None if folder is None else folder / f"{name}.safetensors"
    if path is not None and path.exists():
        return vi.load(path, problem, warn=False)
    vfm = VariationalFlowMap.for_problem(problem)
    vi.fit(vfm, problem, steps=2000, batch_size=128, num_validation=512, validations=2, seed=0)
    if path is not None:
        vfm.save(path)
    return vfm


def seconds(sample: Any) -> float:
    """Processor time of a thousand draws, the median of seven."""
    times = []
    for _ in range(7):
        begin = time.process_time()
        sample((1000,))
        times.append(time.process_time() - begin)
    return statistics.median(times)


def score(vfm: VariationalFlowMap, truth: str, name: str, number: int) -> float:
    """Accuracy of a classifier between draws as sampled and the published ones."""
    published = load_observation(truth, name, number)
    torch.manual_seed(number)
    draws = vfm(published.y).sample((10_000,)).squeeze(1)
    return c2st(draws, published.reference[:10_000])


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in args.names:
        published = args.truth is not None and name in TASKS
        problem = load_problem(args.truth, name) if published else problems.load(name)
        vfm = trained(name, problem, args.maps)
        vfm.exact = True
        watched = Watched(vfm)
        functions = {"raw": lambda y, vfm=vfm, **p: vfm(y, **p).raw, "as_sampled": watched}
        row: dict[str, Any] = {"unknowns": vfm.whitening.dim}
        for kind, function in functions.items():
            report = calibration.calibrate(function, problem, args.simulations, args.draws, seed=5)
            row[kind] = {
                "verdict": report.attrs["verdict"],
                "failing": int((report.p_adjusted <= report.attrs["alpha"]).sum()),
                "quantities": report.sizes["quantity"],
                "reason": report.attrs["reason"],
                "energy_score": float(report.energy_score.mean()),
            }
        row["answered"] = dict(watched.counts)
        torch.manual_seed(0)
        _, y, params = problem.simulate(1, split="test", seed=3)
        posterior = vfm(y, **params)
        row["seconds_raw"] = seconds(posterior.raw.sample)
        row["seconds_as_sampled"] = seconds(posterior.sample)
        row["timed"] = posterior.notes[0]
        if published:
            row["c2st"] = [score(vfm, args.truth, name, number) for number in args.numbers]
        figures[name] = row
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--maps", type=Path)
    parser.add_argument("--truth")
    parser.add_argument("--numbers", nargs="+", type=int, default=[1, 2])
    arguments = parser.parse_args()
    run("exact_draws", lambda: main(arguments))
