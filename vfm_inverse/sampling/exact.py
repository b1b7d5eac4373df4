r"""Draws of the exact posterior, where unknowns are few and prior and likelihood have densities.

One smooth map of a Gaussian has bridges between modes and misses sharp edges. With few unknowns
that costs little to repair, observation by observation:

1. **Weights.** For each draw asked for, 4 to 16 draws of the map are weighted by :math:`p(u \mid
   y) / r(u)` (:mod:`vfm_inverse.sampling.weights`) and resampled. That is trusted where k-hat is
   below 0.7, the map folds over itself at no more than 1 % of the draws, and twice as many draws
   are effective as are asked for.
2. **Tempering** elsewhere (:mod:`vfm_inverse.sampling.tempering`): particles start as draws of a
   Gaussian, the map's frame but wider, in which modes that the map misses are found, and move
   along their differences. No network is evaluated. Where independent groups do not agree well
   (R-hat above 1.01) it is done again with twice the particles and twice the moves, and then
   trusted up to 1.05.

Draws of the second kind are exact as their number grows; the diagnostics say how each observation
was answered.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.warnings import CalibrationWarning
from vfm_inverse.sampling.ensemble import Ensemble, effective_size, systematic
from vfm_inverse.sampling.moves import State, draw
from vfm_inverse.sampling.target import Map, Target
from vfm_inverse.sampling.tempering import GROUPS, anneal
from vfm_inverse.sampling.weights import GOOD_SHAPE, MOST_FOLDED, smooth

__all__ = ["AS_SAMPLED", "MOST_DIMENSIONS", "exact_draws", "joined", "warn_unsatisfied", "worst"]

MOST_DIMENSIONS = 16
"""Most unknowns for which draws are made exact by themselves."""

AS_SAMPLED = "exact, as sampled"
"""What reports and files say of draws that were made exact."""

PROPOSALS = (4, 8, 16)
"""Draws of the map that are weighted for each draw asked for; the next where fewer leave too few
effective."""

PILOT = 256
"""Least number of draws that are weighted, which also show whether weights will do."""

HOPE = 1.5
"""Factor by which the share of effective draws may seem too small and more draws are made."""

EFFECTIVE, LEAST = 2.0, 64.0
"""Effective draws for each draw asked for, and in all."""

PARTICLES, SMALLEST = 2, 1024
"""Particles for each draw asked for, and least number of them; twice as many, with twice as many
moves, where groups do not agree well."""

AGREE_WELL, AGREE = 1.01, 1.05
"""Largest R-hat with which groups of particles agree well enough not to be asked again (Vehtari et
al. 2021, Bayesian Analysis 16, 667), and largest with which they are trusted after that."""

BLOCK = 2**12
"""Draws of an observation that are made together."""

AT_ONCE = 2**23
"""Numbers of the proposals of all observations that are taken together."""

FIGURES = ("k_hat", "ess", "folded", "rhat", "rung", "satisfied")


@torch.no_grad()
def exact_draws(
    vfm: Map, y: Tensor, params: Mapping[str, Tensor], num: int, batched: bool = True
) -> Ensemble:
    """Draws of the exact posterior of observations ``(n, *obs)``, equally weighted.

    Args:
        vfm: the map; it needs a likelihood and the density of the prior.
        y: observations.
        params: their parameters.
        num: draws for each.
        batched: whether the draws keep the dimension of observations.

    Returns:
        Diagnostics ``k_hat`` of the weights; ``ess``, effective draws behind those that were
        resampled, or particles; ``folded``; ``rung``, 0 for weights and 1 for tempering; ``rhat``
        of the particles, not a number for weights; ``satisfied``, 1 where the rung's own
        diagnostic is good. Where draws are made in several blocks, the worst of them, and the sum
        of ``ess``.
    """
    blocks = [
        _block(vfm, y, params, min(BLOCK, num - begin)) for begin in range(0, max(num, 1), BLOCK)
    ]
    samples = torch.cat([samples for samples, _ in blocks])
    figures = joined([figures for _, figures in blocks])
    notes = tuple(
        sentence(*row) for row in zip(*(figures[name].tolist() for name in FIGURES), strict=True)
    )
    return Ensemble.of(samples, batched, None, figures, notes)


def joined(blocks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Figures of several blocks of draws of the same observations: the sum of ``ess``, and the
    worst of what else is a number."""
    result = {}
    for name in blocks[0]:
        value = torch.stack([block[name] for block in blocks])
        if name in ("ess", "satisfied"):
            result[name] = value.sum(0) if name == "ess" else value.amin(0)
        else:
            most = value.nan_to_num(-torch.inf, posinf=torch.inf).amax(0)
            result[name] = torch.where(value.isnan().all(0), torch.nan, most)
    return result


def worst(diagnostics: Mapping[str, Tensor]) -> dict[str, float | int]:
    """Of all observations, as attributes of a file of draws: the largest k-hat and the fewest
    effective draws of those that weights answered, and how many were tempered or are not to be
    trusted."""
    weighted = diagnostics["rung"] == 0
    found: dict[str, float | int] = {
        "exact_tempered_observations": int((~weighted).sum()),
        "exact_unsatisfied_observations": int((diagnostics["satisfied"] == 0).sum()),
    }
    if bool(weighted.any()):
        found["exact_largest_k_hat"] = float(diagnostics["k_hat"][weighted].max())
        found["exact_least_ess"] = float(diagnostics["ess"][weighted].min())
    return found


def _block(
    vfm: Map, y: Tensor, params: Mapping[str, Tensor], num: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Some of the draws, ``(num, n, *event)``, and their figures, each ``(n,)``."""
    dim = vfm.whitening.dim
    size = max(1, AT_ONCE // (max(PROPOSALS[-1] * num, SMALLEST) * dim))
    parts = []
    for rows in torch.arange(len(y), device=y.device).split(size):
        target = Target(vfm, y[rows], rows_of(params, rows), known=True)
        parts.append(Draws(target, num))
        parts[-1].weigh()
        parts[-1].temper()
    samples = torch.cat([part.samples for part in parts], 1)
    figures = {name: torch.cat([part.figures[name] for part in parts]) for name in FIGURES}
    return samples, figures


class Draws:
    """Draws of a few posteriors, by the rungs one after the other.

    Args:
        target: the posteriors of n observations.
        num: draws for each.

    Attributes:
        samples: ``(num, n, *event)``.
        figures: by name, each ``(n,)``.
    """

    def __init__(self, target: Target, num: int) -> None:
        self.target, self.num = target, num
        like = target.y.new_empty(0, dtype=target.vfm.whitening.mean.dtype)
        self.samples = like.new_empty(num, target.num, *target.vfm.whitening.event_shape)
        nan = like.new_full((target.num,), torch.nan)
        self.figures = {name: nan.clone() for name in FIGURES}
        self.figures["satisfied"] = torch.zeros_like(nan)

    def weigh(self) -> None:
        """The first rung: more draws of the map for the observations that weights may answer,
        until they do or there are as many as there may be."""
        left = torch.arange(self.target.num, device=self.samples.device)
        wanted = max(EFFECTIVE * self.num, LEAST)
        sizes = dict.fromkeys(max(PILOT, times * self.num) for times in (0, *PROPOSALS))
        target, state = self.target, None
        folded = self.samples.new_zeros(len(left))
        for size in sizes:
            before = 0 if state is None else len(state.u)
            more, folds = draw(target, size - before)
            state = more if state is None else State(*_pooled(state, more))
            folded = (before * folded + (size - before) * folds) / size
            log_weights, k_hat = smooth(state.log_prob - state.log_reference)
            effective = effective_size(log_weights.softmax(0))
            sound = (k_hat < GOOD_SHAPE) & (folded <= MOST_FOLDED)
            good = sound & (effective >= wanted)
            for name, value in (("k_hat", k_hat), ("ess", effective), ("folded", folded)):
                self.figures[name][left] = value
            if good.any():
                # A draw of large weight comes more than once, but not in a row.
                index = systematic(log_weights[:, good].softmax(0), self.num)
                index = index[torch.randperm(self.num, device=index.device)]
                chosen = State(*(value[:, good] for value in state[:3])).take(index)
                self.settle(0, left[good], target.rows(good).field(chosen.u))
                self.figures["satisfied"][left[good]] = 1.0
            again = ~good & sound & (HOPE * effective / size * max(sizes) >= wanted)
            if size == max(sizes) or not again.any():
                break
            left, target, folded = left[again], target.rows(again), folded[again]
            state = State(*(value[:, again] for value in state[:3]))

    def temper(self) -> None:
        """The second rung, for the observations that are left."""
        dim, num = self.target.dim, max(SMALLEST, PARTICLES * self.num)
        num += -num % GROUPS
        left = (self.figures["satisfied"] == 0).nonzero().squeeze(1)
        for effort in (1, 2):
            if not len(left):
                return
            # Of what the first rung takes at once.
            for rows in left.split(max(1, AT_ONCE // (2 * effort * num * dim))):
                self._anneal(rows, effort * num, effort * (10 + 2 * dim))
            left = left[~(self.figures["rhat"][left] <= AGREE_WELL)]

    def _anneal(self, rows: Tensor, size: int, moves: int) -> None:
        # As much wider in few dimensions as in many.
        width = math.sqrt(1 + math.sqrt(2 / self.target.dim))
        part = self.target.rows(rows).around(width)
        first, _ = draw(part, size)
        state, found = anneal(part, first, moves=moves, together=True)
        # Neighbours come from one group: all are taken from equally.
        index = torch.randperm(size, device=rows.device)[: self.num]
        self.settle(1, rows, part.field(state.u[index]))
        arrived = (found["rhat"] <= AGREE) & (found["power"] == 1)
        # Where nothing has a density, nothing moves, and groups agree on that.
        arrived &= torch.isfinite(state.log_prob).all(0)
        for name, value in (("rhat", found["rhat"]), ("satisfied", arrived)):
            self.figures[name][rows] = value.to(self.samples)
        self.figures["ess"][rows] = float(size)

    def settle(self, rung: int, rows: Tensor, samples: Tensor) -> None:
        """Draws of a rung for the observations ``rows``."""
        self.samples[:, rows] = samples
        self.figures["rung"][rows] = float(rung)


def _pooled(first: State, second: State) -> tuple[Tensor, Tensor, Tensor]:
    u, log_prob, log_reference = (
        torch.cat([one, other]) for one, other in zip(first[:3], second[:3], strict=True)
    )
    return u, log_prob, log_reference


def sentence(
    k_hat: float, ess: float, folded: float, rhat: float, rung: float, satisfied: float
) -> str:
    """How one observation was answered, and why."""
    if rung == 0:
        return f"weighted: k-hat {k_hat:.2f}, {ess:.0f} draws effective"
    why = f"k-hat {k_hat:.2f}, or few draws effective"
    if folded > MOST_FOLDED:
        why = f"the map folds at {folded:.1%} of the draws"
    done = f"tempered ({why}); R-hat of {GROUPS} groups {rhat:.3f}"
    return done if satisfied else f"{done}, not arrived: do not trust these draws"


def warn_unsatisfied(satisfied: Tensor, stacklevel: int = 2) -> None:
    """Warn of observations whose draws may not be exact, by the diagnostic ``satisfied``.

    Args:
        satisfied: ``(n,)``, or of one observation.
        stacklevel: whose line the warning names, as in :func:`warnings.warn`.
    """
    if num := int((satisfied == 0).sum()):
        warnings.warn(
            f"the draws of {num} of {satisfied.numel()} observation(s) may not be exact: groups "
            "of particles disagree after tempering; 'notes' of the posterior says which",
            CalibrationWarning,
            stacklevel=stacklevel + 1,
        )
