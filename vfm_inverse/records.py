"""Problems whose simulations are drawn once: for simulators too costly to run at every training
step."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from vfm_inverse.checks import check_integer
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
        num = check_integer(num, "num", HELD_OUT)
        self._hold(problem, *problem.simulate(num, seed=seed))

    def _hold(self, problem: InverseProblem, x: Tensor, y: Tensor, params: Params) -> Self:
        vars(self).update(vars(problem))
        self._problem, self._x, self._y, self._drawn = problem, x, y, params
        return self

    def num_prior_samples(self, split: Split = "train") -> int:
        """Simulations of a split."""
        held_out = len(self._x) // HELD_OUT
        return len(self._x) - held_out if split == "train" else held_out

    def simulate(
        self, num: int, *, split: Split = "train", seed: int | None = None
    ) -> tuple[Tensor, Tensor, Params]:
        """Draw ``(x, y, params)`` from the record; see :meth:`InverseProblem.simulate`."""
        num = check_integer(num, "num", 1)
        kept = self.num_prior_samples()
        low, high = (0, kept) if split == "train" else (kept, len(self._x))
        with seeded(seed):
            # On the CPU, so that a seed picks the same simulations on every device.
            index = torch.randint(low, high, (num,)).to(self._x.device)
        return self._x[index], self._y[index], {k: v[index] for k, v in self._drawn.items()}

    def held_fields(self, most: int) -> Tensor | None:
        """The fields of the record that are not for tests; ``None`` if more than ``most``."""
        kept = len(self._x) - len(self._x) // HELD_OUT
        return self._x[:kept] if kept <= most else None

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move the record, prior and physics; compute in another type."""
        super().to(device, dtype)
        self._x, self._y = (part.to(self.device, self.dtype) for part in (self._x, self._y))
        self._drawn = {
            name: value.to(self.device, self.param_types.get(name, self.dtype))
            for name, value in self._drawn.items()
        }
        return self

    def __reduce__(self) -> Any:
        """Its simulations are part of it, and not made again."""
        return _recorded, (self._problem, self._x, self._y, self._drawn)


def _recorded(problem: InverseProblem, x: Tensor, y: Tensor, params: Params) -> RecordedProblem:
    return RecordedProblem.__new__(RecordedProblem)._hold(problem, x, y, params)
