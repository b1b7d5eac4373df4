r"""Markov moves that leave a tempered posterior as it is, for all draws and observations at once.

Both are Metropolis-Hastings moves in the target's coordinates u, in which the map's draws are
about N(0, I):

* ``pcn``, preconditioned Crank-Nicolson: :math:`u' = \sqrt{1 - \rho^2}\, u + \rho\, e`, which is
  reversible for N(0, I), so that only the departure from it is accepted or rejected. No gradient
  (Cotter et al. 2013, Statist. Sci. 28, 424, https://arxiv.org/abs/1202.0709);
* ``mala``: a step along the gradient, :math:`u' = u + \tfrac{\rho^2}{2} \nabla \log p(u) + \rho e`
  (Roberts and Tweedie 1996, Bernoulli 2, 341);
* ``differential``: a step along the difference of two members of a population, :math:`u' = u +
  \gamma (u_a - u_b)`, which is as long and as thin as the posterior, and may lead from one mode
  to another. The population stays as it was while others move (ter Braak and Vrugt 2008, Stat.
  Comput. 18, 435).

Each observation has its own step, adapted by a Robbins-Monro recursion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vfm_inverse.sampling.target import Target

__all__ = ["ACCEPTANCE", "Kernel", "State", "adapt", "differential", "draw", "mala", "pcn"]

ACCEPTANCE = {"pcn": 0.3, "mala": 0.574}
"""Shares of accepted moves that the step is adapted to."""

SHORTEST, WHOLE, JITTER = 0.1, 0.1, 1e-4
"""Least part of the step that a differential move takes, share of moves that take a difference
whole, and what is added, in standard deviations of the map's noise."""


class State(NamedTuple):
    """Draws ``u (num, n, d)`` with the log densities, ``(num, n)``, of posterior and reference,
    and for ``mala`` the gradient of the former."""

    u: Tensor
    log_prob: Tensor
    log_reference: Tensor
    gradient: Tensor | None = None

    def take(self, index: Tensor) -> State:
        """Of each observation the draws ``index (num, n)``."""
        column = torch.arange(index.shape[1], device=index.device)
        u, log_prob, log_reference = (part[index, column] for part in self[:3])
        gradient = None if self.gradient is None else self.gradient[index, column]
        return State(u, log_prob, log_reference, gradient)

    def tempered(self, power: Tensor) -> Tensor:
        """``log r + power (log p - log r)``, ``(num, n)``; for power one the posterior itself."""
        if bool((power == 1).all()):
            return self.log_prob
        # A draw of density zero stays at zero for every positive power.
        return (1 - power) * self.log_reference + power * self.log_prob


Kernel = Callable[["Target", State, Tensor, Tensor], tuple[State, Tensor]]
"""A move of all draws, with steps and powers ``(n,)``, and the share accepted, ``(n,)``."""


def draw(target: Target, num: int) -> tuple[State, Tensor]:
    """Draws of the map and the share of them in its folds, ``(n,)``.

    Raises:
        ValueError: the draws' density is unknown.
    """
    u = target.sample(num)
    log_reference = target.log_reference(u)
    log_prob, folded = target.log_prob_and_folds(u)
    return State(u, log_prob, log_reference), folded


def pcn(target: Target, state: State, step: Tensor, power: Tensor) -> tuple[State, Tensor]:
    """One move; ``step`` and ``power`` are ``(n,)``. Returns the share accepted, ``(n,)``."""
    rho = step.clamp(max=1.0).unsqueeze(-1)
    proposal = (1 - rho.square()).sqrt() * state.u + rho * torch.randn_like(state.u)
    new = evaluate(target, proposal, needs_reference=bool((power < 1).any()))
    gain = new.tempered(power) - target.log_normal(proposal)
    gain = gain - state.tempered(power) + target.log_normal(state.u)
    return accept(state, new, gain)


def differential(population: Tensor, groups: int) -> Kernel:
    """Moves along differences of two members of a population ``(num, n, d)``, which is made of
    equal, independent groups: each draw takes members of its own."""
    num, n, d = population.shape
    size = num // groups
    group = (torch.arange(num, device=population.device) // size * size).unsqueeze(1)
    column = torch.arange(n, device=population.device)

    def member() -> Tensor:
        other = torch.randint(size, (num, n), device=population.device)
        return population[group + other, column]

    def move(target: Target, state: State, step: Tensor, power: Tensor) -> tuple[State, Tensor]:
        # Long steps for what is straight, short ones for what is bent.
        shrink = torch.rand_like(state.log_prob).mul(math.log(SHORTEST)).exp()
        scale = 2.38 / math.sqrt(2 * d) * step * shrink
        # Differences as they are lead from one mode to another.
        scale = torch.where(torch.rand_like(scale) < WHOLE, torch.ones_like(scale), scale)
        proposal = state.u + scale.unsqueeze(-1) * (member() - member())
        # Where a population has too few members left to span the space.
        proposal = proposal + JITTER * torch.randn_like(proposal)
        new = evaluate(target, proposal, needs_reference=bool((power < 1).any()))
        return accept(state, new, new.tempered(power) - state.tempered(power))

    return move


def mala(target: Target, state: State, step: Tensor, power: Tensor) -> tuple[State, Tensor]:
    """One move on the posterior itself (power one)."""
    rho = step.unsqueeze(-1)
    if state.gradient is None:
        log_prob, gradient = target.score(state.u)
        state = state._replace(log_prob=log_prob, gradient=gradient)
    assert state.gradient is not None
    forward = state.u + 0.5 * rho.square() * state.gradient
    proposal = forward + rho * torch.randn_like(state.u)
    log_prob, gradient = target.score(proposal)
    new = State(proposal, log_prob, log_prob, gradient)
    backward = proposal + 0.5 * rho.square() * gradient
    there = ((proposal - forward) / rho).square().sum(-1)
    back = ((state.u - backward) / rho).square().sum(-1)
    return accept(state, new, log_prob - state.log_prob + 0.5 * (there - back))


def evaluate(target: Target, u: Tensor, needs_reference: bool) -> State:
    """A state at ``u``."""
    log_prob = target.log_prob(u)
    return State(u, log_prob, target.log_reference(u) if needs_reference else log_prob)


def accept(state: State, new: State, log_ratio: Tensor) -> tuple[State, Tensor]:
    """Metropolis-Hastings: the new draw with probability ``exp(log_ratio)``."""
    log_ratio = torch.where(log_ratio.isnan(), -torch.inf, log_ratio)
    taken = torch.rand_like(log_ratio).log() < log_ratio
    merged = State(
        torch.where(taken.unsqueeze(-1), new.u, state.u),
        torch.where(taken, new.log_prob, state.log_prob),
        torch.where(taken, new.log_reference, state.log_reference),
        None
        if state.gradient is None or new.gradient is None
        else torch.where(taken.unsqueeze(-1), new.gradient, state.gradient),
    )
    return merged, taken.to(log_ratio).mean(0)


def adapt(step: Tensor, accepted: Tensor, wanted: float, iteration: int) -> Tensor:
    """Steps ``(n,)`` after one more move, towards the wanted share of acceptance."""
    rate = (iteration + 1) ** -0.6
    return (step.log() + rate * (accepted - wanted) * 3).exp().clamp(1e-6, 10.0)
