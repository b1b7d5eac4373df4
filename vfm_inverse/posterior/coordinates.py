"""The coordinates of a map: a whitening, from what can be known of the prior.

That is its own mean and covariance where it states them, the moments of as many draws as it takes
where it can be drawn from without end, or the samples that it is given by.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vfm_inverse.gaussian.streamed_moments import FAR_OUT, sampling_error, stream_moments
from vfm_inverse.gaussian.whitening import (
    DENSE_LIMIT,
    DenseWhitening,
    Whitening,
    fit_whitening,
)
from vfm_inverse.posterior.geometry import inner_shape
from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["fit_coordinates"]


def fit_coordinates(
    problem: InverseProblem, free: Tensor, kind: str, seed: int
) -> tuple[Whitening, dict[str, Any]]:
    """Fit a whitening, and say what error its covariance has.

    Args:
        problem: whose prior it is.
        free: draws of its values without bounds ``(n, *event)``, or all samples that it is given
            by.
        kind: as of :func:`~vfm_inverse.gaussian.whitening.fit_whitening`.
        seed: of further draws.

    Returns:
        The whitening and, where it holds a covariance of draws or samples, a table: ``draws`` or
        ``samples``, their number, and ``error``, that of the posterior mean of observations that
        are ``far_out`` in posterior standard deviations
        (:mod:`vfm_inverse.gaussian.streamed_moments`).
    """
    small = kind == "dense" or math.prod(inner_shape(problem)) <= DENSE_LIMIT
    moments = problem.prior_moments() if small else None
    dense = small and kind in ("auto", "dense") and moments is None
    if not dense or not bool(torch.isfinite(free).all()):
        return fit_whitening(free, kind, moments), {}

    def draw(num: int, seed: int) -> Tensor:
        x = problem.sample_prior(num, seed=seed)
        return x if problem.transform is None else problem.transform.inv(x)

    num_data, held = problem.observation_shape.numel(), problem.num_prior_samples()
    # Where simulations are left out, fields alone are drawn from another law.
    more = held is None and not problem.simulations.left_out
    streamed = stream_moments(draw if more else None, free, num_data, seed)
    whitening = fit_whitening(free, kind, streamed=streamed if more else None)
    if streamed is None or not isinstance(whitening, DenseWhitening):
        return whitening, {}
    error = sampling_error(streamed.difference, whitening.inverse_root, num_data)
    if held is None:
        return whitening, {"draws": streamed.num, "error": error, "far_out": FAR_OUT}
    # Halves of draws with replacement do not show the error of the samples themselves.
    error *= 1 if held == streamed.num else math.sqrt(1 + streamed.num / held)
    return whitening, {"samples": held, "error": error, "far_out": FAR_OUT}
