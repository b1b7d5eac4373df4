"""Training: a plain loop that steps an optimiser on an
:class:`~vfm_inverse.training.objective.Objective` and keeps records.

Every step draws its simulations from a seed made of ``seed`` and the step's number, so a run that
was killed goes on from its last checkpoint to the same weights, bit for bit, as one that was not.
How long it trains, and at which rate, is a plan's matter (:mod:`vfm_inverse.training.plan`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.config import check_keys
from vfm_inverse.runtime.files import CONFIG, MODEL, STATE, locked
from vfm_inverse.runtime.interruption import Interrupted, held_back
from vfm_inverse.runtime.randomness import reseed, seeded
from vfm_inverse.runtime.settings import brief, check_settings
from vfm_inverse.runtime.values import resolve_device
from vfm_inverse.training.cost import in_words, require_batch
from vfm_inverse.training.files import FIGURES, Row, csv_log
from vfm_inverse.training.frame_pool import FramePool, pool_for
from vfm_inverse.training.held_out import HeldOut
from vfm_inverse.training.identity import identity_of
from vfm_inverse.training.objective import PRESETS, Objective
from vfm_inverse.training.plan import FixedPlan, OpenPlan
from vfm_inverse.training.run_settings import remember
from vfm_inverse.training.state import TrainingState
from vfm_inverse.training.summary import summarise

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
    num_frames: int = 20_000,
    progress: bool = True,
    callbacks: Sequence[Callable[[Row], object]] = (),
) -> list[Row]:
    """Train a map in place; afterwards it holds the averaged weights that did best on held-out
    simulations.

    Args:
        vfm: map to train.
        problem: where simulations come from, fresh at every step.
        steps: length of the run; ``"auto"`` trains until the score on held-out simulations
            stalls, see :mod:`vfm_inverse.training.plan`.
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
        checkpoint_dir: folder of the run (:mod:`vfm_inverse.runs.folder`), for ``config.json``,
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
        num_frames: most simulations of a training whose start has the physics in its frame: 4096
            at first, eight more in every step, each used again and again
            (:mod:`vfm_inverse.training.frame_pool`).
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
    how = Optimisation(batch_size, learning_rate, weight_decay, clip, average_decay, seed)
    keep = Records(folder, resume, checkpoint_every, log_every, progress, tuple(callbacks))
    with nullcontext() if folder is None else locked(folder), held_back() as stopping:
        vfm.to(device)
        problem.to(device)
        loss = Objective(vfm, **given["objective"])
        plan = plan_of(steps, minutes, loss, validations)
        state = TrainingState(vfm, loss, plan, learning_rate, weight_decay)
        memory = require_batch(loss, problem, batch_size)
        identity = {} if folder is None else identity_of(vfm, problem, given)
        fits = min(512, max(32, SCORED_NUMBERS // vfm.whitening.dim))
        held_out = HeldOut(vfm, problem, num_validation or fits, seed)
        begin(state, problem, keep, identity, held_out)
        pool = pool_for(vfm, problem, seed, num_frames, folder)
        with seeded(seed), log_of(state, keep, memory) as to:
            train(state, problem, pool, how, keep, identity, held_out, to, stopping)
        state.finish()
        conclude(state, folder)
        if stopping():
            raise interrupted(state, folder)
        return state.history


class Optimisation(NamedTuple):
    """How a step is made; as the arguments of :func:`fit`."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    clip: float
    average_decay: float
    seed: int


class Records(NamedTuple):
    """What is kept of a run, where and how often; as the arguments of :func:`fit`."""

    folder: Path | None
    resume: bool
    checkpoint_every: int
    log_every: int
    progress: bool
    callbacks: tuple[Callable[[Row], object], ...]


class Log(NamedTuple):
    """Where the rows of a log go: a file and the bar."""

    file: Callable[[Row], None]
    bar: tqdm[Any]


def begin(
    state: TrainingState,
    problem: InverseProblem,
    keep: Records,
    identity: Mapping[str, Any],
    held_out: HeldOut,
) -> None:
    """Go on from the folder, or take the score of the start; write the settings there."""
    folder = keep.folder
    if keep.resume and folder is not None and (folder / STATE).exists():
        state.restore(folder, identity)
    else:
        state.take_score(held_out.score(state.objective.average))
        tell(state, state.log({}), keep, identity)
    if folder is not None and not (keep.resume and (folder / CONFIG).exists()):
        remember(folder, state.vfm, problem, identity["settings"])


@contextmanager
def log_of(state: TrainingState, keep: Records, memory: float | None) -> Iterator[Log]:
    """The log of a training: a file in its folder, and a bar."""
    words = "fit" if memory is None else f"fit ({in_words(memory)} of memory)"
    names = ("step", *state.objective.names, *FIGURES)
    bar = tqdm(
        total=length_of(state.plan),
        initial=state.step,
        disable=not keep.progress,
        desc=words,
        unit="step",
    )
    with bar, csv_log(keep.folder, names, state.history) as write:
        yield Log(write, bar)


def train(
    state: TrainingState,
    problem: InverseProblem,
    pool: FramePool | None,
    how: Optimisation,
    keep: Records,
    identity: Mapping[str, Any],
    held_out: HeldOut,
    to: Log,
    stopping: Callable[[], bool],
) -> None:
    """Step until the plan ends.

    Raises:
        Interrupted: ``stopping()``; the run is saved.
    """
    plan, objective, saved = state.plan, state.objective, time.monotonic()
    while not plan.ended(state.step):
        if stopping():
            save(state, keep.folder, identity)
            state.finish()
            raise interrupted(state, keep.folder)
        reseed((how.seed * 1_000_003 + state.step + 1) % 2**63)
        if plan.phase(state.step) != "joint":
            objective.enter_phase(plan.phase(state.step))
        rate = state.set_rate(how.learning_rate)
        losses, health = examples(objective, problem, pool, state.step, how.batch_size)
        terms = state.advance(losses, how.clip)
        state.step += 1
        decay = min(how.average_decay, (1 + state.step) / (10 + state.step))
        objective.update_average(decay)
        to.bar.update()
        if scored := plan.due(state.step, state.seconds):
            state.take_score(held_out.score(objective.average))
            plan.judge(state.scores)
        ended = plan.ended(state.step)
        if ended:
            state.summary = summarise(state, problem, held_out)
        if scored or ended or state.step % keep.log_every == 0:
            row = {**terms, **health(), "learning_rate": rate}
            row = state.log(row)
            to.file(row)
            to.bar.set_postfix({name: f"{row[name]:.3g}" for name in terms})
            length = length_of(plan) or 10 * EARLY
            state.warned = state.warned or warn_of_collapse(row, length)
            tell(state, row, keep, identity)
        old = time.monotonic() - saved >= SAVED_EVERY
        if ended or old or state.step % keep.checkpoint_every == 0:
            save(state, keep.folder, identity)
            saved = time.monotonic()


def examples(
    objective: Objective, problem: InverseProblem, pool: FramePool | None, step: int, num: int
) -> tuple[dict[str, Tensor], Callable[[], dict[str, float]]]:
    """The losses of a step, on fresh simulations or on frames of the pool, and what tells the
    health figures on the same ones."""
    if pool is None:
        x, y, params = problem.simulate(num)
        return objective(x, y, **params), partial(objective.health, x, y, **params)
    frames = pool.batch(step, num)
    return objective.of_frames(frames), partial(objective.health_of_frames, frames)


def save(state: TrainingState, folder: Path | None, identity: Mapping[str, Any]) -> None:
    """Write the state, where there is a folder."""
    if folder is not None:
        state.save(folder, identity)


def tell(state: TrainingState, row: Row, keep: Records, identity: Mapping[str, Any]) -> None:
    """Hand a row of the log to the callbacks; what one raises ends the training, saved."""
    try:
        for call in keep.callbacks:
            call(dict(row))
    except BaseException:
        save(state, keep.folder, identity)
        raise


def conclude(state: TrainingState, folder: Path | None) -> None:
    """Say what came of it, and write the map."""
    if state.summary is not None:
        state.vfm.training_note = state.summary["sentence"]
        level = logging.WARNING if state.kept_step < state.step else logging.INFO
        log.log(level, "%s", state.vfm.training_note)
    if folder is not None:
        state.vfm.save(folder / MODEL)


def plan_of(
    steps: int | Literal["auto"], minutes: float | None, objective: Objective, validations: int
) -> FixedPlan | OpenPlan:
    """The plan that the arguments of :func:`fit` ask for."""
    if steps == "auto":
        return OpenPlan(objective.phases, minutes)
    return FixedPlan(steps, objective.phases, validations)


def length_of(plan: FixedPlan | OpenPlan) -> int | None:
    """Steps of a plan; None where they are open."""
    return plan.steps if isinstance(plan, FixedPlan) else None


def interrupted(state: TrainingState, folder: Path | None) -> Interrupted:
    """What to raise when a signal came."""
    steps = length_of(state.plan)
    where = f"stopped at step {state.step}" + ("" if steps is None else f" of {steps}")
    if folder is None:
        return Interrupted(
            f"{where}; the map has the weights of step {state.kept_step}, the best so far",
            "without a 'checkpoint_dir' nothing is saved",
        )
    return Interrupted(f"{where}; the run is saved in '{folder}'", "resume=True goes on")


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
