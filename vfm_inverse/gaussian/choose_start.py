r"""The classical answer, as the place where training starts: which start suits a problem.

For linear physics with Gaussian noise it is the posterior under a Gaussian prior with the prior's
mean and covariance, in closed form (:mod:`vfm_inverse.gaussian.operator_start`), or close to it
for large fields (:mod:`vfm_inverse.gaussian.spectral_start`); for every other physics a regression
(:mod:`vfm_inverse.gaussian.regression_start`). Those from the mode of the posterior
(:mod:`vfm_inverse.gaussian.laplace_start`) are taken when asked for.
"""

from __future__ import annotations

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

__all__ = [
    "ASKED",
    "STARTS",
    "build_start",
    "candidates",
    "check_start",
    "fit_start",
    "score",
    "start_kind",
]

BASIS_NUMBERS = 2**26
"""Most numbers in the informed directions of a large field: bounds memory."""

SCORED = 4
"""Simulations that the starts to choose from are compared on."""


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
        kind: ``"auto"`` or one of :data:`ASKED`.

    Raises:
        ValueError: an unknown name, or a start from the mode without a physics and Gaussian noise.
    """
    if kind not in ("auto", *ASKED):
        raise ValueError(f"'start' must be one of {('auto', *ASKED)}; got {kind!r}")
    if kind in ("auto", "regression"):
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
    mixtures: bool = False,
) -> GaussianStart:
    """Fit the Gaussian start of a problem.

    Where there are several candidates, the one that gives the fields behind some of the
    observations the highest density.

    Args:
        problem: prior, physics and noise.
        whitening: coordinates of the start.
        simulations: fields ``(n, *event)``, observations ``(n, *obs)`` and parameters.
        max_rank: most directions kept with many data of a varying operator, and in a regression.
        kind: one of :data:`ASKED`, or ``"auto"``: what suits the problem.
        mixtures: whether ``"auto"`` may take the one over amplitudes.
    """
    starts = []
    kinds = candidates(problem, whitening, simulations[2]) if kind == "auto" else (kind,)
    for kind in kinds:
        starts.append(STARTS[kind](problem, whitening).to(simulations[0].device))
        starts[-1].fit(*simulations, max_rank)
    if len(starts) == 1 and mixtures and may_have_amplitudes(problem, whitening, starts[0]):
        other = AmplitudesStart(*_linear(problem, whitening), problem.observation_shape.numel())
        other = other.to(simulations[0].device)
        if better(starts[0], other, whitening, simulations, max_rank):
            return other
    if len(starts) == 1:
        return starts[0]
    return max(starts, key=lambda start: score(start, whitening, simulations))


def score(
    start: GaussianStart,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
) -> float:
    """Mean log density, in nats, of the fields behind the last few of some simulations."""
    x, y, params = (simulations[0][-SCORED:], simulations[1][-SCORED:], simulations[2])
    q = start(y, rows_of(params, slice(-SCORED, None)))
    return float(q.log_prob(whitening.whiten(x)).double().mean())
