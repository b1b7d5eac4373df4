"""What came of a training, in one sentence: enough, still improving, or nothing gained and why.

All of it comes from scores on simulations that the training did not see, the same ones each time,
so that differences are paired and have a standard error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepinv.physics import GaussianNoise, LinearPhysics

from vfm_inverse.posterior.geometry import is_ordered
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.files import STATE
from vfm_inverse.training.held_out import HeldOut
from vfm_inverse.training.plan import OpenPlan, doubling, paired
from vfm_inverse.training.state import TrainingState

__all__ = ["summarise", "training_summary"]

FEW_STEPS = 1000
"""Steps below which too few of them are the likely cause of no gain."""

WORSE = 0.02
"""Relative loss of the last weights that points at the learning rate."""

SIGNAL = 16
"""Shortest vector that is called a signal."""


def training_summary(folder: str | Path) -> dict[str, Any] | None:
    """What came of the training in a run folder; ``None`` where it is not finished.

    Returns:
        A table: ``sentence``; ``outcome``, one of ``"enough"``, ``"still improving"``,
        ``"start kept"`` (no trained weights beat the untrained map) and ``"earlier kept"`` (later
        weights are worse); the steps ``steps`` and ``kept_step``; mean energy scores ``start``,
        ``kept`` and ``last`` on held-out simulations; ``gain_per_1000``, the relative fall of the
        score in 1000 steps over the second half; ``overfitted``; ``uncalibrated``, whether later
        weights score better and were left for their ranks.

    Raises:
        ValueError: the state of the training is damaged.
    """
    path = Path(folder) / STATE
    if not path.is_file():
        return None
    summary: dict[str, Any] | None = storage.read(path, "training")[1].get("summary")
    return summary


def summarise(run: TrainingState, problem: InverseProblem, held_out: HeldOut) -> dict[str, Any]:
    """The table of :func:`training_summary` for a training that ended.

    Args:
        run: the training, with its last held-out scores taken.
        problem: where its simulations come from.
        held_out: scores networks, those of a worse end on the split ``"train"`` too.
    """
    vfm, plan, scores, kept_step = run.vfm, run.plan, run.scores, run.kept_step
    last = max(scores)
    start, kept, end = (float(scores[step].mean()) for step in (0, kept_step, last))
    lost, error = paired(scores[last], scores[kept_step])
    overfitted = False
    if kept_step < last and lost > 2 * error:
        learnt, noise = paired(
            held_out.score(run.kept, "train").energy,
            held_out.score(run.objective.average, "train").energy,
        )
        overfitted = learnt > max(0.0, 2 * noise)
    stable, ended = last, "fixed"
    begin = 0
    if isinstance(plan, OpenPlan):
        phase = plan.stages[-1]
        ended, begin = phase.why, phase.begin
        # The end of a falling rate always brings something; what counts is what was before it.
        stable = max(step for step in scores if step <= (phase.decay or last))
    second = doubling(scores, begin, stable) if stable > begin else doubling(scores, 0, last)
    per_1000 = 1000 * second.gain / max(1, second.steps)
    if kept_step == 0:
        outcome = "start kept"
    elif kept_step < last:
        outcome = "earlier kept"
    else:
        outcome = "enough" if second.stalled else "still improving"
    table: dict[str, Any] = {
        "outcome": outcome,
        "steps": last,
        "kept_step": kept_step,
        "start": start,
        "kept": kept,
        "last": end,
        "gain_per_1000": per_1000,
        "overfitted": overfitted,
        "uncalibrated": end < kept and not run.calibrated(last),
    }
    table["sentence"] = _sentence(table, ended, lost > 2 * error, vfm, problem)
    return table


def _sentence(
    table: Mapping[str, Any],
    ended: str,
    worse: bool,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
) -> str:
    steps, kept_step, outcome = table["steps"], table["kept_step"], table["outcome"]
    start, kept, last = table["start"], table["kept"], table["last"]
    fell = f"the energy score fell by {_share(start - kept, start)} to {kept:.4g}"
    if outcome == "enough":
        return (
            f"Enough: over {steps} steps {fell}, and the second half of them brought less than "
            "1 %, or no more than chance does"
        )
    if outcome == "still improving":
        rate = f"still improving by {100 * table['gain_per_1000']:.2g} % per 1000 steps"
        longer = {
            "time": "when the time was used up: give it more 'minutes'",
            "limit": f"at {steps} steps, where 'auto' ends: give a larger number of 'steps'",
        }.get(ended, f"after {steps} steps: more 'steps', or steps='auto', may do better")
        return f"Still improving: over {steps} steps {fell}, and it was {rate} {longer}"
    difference = f"({kept:.4g} against {last:.4g} after {steps} steps; smaller is better)"
    cause, remedy = _cause(table, worse, vfm, problem)
    if outcome == "start kept":
        return (
            "The start was kept, training gained nothing: no trained weights score better than "
            f"the untrained map on held-out simulations {difference}. Likely cause: {cause}. "
            f"{remedy}"
        )
    return (
        f"The weights of step {kept_step} were kept: later ones score worse on held-out "
        f"simulations {difference}. Likely cause: {cause}. {remedy}"
    )


def _cause(
    table: Mapping[str, Any], worse: bool, vfm: VariationalFlowMap, problem: InverseProblem
) -> tuple[str, str]:
    """The likely cause of a training that gained nothing, and what to try."""
    start_kept = table["kept_step"] == 0
    if table["uncalibrated"]:
        return (
            "the training gained accuracy at the cost of calibration: the ranks of held-out "
            "truths among later draws are further from uniform than among the start's",
            "Try more simulations, weight_decay or a smaller learning_rate",
        )
    if table["overfitted"]:
        num = problem.num_prior_samples()
        of = "the simulations it is trained on" if num is None else f"its {num} prior samples"
        return (
            f"overfitting: the map fits {of} ever better and held-out ones worse",
            "Try more prior samples, a smaller network (width, depth) or weight_decay",
        )
    if start_kept and _is_exact(vfm, problem):
        return (
            "prior and noise are Gaussian and the physics is linear, so that the start is the "
            "exact posterior",
            "Nothing is left to try",
        )
    lost = table["last"] - table["kept"]
    if worse and lost > WORSE * abs(table["kept"]):
        return (
            "the learning rate is too large for this problem, or its fall came too early",
            "Try a learning_rate four times smaller and more steps",
        )
    if start_kept and vfm.config.get("network") == "mlp" and _is_signal(problem):
        dim = problem.field_shape.numel()
        return (
            f"the {dim} numbers of the field are in an order that the network 'mlp' knows "
            "nothing of",
            f"Try the field as a signal, of shape (1, {dim}), and network='u-net'",
        )
    if table["steps"] < FEW_STEPS:
        return f"{table['steps']} steps are few", "Try more steps, or steps='auto'"
    if start_kept:
        return (
            "the Gaussian answer is as good as what this network learns",
            "If its calibration passes it is good as it is; else try a wider network, more steps "
            "or another adapter",
        )
    return "chance, or a learning rate that is a little large", "Try a smaller learning_rate"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def _is_exact(vfm: VariationalFlowMap, problem: InverseProblem) -> bool:
    """Whether the Gaussian start is the exact posterior."""
    noise = getattr(problem.physics, "noise_model", None)
    return (
        vfm.start is not None
        and vfm.config.get("start") != "regression"
        and problem.prior_moments() is not None
        and isinstance(problem.physics, LinearPhysics)
        and type(noise) is GaussianNoise
    )


def _is_signal(problem: InverseProblem) -> bool:
    """Whether the field is a vector whose neighbours go together."""
    if len(problem.field_shape) != 1 or problem.field_shape.numel() < SIGNAL:
        return False
    return is_ordered(problem.sample_prior(256, split="test", seed=0))
