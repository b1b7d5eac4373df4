"""Order of the Taylor remainder and cost of the non-linear operators, batch 64, both precisions.

    python -m tests.benchmarks.operator_costs

The remainder ``|A(x + h v) - A(x) - h J v|`` is halved in ``h`` until rounding shows; its last
order is printed. Times are processor seconds, the least of three; ``gradient`` is the backward
pass alone.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from deepinv.physics import Physics
from torch.func import jvp

from tests.benchmarks.common import run
from vfm_inverse import operators, problems
from vfm_inverse.operators import KuramotoSivashinsky, Lorenz63, Trajectory, Vorticity
from vfm_inverse.problem.random_fields import MaternField

BATCH = 64


def cases() -> dict[str, tuple[Physics, torch.Tensor]]:
    """Operators of realistic sizes with a batch of fields."""
    found = {}
    for name in ("darcy", "darcy-64", "travel-time-eikonal", "lorenz96-window"):
        problem = problems.load(name)
        found[name] = (problem.physics, problem.sample_prior(BATCH, seed=0))
    found["lorenz-63, 50 steps"] = (
        Trajectory(Lorenz63(), 10, 5),
        torch.randn(BATCH, 3) + torch.tensor([0.0, 0.0, 25.0]),
    )
    wave = torch.sin(2 * math.pi * torch.arange(64) / 64 + 2 * math.pi * torch.rand(BATCH, 1, 1))
    found["kuramoto-sivashinsky 64, 40 steps"] = (
        Trajectory(KuramotoSivashinsky(64), 10, 4),
        wave,
    )
    vortices = MaternField((32, 32), 2.5, 0.2).sample(torch.Size([BATCH]))
    stations = operators.PointObservations((1, 32, 32), torch.rand(50, 2))
    found["vorticity 32x32, 20 steps"] = (Trajectory(Vorticity(32), 5, 4, stations), vortices)
    return found


def order(physics: Physics, x: torch.Tensor) -> float:
    """Last order of the remainder in double precision, of four fields."""
    x = x[:4].double()
    v = torch.randn_like(x)
    y, slope = jvp(physics.A, (x,), (v,))
    steps = [1e-3 / 2**k for k in range(4)]
    remainder = [float((physics.A(x + h * v) - y - h * slope).norm()) for h in steps]
    return math.log2(remainder[-2] / remainder[-1])


def costs(physics: Physics, x: torch.Tensor) -> dict[str, float]:
    """Seconds of the forward and of the backward pass."""
    forward, backward = [], []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        start = time.process_time()
        physics.A(x)
        forward.append(time.process_time() - start)
        y = physics.A(leaf)
        start = time.process_time()
        y.backward(torch.ones_like(y))
        backward.append(time.process_time() - start)
    return {
        "forward": min(forward),
        "gradient": min(backward),
        "gradient/forward": min(backward) / min(forward),
    }


def main() -> dict[str, Any]:
    """All figures."""
    torch.manual_seed(0)
    return {
        name: {
            "order": order(physics, x),
            "double": costs(physics, x.double()),
            "single": costs(physics, x.float()),
        }
        for name, (physics, x) in cases().items()
    }


if __name__ == "__main__":
    run("operator_costs", main)
