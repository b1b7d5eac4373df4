"""Simulations that are drawn once: for simulators too costly to run at every training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vfm_inverse.problem.priors import HELD_OUT
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.values import check_integer

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """A fixed set of simulations, drawn from with replacement.

    The last tenth serves the split ``"test"``, the others ``"train"``.

    Args:
        x: fields ``(n, *field_shape)``, ``n`` at least 10.
        y: observations ``(n, *observation_shape)``.
        params: parameters, each ``(n, *shape)``.
    """

    x: Tensor
    y: Tensor
    params: Mapping[str, Tensor]

    @classmethod
    def drawn(
        cls, simulate: Callable[..., tuple[Tensor, Tensor, Any]], num: int, seed: int | None
    ) -> Record:
        """``num`` simulations.

        Raises:
            ValueError: too few of them.
        """
        return cls(*simulate(check_integer(num, "num", HELD_OUT), seed=seed))

    def rows(self, split: str) -> range:
        """Where the simulations of a split stand."""
        kept = len(self.x) - len(self.x) // HELD_OUT
        return range(kept) if split == "train" else range(kept, len(self.x))

    def draw(self, num: int, split: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """``(x, y, params)`` of ``num`` simulations."""
        rows = self.rows(split)
        # On the CPU, so that a seed picks the same simulations on every device.
        index = torch.randint(rows.start, rows.stop, (num,)).to(self.x.device)
        return self.x[index], self.y[index], rows_of(self.params, index)

    def held(self, most: int) -> Tensor | None:
        """The fields that are not for tests; ``None`` if more than ``most``."""
        kept = len(self.rows("train"))
        return self.x[:kept] if kept <= most else None

    def to(
        self, device: torch.device, dtype: torch.dtype, types: Mapping[str, torch.dtype]
    ) -> Record:
        """On a device, in a type; parameters of other types keep these."""
        params = {k: v.to(device, types.get(k, dtype)) for k, v in self.params.items()}
        return Record(self.x.to(device, dtype), self.y.to(device, dtype), params)
