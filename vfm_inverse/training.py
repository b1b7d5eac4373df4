"""Training: a plain loop that steps an optimiser on an :class:`~vfm_inverse.objective.Objective`
and keeps records.

Every step draws its simulations from a seed made of ``seed`` and the step's number, so a run that
was killed goes on from its last checkpoint to the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vfm_inverse import checkpoint
from vfm_inverse.calls import checked
from vfm_inverse.card import problem_fingerprint
from vfm_inverse.checks import resolve_device
from vfm_inverse.config import check_keys
from vfm_inverse.cost import in_words, require_batch
from vfm_inverse.files import locked
from vfm_inverse.objective import PRESETS, Objective
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.problem import InverseProblem
from vfm_inverse.randomness import reseed, seeded
from vfm_inverse.run_settings import CONFIG, remember
from vfm_inverse.scaling import center_and_spread, over
from vfm_inverse.scores import energy_score
from vfm_inverse.settings import check_settings
from vfm_inverse.training_files import (
    MODEL,
    STATE,
    Row,
    csv_log,
    prefixed,
    read_state,
    same_start,
    selected,
)

__all__ = ["fit", "resolve_device"]

log = logging.getLogger(__name__)

COLLAPSED = 3.0
"""Mean squared standardised code above which an adapter is called collapsed; 1 is calibrated."""

HARMLESS = ("device", "checkpoint_dir", "resume", "checkpoint_every", "progress")
"""Arguments of :func:`fit` that the trained map does not depend on."""


@checked("fit", vfm="VariationalFlowMap", problem="InverseProblem", checkpoint_dir="path")
def fit(
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    *,
    steps: int = 4000,
    batch_size: int = 512,
    objective: str | Mapping[str, Any] = "default",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    average_decay: float = 0.999,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1000,
    log_every: int = 100,
    validations: int = 4,
    num_validation: int = 512,
    progress: bool = True,
) -> list[Row]:
    """Train a map in place; afterwards it holds the averaged weights that did best on held-out
    simulations.

    Args:
        vfm: map to train.
        problem: where simulations come from, fresh at every step.
        steps, batch_size: length of the run and simulations a step, two at least.
        objective: a preset (``"default"``, ``"vfm"``) or the arguments of :class:`Objective`.
        learning_rate: peak rate of AdamW, reached after a linear warm-up over the first 2 % and
            left along a cosine; where adapter and map are trained one after the other, in each.
        weight_decay: of AdamW.
        clip: largest gradient norm of the loss per dimension.
        average_decay: of the exponential moving average of the weights.
        seed: fixes the run.
        device: ``"auto"`` takes a GPU where there is one. Map and problem are moved there and
            stay.
        checkpoint_dir: folder of the run (:mod:`vfm_inverse.runs`), for ``config.json``,
            ``model.safetensors``, ``training.safetensors`` and ``log.csv``.
        resume: continue from that folder if it holds a run; it must be one of this problem, of a
            map built alike and with the same settings, up to ``device``, ``checkpoint_every`` and
            ``progress``.
        checkpoint_every, log_every: steps between checkpoints and between log rows.
        validations: times the averaged weights are scored during the run, besides the start.
        num_validation: held-out simulations for that.
        progress: show a progress bar.

    Returns:
        The log: one row of loss terms and health figures every ``log_every`` steps.

    Raises:
        FloatingPointError: a term of the loss is not finite; the last good checkpoint is kept.
        MemoryError: a step needs more memory than there is.
        OSError: a file cannot be written, or another process trains into the folder.
        ValueError: an argument makes no sense, or the run to resume is another one; nothing was
            written then.
    """
    given = {name: value for name, value in locals().items() if name not in ("vfm", "problem")}
    if isinstance(objective, str):
        if objective not in PRESETS:
            raise ValueError(f"'objective' must be one of {sorted(PRESETS)}; got {objective!r}")
        objective = PRESETS[objective]
    if not isinstance(objective, Mapping):
        raise TypeError(f"'objective' must be a name or a mapping; got {type(objective).__name__}")
    check_keys("objective", objective, Objective, reserved=["vfm"])
    given["objective"] = check_settings("objective", objective)
    device = resolve_device(device)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with nullcontext() if folder is None else locked(folder):
        return train(vfm.to(device), problem.to(device), folder, given)


def train(
    vfm: VariationalFlowMap, problem: InverseProblem, folder: Path | None, given: dict[str, Any]
) -> list[Row]:
    """What :func:`fit` does with checked arguments, in a folder that is its own."""
    steps, batch_size, seed = given["steps"], given["batch_size"], given["seed"]
    log_every, validations = given["log_every"], given["validations"]
    num_validation = given["num_validation"]
    run = Run(
        vfm, Objective(vfm, **given["objective"]), given["learning_rate"], given["weight_decay"]
    )
    memory = require_batch(run.objective, problem, batch_size)
    identity: dict[str, Any] = {}
    if folder is not None:
        identity = {
            "settings": {k: v for k, v in given.items() if k not in HARMLESS}
            | {"objective": every_setting(given["objective"])},
            "model": vfm.config,
            "problem": problem_fingerprint(problem),
        }
        try:
            json.dumps(identity)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "'kwargs' of the problem must be numbers, texts, lists and tables where a run is "
                f"kept in a folder; {error}"
            ) from error
    if given["resume"] and folder is not None and (folder / STATE).exists():
        run.restore(folder, identity)
    else:
        run.scores = run.validate(problem, num_validation, seed)
    if folder is not None and not (given["resume"] and (folder / CONFIG).exists()):
        remember(folder, vfm, problem, identity["settings"])

    milestones = {round(steps * (i + 1) / validations) for i in range(validations)}
    switch = round(steps * run.objective.adapter_share)
    words, quiet = f"fit ({in_words(memory)} of memory)", not given["progress"]
    bar = tqdm(total=steps, initial=run.step, disable=quiet, desc=words, unit="step")
    with bar, seeded(seed), csv_log(folder, ("step", *run.objective.names), run.history) as write:
        while run.step < steps:
            reseed((seed * 1_000_003 + run.step + 1) % 2**63)
            if switch:
                run.objective.enter_phase("adapter" if run.step < switch else "map")
            begin, end = (0, switch) if run.step < switch else (switch, steps)
            for group in run.optimizer.param_groups:
                group["lr"] = given["learning_rate"] * schedule(run.step - begin, end - begin)
            x, y, params = problem.simulate(batch_size)
            terms = run.advance(x, y, params, given["clip"])
            run.step += 1
            decay = min(given["average_decay"], (1 + run.step) / (10 + run.step))
            run.objective.update_average(decay)
            bar.update()
            if run.step % log_every == 0 or run.step == steps:
                row = {"step": run.step, **terms, **run.objective.health(x, y, **params)}
                run.history.append(row)
                write(row)
                bar.set_postfix({name: f"{row[name]:.3g}" for name in terms})
                run.warned = run.warned or warn_of_collapse(row, steps)
            if run.step in milestones:
                run.keep_better(run.validate(problem, num_validation, seed))
            due = run.step % given["checkpoint_every"] == 0 or run.step == steps
            if folder is not None and due:
                run.save(folder, identity)
    run.finish()
    if folder is not None:
        vfm.save(folder / MODEL)
    return run.history


class Run:
    """The state of a run: everything that a resumed one needs."""

    def __init__(
        self,
        vfm: VariationalFlowMap,
        objective: Objective,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.vfm, self.objective = vfm, objective.to(vfm.whitening.mean.device)
        self.optimizer = torch.optim.AdamW(
            vfm.networks.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        self.kept = copy.deepcopy(vfm.networks)
        self.step = 0
        self.scores = torch.empty(0)
        self.kept_step = 0
        self.warned = False
        self.history: list[Row] = []

    def advance(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], clip: float) -> Row:
        """One optimiser step; returns the terms of the loss."""
        terms = self.objective(x, y, **params)
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

    @torch.no_grad()
    def validate(self, problem: InverseProblem, num: int, seed: int) -> Tensor:
        """Energy scores ``(num,)`` of the averaged networks on held-out simulations, with the same
        noise each time: of elements over their spread, so that no unit outweighs another."""
        with seeded(seed + 1):
            x, y, params = problem.simulate(num, split="test")
            _, spread = center_and_spread(x)
            scores = []
            for rows in torch.arange(num).split(64):
                part = {name: value[rows] for name, value in params.items()}
                condition = self.vfm.condition(y[rows], part)
                answer = self.vfm.answer(condition, self.objective.average)
                draws = self.vfm.decode(answer.noise.sample((16,)), answer)
                scores.append(energy_score(over(draws, spread), over(x[rows], spread)))
        return torch.cat(scores)

    def keep_better(self, scores: Tensor) -> None:
        """Keep the averaged weights unless they score worse than those kept so far.

        The start is only given up for a better mean; later weights give way to longer training
        unless that is worse by more than two standard errors of the paired difference.
        """
        difference = scores - self.scores
        noise = 2 * difference.std() / len(difference) ** 0.5 if self.kept_step else 0.0
        if difference.mean() < noise:
            self.scores, self.kept_step = scores, self.step
            self.kept.load_state_dict(self.objective.average.state_dict())

    def finish(self) -> None:
        """Give the map the weights that were kept."""
        self.vfm.networks.load_state_dict(self.kept.state_dict())
        if self.kept_step < self.step:
            log.warning(
                "the weights of step %d were kept: later ones score worse on held-out "
                "simulations (energy score %.4g)",
                self.kept_step,
                float(self.scores.mean()),
            )

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write the run and the best weights so far."""
        state = {
            **prefixed("fixed", fixed_state(self.vfm)),
            **prefixed("networks", self.vfm.networks.state_dict()),
            **prefixed("average", self.objective.average.state_dict()),
            **prefixed("kept", self.kept.state_dict()),
            "scores": self.scores,
        }
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= prefixed(f"optimizer.{i}", moments)
        header = {
            **identity,
            "step": self.step,
            "kept_step": self.kept_step,
            "history": self.history,
        }
        checkpoint.write(folder / STATE, state, "training", header)

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
            self.kept_step, self.scores = int(header["kept_step"]), state["scores"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"'{path}' is no training state of this map: {error}") from error


def fixed_state(vfm: VariationalFlowMap) -> dict[str, Tensor]:
    """All of a map that no training changes: coordinates, start, features, range."""
    return {k: v for k, v in vfm.state_dict().items() if not k.startswith("networks.")}


def every_setting(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an objective, those left out with their defaults."""
    parameters = inspect.signature(Objective).parameters.items()
    return {k: p.default for k, p in parameters if k != "vfm"} | dict(objective)


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first 2 %, then a cosine to 1 % of the peak."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def warn_of_collapse(row: Mapping[str, float], steps: int) -> bool:
    """Say early when the adapter is far surer than its errors allow; whether it was said."""
    collapsed = row["step"] > 0.1 * steps and row.get("dispersion", 1.0) > COLLAPSED
    if collapsed:
        log.warning(
            "the adapter is collapsing at step %d: its squared errors are %.1f times the variance "
            "that it claims. A richer family or the 'forward' term helps",
            row["step"],
            row["dispersion"],
        )
    return collapsed
