"""``darcy-64`` at the paper's observation: corrected draws against long reference chains.

    python -m tests.benchmarks.darcy_64_correction --truth DIR --reference FILE [FILE ...]

``FILE`` holds draws of ``darcy_64_chain``. Errors are those of ``x = ln theta``: root mean square
over the 64 coefficients of the error of the mean in posterior standard deviations, and least and
greatest ratio of the standard deviations. The observation lies far in the tail of the prior's
prediction, where no simulation of the training does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import correction, problems


def errors(mean: Tensor, variance: Tensor, reference: Tensor) -> dict[str, Any]:
    """Errors of mean and width, each ``(1, 8, 8)``, against draws ``(num, 64)``."""
    center, std = reference.mean(0), reference.std(0)
    ratio = variance.flatten().sqrt() / std
    shift = (mean.flatten() - center) / std
    return {
        "mean_error": float(shift.square().mean().sqrt()),
        "largest_mean_error": float(shift.abs().max()),
        "std_ratio": [float(ratio.min()), float(ratio.max())],
    }


def corrected(vfm: vi.VariationalFlowMap, y: Tensor, reference: Tensor, name: str) -> Any:
    """One method: errors, diagnostics and seconds."""
    begin = time.process_time()
    if name == "auto":
        ensemble = correction.auto(vfm, y, ARGUMENTS.draws, seed=0)
    elif name == "smc":
        ensemble = correction.smc(vfm, y, ARGUMENTS.draws, seed=0)
    else:
        # About as many gradients: a move of mala takes one, a trajectory ten.
        moves = {"warmup": 2000, "thin": 20} if name == "mala" else {"thin": ARGUMENTS.thin}
        ensemble = correction.mcmc(
            vfm, y, ARGUMENTS.draws, method=name, num_chains=ARGUMENTS.chains, seed=0, **moves
        )
    return {
        **errors(ensemble.mean, ensemble.variance, reference),
        **{key: float(value) for key, value in ensemble.diagnostics.items()},
        "note": ensemble.notes[0],
        "seconds": time.process_time() - begin,
    }


def main() -> dict[str, Any]:
    """Train a map, draw, correct."""
    y = torch.from_numpy(np.loadtxt(ARGUMENTS.truth / "aristoff_bangerth" / "z_hat.txt")).float()
    chains = [torch.from_numpy(np.load(file)) for file in ARGUMENTS.reference]
    reference = torch.cat([chain.flatten(0, 1) for chain in chains])
    problem = problems.load("darcy-64")
    torch.manual_seed(0)
    vfm = vi.VariationalFlowMap.for_problem(problem)
    figures: dict[str, Any] = {"training_steps": ARGUMENTS.steps}
    if ARGUMENTS.steps:
        begin = time.process_time()
        vi.fit(vfm, problem, steps=ARGUMENTS.steps, progress=False)
        figures["training_seconds"] = time.process_time() - begin
    draws = vfm(y[None]).sample((1000,))
    figures["raw"] = errors(draws.mean((0, 1)), draws.var((0, 1)), reference)
    for name in ARGUMENTS.methods:
        figures[name] = corrected(vfm, y, reference, name)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=Path, required=True, help="folder of the published data")
    parser.add_argument("--reference", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=4096)
    parser.add_argument("--chains", type=int, default=128)
    parser.add_argument("--thin", type=int, default=2, help="moves between draws of hmc")
    parser.add_argument("--methods", nargs="+", default=["hmc", "auto", "mala"])
    ARGUMENTS = parser.parse_args()
    run("darcy_64_correction", main)
