"""The calibration card: what was checked of a map, how, and with which result.

A map is certified by the check of its posteriors against simulated truths
(:func:`vfm_inverse.calibration.calibrate`).  The card says in a few lines of JSON what came out,
for which physics, prior and weights, and in which range of observations; it travels in the
checkpoint and, as text in the attributes, with every file of draws.  Whoever trains the map on has
other weights, and the card no longer holds.

Fingerprints are SHA-256 sums of names, shapes, types and bytes.  Of the physics: its description
and its buffers, without those that a call sets (the parameters of the observation).  Of the data:
256 prior samples of each split at seed 0.  Of the weights: all that the draws depend on, so the
whitening and the Gaussian start too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Self

from vfm_inverse import __version__

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from vfm_inverse.posterior import VariationalFlowMap
    from vfm_inverse.problem import InverseProblem

__all__ = [
    "CalibrationWarning",
    "Card",
    "Standing",
    "certify",
    "data_fingerprint",
    "fingerprint",
    "physics_fingerprint",
    "problem_fingerprint",
    "standing",
    "warn_unless_certified",
    "weights_fingerprint",
]

Standing = Literal["pass", "fail", "uncertified"]

#: Prior samples of each split in the fingerprint of the data.
SAMPLES = 256

#: Simulations in the fingerprint of a problem.
SIMULATED = 16

#: Fewest simulations that the edge of the range is fitted on.
SIMULATIONS = 1000

CERTIFY = "'vfm-inverse calibrate RUN', or calibration.calibrate and card.certify in Python"


class CalibrationWarning(UserWarning):
    """Draws that no calibration vouches for: the map is uncertified or failed, or the observation
    lies outside the range that was checked."""


@dataclass(frozen=True)
class Card:
    """What a calibration found, of what, and where it holds.

    Attributes:
        verdict: ``"pass"`` or ``"fail"``.
        reason: the verdict's sentence.
        figures: the main figures of the check by name.
        num_simulations, num_draws, alpha, seed, split: its settings.
        problem, physics: name of the problem and description of its observation model.
        physics_sha256, data_sha256, weights_sha256: fingerprints.
        valid_range: smallest and largest number of ``y`` and of each parameter in the check.
        false_alarm: probability with which a call warns although its observations are in range.
        version: of the package.
        corrected: of the draws as ``correction.auto`` corrects them, if they were checked:
            ``verdict``, ``reason``, ``num_simulations``, ``num_draws`` and ``method``.
        training: what came of the training, in a sentence; empty where that is not known.
        grades: aspect, grade and size of each of :func:`vfm_inverse.calibration.grades`; none in
            a card of an older version.
    """

    verdict: str
    reason: str
    figures: dict[str, float]
    num_simulations: int
    num_draws: int
    alpha: float
    seed: int
    split: str
    problem: str
    physics: str
    physics_sha256: str
    data_sha256: str
    weights_sha256: str
    valid_range: dict[str, list[float]]
    false_alarm: float
    version: str
    corrected: dict[str, Any] | None = None
    training: str = ""
    grades: list[list[str]] = field(default_factory=list)

    def to_json(self) -> str:
        """The card as text, keys in order."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a card, as the attribute ``calibration_card`` of a file of draws holds it.

        Raises:
            ValueError: the text is no card.
        """
        try:
            card = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"'text' must be a calibration card in JSON; {error}") from error
        for name, kind in KINDS.items():
            value = getattr(card, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(
                    f"'{name}' of a calibration card must be of another kind; got "
                    f"{type(value).__name__}"
                )
        verdicts: list[Any] = [card.verdict]
        if card.corrected is not None:
            verdicts.append(card.corrected.get("verdict"))
        for verdict in verdicts:
            if verdict not in ("pass", "fail"):
                raise ValueError(
                    "'verdict' of a calibration card must be 'pass' or 'fail'; got "
                    f"{verdict!r:.40}"
                )
        numbers = [
            *card.figures.values(),
            *(v for pair in card.valid_range.values() for v in pair),
        ]
        if not all(isinstance(v, int | float) for v in numbers):
            raise ValueError("'figures' and 'valid_range' of a calibration card must hold numbers")
        rows: list[Any] = list(card.grades)
        if not all(isinstance(row, list) and [*map(type, row)] == [str] * 3 for row in rows):
            raise ValueError(
                "'grades' of a calibration card must hold aspect, grade and size of each"
            )
        return card


KINDS: dict[str, Any] = {
    **dict.fromkeys(("verdict", "reason", "split", "problem", "physics", "version"), str),
    "training": str,
    **dict.fromkeys(("physics_sha256", "data_sha256", "weights_sha256"), str),
    **dict.fromkeys(("num_simulations", "num_draws", "seed"), int),
    **dict.fromkeys(("alpha", "false_alarm"), (int, float)),
    **dict.fromkeys(("figures", "valid_range"), dict),
    "corrected": (dict, NoneType),
    "grades": list,
}
"""What the fields of a card are."""


def certify(vfm: VariationalFlowMap, problem: InverseProblem, report: xr.Dataset) -> Card:
    """Give a map the card of its calibration, and the range that was checked.

    The observations of the check are simulated once more from its seed (or more of them, up to
    :data:`SIMULATIONS`, where it had fewer), for the edge of the range; no draws are made.

    Args:
        vfm: the map, with the weights that were checked; its ``card`` and ``range`` are set.
        problem: of the check.
        report: what :func:`vfm_inverse.calibration.calibrate` returned for the two.

    Raises:
        ValueError: ``report`` is no calibration by simulations, or of other weights.
    """
    from vfm_inverse.calibration.grading import grades
    from vfm_inverse.validity import FALSE_ALARM

    attrs = report.attrs
    if missing := [name for name in ("verdict", "seed", "split") if name not in attrs]:
        raise ValueError(
            f"'report' must come from calibration.calibrate; its attributes lack {missing}"
        )
    weights = weights_fingerprint(vfm)
    if attrs.get("weights_sha256", weights) != weights:
        raise ValueError("'report' must be of this map; it is of one with other weights")
    num, seed, split = int(attrs["num_simulations"]), int(attrs["seed"]), attrs["split"]
    _, y, params = problem.simulate(max(num, SIMULATIONS), split=split, seed=seed)
    vfm.range.fit_edge(y, params)
    # Another check of the same weights leaves what is known of their corrected draws.
    earlier = vfm.card if vfm.card and vfm.card.weights_sha256 == weights else None
    vfm.card = Card(
        verdict=str(attrs["verdict"]),
        reason=str(attrs["reason"]),
        figures=main_figures(report),
        num_simulations=num,
        num_draws=int(attrs["num_draws"]),
        alpha=float(attrs["alpha"]),
        seed=seed,
        split=str(split),
        problem=problem.name or "",
        physics=problem.describe_physics(),
        physics_sha256=physics_fingerprint(problem),
        data_sha256=data_fingerprint(problem),
        weights_sha256=weights,
        valid_range={
            name: [float(value.min()), float(value.max())]
            for name, value in {"y": y, **params}.items()
        },
        false_alarm=FALSE_ALARM,
        version=__version__,
        corrected=None if earlier is None else earlier.corrected,
        training=vfm.training_note or "",
        grades=[list(one) for one in grades(report)],
    )
    return vfm.card


def main_figures(report: xr.Dataset) -> dict[str, float]:
    """The figures of a calibration that a card keeps."""
    import numpy as np

    figures = {
        "smallest_p": report.p_adjusted.min(),
        "coverage_50": report.coverage_map.sel(level=0.5).mean(),
        "coverage_90": report.coverage_map.sel(level=0.9).mean(),
        "crps": report.crps.mean(),
        "energy_score": report.energy_score.mean(),
    }
    error = (report.skill_map**2).mean()
    if error > 0:  # else nothing varies
        figures["spread_over_error"] = ((report.spread_map**2).mean() / error) ** 0.5
    if "tarp_p_adjusted" in report:
        figures["joint_p"] = report.tarp_p_adjusted
    if "skill" in report and np.isfinite(report.skill.sel(score="crps")):
        figures["crps_skill"] = report.skill.sel(score="crps")
    return {name: float(value) for name, value in figures.items()}


def standing(vfm: VariationalFlowMap, weights: str | None = None) -> tuple[Standing, str]:
    """Verdict on a map as it is now, and why: ``"pass"``, ``"fail"`` or ``"uncertified"``.

    Args:
        vfm: the map.
        weights: its :func:`weights_fingerprint`, where that is known already.
    """
    if vfm.card is None:
        return "uncertified", "its calibration was never checked"
    if vfm.card.weights_sha256 != (weights or weights_fingerprint(vfm)):
        return "uncertified", "its weights changed after its calibration was checked"
    return "pass" if vfm.card.verdict == "pass" else "fail", vfm.card.reason


def warn_unless_certified(vfm: VariationalFlowMap, name: str, stacklevel: int = 2) -> None:
    """Warn when a map failed its calibration or was not checked as it is.

    Args:
        vfm: the map.
        name: what to call it.
        stacklevel: whose line the warning names, as in :func:`warnings.warn`.
    """
    verdict, reason = standing(vfm)
    if verdict == "pass":
        return
    if verdict == "fail":
        text = f"{name} failed its calibration: {reason}. Train it further, take a richer family, "
        text += "or correct its draws (vfm_inverse.correction); its report says what may help"
    else:
        text = f"{name} is uncertified: {reason}. Check it with {CERTIFY}"
    warnings.warn(text, CalibrationWarning, stacklevel=stacklevel + 1)


def weights_fingerprint(vfm: VariationalFlowMap) -> str:
    """SHA-256 of all that draws depend on; the range of validity is not part of it."""
    tensors = {k: v for k, v in vfm.state_dict().items() if not k.startswith("range.")}
    return fingerprint(f"{vfm.observation} {vfm.steps} {vfm.precision}", tensors)


def physics_fingerprint(problem: InverseProblem) -> str:
    """SHA-256 of the physics: description and buffers, without parameters of the observation."""
    buffers = {} if problem.physics is None else dict(problem.physics.named_buffers())
    # deepinv's physics keeps what the latest call was given.
    fixed = {k: v for k, v in buffers.items() if k.rpartition(".")[2] not in problem.param_shapes}
    return fingerprint(problem.describe_physics(), fixed)


def data_fingerprint(problem: InverseProblem) -> str:
    """SHA-256 of prior samples of either split, drawn with seed 0."""
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    return fingerprint(
        "prior", {split: problem.sample_prior(SAMPLES, split=split, seed=0) for split in splits}
    )


def problem_fingerprint(problem: InverseProblem) -> str:
    """SHA-256 of what a training learns from: the physics, the prior, a few simulations, names and
    shapes. It does not depend on the device that the problem is on."""
    home = problem.device
    text: list[Any] = [problem.name, problem.kwargs, physics_fingerprint(problem)]
    text += [str(problem.dtype), list(problem.observation_shape)]
    try:
        # The random numbers of devices differ.
        first, again = (_simulations(problem.to("cpu")) for _ in range(2))
    except RuntimeError:  # a simulator that is tied to its device
        first, again = (_simulations(problem.to(home)) for _ in range(2))
    finally:
        problem.to(home)
    # A simulator may draw from a generator of its own.
    kept = {k: v for k, v in first.items() if v.equal(again[k])}
    return fingerprint(json.dumps(text, default=lambda value: type(value).__name__), kept)


def _simulations(problem: InverseProblem) -> dict[str, Tensor]:
    x, y, params = problem.simulate(SIMULATED, split="test", seed=0)
    held_out = problem.sample_prior(SAMPLES, split="test", seed=0)
    return {"x": x, "y": y, "prior": problem.sample_prior(SAMPLES, seed=0), "test": held_out} | {
        f"param {name}": value for name, value in params.items()
    }


def fingerprint(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors by name: names, shapes, types and bytes."""
    import torch

    total = sha256(text.encode())
    for name, value in sorted(tensors.items()):
        total.update(f"|{name} {tuple(value.shape)} {value.dtype}|".encode())
        flat: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total.update(flat.data)
    return total.hexdigest()
