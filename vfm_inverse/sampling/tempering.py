r"""Tempered sequential Monte Carlo from draws of a known density to the posterior.

Particles start as draws of the map or of a Gaussian, law r, and pass through
:math:`r^{1-\beta} p^\beta`, :math:`\beta` rising from 0 to 1 so that the weights of each stage
keep a given share of the particles; after every stage they are resampled and moved by
:mod:`vfm_inverse.sampling.moves` (Del Moral et al. 2006, JRSS B 68, 411; adaptive temperatures:
Jasra et al. 2011, Scand. J. Stat. 38, 1). The particles of an observation form independent groups,
whose disagreement (R-hat) tells whether the answer depends on chance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.sampling.ensemble import effective_size, systematic
from vfm_inverse.sampling.moves import ACCEPTANCE, Kernel, State, adapt, differential, pcn
from vfm_inverse.sampling.target import Target

__all__ = ["GROUPS", "anneal", "next_rise", "resample", "split_rhat", "weighted"]

GROUPS = 4


def anneal(
    target: Target,
    state: State,
    ess: float = 0.5,
    moves: int = 10,
    max_stages: int = 100,
    *,
    together: bool = False,
) -> tuple[State, dict[str, Tensor]]:
    """The stages, from draws of the reference.

    Args:
        target: posteriors of n observations.
        state: draws of its reference.
        ess, moves, max_stages: as of :func:`vfm_inverse.correction.smc`.
        together: whether the particles move along their differences, and not each by itself
            towards N(0, I).

    Returns:
        Draws, and the diagnostics of :func:`vfm_inverse.correction.smc`.
    """
    kernel: Kernel = pcn
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
        if together:
            kernel = differential(state.u, GROUPS)
        for i in range(extra * moves):
            state, accepted = kernel(target, state, step, power)
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
