r"""Hamiltonian Markov chains, many side by side, that learn their metric from one another.

A move follows :math:`\dot u = M^{-1} p,\ \dot p = \nabla \log p(u)` from a fresh momentum
:math:`p \sim \mathcal N(0, M)` for a random number of leapfrog steps and is accepted or rejected
by the change of energy (Neal 2011, *Handbook of Markov Chain Monte Carlo*, chapter 5). In the
warm-up, :math:`M^{-1}` becomes the covariance of the draws of all the chains of an observation,
shrunk towards its diagonal: a posterior that is thin along directions the map did not know of is
then as easy as a round one. Steps are set to accept four fifths; in the first stage each chain has
its own, so that one that starts where the density is steep can leave.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.correction.moves import State, accept, adapt
from vfm_inverse.correction.target import Target

__all__ = ["Metric", "hamiltonian"]

ACCEPTANCE = 0.8
"""Mean probability of acceptance that the step is adapted to."""

DENSE = 256
"""Most dimensions in which the metric knows of correlations."""

STAGES = 3
"""Equal parts of the warm-up; the metric is learned after each but the last."""


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
    target: Target, u: Tensor, length: int, warmup: int, thin: int
) -> tuple[Tensor, Tensor]:
    """Chains from ``u (num_chains, n, d)``.

    Args:
        target: posteriors of n observations.
        u: where the chains start.
        length: draws kept of each chain, one a move.
        warmup: moves before them.
        thin: mean number of leapfrog steps of a move.

    Returns:
        Draws ``(length, num_chains, n, d)`` and the share of moves accepted, ``(n,)``.
    """
    log_prob, gradient = target.score(u)
    state = State(u, log_prob, log_prob, gradient)
    metric = Metric(torch.ones_like(u[0]))
    step = torch.full_like(log_prob, target.dim**-0.25)
    share = max(warmup // STAGES, 1)
    seen: list[Tensor] = []
    for i in range(warmup):
        stage, number = divmod(i, share)
        state, probability, _ = move(target, state, metric, step, thin)
        if stage:
            # From the second stage on the chains are of one kind and share a step.
            probability = probability.mean(0).expand_as(probability)
        step = adapt(step, probability, ACCEPTANCE, number)
        seen.append(state.u)
        if number == share - 1 and stage < STAGES - 1:
            half = seen[len(seen) // 2 :]
            # Neighbours of a chain are alike: its moves count for the distance gone.
            metric = Metric.of(torch.cat(half), u.shape[0] * max(len(half) // 5, 1))
            step = torch.full_like(step, target.dim**-0.25)
            seen = []
    step = step.log().mean(0).exp().expand_as(step)
    kept, total = [], torch.zeros_like(log_prob[0])
    for _ in range(length):
        state, _, taken = move(target, state, metric, step, thin)
        total += taken / length
        kept.append(state.u)
    return torch.stack(kept), total


def move(
    target: Target, state: State, metric: Metric, step: Tensor, thin: int
) -> tuple[State, Tensor, Tensor]:
    """One move of all chains with steps ``(num_chains, n)``; returns the probability of
    acceptance, ``(num_chains, n)``, and the share accepted, ``(n,)``."""
    assert state.gradient is not None
    # A random length and step resonate with no period of the trajectories.
    steps = int(torch.randint(1, 2 * thin, ()))
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
