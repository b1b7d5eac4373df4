"""Darcy flow: the vectors of a published benchmark, and time against a loop over scipy's solver.

    python -m tests.benchmarks.darcy --truth DIR

``DIR/aristoff_bangerth/testing`` holds the ten inputs and outputs of Aristoff and Bangerth, SIAM
Review 65 (2023) 1074; without it only the timings are printed. The loop solves each problem with
``scipy.sparse.linalg.spsolve``, and once more for the adjoint, by hand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.operators import Darcy


def published(truth: Path) -> dict[str, float]:
    """Largest differences from the ten published vectors."""
    physics = problems.load("darcy-64").physics
    folder = truth / "aristoff_bangerth" / "testing"
    absolute, relative = 0.0, 0.0
    for number in range(10):
        theta = torch.from_numpy(np.loadtxt(folder / f"input.{number}.txt"))
        expected = torch.from_numpy(np.loadtxt(folder / f"output.{number}.z.txt"))
        difference = (physics.A(theta.log().reshape(1, 1, 8, 8))[0] - expected).abs()
        absolute = max(absolute, float(difference.max()))
        relative = max(relative, float((difference / expected.abs()).max()))
    return {"absolute": absolute, "relative": relative}


class SparseLoop:
    """One problem after another, assembled and solved by scipy."""

    def __init__(self, physics: Darcy) -> None:
        size = physics.elements[0]
        node = np.arange((size + 1) ** 2).reshape(size + 1, size + 1)
        corners = np.stack([node[:-1, :-1], node[:-1, 1:], node[1:, :-1], node[1:, 1:]], -1)
        self.corners = corners.reshape(-1, 4)
        side = np.array([[4, -1, -1, -2], [-1, 4, -2, -1], [-1, -2, 4, -1], [-2, -1, -1, 4]])
        self.element = side / 6
        self.rows = np.repeat(self.corners, 4, 1).ravel()
        self.columns = np.tile(self.corners, (1, 4)).ravel()
        self.inner = node[1:-1, 1:-1].ravel()
        self.size = node.size
        self.load = np.bincount(self.corners.ravel(), minlength=node.size) / (4 * size**2)
        sensors = physics.sensors
        weight = sensors.weight.numpy()
        where = (np.repeat(np.arange(len(weight)), 4), sensors.index.numpy().ravel())
        self.observe = sparse.csr_array((weight.ravel(), where), shape=(len(weight), node.size))

    def __call__(self, x: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data of one field and the gradient of ``<cotangent, data>``."""
        c = np.exp(x).ravel()
        values = (c[:, None, None] * self.element).ravel()
        matrix = sparse.csc_array((values, (self.rows, self.columns)), shape=(self.size,) * 2)
        matrix = matrix[self.inner][:, self.inner].tocsc()
        p, adjoint = np.zeros(self.size), np.zeros(self.size)
        p[self.inner] = spsolve(matrix, self.load[self.inner])
        adjoint[self.inner] = spsolve(matrix, (self.observe.T @ cotangent)[self.inner])
        at, back = p[self.corners], adjoint[self.corners]
        slope = -c * np.einsum("ea,ab,eb->e", back, self.element, at)
        return self.observe @ p, slope.reshape(x.shape)


def against_scipy(size: int, batch: int, repeats: int = 5) -> dict[str, float]:
    """Seconds for forward and gradient of a batch, in turns, and the differences."""
    torch.manual_seed(0)
    physics = Darcy((1, size, size), torch.rand(25, 2))
    loop = SparseLoop(physics)
    x = torch.randn(batch, 1, size, size, dtype=torch.float64)
    w = torch.randn(batch, 25, dtype=torch.float64)

    def ours() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        y = physics.A(leaf)
        return y.detach(), torch.autograd.grad(y, leaf, w)[0]

    def theirs() -> tuple[Tensor, Tensor]:
        pairs = [loop(*pair) for pair in zip(x[:, 0].numpy(), w.numpy(), strict=True)]
        data, slopes = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return data, slopes[:, None]

    y, slope = ours()
    expected, expected_slope = theirs()
    seconds = {"ours": [], "scipy": []}
    for _ in range(repeats):
        seconds["ours"].append(timed(ours))
        seconds["scipy"].append(timed(theirs))
    ratios = np.array(seconds["scipy"]) / np.array(seconds["ours"])
    return {
        "difference": float((y - expected).abs().max() / expected.abs().max()),
        "gradient_difference": float(
            (slope - expected_slope).abs().max() / expected_slope.abs().max()
        ),
        "ours_seconds": float(np.median(seconds["ours"])),
        "scipy_seconds": float(np.median(seconds["scipy"])),
        "ratio": float(np.median(ratios)),
    }


def timed(function: Callable[[], Any]) -> float:
    """Processor seconds of a call: what another process takes does not count."""
    start = time.process_time()
    function()
    return time.process_time() - start


def single_and_many() -> dict[str, float]:
    """Seconds of one and of 256 solves of the 32 x 32 benchmark."""
    physics = problems.load("darcy-64").physics
    found = {}
    for batch in (1, 256):
        x = (4 + 2 * torch.randn(batch, 1, 8, 8)).double()
        found[f"{batch}"] = min(timed(lambda x=x: physics.A(x)) for _ in range(5))
    return found


def main() -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {"seconds_of_solves": single_and_many()}
    if ARGUMENTS.truth is not None:
        figures["published_vectors"] = published(ARGUMENTS.truth)
    figures["32x32, batch 64"] = against_scipy(32, 64)
    figures["64x64, batch 32"] = against_scipy(64, 32)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=Path, help="folder of the published data")
    ARGUMENTS = parser.parse_args()
    run("darcy", main)
