r"""The classical answer, as the place where training starts: which start suits a problem.

For linear physics with Gaussian noise it is the posterior under a Gaussian prior with the prior's
mean and covariance, in closed form (:mod:`vfm_inverse.gaussian.operator_start`), or close to it
for large fields (:mod:`vfm_inverse.gaussian.spectral_start`); for other physics with derivatives
and Gaussian noise the law around the mode that has the physics in its coordinates
(:mod:`vfm_inverse.gaussian.laplace_start`), unless simulations show that it is worse than a
regression; for all else a regression (:mod:`vfm_inverse.gaussian.regression_start`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from vfm_inverse.gaussian.amplitudes_start import AmplitudesStart
from vfm_inverse.gaussian.choose_amplitudes import better, may_have_amplitudes
from vfm_inverse.gaussian.laplace_start import FrameStart, LaplaceStart
from vfm_inverse.gaussian.matrix_free import noise_level
from vfm_inverse.gaussian.operator_start import (
    GRAM_LIMIT,
    FixedOperatorStart,
    GaussianStart,
    VaryingOperatorStart,
    operator_params,
)
from vfm_inverse.gaussian.regression_start import RegressionStart
from vfm_inverse.gaussian.spectral_start import SpectralStart
from vfm_inverse.gaussian.truncated_start import TruncatedOperatorStart
from vfm_inverse.gaussian.whitening import DENSE_LIMIT, SpectralWhitening, Whitening
from vfm_inverse.problem.bounded import SoftBox
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.statistics.scores import energy_score

__all__ = [
    "ASKED",
    "OPEN",
    "STARTS",
    "build_start",
    "candidates",
    "check_start",
    "fit_frame",
    "fit_start",
    "score",
    "start_kind",
    "start_of",
]

log = logging.getLogger(__name__)

BASIS_NUMBERS = 2**26
"""Most numbers in the informed directions of a large field: bounds memory."""

SCORED = 4
"""Simulations that the starts to choose from are compared on."""


FRAMED, FRAMED_DRAWS = 32, 32
"""Simulations, and draws for each, on which a start with the physics in it is held against a
regression."""

FRAME_NUMBERS = 2**18
"""Most numbers in the Jacobian of one observation with which such a start is taken unasked."""


OPEN = ("auto", "gaussian")
"""What leaves the kind of start open: the second, among Gaussian ones alone."""

ASKED = ("regression", "laplace", "frame", "amplitudes")
"""Kinds of start that may be asked for by name, whatever suits the problem."""


def _linear(problem: InverseProblem, whitening: Whitening) -> tuple[Any, Any, Whitening]:
    return problem.physics, problem.likelihood, whitening


STARTS: dict[str, Callable[[InverseProblem, Whitening], GaussianStart]] = {
    "regression": lambda problem, whitening: RegressionStart(whitening),
    "fixed": lambda problem, whitening: FixedOperatorStart(*_linear(problem, whitening)),
    "varying": lambda problem, whitening: VaryingOperatorStart(
        *_linear(problem, whitening), problem.observation_shape.numel()
    ),
    "truncated": lambda problem, whitening: TruncatedOperatorStart(*_linear(problem, whitening)),
    "spectral": lambda problem, whitening: SpectralStart(*_linear(problem, whitening)),
    "laplace": lambda problem, whitening: LaplaceStart(
        *_linear(problem, whitening), problem.observation_shape.numel()
    ),
    "frame": lambda problem, whitening: FrameStart(
        *_linear(problem, whitening), problem.observation_shape.numel()
    ),
    "amplitudes": lambda problem, whitening: AmplitudesStart(
        *_linear(problem, whitening), problem.observation_shape.numel()
    ),
}
"""Kinds of start, not yet fitted, for a problem and the coordinates of the start."""


def build_start(
    problem: InverseProblem,
    whitening: Whitening,
    params: Mapping[str, Tensor],
    kind: str | None = None,
) -> GaussianStart:
    """The kind of start that suits the problem, not yet fitted.

    Args:
        problem: prior, physics and noise.
        whitening: coordinates of the start.
        params: a few draws of the parameters, each ``(n, ...)``.
        kind: ``"spectral"`` or ``"truncated"``, as :func:`fit_start` chose for many data of a
            large field; one of :data:`ASKED`; the first of :func:`candidates` when missing.
    """
    if kind in ASKED:
        return STARTS[kind](problem, whitening)
    known = candidates(problem, whitening, params)
    return STARTS[kind if kind and known != ("regression",) else known[0]](problem, whitening)


def start_kind(start: GaussianStart | None) -> str | None:
    """What :func:`build_start` has to be told to make such a start again."""
    kinds = {
        SpectralStart: "spectral",
        TruncatedOperatorStart: "truncated",
        LaplaceStart: "laplace",
        FrameStart: "frame",
        AmplitudesStart: "amplitudes",
    }
    return kinds.get(type(start))  # type: ignore[arg-type]


def check_start(problem: InverseProblem, kind: str) -> None:
    """Refuse a start that is none, or that the problem cannot have.

    Args:
        problem: prior, physics and noise.
        kind: one of :data:`OPEN` or :data:`ASKED`.

    Raises:
        ValueError: an unknown name, or a start from the mode without a physics and Gaussian noise.
    """
    if kind not in (*OPEN, *ASKED):
        raise ValueError(f"'start' must be one of {(*OPEN, *ASKED)}; got {kind!r}")
    if kind in (*OPEN, "regression"):
        return
    physics, likelihood = problem.physics, problem.likelihood
    gaussian = isinstance(likelihood, Likelihood) and likelihood.noise_scale() is not None
    if kind == "amplitudes" and not (isinstance(physics, LinearPhysics) and gaussian):
        raise ValueError(
            "'start' must not be 'amplitudes' for a problem without linear physics and Gaussian "
            f"noise; got {kind!r} for {problem.describe_physics()}"
        )
    if not (isinstance(physics, Physics) and gaussian):
        raise ValueError(
            "'start' must be 'auto' or 'regression' for a problem without a physics and Gaussian "
            f"noise of known size; got {kind!r} for {problem.describe_physics()}"
        )


def candidates(
    problem: InverseProblem, whitening: Whitening, params: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Kinds of start: for linear physics with Gaussian noise exact ones where they fit in memory,
    and otherwise those to choose from; a regression for all else."""
    physics, likelihood = problem.physics, problem.likelihood
    if not (isinstance(physics, LinearPhysics) and isinstance(likelihood, Likelihood)):
        return ("regression",)
    # Linear in the field is not linear in the coordinates, unless they are all but the same.
    if problem.transform is not None and not isinstance(problem.transform, SoftBox):
        return ("regression",)
    if likelihood.noise_scale(**params) is None:
        return ("regression",)
    num_data, dim = problem.observation_shape.numel(), whitening.dim
    per_datum = noise_level(likelihood, params, torch.empty(())).shape[1] > 1
    varies = per_datum or bool(operator_params(physics, params))
    spectral = dim > DENSE_LIMIT and isinstance(whitening, SpectralWhitening)
    if varies and num_data <= GRAM_LIMIT:
        return ("varying",)
    if varies:
        return ("spectral",) if spectral else ("truncated",)
    if dim <= DENSE_LIMIT or num_data <= min(DENSE_LIMIT, BASIS_NUMBERS // dim):
        return ("fixed",)
    return ("spectral", "truncated") if spectral else ("truncated",)


def fit_start(
    problem: InverseProblem,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
    max_rank: int,
    kind: str = "auto",
    framed: bool = False,
) -> GaussianStart:
    """Fit the Gaussian start of a problem.

    Where there are several candidates, the one that gives the fields behind some of the
    observations the highest density.

    Args:
        problem: prior, physics and noise.
        whitening: coordinates of the start.
        simulations: fields ``(n, *event)``, observations ``(n, *obs)`` and parameters.
        max_rank: most directions kept with many data of a varying operator, and in a regression.
        kind: one of :data:`ASKED`, or of :data:`OPEN`: what suits the problem.
        framed: whether the map can work in a frame with the physics in it, or in those of a
            mixture.
    """
    starts: list[GaussianStart] = []
    kinds = candidates(problem, whitening, simulations[2]) if kind in OPEN else (kind,)
    if kind == "auto" and kinds == ("regression",) and framed:
        start = fit_frame(problem, whitening, simulations, max_rank)
        return start or start_of("regression", problem, whitening, simulations, max_rank)
    for each in kinds:
        starts.append(start_of(each, problem, whitening, simulations, max_rank))
    mixed = kind == "auto" and framed and len(starts) == 1
    if mixed and may_have_amplitudes(problem, whitening, starts[0]):
        other = STARTS["amplitudes"](problem, whitening).to(simulations[0].device)
        if better(starts[0], other, whitening, simulations, max_rank):
            return other
    if len(starts) == 1:
        return starts[0]
    return max(starts, key=lambda start: score(start, whitening, simulations))


def start_of(
    kind: str,
    problem: InverseProblem,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
    max_rank: int,
) -> GaussianStart:
    """A start of a kind, fitted."""
    start = STARTS[kind](problem, whitening).to(simulations[0].device)
    start.fit(*simulations, max_rank)
    return start


def fit_frame(
    problem: InverseProblem,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
    max_rank: int,
) -> FrameStart | None:
    """The start with the physics in its frame; ``None`` where the problem cannot have it, or where
    its draws have a larger energy score than those of a regression, by two standard errors."""
    try:
        check_start(problem, "frame")
        if problem.observation_shape.numel() * whitening.dim > FRAME_NUMBERS:
            return None
        start = start_of("frame", problem, whitening, simulations, max_rank)
    except ValueError:
        return None
    assert isinstance(start, FrameStart)
    x, y, params = simulations[0][-FRAMED:], simulations[1][-FRAMED:], simulations[2]
    params = rows_of(params, slice(-FRAMED, None))
    xi = whitening.whiten(x)
    frame, plain = (
        energy_score(law.sample(torch.Size([FRAMED_DRAWS])), xi)
        for law in (start(y, params), start.regression(y, params))
    )
    lost = frame - plain
    # The frame is closer to the data; a score that hardly depends on these cannot tell.
    if lost.mean() <= 2 * lost.std() / len(lost) ** 0.5:  # False for what is not a number
        return start
    log.info(
        "a start with the physics in its frame scores %.3g and a regression %.3g on %d "
        "simulations (energy score, smaller is better); the regression is taken",
        frame.mean(),
        plain.mean(),
        len(xi),
    )
    return None


def score(
    start: GaussianStart,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
) -> float:
    """Mean log density, in nats, of the fields behind the last few of some simulations."""
    x, y, params = (simulations[0][-SCORED:], simulations[1][-SCORED:], simulations[2])
    q = start(y, rows_of(params, slice(-SCORED, None)))
    return float(q.log_prob(whitening.whiten(x)).double().mean())
