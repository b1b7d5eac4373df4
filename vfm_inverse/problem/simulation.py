"""Simulations that can be used: finite, and the same for the same seed.

A simulator may blow up on a part of the prior. Such simulations are replaced by others, counted
and told of. That leaves the posterior of every observation as it is: which simulations are kept
depends on the observation alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vfm_inverse.problem.observation_model import ObservationModel
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.values import check_integer

__all__ = ["Simulations", "SimulationWarning", "stream_of"]

Simulated = tuple[Tensor, Tensor, dict[str, Tensor]]

ENOUGH = 32
"""Simulations of a call from which on most of them must be finite."""

QUICK = 0.5
"""Seconds that a simulation may take to be made twice, to see whether it follows its seed."""

STACK = 4
"""Frames from a warning here to the caller of the problem."""


class SimulationWarning(UserWarning):
    """Simulations were left out since they were not finite, or do not follow their seed."""


class Simulations:
    """Finite simulations of one problem, and how many others there were.

    Args:
        draw: ``num`` to fields ``(num, *event)``, observations ``(num, *obs)``, parameters.
        model: what makes the observations.

    Attributes:
        made, left_out: simulations so far, and how many of them were not finite.
    """

    def __init__(self, draw: Callable[[int, str], Simulated], model: ObservationModel) -> None:
        self._draw, self.model = draw, model
        self.made = self.left_out = self._told = 0

    def __call__(self, num: int, split: str) -> Simulated:
        """Draw ``num`` simulations of a split, all finite.

        Raises:
            ValueError: more than half of the simulations are not finite.

        Warns:
            SimulationWarning: some were left out; at first, and then whenever ten times as many
                were made.
        """
        x, y, params = self._draw(num, split)
        lost, rows = 0, infinite_rows(y)
        while len(rows):
            lost += len(rows)
            self._refuse_most(num + lost - len(rows), lost)
            others = self._draw(len(rows), split)
            x, y = x.index_copy(0, rows, others[0]), y.index_copy(0, rows, others[1])
            params = {k: old.index_copy(0, rows, others[2][k]) for k, old in params.items()}
            rows = infinite_rows(y)
        self.made += num + lost
        self.left_out += lost
        if self.left_out and self.made >= 10 * self._told:
            self._told = self.made
            self._warn(
                f"{self.left_out} of {self.made} simulations were not finite and are left out "
                f"({self.model.describe()}): the prior is that of fields for which "
                f"'{self.model.argument}' gives an observation{self.model.why_infinite()}"
            )
        return x, y, params

    def try_out(self, x: Tensor, params: dict[str, Tensor]) -> None:
        """Learn on two fields what observations look like, whether a batch of one is taken too,
        whether most simulations are finite and, unless one takes long, whether equal seeds give
        equal ones.

        Raises:
            TypeError, ValueError: the model does not take such fields, or more than half of the
                simulations are not finite.

        Warns:
            SimulationWarning: some are not finite, or something does not follow the seed.
        """
        y = self.model.learn_shape(x, params)
        begin = time.monotonic()
        self.model.learn_shape(x[:1], rows_of(params, slice(1)))
        seconds = time.monotonic() - begin
        if len(infinite_rows(y)):
            with seeded(0):
                self(ENOUGH, "train")
            return
        if seconds > QUICK:
            return
        begin = time.monotonic()
        found: list[dict[str, list[Tensor]]] = []
        for _ in range(2):
            with seeded(0):
                x, y, params = self._draw(1, "train")
            parts = {"prior": [x], "params": list(params.values()), self.model.argument: [y]}
            found.append(parts)
            if time.monotonic() - begin > QUICK:
                return
        for argument, values in found[0].items():
            pairs = zip(values, found[1][argument], strict=True)
            if not all(torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5)) for a, b in pairs):
                self._warn(
                    f"'{argument}' does not follow the seed: equal seeds give other values. Draw "
                    "from the global generator of torch or NumPy (torch.randn, numpy.random.normal"
                    "), which are seeded; with a generator of its own no run can be repeated, "
                    "resumed or shared out"
                )
                return

    def _refuse_most(self, made: int, lost: int) -> None:
        if made >= ENOUGH and lost > made / 2:
            raise ValueError(
                f"'{self.model.argument}' gave values that are not finite in {lost} of {made} "
                f"simulations ({self.model.describe()}); where it fails on more than half of the "
                f"prior, narrow the prior{self.model.why_infinite()}"
            )

    @staticmethod
    def _warn(text: str) -> None:
        warnings.warn(text, SimulationWarning, stacklevel=STACK)


def infinite_rows(y: Tensor) -> Tensor:
    """Which observations ``(num, *obs)`` hold a number that is not finite, as indices."""
    return (~torch.isfinite(y.flatten(1)).all(1)).nonzero().squeeze(1)


def stream_of(seed: int | None, split: Any) -> int | None:
    """Seed of a split: the two splits of one seed are different streams.

    Raises:
        ValueError: an unknown split, or a seed that is no integer.
    """
    if not isinstance(split, str) or split not in ("train", "test"):
        raise ValueError(f"'split' must be 'train' or 'test'; got {split!r:.60}")
    seed = None if seed is None else check_integer(seed, "seed")
    if seed is None or split == "train":
        return seed
    # torch's CPU generator looks at the lower 32 bits of a seed only.
    return seed ^ 0x7E57_7E57
