r"""How long to train, at which rate, and when to look at the held-out score.

Where the number of steps is given, the learning rate rises over the first 2 % and falls along a
cosine. Where it is open, the rate rises, stays, and falls to nothing over a last fifth that begins
once the score has stalled ("warm-up, stable, decay": Hu et al., 2024,
https://arxiv.org/abs/2404.06395, section 4): the stay can be of any length.

Held-out scores :math:`s` are taken at steps that grow by :math:`2^{1/3}`. A phase has stalled when
doubling it gained less than a share :data:`GAIN` of the score, or nothing that noise does not
explain: with :math:`s_1` and :math:`s_2` the best scores of its first and second half,

.. math:: \overline{s_1 - s_2} < \max(\mathrm{GAIN}\; \bar s_2,\, 2\,\mathrm{se}).

Later doublings of a score that falls along a power law gain less and less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Doubling", "FixedPlan", "OpenPlan", "doubling", "paired"]

GAIN = 0.01
"""Relative gain of a doubling below which a training has stalled."""

FIRST, PER_DOUBLING = 125, 3
"""Step of the first score of an open phase, and scores while the phase doubles."""

SHORTEST, LONGEST = 500, 20_000
"""Steps of an open phase before it is judged, and those after which it ends in any case."""

WARMUP = 100
"""Steps over which the rate of an open phase rises."""

TAIL = 0.25
"""Length of the falling part of an open phase, as a share of what came before."""


def paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean of ``one - other`` over the same simulations ``(num,)``, and its standard error."""
    difference = one - other
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


class Doubling(NamedTuple):
    """What the second half of a phase brought.

    Attributes:
        gain: fall of the mean score, as a share of the score at the end.
        noise: two standard errors of it.
        steps: between the two scores.
    """

    gain: float
    noise: float
    steps: int

    @property
    def stalled(self) -> bool:
        """Whether it brought next to nothing, or nothing that noise does not explain."""
        return not self.gain >= max(GAIN, self.noise)


def doubling(scores: Mapping[int, Tensor], begin: int, end: int) -> Doubling:
    """The second half of a phase from ``begin`` to ``end``, the best score of it against the best
    of the first half: single scores of a constant rate jump. What the phase began with counts
    where there is no other, since the first steps may well lead away from a good start."""
    inside = {step: float(one.mean()) for step, one in scores.items() if begin < step <= end}
    middle = begin + (end - begin) / 2
    first = min((step for step in inside if step <= middle), key=inside.__getitem__, default=begin)
    second = min((step for step in inside if step > middle), key=inside.__getitem__)
    gain, error = paired(scores[first], scores[second])
    size = max(abs(inside[second]), 1e-30)
    return Doubling(gain / size, 2 * error / size, second - first)


class FixedPlan:
    """So many steps, known beforehand.

    Args:
        steps: of all phases together.
        phases: what is trained one after the other, each with its share of them; all at once
            where they are too few for each.
        validations: held-out scores, evenly spaced.
    """

    def __init__(self, steps: int, phases: Sequence[tuple[str, float]], validations: int) -> None:
        self.steps = steps
        ends = [round(steps * share) for share in accumulate(share for _, share in phases)]
        begins, names = [0, *ends[:-1]], [name for name, _ in phases]
        self._parts = list(zip(begins, [*ends[:-1], steps], names, strict=True))
        if any(begin == end for begin, end, _ in self._parts):
            self._parts = [(0, steps, "joint")]
        self.scored = {round(steps * (i + 1) / validations) for i in range(validations)}

    def phase(self, step: int) -> str:
        """``"joint"``, or what is trained next after ``step`` steps."""
        return self._part(step)[2]

    def rate(self, step: int) -> float:
        """Share of the peak learning rate in the step after ``step`` steps."""
        begin, end, _ = self._part(step)
        return cosine(step - begin, end - begin)

    def due(self, step: int, seconds: float) -> bool:
        """Whether the score is due after ``step`` steps."""
        return step in self.scored

    def judge(self, scores: Mapping[int, Tensor]) -> None:
        """Take note of the scores by step; nothing depends on them here."""

    def ended(self, step: int) -> bool:
        """Whether training ends after ``step`` steps."""
        return step >= self.steps

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the settings."""
        return {}

    @state.setter
    def state(self, there: Mapping[str, Any]) -> None:
        pass

    def _part(self, step: int) -> tuple[int, int, str]:
        """First step, end and name of the phase that the step after ``step`` steps is in."""
        return next((p for p in self._parts if step < p[1]), self._parts[-1])


@dataclass
class Stage:
    """A phase of an open training: what is trained, since when, and how it ends."""

    name: str
    begin: int = 0
    since: float = 0.0
    due: int = FIRST
    decay: int | None = None
    end: int | None = None
    why: str = ""


@dataclass
class OpenPlan:
    """Until the held-out score stalls, or the time is used up.

    Args:
        phases: what is trained one after the other, each until it stalls.
        minutes: of computing time, for all of it, and the same part for each phase at most.
    """

    phases: Sequence[tuple[str, float]]
    minutes: float | None = None
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seconds = 0.0
        if not self.stages:
            self.stages = [Stage(self.phases[0][0])]

    def phase(self, step: int) -> str:
        """What is trained next: ``"joint"``, ``"adapter"`` or ``"map"``."""
        return self.stages[-1].name

    def rate(self, step: int) -> float:
        """Share of the peak learning rate in the step after ``step`` steps."""
        now = self.stages[-1]
        if now.decay is None or now.end is None:
            return min(1.0, (step - now.begin + 1) / WARMUP)
        return 1.0 - 0.99 * (step - now.decay) / (now.end - now.decay)

    def due(self, step: int, seconds: float) -> bool:
        """Whether the score is due after ``step`` steps and ``seconds`` of computing."""
        now = self.stages[-1]
        if self.minutes is not None:
            budget = 60 * self.minutes * (len(self.stages) / len(self.phases))
            if seconds >= budget:
                now.decay, now.end, now.why = now.decay or step, step, "time"
            elif now.decay is None and seconds >= now.since + (budget - now.since) / (1 + TAIL):
                self._fall(step, "time")
        self._seconds = seconds
        return step == now.end or (now.decay is None and step >= now.due)

    def judge(self, scores: Mapping[int, Tensor]) -> None:
        """Take note of the scores by step, the last of them new: a phase goes on or ends."""
        now, step = self.stages[-1], max(scores)
        length = step - now.begin
        if step == now.end:
            if len(self.stages) < len(self.phases):
                name = self.phases[len(self.stages)][0]
                self.stages.append(Stage(name, step, self._seconds, step + FIRST))
        elif now.decay is None:
            now.due = now.begin + math.ceil(length * 2 ** (1 / PER_DOUBLING))
            if length >= SHORTEST and doubling(scores, now.begin, step).stalled:
                self._fall(step, "stalled")
            elif length >= LONGEST:
                self._fall(step, "limit")

    def ended(self, step: int) -> bool:
        """Whether training ends after ``step`` steps."""
        return step == self.stages[-1].end

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the settings."""
        return {"phases": [asdict(phase) for phase in self.stages]}

    @state.setter
    def state(self, there: Mapping[str, Any]) -> None:
        self.stages = [Stage(**phase) for phase in there["phases"]]

    def _fall(self, step: int, why: str) -> None:
        now = self.stages[-1]
        now.decay, now.why = step, why
        now.end = step + max(WARMUP, round(TAIL * (step - now.begin)))


def cosine(step: int, steps: int) -> float:
    """Linear warm-up over the first 2 %, then a cosine to 1 % of the peak."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
