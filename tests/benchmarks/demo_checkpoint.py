"""The weights of the demo: ``python -m tests.benchmarks.demo_checkpoint --out RUN``.

Trains the demo's map in the folder RUN (interrupted, it goes on from there) and writes the
averaged weights, in half precision, to ``vfm_inverse/cli/demo.safetensors``. Coordinates and
start are not in the file: the demo builds them anew from the same seed. The adapter of this map is
not trained and not in it either. ``--write`` only writes what RUN has come to.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.common import run
from vfm_inverse import fit, problems
from vfm_inverse.cli.demo import PROBLEM, SEED, WEIGHTS
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime import storage
from vfm_inverse.training.files import STATE, selected


def main(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    if not args.write:
        problem = problems.load(**PROBLEM)
        fit(
            VariationalFlowMap.for_problem(problem, start="gaussian", seed=SEED),
            problem,
            steps=args.steps,
            batch_size=args.batch,
            seed=SEED,
            validations=args.steps // 250,
            checkpoint_every=50,
            checkpoint_dir=args.out,
            resume=True,
        )
    state, header = storage.read(args.out / STATE, "training")
    weights = {k: v.half() for k, v in selected("average.flow_map", state).items()}
    made = {"problem": PROBLEM, "seed": SEED, "steps": header["step"], "batch_size": args.batch}
    WEIGHTS.parent.mkdir(exist_ok=True)
    storage.write(WEIGHTS, weights, "demo", made)
    return {**made, "bytes": WEIGHTS.stat().st_size}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    run("demo-checkpoint", lambda: main(arguments))
