"""The calibration card: what was checked of a map, how, and with which result.

A map is certified by the check of its posteriors against simulated truths
(:func:`vfm_inverse.calibration.calibrate`).  The card says in a few lines of JSON what came out,
for which physics, prior and weights, and in which range of observations; it travels in the
checkpoint and, as text in the attributes, with every file of draws.  Whoever trains the map on has
other weights, and the card no longer holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from types import NoneType
from typing import Any, Literal, Self

__all__ = ["Card", "Standing", "complaint", "told_of_prior"]

Standing = Literal["pass", "fail", "uncertified"]

CERTIFY = "'vfm-inverse calibrate RUN', or calibration.calibrate and calibration.certify in Python"
"""How a map gets one."""


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
        draws: how the draws that were checked were made, as :meth:`VariationalFlowMap.provenance`
            says it; empty for those of the map alone.
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
    draws: str = ""

    def to_json(self) -> str:
        """The card as text, keys in order; without ``draws`` for those of the map alone."""
        return json.dumps({k: v for k, v in asdict(self).items() if k != "draws" or v})

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
    **dict.fromkeys(("training", "draws"), str),
    **dict.fromkeys(("physics_sha256", "data_sha256", "weights_sha256"), str),
    **dict.fromkeys(("num_simulations", "num_draws", "seed"), int),
    **dict.fromkeys(("alpha", "false_alarm"), (int, float)),
    **dict.fromkeys(("figures", "valid_range"), dict),
    "corrected": (dict, NoneType),
    "grades": list,
}
"""What the fields of a card are."""


def told_of_prior(config: Any) -> str:
    """What the configuration of a map, as a table or as JSON, says of the covariance of its prior,
    in a sentence without its full stop; empty where that is exact, not of draws, or not told."""
    try:
        config = json.loads(config) if isinstance(config, str) else config
        found = config["prior_moments"]
        kind = "draws" if "draws" in found else "samples"
        return (
            f"The covariance of the prior is that of {found[kind]:d} {kind}: at observations "
            f"{found['far_out']:g} prior standard deviations out along all that is informed, it "
            f"moves the mean of a Gaussian posterior by up to {found['error']:.2g} posterior "
            "standard deviations (root mean square)"
        )
    except (LookupError, TypeError, ValueError):
        return ""


def complaint(name: str, verdict: Standing, reason: str) -> str | None:
    """What is to be said of a map with this standing; None where it passed its check.

    Args:
        name: what to call the map.
        verdict, reason: of :meth:`VariationalFlowMap.standing`.
    """
    if verdict == "pass":
        return None
    if verdict == "fail":
        return (
            f"{name} failed its calibration: {reason}. Train it further, take a richer family, or "
            "correct its draws (vfm_inverse.correction); its report says what may help"
        )
    return f"{name} is uncertified: {reason}. Check it with {CERTIFY}"
