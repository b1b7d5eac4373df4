"""The ladder of corrections: climb until the diagnostics are satisfied, observation by
observation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vfm_inverse.calls import checked
from vfm_inverse.correction.chains import chain_figures
from vfm_inverse.correction.ensemble import Ensemble, effective_size
from vfm_inverse.correction.hamiltonian import hamiltonian
from vfm_inverse.correction.importance import GOOD_SHAPE, MOST_FOLDED, smooth
from vfm_inverse.correction.moves import State, draw
from vfm_inverse.correction.target import Target
from vfm_inverse.correction.tempering import anneal
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.randomness import seeded

__all__ = ["RUNGS", "auto"]

RUNGS = ("psis", "smc", "mcmc")
FIGURES = ("rung", "k_hat", "rhat", "folded", "acceptance")

UNFOLDING_STEPS = 4
"""Steps of the map that are tried where fewer leave folds or bad weights."""

LENGTH, WARMUP = 32, 200
"""Draws kept of each Markov chain and moves before them."""

THINNING = (2, 8, 32)
"""Moves between two draws of a chain; the next where the chains of an observation disagree."""

MOST_STAGES = 100.0
"""Most stages of tempering, as :func:`stages_needed` expects them, with which it is tried."""

GOOD_SHARE = 0.1
"""Least share of effective draws with which importance weights are accepted."""

GOOD_RHAT = 1.05
"""Largest R-hat with which groups of particles or chains are said to agree."""


@checked("correction", vfm="VariationalFlowMap")
def auto(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1024,
    *,
    seed: int | None = None,
    **params: Tensor,
) -> Ensemble:
    """Correct the map's draws with the cheapest method that holds for each observation.

    Importance weights are taken where k-hat stays below 0.7, a tenth of the draws is effective and
    a conditional map does not fold over itself (more steps, or a spline adapter, make it less
    likely to); the other observations are given to tempered sequential Monte Carlo, unless the
    draws are so far off that it could not arrive, accepted if independent groups of particles
    agree (R-hat up to 1.05), and what is left to Hamiltonian Markov chains, which go on with more
    moves to a draw where they disagree. Where the density of the draws is unknown, the chains are
    the first rung.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: draws for each observation, a multiple of 32 and at least 128.
        seed: of the run; the global generator without one.
        params: parameters of the observations.

    Returns:
        Diagnostics ``rung`` (0, 1, 2: psis, smc, mcmc), ``ess``, and ``k_hat`` and ``rhat`` where
        they were computed, not a number elsewhere; ``satisfied`` is 1 where the last rung's own
        diagnostic is good. ``notes`` says in a sentence what was done for each observation.

    Raises:
        ValueError: the posterior's density is unknown (:class:`Target`), or an argument makes no
            sense.
    """
    if num_samples < 4 * LENGTH or num_samples % LENGTH:
        raise ValueError(
            f"'num_samples' must be a multiple of {LENGTH} and at least {4 * LENGTH}; got "
            f"{num_samples}"
        )
    y, params, batched = vfm.batch(y, params)
    with seeded(seed), torch.no_grad():
        target = Target(vfm, y, params)
        result = Climb(y.new_empty(num_samples, len(y), *vfm.event_shape))
        if not target.direct:
            # More steps, each nearer to the identity, unfold a map that folds over itself.
            for steps in dict.fromkeys((vfm.steps, max(vfm.steps, UNFOLDING_STEPS))):
                climb_with(result, target, steps, num_samples)
                if target.prior_map or not len(result.left):
                    break
        if len(result.left):
            run_chains(result, target, num_samples // LENGTH)
    return result.ensemble(batched)


def climb_with(result: Climb, target: Target, steps: int, num_samples: int) -> None:
    """Weigh, and temper, the draws of so many steps of the map for the observations that are
    left."""
    rows = result.left
    part = target.rows(rows, steps)
    state, folded = draw(part, num_samples)
    log_ratio = state.log_prob - state.log_reference
    result.weigh(rows, part.field(state.u), *smooth(log_ratio), folded)
    # Tempering is no more exact than weights under a map that folds.
    again = torch.isin(rows, result.left) & (folded <= MOST_FOLDED)
    again &= stages_needed(log_ratio, part.dim) <= MOST_STAGES
    if again.any():
        tempered = part.rows(again.nonzero().squeeze(1))
        drawn = State(*(value[:, again] for value in state[:3]))
        state, found = anneal(tempered, drawn)
        result.settle(1, rows[again], tempered.field(state.u), found)


def run_chains(result: Climb, target: Target, num_chains: int) -> None:
    """Markov chains for the observations that are left, longer ones until they agree."""
    rows = result.left
    part = target.rows(rows)
    part, u = part.without_map(part.sample(num_chains))
    for thin in THINNING:
        chains, accepted = hamiltonian(part, u, LENGTH, WARMUP, thin)
        found = chain_figures(chains, accepted)
        result.settle(2, rows, part.field(chains.flatten(0, 1)), found)
        again = torch.isin(rows, result.left)
        if not again.any():
            break
        rows, part, u = rows[again], part.rows(again), chains[-1][:, again]


def stages_needed(log_ratio: Tensor, dim: int) -> Tensor:
    """Stages that tempering will take from draws with log-weights ``(num, n)``, about, ``(n,)``.

    The first power is one over the spread of the log-weights. At the power b the misfit of a
    Gaussian posterior in d dimensions varies by ``sqrt(d / 2) / b``, so that a stage, which the
    weights allow a rise of one over this, multiplies b by ``1 + sqrt(2 / d)``.
    """
    low, high = log_ratio.quantile(log_ratio.new_tensor([0.25, 0.75]), 0)
    spread = (high - low).nan_to_num(torch.inf).clamp_min(1.0)
    return spread.log() / math.log1p(math.sqrt(2 / dim))


class Climb:
    """What the rungs have found so far.

    Args:
        samples: where the draws go, ``(num, n, *event)``.
    """

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples
        self.log_weights = samples.new_zeros(samples.shape[:2])
        nan = torch.full_like(self.log_weights[0], torch.nan)
        self.figures = {name: nan.clone() for name in FIGURES}
        self.left = torch.arange(samples.shape[1], device=samples.device)

    def weigh(
        self, rows: Tensor, samples: Tensor, log_weights: Tensor, k_hat: Tensor, folded: Tensor
    ) -> None:
        """The first rung, for the observations ``rows``."""
        share = effective_size(log_weights.softmax(0)) / len(log_weights)
        good = (k_hat < GOOD_SHAPE) & (share >= GOOD_SHARE) & (folded <= MOST_FOLDED)
        self.samples[:, rows], self.log_weights[:, rows] = samples, log_weights
        self.figures["k_hat"][rows], self.figures["folded"][rows] = k_hat, folded
        self.figures["rung"][rows[good]] = 0.0
        self.left = rows[~good]

    def settle(
        self, rung: int, rows: Tensor, samples: Tensor, found: Mapping[str, Tensor]
    ) -> None:
        """A later rung, for the observations ``rows`` among those left."""
        self.samples[:, rows], self.log_weights[:, rows] = samples, 0.0
        self.figures["rung"][rows] = float(rung)
        for name in ("rhat", "acceptance"):
            self.figures[name][rows] = found[name]
        satisfied = rows[found["rhat"] <= GOOD_RHAT]
        self.left = self.left[~torch.isin(self.left, satisfied)]

    def ensemble(self, batched: bool) -> Ensemble:
        """Draws, weights and figures of all observations."""
        satisfied = torch.ones_like(self.figures["rung"]).index_fill_(0, self.left, 0.0)
        columns = (self.figures[name].tolist() for name in FIGURES[:4])
        notes = tuple(sentence(*row) for row in zip(*columns, strict=True))
        figures = {**self.figures, "satisfied": satisfied}
        return Ensemble.of(self.samples, batched, self.log_weights, figures, notes)


def sentence(rung: float, k_hat: float, rhat: float, folded: float) -> str:
    """What was done for one observation, and why."""
    why = "the density of the draws is unknown" if math.isnan(k_hat) else f"k-hat {k_hat:.2f}"
    if folded > MOST_FOLDED:
        why = f"the map folds at {folded:.1%} of the draws"
    if rung == 0:
        return f"weighted: {why}"
    agree = "agree" if rhat <= GOOD_RHAT else "still disagree: do not trust these draws"
    if rung == 1:
        return f"tempered ({why}, or few draws effective); groups {agree}, R-hat {rhat:.3f}"
    return f"Markov chains ({why}, no other rung held); chains {agree}, R-hat {rhat:.3f}"
