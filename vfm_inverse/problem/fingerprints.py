"""What tells a problem from any other: SHA-256 sums of names, shapes, types and bytes.

Of the physics: its description and its buffers, without those that a call sets (the parameters of
the observation). Of the data: 256 prior samples of each split at seed 0.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.splits import Split
from vfm_inverse.runtime.fingerprints import fingerprint

__all__ = [
    "data_fingerprint",
    "physics_fingerprint",
    "problem_fingerprint",
]


SAMPLES = 256
"""Prior samples of each split in the fingerprint of the data."""

SIMULATED = 16
"""Simulations in the fingerprint of a problem."""


def physics_fingerprint(problem: InverseProblem) -> str:
    """SHA-256 of the physics: description and buffers, without parameters of the observation."""
    buffers = {} if problem.physics is None else dict(problem.physics.named_buffers())
    # deepinv's physics keeps what the latest call was given.
    fixed = {k: v for k, v in buffers.items() if k.rpartition(".")[2] not in problem.param_shapes}
    return fingerprint(problem.describe_physics(), fixed)


def data_fingerprint(problem: InverseProblem, num: int = SAMPLES) -> str:
    """SHA-256 of ``num`` prior samples of either split, drawn with seed 0."""
    splits: tuple[Split, ...] = ("train", "test")
    return fingerprint(
        "prior", {split: problem.sample_prior(num, split=split, seed=0) for split in splits}
    )


def problem_fingerprint(problem: InverseProblem) -> str:
    """SHA-256 of what a training learns from: the physics, the prior, a few simulations, names and
    shapes. It does not depend on the device that the problem is on."""
    home = problem.device
    text: list[Any] = [problem.name, problem.kwargs, physics_fingerprint(problem)]
    text += [str(problem.dtype), list(problem.observation_shape)]
    try:
        # The random numbers of devices differ.
        first, again = (_simulations(problem.to("cpu")) for _ in range(2))
    except RuntimeError:  # a simulator that is tied to its device
        first, again = (_simulations(problem.to(home)) for _ in range(2))
    finally:
        problem.to(home)
    # A simulator may draw from a generator of its own.
    kept = {k: v for k, v in first.items() if v.equal(again[k])}
    return fingerprint(json.dumps(text, default=lambda value: type(value).__name__), kept)


def _simulations(problem: InverseProblem) -> dict[str, Tensor]:
    x, y, params = problem.simulate(SIMULATED, split="test", seed=0)
    held_out = problem.sample_prior(SAMPLES, split="test", seed=0)
    return {"x": x, "y": y, "prior": problem.sample_prior(SAMPLES, seed=0), "test": held_out} | {
        f"param {name}": value for name, value in params.items()
    }
