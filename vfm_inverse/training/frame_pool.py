r"""Simulations in the coordinates of their frames, computed once and used again and again.

A frame with the physics in it (:mod:`vfm_inverse.gaussian.physics_frame`) takes a search for the
mode of every observation, and nothing else of a training step takes the physics: a step needs the
features of observations, and their fields in the frames. So blocks of them are computed once, from
seeds of their own, and a training that goes on sees ever more of them: too few would be learned by
heart. In a folder each block is a file, and a run that goes on reads what is there.

Where prior and likelihood have densities, a mode that was found serves for several fields. The
truth is a draw from the posterior, and stays one under Metropolis steps with draws of the frame as
proposals: with the density :math:`q` of the frame, :math:`\xi'` takes the place of :math:`\xi`
with the probability :math:`\min(1, \pi(\xi')\, q(\xi) / (\pi(\xi)\, q(\xi')))`. Each is then
another truth that could have been behind the same observation.

Where the problem states symmetries, a few of them turn the simulations of a block, modes and all,
which takes a linearisation of the physics instead of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.gaussian.physics_frame import PhysicsFrame
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import physics_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.symmetries import Symmetry, check_symmetries
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.files import FRAMES
from vfm_inverse.runtime.fingerprints import fingerprint
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.training.files import fixed_state

__all__ = ["FramePool", "Frames", "metropolis", "pool_for"]

BLOCK = 256
"""Frames that are computed, and kept in a file, together."""

FIRST, A_STEP = 4096, 8
"""Frames that a training begins with, and those that every step adds."""

MOVES = 7
"""Metropolis steps from each truth."""

SOLVED = 1e-2
"""Mean squared gap of a proposal that counts as solved."""

COPIES = 3
"""Symmetries that turn the simulations of a block."""

FAR = 16.0
"""Mean squared coordinate beyond which a field is left out: its frame is around another mode."""


class Frames(NamedTuple):
    """Simulations as a training step with frames sees them.

    Attributes:
        features: of the observations, ``(n, ...)``.
        zeta: fields in the coordinates of their frames, ``(n, d)``; several for each observation
            in a pool, ``(n, states, d)``.
    """

    features: Tensor
    zeta: Tensor


def pool_for(
    vfm: VariationalFlowMap, problem: InverseProblem, seed: int, limit: int, folder: Path | None
) -> FramePool | None:
    """The pool of a training, kept in the folder of its run; none for a map without frames."""
    if not isinstance(vfm.start, FrameStart):
        return None
    return FramePool(vfm, problem, seed, limit, None if folder is None else folder / FRAMES)


class FramePool:
    """Frames of simulations, more of them with every step.

    Args:
        vfm: the map, with a start that gives frames.
        problem: where simulations come from.
        seed: of the training.
        limit: most frames.
        folder: where blocks are kept; nowhere if missing.

    Raises:
        ValueError: a symmetry of the problem is none of its physics.
    """

    def __init__(
        self,
        vfm: VariationalFlowMap,
        problem: InverseProblem,
        seed: int,
        limit: int,
        folder: Path | None = None,
    ) -> None:
        self.vfm, self.problem, self.seed, self.limit = vfm, problem, seed, limit
        self.folder = folder
        if problem.symmetries:
            x, _, params = problem.simulate(8, split="train", seed=0)
            assert problem.physics is not None  # a frame has one
            check_symmetries(problem.symmetries, partial(problem.physics.A, **params), x)
        self._blocks: list[Frames] = []
        self._all: Frames | None = None

    def batch(self, step: int, num: int) -> Frames:
        """``num`` frames, with replacement, of those that there are in a step."""
        wanted = -(-min(self.limit, FIRST + A_STEP * step) // BLOCK)
        if len(self._blocks) < wanted:
            self._blocks += [self._block(i) for i in range(len(self._blocks), wanted)]
            self._all = Frames(*(torch.cat(parts) for parts in zip(*self._blocks, strict=True)))
        assert self._all is not None
        features, zeta = self._all
        rows = torch.randint(len(zeta), (num,)).to(zeta.device)
        state = torch.randint(zeta.shape[1], (num,)).to(zeta.device)
        return Frames(features[rows], zeta[rows, state])

    def _block(self, number: int) -> Frames:
        if self.folder is None:
            return self._computed(number)
        path, made_for = self.folder / f"{number:04d}.safetensors", self._made_for
        try:
            tensors, header = storage.read(path, "frames", self.vfm.whitening.mean.device)
            if header["made_for"] == made_for:
                return Frames(**tensors)
        except (FileNotFoundError, ValueError):  # none yet, or one that was damaged
            pass
        frames = self._computed(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, frames._asdict(), "frames", {"made_for": made_for})
        return frames

    @cached_property
    def _made_for(self) -> str:
        """The seed, the physics, and all of the map that makes frames and features."""
        physics, num = physics_fingerprint(self.problem), len(self.problem.symmetries)
        return fingerprint(f"{self.seed} {num} {physics}", fixed_state(self.vfm))

    @torch.no_grad()
    def _computed(self, number: int) -> Frames:
        seed = (self.seed * 1_000_003 + number) % 2**63
        x, y, params = self.problem.simulate(BLOCK, split="train", seed=seed)
        condition = self.vfm.condition(y, params)
        q = condition.start
        assert isinstance(q, PhysicsFrame)
        xi = self.vfm.whitening.whiten(x)
        states = [xi]
        likelihood, log_prior = self.vfm.likelihood, self.vfm.log_prior
        if likelihood is not None and log_prior is not None and q.has_density:
            with seeded(seed):
                states = metropolis(q, xi, partial(self._log_posterior, y, params))
        parts = [framed(q, condition.features, states)]
        for symmetry in self._drawn_symmetries(seed):
            parts.append(self._turned(symmetry, q, y, params, states))
        return Frames(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _drawn_symmetries(self, seed: int) -> list[Symmetry]:
        """Some of the problem's, others for each block."""
        known = self.problem.symmetries
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(known), generator=generator)[:COPIES]
        return [known[i] for i in chosen]

    def _turned(
        self,
        symmetry: Symmetry,
        q: PhysicsFrame,
        y: Tensor,
        params: Mapping[str, Tensor],
        states: Sequence[Tensor],
    ) -> Frames:
        """Simulations with the frames ``q`` under a symmetry."""
        vfm, whitening = self.vfm, self.vfm.whitening
        assert isinstance(vfm.start, FrameStart)

        def turned(xi: Tensor) -> Tensor:
            return whitening.whiten(symmetry.field(whitening.unwhiten(xi)))

        y = symmetry.observation(y)
        frame = vfm.start.around(turned(q.mean), y, params)
        features = vfm.features(y, params, frame)
        return framed(frame, features, [turned(state) for state in states])

    def _log_posterior(self, y: Tensor, params: Mapping[str, Tensor], xi: Tensor) -> Tensor:
        """Log density of whitened fields ``(n, d)``, up to a constant for each observation."""
        vfm = self.vfm
        assert vfm.likelihood is not None and vfm.log_prior is not None
        x = vfm.whitening.unwhiten(xi)
        prior = vfm.log_prior(x) + vfm.whitening.log_det(xi)
        return prior + vfm.likelihood(x, **params).log_prob(y)


def framed(q: PhysicsFrame, features: Tensor, states: Sequence[Tensor]) -> Frames:
    """Fields, each ``(n, d)``, in the coordinates of their frames, but for those far off."""
    zeta = torch.stack([q.standardize(state) for state in states], 1)
    near = zeta[:, 0].square().mean(-1) <= FAR  # False for what is not a number
    return Frames(features[near], zeta[near])


def metropolis(
    q: PhysicsFrame, xi: Tensor, log_posterior: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """States of independence chains that begin at ``xi (n, d)``, itself the first.

    A proposal that does not solve its equation has another density than it is said to have, and is
    refused.
    """
    states, weight = [xi], log_posterior(xi) - q.log_prob(xi)
    for _ in range(MOVES):
        tried, left = q.solve(q.standard().sample())
        value = log_posterior(tried) - q.log_prob(tried)
        lucky = torch.rand_like(weight).log() < value - weight  # False for what is not a number
        taken = lucky & (left < SOLVED)
        xi = torch.where(taken.unsqueeze(-1), tried, xi)
        weight = torch.where(taken, value, weight)
        states.append(xi)
    return states
