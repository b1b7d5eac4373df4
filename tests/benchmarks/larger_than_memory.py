"""Peak memory of a map built and trained on a zarr store of prior fields, each step in turn.

The store is written to a temporary folder: 50,000 fields of 64 x 64 are 0.8 GB. The peak is the
resident memory (VmHWM of Linux) of a process of its own, libraries included.

Run with ``python -m tests.benchmarks.larger_than_memory``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import torch
import xarray as xr
from deepinv.physics import GaussianNoise

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse.operators import PointObservations


def write(path: Path, num: int, size: int) -> None:
    """Smooth fields ``(num, size, size)`` in chunks of 1000."""

    def chunk(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        first = block_info[0]["array-location"][0][0]
        white = np.random.default_rng(first).normal(size=block.shape)
        return (white.cumsum(1).cumsum(2) / size).astype("float32")

    fields = dask.array.zeros((num, size, size), chunks=(1000, size, size), dtype="float32")
    names = ("sample", "y", "x")
    xr.DataArray(fields.map_blocks(chunk, dtype="float32"), dims=names, name="fields").to_zarr(
        path
    )


def peak() -> float:
    """Largest resident memory of this process so far, in GB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def child(path: str, steps: int) -> None:
    """Build and train in this process, and print the peak after each."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"libraries": peak()}
    fields = xr.open_zarr(path)["fields"]
    size = fields.sizes["x"]
    points = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    physics = PointObservations((1, size, size), points, GaussianNoise(0.1))
    start = time.perf_counter()
    problem = vi.InverseProblem(prior=fields, physics=physics)
    figures["problem"] = peak()
    vfm = vi.VariationalFlowMap.for_problem(problem, seed=0)
    figures["map"], figures["seconds to here"] = peak(), time.perf_counter() - start
    if steps:
        start = time.perf_counter()
        vi.fit(vfm, problem, steps=steps, batch_size=32, seed=0, progress=False)
        figures[f"{steps} steps"] = peak()
        figures["seconds of a step"] = (time.perf_counter() - start) / steps
    print(json.dumps(figures))


def main(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for num in args.num:
            path = Path(folder) / f"{num}.zarr"
            write(path, num, args.size)
            given = ["--child", str(path), "--steps", str(args.steps)]
            command = [sys.executable, "-W", "ignore", "-m", __spec__.name, *given]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            gigabytes = num * args.size**2 * 4 / 1e9
            figures[f"{num} fields, {gigabytes:.1f} GB"] = json.loads(printed.splitlines()[-1])
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", nargs="+", type=int, default=[50_000, 200_000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.steps)
    else:
        run("larger_than_memory", lambda: main(arguments))
