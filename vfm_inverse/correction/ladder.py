"""The ladder of corrections: climb until the diagnostics are satisfied, observation by
observation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vfm_inverse.correction.chains import chain_figures, march
from vfm_inverse.correction.ensemble import Ensemble, effective_size
from vfm_inverse.correction.importance import GOOD_SHAPE, smooth
from vfm_inverse.correction.target import Target
from vfm_inverse.correction.tempering import anneal
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.randomness import seeded

__all__ = ["RUNGS", "auto"]

RUNGS = ("psis", "smc", "mcmc")

LENGTH, WARMUP, THIN = 32, 300, 5
"""Draws kept of each Markov chain, moves before them and between them."""

GOOD_SHARE = 0.1
"""Least share of effective draws with which importance weights are accepted."""

GOOD_RHAT = 1.05
"""Largest R-hat with which groups of particles or chains are said to agree."""


def auto(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1024,
    *,
    seed: int | None = None,
    **params: Tensor,
) -> Ensemble:
    """Correct the map's draws with the cheapest method that holds for each observation.

    Importance weights are taken where k-hat stays below 0.7 and a tenth of the draws is effective;
    the other observations are given to tempered sequential Monte Carlo, accepted if independent
    groups of particles agree (R-hat up to 1.05), and what is left to Markov chains. Where the
    density of the draws is unknown, the chains are the first rung.

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
        u = target.sample(num_samples)
        log_weights = u.new_zeros(u.shape[:2])
        nan = torch.full_like(log_weights[0], torch.nan)
        figures = {name: nan.clone() for name in ("rung", "k_hat", "rhat", "acceptance")}
        left = torch.arange(target.num, device=u.device)

        if not target.direct:
            log_weights, figures["k_hat"] = smooth(target.log_prob(u) - target.log_reference(u))
            share = effective_size(log_weights.softmax(0)) / num_samples
            good = (figures["k_hat"] < GOOD_SHAPE) & (share >= GOOD_SHARE)
            figures["rung"] = torch.where(good, 0.0, nan)
            left = left[~good]
            if len(left):
                state, found = anneal(target.rows(left), u[:, left])
                left = settle(1, left, state.u, found, u, log_weights, figures)
        if len(left):
            chains, accepted = march(
                target.rows(left), u[::LENGTH, left], "mala", LENGTH, WARMUP, THIN
            )
            found = chain_figures(chains, accepted)
            left = settle(2, left, chains.flatten(0, 1), found, u, log_weights, figures)
        satisfied = torch.ones_like(nan).index_fill_(0, left, 0.0)
        return Ensemble.of(
            target.field(u),
            batched,
            log_weights,
            {**figures, "satisfied": satisfied},
            tuple(
                sentence(*row)
                for row in zip(
                    figures["rung"].tolist(),
                    figures["k_hat"].tolist(),
                    figures["rhat"].tolist(),
                    strict=True,
                )
            ),
        )


def settle(
    rung: int,
    rows: Tensor,
    draws: Tensor,
    found: Mapping[str, Tensor],
    u: Tensor,
    log_weights: Tensor,
    figures: dict[str, Tensor],
) -> Tensor:
    """Write the draws and figures of some rows in place; returns the rows that go on."""
    u[:, rows], log_weights[:, rows] = draws, 0.0
    figures["rung"][rows] = float(rung)
    for name in ("rhat", "acceptance"):
        figures[name][rows] = found[name]
    return rows[found["rhat"] > GOOD_RHAT]


def sentence(rung: float, k_hat: float, rhat: float) -> str:
    """What was done for one observation, and why."""
    why = "the density of the draws is unknown" if math.isnan(k_hat) else f"k-hat {k_hat:.2f}"
    if rung == 0:
        return f"weighted: {why}"
    agree = "agree" if rhat <= GOOD_RHAT else "still disagree: do not trust these draws"
    if rung == 1:
        return f"tempered ({why}, or few draws effective); groups {agree}, R-hat {rhat:.3f}"
    return f"Markov chains ({why}, no other rung held); chains {agree}, R-hat {rhat:.3f}"
