"""Explicit seeds for code that draws from global generators.

``torch.distributions``, Pyro and deepinv's noise models all draw from torch's global generators,
simulators of the user's often from NumPy's or Python's. A seed is therefore applied by forking all
of them: inside the block the streams are fixed by the seed, after it the caller's streams go on as
if nothing had happened.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from vfm_inverse.runtime.values import check_integer

__all__ = ["reseed", "seeded"]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run the block on a fork of the global generators of torch, NumPy and Python, seeded with
    ``seed``.

    ``None`` leaves the ambient generators in place, as torch itself does.

    Raises:
        TypeError, ValueError: ``seed`` is no integer that torch takes, -2**63 to 2**64 - 1.
    """
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    seed = check_integer(seed, "seed", -(2**63))
    if seed >= 2**64:
        raise ValueError(f"'seed' must lie below 2**64; got {seed}")
    outside = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):
        try:
            reseed(seed)
            yield
        finally:
            np.random.set_state(outside[0])
            random.setstate(outside[1])


def reseed(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
