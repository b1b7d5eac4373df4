"""What a resumed training must agree with: its settings, the map as it was built, the problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from typing import Any

from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import problem_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.training.objective import Objective

__all__ = ["identity_of"]

HARMLESS = ("device", "checkpoint_dir", "resume", "checkpoint_every", "progress", "callbacks")
"""Arguments of :func:`~vfm_inverse.training.loop.fit` that the trained map does not depend on."""


def identity_of(
    vfm: VariationalFlowMap, problem: InverseProblem, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a resumed run must agree with.

    Raises:
        ValueError: arguments of the problem cannot be written down.
    """
    framed = isinstance(vfm.start, FrameStart)
    without = HARMLESS if framed else (*HARMLESS, "num_frames")
    identity = {
        "settings": {k: v for k, v in given.items() if k not in without}
        | {"objective": every_setting(given["objective"])},
        # What is told of the draws is not what was asked for.
        "model": {k: v for k, v in vfm.config.items() if k != "prior_moments"},
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


def every_setting(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an objective, those left out with their defaults."""
    parameters = signature(Objective).parameters.items()
    return {k: p.default for k, p in parameters if k != "vfm"} | dict(objective)
