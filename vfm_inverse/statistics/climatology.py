r"""Climatology: the forecast that knows the prior and nothing of the observation.

The truths of all simulations are draws from the prior.  Up to 256 of them, evenly spaced, forecast
every simulation, each time without its own truth: a baseline without a further simulation.  With
:math:`a_i = \sum_{j \in C} |x_j - x_i|` over the set :math:`C` and its pair sum :math:`P`, leaving
out :math:`i \in C` leaves :math:`n = |C| - 1` draws with the pair sum :math:`P - 2 a_i`, so the
scores of all simulations share one table of pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vfm_inverse.statistics import scores

__all__ = ["Climatology"]

MEMBERS = 256
"""Largest number of truths in the set."""


class Climatology:
    """Scores of the other truths as a forecast of each truth.

    Args:
        truth: ``(num_simulations, *event)``, at least three.
    """

    def __init__(self, truth: Tensor) -> None:
        num = len(truth)
        index = np.unique(np.linspace(0, num - 1, min(num, MEMBERS)).round().astype(int))
        self.index = index
        self.members = truth[torch.from_numpy(index).to(truth.device)].detach()
        flat = self.members.flatten(1)
        ordered = flat.sort(0).values
        ordered = ordered - ordered.mean(0)
        weights = torch.arange(1 - len(flat), len(flat), 2).to(flat)
        self._pairs = 2 * weights @ ordered  # sum over i, j of |x_i - x_j|, each element
        exact = "donot_use_mm_for_euclid_dist"
        self._distances = float(torch.cdist(flat, flat, compute_mode=exact).double().sum())
        self._variogram = scores.variogram(flat[:, scores.spread_elements(flat.shape[1])])
        self._total = self._variogram.sum(0)

    def scores(self, truth: Tensor, start: int) -> np.ndarray:
        """A table :data:`~vfm_inverse.statistics.scores.SCORES` without the log score,
        ``(block, 5)``.

        Args:
            truth: ``(block, *event)``, of the simulations from number ``start``.
            start: number of the first.
        """
        flat, members = truth.flatten(1), self.members.flatten(1)
        found = np.empty((len(flat), 5))
        column = scores.columns(found)
        for row, x in enumerate(flat):
            own = np.flatnonzero(self.index == start + row)
            num = len(members) - len(own)
            difference = members - x
            near = difference.abs().sum(0)
            pairs = (self._pairs - 2 * near * len(own)).double().mean()
            accuracy = float(near.double().mean()) / num
            away = float(torch.linalg.vector_norm(difference, dim=1).double().sum())
            distances = self._distances - 2 * away * len(own)
            for kind, count in (("", num * (num - 1)), ("_plain", num**2)):
                column[f"crps{kind}"][row] = accuracy - float(pairs) / (2 * count)
                column[f"energy{kind}"][row] = away / num - distances / (2 * count)
            seen = scores.variogram(x[None, scores.spread_elements(len(x))])[0]
            forecast = (self._total - (self._variogram[own[0]] if len(own) else 0)) / num
            column["variogram"][row] = float((seen - forecast).square().sum()) * 2
        return found
