"""Tempered sequential Monte Carlo from the map's draws to the posterior
(:mod:`vfm_inverse.sampling.tempering`)."""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.sampling.moves import draw
from vfm_inverse.sampling.target import Target
from vfm_inverse.sampling.tempering import GROUPS, anneal

__all__ = ["smc"]


@checked("correction", vfm="VariationalFlowMap")
@torch.no_grad()
def smc(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1024,
    *,
    ess: float = 0.5,
    moves: int = 10,
    max_stages: int = 100,
    seed: int | None = None,
    **params: Tensor,
) -> Ensemble:
    """Carry draws of the map to the posterior.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: particles for each observation, a multiple of 4.
        ess: share of effective particles that a stage keeps.
        moves: Markov moves after every stage; twice as many after the last.
        max_stages: most temperatures.
        seed: of the run; the global generator without one.
        params: parameters of the observations.

    Returns:
        Equally weighted draws. Diagnostics: ``rhat`` between independent groups of particles, the
        worst coordinate (1 is agreement), ``stages``, ``acceptance``, ``power`` (1 if the
        posterior was reached) and ``folded``, the share of the map's draws at which a conditional
        map folds over itself (trust the answer below 0.01).

    Raises:
        ValueError: the posterior's or the draws' density is unknown (:class:`Target`), or an
            argument makes no sense.
    """
    if num_samples < GROUPS or num_samples % GROUPS:
        raise ValueError(f"'num_samples' must be a multiple of {GROUPS}; got {num_samples}")
    if not 0 < ess < 1:
        raise ValueError(f"'ess' must lie between 0 and 1; got {ess}")
    y, params, batched = vfm.batch(y, params)
    with seeded(seed):
        target = Target(vfm, y, params)
        state, folded = draw(target, num_samples)
        state, figures = anneal(target, state, ess, moves, max_stages)
        figures["folded"] = folded
        notes = tuple(
            f"{int(k)} temperatures, R-hat between groups {r:.3f}, folded {f:.1%}"
            for k, r, f in zip(figures["stages"], figures["rhat"], folded.tolist(), strict=True)
        )
        return Ensemble.of(target.field(state.u), batched, None, figures, notes)
