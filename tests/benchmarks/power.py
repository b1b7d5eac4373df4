"""Power of every diagnostic: planted fault x diagnostic x number of simulations.

A linear-Gaussian problem with four unknowns and three data, whose exact posterior is correlated.
Each entry of the table is the share of repetitions that reject at level 0.05: the level in the row
``exact``, the power in the others.

Run with ``python -m tests.benchmarks.power``.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Data of the four unknowns: sums of neighbours, which leave the posterior correlated.
DESIGN = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
SIGMA = 0.5
FAULTS = ("exact", "shift 0.3", "std x 0.8", "std x 1.25", "prior", "correlation lost")


def simulate(
    fault: str, num_simulations: int, num_draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ``(num_draws, num_simulations, 4)`` of a faulty posterior, truths, data ``(*, 3)``.

    Raises:
        ValueError: an unknown fault.
    """
    if fault not in FAULTS:
        raise ValueError(f"'fault' must be one of {FAULTS}; got '{fault}'")
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(num_simulations, 4, generator=generator)
    y = truth @ DESIGN.T + SIGMA * torch.randn(num_simulations, 3, generator=generator)
    return posterior_draws(fault, y, num_draws, generator), truth, y


def posterior_draws(fault: str, y: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Draws ``(num_draws, len(y), 4)`` of the faulty posterior of ``y`` ``(*, 3)``."""
    covariance = torch.linalg.inv(torch.eye(4) + DESIGN.T @ DESIGN / SIGMA**2)
    mean, std = y @ DESIGN @ covariance / SIGMA**2, covariance.diagonal().sqrt()
    noise = torch.randn(num_draws, len(y), 4, generator=generator)
    if fault == "prior":
        return noise
    if fault == "correlation lost":
        return mean + noise * std
    spread = {"std x 0.8": 0.8, "std x 1.25": 1.25}.get(fault, 1.0)
    shift = 0.3 * std if fault == "shift 0.3" else 0.0
    return mean + shift + spread * noise @ torch.linalg.cholesky(covariance).T
