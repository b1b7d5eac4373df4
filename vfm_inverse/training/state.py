"""The state of a training: networks, optimiser, held-out scores, and how both go to a file."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.files import STATE
from vfm_inverse.training.files import Row, fixed_state, prefixed, read_state, same_start, selected
from vfm_inverse.training.held_out import Score
from vfm_inverse.training.objective import Objective
from vfm_inverse.training.plan import FixedPlan, OpenPlan, paired

__all__ = ["TrainingState"]

OFF, WORSE = 4.0, 1.0
"""Offset of ranks that is not held against weights, and how much larger than the start's it may
be."""


class TrainingState:
    """The state of a run: everything that a resumed one needs.

    Args:
        vfm: map that is trained.
        objective: its loss, with the averaged networks.
        plan: how long to train, at which rate.
        learning_rate, weight_decay: of AdamW.

    Attributes:
        scores: held-out energy scores ``(num,)`` of the averaged networks by step.
        offsets: of the ranks of held-out truths among their draws, by step
            (:mod:`vfm_inverse.training.held_out`).
        kept, kept_step: networks that the map will have in the end, and their step.
        history: the log so far.
        summary: what came of it in words and figures, once training ended.
    """

    def __init__(
        self,
        vfm: VariationalFlowMap,
        objective: Objective,
        plan: FixedPlan | OpenPlan,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.vfm, self.objective = vfm, objective.to(vfm.whitening.mean.device)
        self.plan = plan
        self.optimizer = torch.optim.AdamW(
            vfm.networks.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        self.kept = copy.deepcopy(vfm.networks)
        self.step = 0
        self.scores: dict[int, Tensor] = {}
        self.offsets: dict[int, float] = {}
        self.kept_step = 0
        self.warned = False
        self.history: list[Row] = []
        self.summary: dict[str, Any] | None = None
        self._earlier, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Computing time of the run, what was before an interruption included."""
        return self._earlier + time.monotonic() - self._since

    def set_rate(self, peak: float) -> float:
        """Give the optimiser the learning rate of the next step; returns it."""
        rate = peak * self.plan.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def advance(self, terms: Mapping[str, Tensor], clip: float) -> Row:
        """One optimiser step down the loss, given its terms; returns them."""
        bad = [name for name, value in terms.items() if not torch.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"loss term {' and '.join(repr(n) for n in bad if n != 'loss') or 'loss'} is "
                "not finite at step "
                f"{self.step + 1}; the last checkpoint is kept. Try a smaller learning_rate or "
                "clip"
            )
        self.optimizer.zero_grad()
        # Per dimension, so that one clipping norm serves all sizes; Adam itself is indifferent to
        # scale.
        (terms["loss"] / self.vfm.whitening.dim).backward()
        nn.utils.clip_grad_norm_(self.vfm.networks.parameters(), clip)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def calibrated(self, step: int) -> bool:
        """Whether the weights of a step were no worse calibrated than the start, up to noise."""
        return self.offsets[step] <= max(OFF, self.offsets[0] + WORSE)

    def take_score(self, score: Score) -> None:
        """Note the score of the averaged weights, and keep these unless they are worse than
        others, or worse calibrated than the start.

        The start is only given up for a better mean, where the length of the training depends on
        the scores for one that is better by two standard errors of the paired difference, since
        the best of many looks is better than it is. Later weights give way to longer training
        unless they are worse than the best by two standard errors.
        """
        self.scores[self.step], self.offsets[self.step] = score
        scores = score.energy
        gained, noise = paired(self.scores[0], scores)
        finite = [
            one
            for step, one in self.scores.items()
            if one.isfinite().all() and self.calibrated(step)
        ]
        best = min(finite, key=lambda one: float(one.mean()), default=scores)
        lost, allowed = paired(scores, best)
        needed = 2 * noise if isinstance(self.plan, OpenPlan) and not self.kept_step else 0.0
        if gained > needed and lost <= 2 * allowed and self.calibrated(self.step):
            self.kept_step = self.step
            self.kept.load_state_dict(self.objective.average.state_dict())

    def log(self, figures: Mapping[str, float]) -> Row:
        """Add a row to the history, with the step, the score taken at it, and the time."""
        row: Row = {"step": self.step, **figures}
        if self.step in self.scores:
            row["validation"] = float(self.scores[self.step].mean())
            row["offset"] = self.offsets[self.step]
        self.history.append(row | {"seconds": round(self.seconds, 2)})
        return self.history[-1]

    def finish(self) -> None:
        """Give the map the weights that were kept."""
        self.vfm.networks.load_state_dict(self.kept.state_dict())

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write the run and the best weights so far."""
        state = {
            **prefixed("fixed", fixed_state(self.vfm)),
            **prefixed("networks", self.vfm.networks.state_dict()),
            **prefixed("average", self.objective.average.state_dict()),
            **prefixed("kept", self.kept.state_dict()),
            **{f"scores.{step}": scores for step, scores in self.scores.items()},
        }
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= prefixed(f"optimizer.{i}", moments)
        header = {
            **identity,
            "step": self.step,
            "kept_step": self.kept_step,
            "offsets": list(self.offsets.values()),
            "plan": self.plan.state,
            "seconds": self.seconds,
            "history": self.history,
            "summary": self.summary,
        }
        storage.write(folder / STATE, state, "training", header)

    def restore(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Read a run that :meth:`save` wrote."""
        path = folder / STATE
        state, header = read_state(folder, identity, self.vfm.whitening.mean.device)
        try:
            fixed = selected("fixed", state)
            same_start(path, self.vfm, fixed)
            self.vfm.load_state_dict(fixed, strict=False)
            for name, module in {
                "networks": self.vfm.networks,
                "average": self.objective.average,
                "kept": self.kept,
            }.items():
                module.load_state_dict(selected(name, state))
            optimizer = self.optimizer.state_dict()
            for i in range(len(optimizer["param_groups"][0]["params"])):
                if moments := selected(f"optimizer.{i}", state):
                    optimizer["state"][i] = moments
            self.optimizer.load_state_dict(optimizer)
            self.step, self.history = int(header["step"]), list(header["history"])
            self.kept_step, self.plan.state = int(header["kept_step"]), header["plan"]
            self.scores = {int(step): one for step, one in selected("scores", state).items()}
            self.scores = dict(sorted(self.scores.items()))
            # A run of an earlier version has none.
            offsets = header.get("offsets", [0.0] * len(self.scores))
            self.offsets = dict(zip(self.scores, offsets, strict=True))
            self._earlier, self._since = float(header["seconds"]), time.monotonic()
            self.summary = header["summary"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"'{path}' is no training state of this map: {error}") from error
