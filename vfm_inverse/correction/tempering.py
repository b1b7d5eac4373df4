r"""Tempered sequential Monte Carlo from the map's draws to the posterior.

Particles start as draws of the map, law r, and pass through :math:`r^{1-\beta} p^\beta`,
:math:`\beta` rising from 0 to 1 so that the weights of each stage keep a given share of the
particles; after every stage they are resampled and moved by :mod:`moves` (Del Moral et al. 2006,
JRSS B 68, 411; adaptive temperatures: Jasra et al. 2011, Scand. J. Stat. 38, 1). The particles of
an observation form independent groups, whose disagreement (R-hat) tells whether the answer depends
on chance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.correction.moves import ACCEPTANCE, State, adapt, draw, pcn
from vfm_inverse.correction.target import Target
from vfm_inverse.posterior.ensemble import Ensemble, effective_size, systematic
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded

__all__ = ["smc", "split_rhat"]

GROUPS = 4


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


def anneal(
    target: Target, state: State, ess: float = 0.5, moves: int = 10, max_stages: int = 100
) -> tuple[State, dict[str, Tensor]]:
    """The stages, from draws of the reference."""
    power, stages, accepted = (state.u.new_zeros(target.num) for _ in range(3))
    step = torch.full_like(power, 0.5)
    for _ in range(max_stages):
        running = power < 1
        if not running.any():
            break
        rise = next_rise(state.log_prob - state.log_reference, 1 - power, ess)
        state = resample(state, rise)
        power = torch.where(1 - power - rise < 1e-6, 1.0, power + rise)
        stages += running
        extra = 2 if bool((power == 1).all()) else 1
        for i in range(extra * moves):
            state, accepted = pcn(target, state, step, power)
            step = adapt(step, accepted, ACCEPTANCE["pcn"], i)
    figures = {
        "rhat": split_rhat(state.u.unflatten(0, (GROUPS, -1))),
        "stages": stages,
        "acceptance": accepted,
        "power": power,
    }
    return state, figures


def next_rise(log_ratio: Tensor, room: Tensor, ess: float) -> Tensor:
    """Largest rises of the power, at most ``room (n,)``, whose weights keep the share ``ess``."""
    num = log_ratio.shape[0]
    low, high = torch.zeros_like(room), room.clone()

    def keeps(rise: Tensor) -> Tensor:
        weights = weighted(log_ratio, rise)
        return effective_size(weights) >= ess * num

    done = keeps(high)
    for _ in range(40):
        middle = (low + high) / 2
        good = keeps(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    # Where most draws have no density at all, no rise keeps the share: take the smallest.
    return torch.where(done, room, low.clamp_min(1e-4).minimum(room))


def weighted(log_ratio: Tensor, rise: Tensor) -> Tensor:
    """Normalised weights ``(num, n)`` of a rise ``(n,)``; equal ones for a rise of zero."""
    value = torch.where(rise > 0, rise * log_ratio, torch.zeros_like(log_ratio))
    return value.nan_to_num(nan=-torch.inf, neginf=-1e30).softmax(0)


def resample(state: State, rise: Tensor) -> State:
    """Systematic resampling within each group, whose share of the particles stays what it is."""
    log_ratio = (state.log_prob - state.log_reference).unflatten(0, (GROUPS, -1))
    size = log_ratio.shape[1]
    parts = []
    for group, values in enumerate(log_ratio):
        index = systematic(weighted(values, rise), size) + group * size
        parts.append(index)
    index = torch.cat(parts)
    # An observation that has arrived keeps its particles.
    index = torch.where(rise > 0, index, torch.arange(len(index), device=index.device)[:, None])
    return state.take(index)


def split_rhat(chains: Tensor) -> Tensor:
    """R-hat of ``(groups, num, n, d)`` equally long chains or groups, the worst coordinate,
    ``(n,)`` (Gelman et al. 2013, Bayesian Data Analysis, eq. 11.4)."""
    num = chains.shape[1]
    within = chains.var(1).mean(0)
    between = chains.mean(1).var(0)
    ratio = ((num - 1) / num + between / within.clamp_min(1e-30)).sqrt()
    return ratio.amax(-1)
