"""Training: a plain loop that steps an optimiser on an :class:`~vfm_inverse.objective.Objective`
and keeps records.

Every step draws its simulations from a seed made of ``seed`` and the step's number, so a run that
was killed goes on from its last checkpoint to the same weights, bit for bit, as one that was not.
How long it trains, and at which rate, is a plan's matter (:mod:`vfm_inverse.training_plan`).
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from vfm_inverse.calls import checked
from vfm_inverse.card import problem_fingerprint
from vfm_inverse.checks import resolve_device
from vfm_inverse.config import check_keys
from vfm_inverse.cost import in_words, require_batch
from vfm_inverse.files import CONFIG, MODEL, STATE, locked
from vfm_inverse.interruption import Interrupted, held_back
from vfm_inverse.objective import PRESETS, Objective
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.problem import InverseProblem
from vfm_inverse.randomness import reseed, seeded
from vfm_inverse.run_settings import remember
from vfm_inverse.settings import brief, check_settings
from vfm_inverse.training_files import FIGURES, Row, csv_log
from vfm_inverse.training_plan import FixedPlan, OpenPlan
from vfm_inverse.training_state import Run
from vfm_inverse.training_summary import summarise

__all__ = ["fit", "resolve_device"]

log = logging.getLogger(__name__)

COLLAPSED = 3.0
"""Mean squared standardised code above which an adapter is called collapsed; 1 is calibrated."""

EARLY = 400
"""Steps that an adapter has, where their number is open, before it is called collapsed."""

SCORED_NUMBERS = 2**21
"""Numbers in the held-out fields that score the weights of large fields."""

SAVED_EVERY = 60.0
"""Most seconds between two checkpoints."""

HARMLESS = ("device", "checkpoint_dir", "resume", "checkpoint_every", "progress", "callbacks")
"""Arguments of :func:`fit` that the trained map does not depend on."""


@checked("fit", vfm="VariationalFlowMap", problem="InverseProblem", checkpoint_dir="path")
def fit(
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    *,
    steps: int | Literal["auto"] = 4000,
    minutes: float | None = None,
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
    num_validation: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callable[[Row], object]] = (),
) -> list[Row]:
    """Train a map in place; afterwards it holds the averaged weights that did best on held-out
    simulations.

    Args:
        vfm: map to train.
        problem: where simulations come from, fresh at every step.
        steps: length of the run; ``"auto"`` trains until the score on held-out simulations
            stalls, see :mod:`vfm_inverse.training_plan`.
        minutes: with ``"auto"``, computing time after which the run ends in any case; its end then
            depends on the machine.
        batch_size: simulations a step, two at least.
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
            map built alike and with the same settings, up to ``device``, ``checkpoint_every``,
            ``progress`` and ``callbacks``.
        checkpoint_every: steps between checkpoints; one is written every minute besides.
        log_every: steps between log rows.
        validations: times the averaged weights are scored during the run, besides the start and
            evenly spaced; where the length is open, three times while it doubles.
        num_validation: held-out simulations for that; 512 by default, and fewer, 32 at least, of
            fields with more than 4096 numbers.
        progress: show a progress bar.
        callbacks: each is called with every row of the log, a copy, once it is written. What one
            raises ends the training; the run is saved first and can be resumed.

    Returns:
        The log: a row every ``log_every`` steps and whenever the averaged weights were scored,
        with loss terms, health figures, ``learning_rate``, ``seconds`` of computing and, where it
        was taken, the mean energy score on held-out simulations, ``validation``. The first row is
        step 0, the score of the start.

    Raises:
        Interrupted: SIGINT or SIGTERM came; it is a ``KeyboardInterrupt``, the run was saved at
            the end of the step, and the map has the best weights so far. A second signal stops at
            once. In other threads than the main one, and where the program handles these signals
            itself, they are left alone.
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
    if minutes is not None and steps != "auto":
        raise ValueError(f"'minutes' needs steps='auto'; got steps={steps!r}")
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise TypeError(f"'callbacks' must be a list of functions; got {brief(callbacks)}")
    check_keys("objective", objective, Objective, reserved=["vfm"])
    given["objective"] = check_settings("objective", objective)
    device = resolve_device(device)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with nullcontext() if folder is None else locked(folder), held_back() as stopping:
        return train(vfm.to(device), problem.to(device), folder, given, stopping)


def train(
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    folder: Path | None,
    given: dict[str, Any],
    stopping: Callable[[], bool],
) -> list[Row]:
    """What :func:`fit` does with checked arguments, in a folder that is its own, until
    ``stopping()``."""
    batch_size, seed, log_every = given["batch_size"], given["seed"], given["log_every"]
    objective = Objective(vfm, **given["objective"])
    plan = plan_of(given, objective.adapter_share)
    run = Run(vfm, objective, plan, given["learning_rate"], given["weight_decay"])
    memory = require_batch(objective, problem, batch_size)
    identity = {} if folder is None else identity_of(vfm, problem, given)

    fits = min(512, max(32, SCORED_NUMBERS // vfm.whitening.dim))
    num_validation = given["num_validation"] or fits

    def score(split: Literal["train", "test"] = "test", which: Any = None) -> Tensor:
        return run.validate(problem, num_validation, seed, split, which)

    def save() -> None:
        if folder is not None:
            run.save(folder, identity)

    def tell(row: Row) -> None:
        try:
            for call in given["callbacks"]:
                call(dict(row))
        except BaseException:
            save()
            raise

    if given["resume"] and folder is not None and (folder / STATE).exists():
        run.restore(folder, identity)
    else:
        run.take_score(score())
        tell(run.log({}))
    if folder is not None and not (given["resume"] and (folder / CONFIG).exists()):
        remember(folder, vfm, problem, identity["settings"])
    steps = plan.steps if isinstance(plan, FixedPlan) else None
    words = "fit" if memory is None else f"fit ({in_words(memory)} of memory)"
    quiet = not given["progress"]
    bar = tqdm(total=steps, initial=run.step, disable=quiet, desc=words, unit="step")
    names, saved = ("step", *objective.names, *FIGURES), time.monotonic()
    with bar, seeded(seed), csv_log(folder, names, run.history) as write:
        while not plan.ended(run.step):
            if stopping():
                save()
                run.finish()
                raise interrupted(run, folder, steps)
            reseed((seed * 1_000_003 + run.step + 1) % 2**63)
            if plan.phase(run.step) != "joint":
                objective.enter_phase(plan.phase(run.step))
            rate = run.set_rate(given["learning_rate"])
            x, y, params = problem.simulate(batch_size)
            terms = run.advance(x, y, params, given["clip"])
            run.step += 1
            decay = min(given["average_decay"], (1 + run.step) / (10 + run.step))
            objective.update_average(decay)
            bar.update()
            if scored := plan.due(run.step, run.seconds):
                run.take_score(score())
                plan.judge(run.scores)
            ended = plan.ended(run.step)
            if ended:
                run.summary = summarise(run, problem, lambda which: score("train", which))
            if scored or ended or run.step % log_every == 0:
                row = run.log({**terms, **objective.health(x, y, **params), "learning_rate": rate})
                write(row)
                bar.set_postfix({name: f"{row[name]:.3g}" for name in terms})
                run.warned = run.warned or warn_of_collapse(row, steps or 10 * EARLY)
                tell(row)
            old = time.monotonic() - saved >= SAVED_EVERY
            if ended or old or run.step % given["checkpoint_every"] == 0:
                save()
                saved = time.monotonic()
    run.finish()
    if run.summary is not None:
        vfm.training_note = run.summary["sentence"]
        level = logging.WARNING if run.kept_step < run.step else logging.INFO
        log.log(level, "%s", vfm.training_note)
    if folder is not None:
        vfm.save(folder / MODEL)
    if stopping():
        raise interrupted(run, folder, steps)
    return run.history


def plan_of(given: Mapping[str, Any], adapter_share: float) -> FixedPlan | OpenPlan:
    """The plan that the arguments of :func:`fit` ask for."""
    if given["steps"] == "auto":
        return OpenPlan(adapter_share, given["minutes"])
    return FixedPlan(given["steps"], adapter_share, given["validations"])


def identity_of(
    vfm: VariationalFlowMap, problem: InverseProblem, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a resumed run must agree with.

    Raises:
        ValueError: arguments of the problem cannot be written down.
    """
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
    return identity


def interrupted(run: Run, folder: Path | None, steps: int | None) -> Interrupted:
    """What to raise when a signal came."""
    of = "" if steps is None else f" of {steps}"
    where = f"stopped at step {run.step}{of}"
    if folder is None:
        return Interrupted(
            f"{where}; the map has the weights of step {run.kept_step}, the best so far",
            "without a 'checkpoint_dir' nothing is saved",
        )
    return Interrupted(f"{where}; the run is saved in '{folder}'", "resume=True goes on")


def every_setting(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an objective, those left out with their defaults."""
    parameters = inspect.signature(Objective).parameters.items()
    return {k: p.default for k, p in parameters if k != "vfm"} | dict(objective)


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
