"""The classifier two-sample test (C2ST) of the simulation-based-inference benchmark, and its data.

Lueckmann et al. 2021 (https://arxiv.org/abs/2101.04653): a classifier tells draws from reference
draws; its cross-validated accuracy is 0.5 where it cannot and 1 where it always can. Ten thousand
draws a side have a binomial error of 0.0035. The protocol is the benchmark's: both sets scaled by
mean and standard deviation of the reference, a perceptron of two hidden layers of ten units a
dimension, five folds, fixed seeds.

Run with ``python -m tests.benchmarks.c2st --truth DIR``: scores the exact posteriors of this
package against the published reference draws, which shows that both mean the same problem, and
the published draws against themselves in two halves, which shows the floor. ``DIR`` holds, for
each task and observation, ``TASK/num_observation_N/{observation,true_parameters}.csv`` and
``reference_posterior_samples.csv.bz2``, as the benchmark publishes them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem

# problem of this package: folder of the benchmark
TASKS = {
    name: name.replace("-", "_")
    for name in (
        "two-moons",
        "slcp",
        "gaussian-mixture",
        "gaussian-linear-uniform",
        "bernoulli-glm",
    )
}


@dataclass(frozen=True)
class Observation:
    """One published observation: ``y`` ``(1, m)``, the truth ``(1, d)`` and draws ``(n, d)``."""

    y: Tensor
    truth: Tensor
    reference: Tensor


def load_observation(truth: str | Path, task: str, number: int) -> Observation:
    """Read observation ``number`` (from 1) of the problem ``task`` from the folder ``truth``.

    Raises:
        ValueError: the problem is no task of the benchmark.
        FileNotFoundError: a file is missing.
    """
    if task not in TASKS:
        raise ValueError(f"'task' must be one of {sorted(TASKS)}; got '{task}'")
    folder = Path(truth) / TASKS[task] / f"num_observation_{number}"
    names = ("observation.csv", "true_parameters.csv", "reference_posterior_samples.csv.bz2")
    tables = (np.loadtxt(folder / name, delimiter=",", skiprows=1, ndmin=2) for name in names)
    return Observation(*(torch.from_numpy(table).float() for table in tables))


def load_problem(truth: str | Path, task: str) -> InverseProblem:
    """The problem as published: bernoulli-glm with the design matrix of the folder."""
    design = Path(truth) / TASKS[task] / "design_matrix.csv"
    return problems.load(task, **({"design": str(design)} if task == "bernoulli-glm" else {}))


def c2st(draws: Tensor, reference: Tensor, seed: int = 1) -> float:
    """Accuracy of the classifier between draws ``(n, d)`` and reference draws ``(n, d)``.

    Raises:
        ValueError: the shapes differ (sets of unequal size would move chance away from 0.5), or a
            draw is not finite.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    if draws.shape != reference.shape or draws.dim() != 2:
        raise ValueError(
            f"'draws' and 'reference' must have one shape (n, d); got {tuple(draws.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if not bool(torch.isfinite(draws).all()):
        raise ValueError("'draws' must be finite")
    mean, std = reference.mean(0), reference.std(0)
    both = ((torch.cat([draws, reference]) - mean) / std).cpu().numpy()
    label = np.repeat([0, 1], len(draws))
    width = 10 * draws.shape[1]
    classifier = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(width, width),
        max_iter=10_000,
        solver="adam",
        random_state=seed,
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, both, label, cv=folds, scoring="accuracy").mean())


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"draws": args.draws}
    for task in args.tasks:
        problem = load_problem(args.truth, task)
        scores: dict[str, list[float]] = {"exact": [], "floor": []}
        for number in args.observations:
            published = load_observation(args.truth, task, number)
            torch.manual_seed(number)
            reference = published.reference[torch.randperm(len(published.reference))]
            half = min(args.draws, len(reference) // 2)
            scores["floor"].append(c2st(reference[:half], reference[half : 2 * half]))
            posterior = problem.reference_posterior(published.y)
            if posterior is not None:
                exact = posterior.sample((args.draws,))[:, 0]
                scores["exact"].append(c2st(exact, reference[: args.draws]))
        figures[task] = scores
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", required=True, help="folder of the published observations")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--observations", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--draws", type=int, default=10_000)
    arguments = parser.parse_args()
    run("c2st", lambda: main(arguments))
