r"""Held-out simulations, on which the weights of a training are scored: how close, how calibrated.

Beside the energy score of each simulation, the ranks of the truths among the draws are looked at,
for the quantities that carry the verdict of a calibration
(:mod:`vfm_inverse.statistics.quantities`). Ranks from 0 to L of calibrated draws are uniform, so
that over n simulations both of

.. math:: z_1 = \frac{\bar r - L/2}{\sqrt{v / n}}, \qquad
          z_2 = \frac{\overline{(r - L/2)^2} - v}{\sqrt{(m_4 - v^2) / n}}, \qquad
          v = \frac{L (L + 2)}{12},

with the fourth moment :math:`m_4`, are about N(0, 1): :math:`z_1` sees draws that are off, and
:math:`z_2` draws that are too narrow or too wide. The largest of them over all quantities is the
*offset*. Scores cannot take its place: narrow draws near the truth can score better than
calibrated ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.posterior.answer import Condition, Networks
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.splits import Split
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.scaling import center_and_spread, over
from vfm_inverse.statistics.quantities import channel_units, default_quantities, evaluate
from vfm_inverse.statistics.ranks import rank_of_truth
from vfm_inverse.statistics.scores import energy_score

__all__ = ["HeldOut", "Score", "offset_of"]

DRAWS, NUMBERS = 16, 2**21
"""Draws for each held-out simulation that is scored, and numbers of them at once."""


class Score(NamedTuple):
    """What held-out simulations say of some weights.

    Attributes:
        energy: energy scores ``(num,)``.
        offset: of the ranks, in standard deviations; 2 to 3 of calibrated draws, since it is the
            largest of many.
    """

    energy: Tensor
    offset: float


class HeldOut:
    """Simulations that score the weights of a map, the same ones and the same noise each time.

    Args:
        vfm: whose networks are scored.
        problem: where simulations come from.
        num: simulations.
        seed: of the training.
    """

    def __init__(
        self, vfm: VariationalFlowMap, problem: InverseProblem, num: int, seed: int
    ) -> None:
        self.vfm, self.problem, self.num, self.seed = vfm, problem, num, seed
        self._conditions: dict[tuple[str, int], Condition] = {}

    @torch.no_grad()
    def score(self, networks: Networks, split: Split = "test") -> Score:
        """Of networks, on simulations of a split; energy scores are of elements over their spread,
        so that no unit outweighs another."""
        vfm, problem, energies, ranks = self.vfm, self.problem, [], []
        with seeded(self.seed + 1):
            x, y, params = problem.simulate(self.num, split=split)
            _, spread = center_and_spread(x)
            likelihood = None if problem.likelihood is None else problem.log_likelihood
            quantities = default_quantities(
                problem.field_shape, likelihood, units=channel_units(x)
            )
            at_once = max(1, min(64, NUMBERS // (DRAWS * vfm.whitening.dim)))
            for rows in torch.arange(self.num).split(at_once):
                data, part = y[rows], rows_of(params, rows)
                condition = self._condition((split, int(rows[0])), data, part)
                answer = vfm.answer(condition, networks)
                draws = vfm.decode(answer.noise.sample((DRAWS,)), answer)
                energies.append(energy_score(over(draws, spread), over(x[rows], spread)))
                both = torch.cat([x[rows].unsqueeze(0), draws])
                if bool(both.isfinite().all()):
                    values = evaluate(quantities, both, data, part)
                    half = values.new_full(values.shape[1:], 0.5)
                    ranks.append(rank_of_truth(values[1:], values[0], half))
        complete = len(ranks) == len(energies)
        return Score(torch.cat(energies), offset_of(torch.cat(ranks)) if complete else math.inf)

    def _condition(self, key: tuple[str, int], y: Tensor, params: dict[str, Tensor]) -> Condition:
        """What the networks are given; kept where each observation has a mode to be found."""
        if not isinstance(self.vfm.start, FrameStart):
            return self.vfm.condition(y, params)
        if key not in self._conditions:
            self._conditions[key] = self.vfm.condition(y, params)
        return self._conditions[key]


def offset_of(ranks: Tensor, num_draws: int = DRAWS) -> float:
    """The largest standardised deviation of ranks ``(num, quantities)`` from uniform ones."""
    num, values = len(ranks), num_draws + 1
    centred = ranks.double() - num_draws / 2
    variance = num_draws * (num_draws + 2) / 12
    fourth = (values**2 - 1) * (3 * values**2 - 7) / 240
    off = centred.mean(0) / math.sqrt(variance / num)
    wide = (centred.square().mean(0) - variance) / math.sqrt((fourth - variance**2) / num)
    return float(torch.cat([off, wide]).abs().max())
