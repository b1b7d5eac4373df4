"""Explicit seeds for code that draws from torch's global generators.

``torch.distributions``, Pyro and deepinv's noise models all draw from the global generators, so a
seed is applied by forking those generators: inside the block the stream is fixed by the seed,
after it the caller's stream goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run the block on a fork of torch's global generators, seeded with ``seed``.

    ``None`` leaves the ambient generators in place, as torch itself does.
    """
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
