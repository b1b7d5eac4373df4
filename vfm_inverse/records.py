"""Problems whose simulations are drawn once: for simulators too costly to run at every training
step."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from vfm_inverse.priors import HELD_OUT
from vfm_inverse.problem import InverseProblem, Params, Split
from vfm_inverse.randomness import seeded

__all__ = ["RecordedProblem"]


class RecordedProblem(InverseProblem):
    """A problem that draws from a fixed set of its simulations, with replacement.

    The last tenth serves the split ``"test"``, the others ``"train"``. Everything else, the
    likelihood and the reference posterior among it, is the problem's.

    Args:
        problem: what to record.
        num: simulations, at least 10.
        seed: of the simulations.

    Raises:
        ValueError: too few simulations.
    """

    def __init__(self, problem: InverseProblem, num: int, seed: int | None = None) -> None:
        if num < HELD_OUT:
            raise ValueError(f"'num' must be at least {HELD_OUT}; got {num}")
        vars(self).update(vars(problem))
        self._x, self._y, self._drawn = problem.simulate(num, seed=seed)

    def simulate(
        self, num: int, *, split: Split = "train", seed: int | None = None
    ) -> tuple[Tensor, Tensor, Params]:
        """Draw ``(x, y, params)`` from the record; see :meth:`InverseProblem.simulate`."""
        if num < 1:
            raise ValueError(f"'num' must be at least 1; got {num}")
        kept = len(self._x) - len(self._x) // HELD_OUT
        low, high = (0, kept) if split == "train" else (kept, len(self._x))
        with seeded(seed):
            # On the CPU, so that a seed picks the same simulations on every device.
            index = torch.randint(low, high, (num,)).to(self._x.device)
        return self._x[index], self._y[index], {k: v[index] for k, v in self._drawn.items()}

    def to(self, device: torch.device | str) -> Self:
        """Move the record, prior and physics."""
        super().to(device)
        self._x, self._y = self._x.to(self.device), self._y.to(self.device)
        self._drawn = {name: value.to(self.device) for name, value in self._drawn.items()}
        return self
