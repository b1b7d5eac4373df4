"""What a calibration keeps of the draws: ranks and scores, never the draws themselves.

A thousand observations with a thousand draws of a 128 x 128 field would be 65 GB.  Each simulation
leaves the rank of every scalar quantity and its scores; each element of the field leaves a
histogram of its ranks, its coverage and a few sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vfm_inverse import ranks, scores
from vfm_inverse.quantities import Quantity, evaluate

__all__ = ["LEVELS", "Tally"]

#: Nominal probabilities of the central intervals.
LEVELS: tuple[float, ...] = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99)


class Tally:
    """Ranks and scores of each simulation, histograms and sums of each element."""

    def __init__(
        self,
        quantities: Mapping[str, Quantity],
        num_draws: int,
        num_simulations: int,
        seed: int,
    ) -> None:
        self.quantities, self.num_draws, self.seed = dict(quantities), num_draws, seed
        # At least ten simulations a bin keep the chi-square approximation good.
        self.num_bins = max(2, min(20, num_simulations // 10, num_draws + 1))
        # A stream of ties for every simulation: blocks of any size break them alike.
        self.tie_seeds = np.random.SeedSequence([seed, 1]).generate_state(num_simulations).tolist()
        self.ranks: list[np.ndarray] = []
        self.quantity_crps: list[np.ndarray] = []
        self.energy_score: list[np.ndarray] = []
        self.crps: list[np.ndarray] = []
        self.done = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, buffer: Tensor, y: Tensor | None, params: Mapping[str, Tensor]) -> None:
        """Take a block: ``buffer`` ``(1 + num_draws, block, *event)`` is truth, then draws.

        One tensor, because a quantity must round truth and draws alike for their ties to be ties.
        """
        truth, draws = buffer[0], buffer[1:]
        finite = buffer.isfinite().flatten(2).all(-1)
        if not finite.all():
            what = "truth" if not finite[0].all() else "draws"
            where = self.done + int((~finite).any(0).nonzero()[0])
            raise ValueError(f"'{what}' of simulation {where} must be finite")
        block, event = truth.shape[0], truth.shape[1:]
        count = len(self.quantities)
        streams = map(torch.Generator().manual_seed, self.tie_seeds[self.done : self.done + block])
        uniforms = torch.stack([torch.rand(count + event.numel(), generator=s) for s in streams])
        uniforms = uniforms.to(truth.device)
        values = evaluate(self.quantities, buffer, y, params)
        rank = ranks.rank_of_truth(values[1:], values[0], uniforms[:, :count])
        self.ranks.append(rank.cpu().numpy())
        self.quantity_crps.append(scores.crps(values[1:], values[0]).cpu().numpy())
        self.energy_score.append(scores.energy_score(draws, truth).cpu().numpy())

        element = ranks.rank_of_truth(draws, truth, uniforms[:, count:].reshape(truth.shape))
        crps = scores.crps(draws, truth)
        self.crps.append(crps.flatten(1).mean(1).cpu().numpy())
        variance, mean = torch.var_mean(draws, dim=0)
        error = (mean - truth).double()
        bins = element * self.num_bins // (self.num_draws + 1)
        self._sum("bins", torch.stack([(bins == b).sum(0) for b in range(self.num_bins)]))
        weights = [ranks.coverage_weight(element, self.num_draws, level) for level in LEVELS]
        self._sum("coverage", torch.stack([weight.double().sum(0) for weight in weights]))
        self._sum("crps", crps.double().sum(0))
        self._sum("bias", error.sum(0))
        self._sum("skill", error.square().sum(0))
        self._sum("spread", variance.double().sum(0) * (1 + 1 / self.num_draws))
        self.done += block

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
