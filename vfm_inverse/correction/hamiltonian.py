r"""Hamiltonian Markov chains, many side by side, that learn their metric from one another.

A move follows :math:`\dot u = M^{-1} p,\ \dot p = \nabla \log p(u)` from a fresh momentum
:math:`p \sim \mathcal N(0, M)` in leapfrog steps and is accepted or rejected by the change of
energy (Neal 2011, *Handbook of Markov Chain Monte Carlo*, chapter 5). It lasts a random time, on
average a quarter of the period :math:`2 \pi` of a Gaussian whose covariance is :math:`M^{-1}`,
after which position has become momentum.

The warm-up has stages. In the first each chain has a step of its own, which may change fast: a map
that is asked far from its training draws where the density is steep, and the chains must come down
from there. After it and the next, :math:`M^{-1}` becomes the covariance of the draws of all the
chains of an observation, shrunk towards its diagonal: a posterior that is thin along directions
the map did not know of is then as easy as a round one. Chains that have not arrived by then start
again where another is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vfm_inverse.sampling.moves import State, accept, adapt
from vfm_inverse.sampling.target import Target

__all__ = ["Metric", "hamiltonian"]

ACCEPTANCE = 0.8
"""Mean probability of acceptance that the step is adapted to."""

DENSE = 256
"""Most dimensions in which the metric knows of correlations."""

STAGES = 4
"""Equal parts of the warm-up; the metric is learned after each but the last."""

SHORT, LONGEST = 4, 16
"""Mean number of steps of a move in the first stage of the warm-up, and the most later."""

LOST = 10.0
"""Log density, beyond one a dimension, by which a chain below the median has not arrived. That of
a Gaussian posterior varies by the root of half the dimension."""


class Metric:
    """A root R of the inverse mass, ``R R^T = M^-1``, of n observations in d coordinates.

    Args:
        root: ``(n, d, d)``, lower triangular, or ``(n, d)`` where it is diagonal.
    """

    def __init__(self, root: Tensor) -> None:
        self.root = root

    @classmethod
    def of(cls, draws: Tensor, independent: int) -> Metric:
        """Learned from ``draws (num, n, d)`` that are worth ``independent`` independent ones."""
        dim = draws.shape[-1]
        variance = draws.var(0)
        # Chains that never moved apart say nothing of the width.
        variance = torch.where(variance > 0, variance, torch.ones_like(variance))
        if dim > DENSE:
            return cls(variance.sqrt())
        deviation = (draws - draws.mean(0)).transpose(0, 1)
        share = independent / (independent + dim)
        covariance = share / (len(draws) - 1) * (deviation.mT @ deviation)
        covariance.diagonal(0, -2, -1).copy_(variance)
        root, failed = torch.linalg.cholesky_ex(covariance)
        diagonal = torch.diag_embed(variance.sqrt())
        return cls(torch.where(failed[:, None, None] > 0, diagonal, root))

    def push(self, v: Tensor) -> Tensor:
        """``R v`` for ``v (num, n, d)``."""
        if self.root.dim() == 2:
            return self.root * v
        return torch.einsum("nij,knj->kni", self.root, v)

    def pull(self, v: Tensor) -> Tensor:
        """``R^T v`` for ``v (num, n, d)``."""
        if self.root.dim() == 2:
            return self.root * v
        return torch.einsum("nji,knj->kni", self.root, v)


@torch.no_grad()
def hamiltonian(
    target: Target,
    u: Tensor,
    length: int,
    warmup: int,
    thin: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Chains from ``u (num_chains, n, d)``.

    Args:
        target: posteriors of n observations.
        u: where the chains start.
        length: draws kept of each chain.
        warmup: moves before them.
        thin: moves between two draws that are kept.
        tick: called after every move.

    Returns:
        Draws ``(length, num_chains, n, d)`` and the share of moves accepted, ``(n,)``.
    """
    log_prob, gradient = target.score(u)
    state = State(u, log_prob, log_prob, gradient)
    metric = Metric(torch.ones_like(u[0]))
    step = first = torch.full_like(log_prob, target.dim**-0.25)
    share = max(warmup // STAGES, 1)
    for stage in range(STAGES):
        seen = []
        for i in range(share):
            steps = quarter(step) if stage else SHORT
            state, probability, _ = move(target, state, metric, step, steps)
            if stage == 0:
                step = adapt(step, probability, ACCEPTANCE, 0)
            else:
                step = adapt(step, probability.mean(0).expand_as(step), ACCEPTANCE, i)
            seen.append(state.u)
            tick()
        if stage < STAGES - 1:
            state, found = restart(state)
            recent = torch.stack(seen[share // 2 :])[:, found, torch.arange(target.num)]
            # Neighbours of a chain are alike: five of its draws count for one.
            metric = Metric.of(recent.flatten(0, 1), u.shape[0] * max(len(recent) // 5, 1))
            step = first
    kept, total, steps = [], torch.zeros_like(log_prob[0]), quarter(step)
    for _ in range(length):
        for _ in range(thin):
            state, _, taken = move(target, state, metric, step, steps)
            total += taken / (length * thin)
            tick()
        kept.append(state.u)
    return torch.stack(kept), total


def restart(state: State) -> tuple[State, Tensor]:
    """Chains that have not arrived begin where another has; returns which chain each now is,
    ``(num_chains, n)``."""
    num, _, dim = state.u.shape
    least = state.log_prob.median(0).values - dim - LOST
    here = state.log_prob >= least
    weight = here.to(state.u).T
    # Where no density is known at all, no chain has arrived, and none is preferred.
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, torch.ones_like(weight))
    other = torch.multinomial(weight, num, replacement=True).T
    own = torch.arange(num, device=other.device).unsqueeze(1)
    found = torch.where(here, own, other)
    return state.take(found), found


def quarter(step: Tensor) -> int:
    """Mean number of steps in a quarter of a period, for the observation of the least step."""
    return min(math.ceil(0.5 * math.pi / float(step.amin())), LONGEST)


def move(
    target: Target, state: State, metric: Metric, step: Tensor, mean_steps: int
) -> tuple[State, Tensor, Tensor]:
    """One move of all chains with steps ``(num_chains, n)``; returns the probability of
    acceptance, ``(num_chains, n)``, and the share accepted, ``(n,)``."""
    assert state.gradient is not None
    # A random length and step resonate with no period of the trajectories.
    steps = int(torch.randint(1, 2 * mean_steps, ()))
    size = (step * (0.8 + 0.4 * torch.rand_like(step[:1]))).unsqueeze(-1)
    start = torch.randn_like(state.u)
    u, momentum, log_prob, gradient = state.u, start, state.log_prob, state.gradient
    for _ in range(steps):
        momentum = momentum + 0.5 * size * metric.pull(gradient)
        u = u + size * metric.push(momentum)
        log_prob, gradient = target.score(u)
        momentum = momentum + 0.5 * size * metric.pull(gradient)
    energy = 0.5 * (momentum.square() - start.square()).sum(-1)
    gain = (log_prob - state.log_prob - energy).nan_to_num(-torch.inf)
    moved, taken = accept(state, State(u, log_prob, log_prob, gradient), gain)
    return moved, gain.exp().clamp(max=1.0), taken
