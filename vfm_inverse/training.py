"""Training: a plain loop that steps an optimiser on an :class:`~vfm_inverse.objective.Objective`
and keeps records.

Every step draws its simulations from a seed made of ``seed`` and the step's number, so a run that
was killed goes on from its last checkpoint to the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import copy
import csv
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vfm_inverse import checkpoint
from vfm_inverse.objective import PRESETS, Objective
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.problem import InverseProblem
from vfm_inverse.randomness import reseed, seeded
from vfm_inverse.scores import energy_score

__all__ = ["fit", "resolve_device"]

log = logging.getLogger(__name__)

COLLAPSED = 3.0
"""Mean squared standardised code above which an adapter is called collapsed; 1 is calibrated."""

Row = dict[str, float]


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
        steps, batch_size: length of the run and simulations a step.
        objective: a preset (``"default"``, ``"vfm"``) or the arguments of :class:`Objective`.
        learning_rate: peak rate of AdamW, reached after a linear warm-up over the first 2 % and
            left along a cosine; where adapter and map are trained one after the other, in each.
        weight_decay: of AdamW.
        clip: largest gradient norm of the loss per dimension.
        average_decay: of the exponential moving average of the weights.
        seed: fixes the run.
        device: ``"auto"`` takes a GPU where there is one. Map and problem are moved there and
            stay.
        checkpoint_dir: folder for ``model.safetensors``, ``training.safetensors`` and ``log.csv``.
        resume: continue from that folder if it holds an unfinished run of the same length.
        checkpoint_every, log_every: steps between checkpoints and between log rows.
        validations: times the averaged weights are scored during the run, besides the start.
        num_validation: held-out simulations for that.
        progress: show a progress bar.

    Returns:
        The log: one row of loss terms and health figures every ``log_every`` steps.

    Raises:
        FloatingPointError: a term of the loss is not finite; the last good checkpoint is kept.
        ValueError: an argument makes no sense, or the run to resume is another one.
    """
    for name, value in {"steps": steps, "batch_size": batch_size, "log_every": log_every}.items():
        if value < 1:
            raise ValueError(f"'{name}' must be at least 1; got {value}")
    if isinstance(objective, str):
        if objective not in PRESETS:
            raise ValueError(f"'objective' must be one of {sorted(PRESETS)}; got {objective!r}")
        objective = PRESETS[objective]
    device = resolve_device(device)
    problem.to(device)
    vfm.to(device)
    run = Run(vfm, Objective(vfm, **objective), learning_rate, weight_decay)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "learning_rate": learning_rate,
    }
    if resume and folder is not None and (folder / "training.safetensors").exists():
        run.restore(folder, settings)
    else:
        run.scores = run.validate(problem, num_validation, seed)

    milestones = {round(steps * (i + 1) / validations) for i in range(validations)}
    switch = round(steps * run.objective.adapter_share)
    bar = tqdm(total=steps, initial=run.step, disable=not progress, desc="fit", unit="step")
    with bar, seeded(seed), csv_log(folder, ("step", *run.objective.names), run.history) as write:
        while run.step < steps:
            reseed(seed * 1_000_003 + run.step + 1)
            if switch:
                run.objective.enter_phase("adapter" if run.step < switch else "map")
            begin, end = (0, switch) if run.step < switch else (switch, steps)
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate * schedule(run.step - begin, end - begin)
            x, y, params = problem.simulate(batch_size)
            terms = run.advance(x, y, params, clip)
            run.step += 1
            run.objective.update_average(min(average_decay, (1 + run.step) / (10 + run.step)))
            bar.update()
            if run.step % log_every == 0 or run.step == steps:
                row = {"step": run.step, **terms, **run.objective.health(x, y, **params)}
                run.history.append(row)
                write(row)
                bar.set_postfix({name: f"{row[name]:.3g}" for name in terms})
                run.warned = run.warned or warn_of_collapse(row, steps)
            if run.step in milestones:
                run.keep_better(run.validate(problem, num_validation, seed))
            if folder is not None and (run.step % checkpoint_every == 0 or run.step == steps):
                run.save(folder, settings)
    run.finish()
    if folder is not None:
        vfm.save(folder / "model.safetensors")
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
        noise each time."""
        with seeded(seed + 1):
            x, y, params = problem.simulate(num, split="test")
            scores = []
            for rows in torch.arange(num).split(64):
                part = {name: value[rows] for name, value in params.items()}
                condition = self.vfm.condition(y[rows], part)
                answer = self.vfm.answer(condition, self.objective.average)
                draws = self.vfm.decode(answer.noise.sample((16,)), answer)
                scores.append(energy_score(draws, x[rows]))
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

    def save(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write the run and the best weights so far."""
        state = {
            **prefixed("networks", self.vfm.networks.state_dict()),
            **prefixed("average", self.objective.average.state_dict()),
            **prefixed("kept", self.kept.state_dict()),
            "scores": self.scores,
        }
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= prefixed(f"optimizer.{i}", moments)
        header = {
            "settings": dict(settings),
            "step": self.step,
            "kept_step": self.kept_step,
            "history": self.history,
        }
        checkpoint.write(folder / "training.safetensors", state, "training", header)

    def restore(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Read a run that :meth:`save` wrote."""
        path = folder / "training.safetensors"
        state, header = checkpoint.read(path, "training", device=self.vfm.whitening.mean.device)
        if header["settings"] != dict(settings):
            changed = {
                k: (v, settings.get(k))
                for k, v in header["settings"].items()
                if settings.get(k) != v
            }
            raise ValueError(
                f"'resume' needs the settings of the run in {folder}; these differ (there, "
                f"here): {changed}"
            )
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
        self.step, self.history = header["step"], header["history"]
        self.kept_step, self.scores = header["kept_step"], state["scores"]


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with a prefix and a dot."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def selected(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries with that prefix, without it: the inverse of :func:`prefixed`."""
    return {
        k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")
    }


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


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is a GPU where there is one.

    Raises:
        ValueError: the device is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"'device' must be 'auto' or a device of this machine; got {device!r}"
        ) from error


@contextmanager
def csv_log(folder: Path | None, names: Sequence[str], history: list[Row]) -> Iterator[Any]:
    """A function that appends rows to ``log.csv``, which begins with the rows of the resumed run;
    a term that a phase of the training does not have stays empty."""
    if folder is None:
        yield lambda row: None
        return
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)

        def write(row: Row) -> None:
            writer.writerow(row)
            file.flush()

        writer.writeheader()
        for row in history:
            write(row)
        yield write
