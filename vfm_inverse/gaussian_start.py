r"""The classical answer, as the place where training starts.

For linear physics with Gaussian noise it is the posterior under a Gaussian prior with the prior's
mean and covariance, in closed form (:mod:`vfm_inverse.operator_start`). For every other physics
the joint second moments of :math:`(\xi, y)` over simulations, :math:`\xi` the whitened field, give
the linear regression of :math:`\xi` on :math:`y`, the gain of an ensemble Kalman filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from vfm_inverse.bounded import SoftBox
from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.likelihood import Likelihood
from vfm_inverse.operator_start import (
    GRAM_LIMIT,
    FixedOperatorStart,
    GaussianStart,
    SharedBasis,
    TruncatedOperatorStart,
    VaryingOperatorStart,
    noise_level,
    operator_params,
)
from vfm_inverse.scaling import center_and_spread, over
from vfm_inverse.spectral_start import SpectralStart
from vfm_inverse.whitening import DENSE_LIMIT, SpectralWhitening, Whitening

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["RegressionStart", "build_start", "candidates", "fit_start", "score", "start_kind"]

BASIS_NUMBERS = 2**26
"""Most numbers in the informed directions of a large field: bounds memory."""

WIDE = 2**22
"""Numbers of a singular value decomposition above which a regression is done by inner products of
its simulations."""

REGRESSED = 2**24
"""Numbers in the fields, or observations, of such a regression."""

SCORED = 4
"""Simulations that the starts to choose from are compared on."""


class RegressionStart(SharedBasis):
    """Linear regression of the whitened field on the observation, fitted on simulations."""

    FITTED = ("center", "gain", "basis", "scale")
    LATER = ("spread",)
    center: Tensor
    spread: Tensor
    gain: Tensor
    scale: Tensor

    def fit(self, xi: Tensor, y: Tensor, max_rank: int) -> None:
        """Fit on pairs ``xi (n, d)``, ``y (n, *obs)``."""
        num, like = xi.shape[0], xi
        data = y.flatten(1)
        self.center, self.spread = center_and_spread(data)
        size = int((self.spread > 0).sum())  # data that vary
        wide = min(num, size) * xi.shape[1] > WIDE
        # Beyond that in the type that came and without copies of the right singular vectors.
        exact = like.dtype if wide else torch.float64
        deviation = over(data - self.center, self.spread).to(exact) / num**0.5
        xi = (xi - xi.mean(0)).to(exact) / num**0.5
        if wide:
            left, singular = _left(_gram(deviation))
        else:
            left, singular, right = torch.linalg.svd(deviation, full_matrices=False)
        # Directions in which no datum varies would explain something by chance.
        told = 1e-6 if wide else 1e-12
        varies = (singular > told * singular[0]) | (torch.arange(len(singular)) == 0).to(y.device)
        left, singular = left[:, varies], singular[varies]
        # Ridge at the size of the sampling error of a correlation.
        filtered = singular / (singular.square() + max(size, 1) / num)
        if wide:
            mixing, strength = _left(left.T @ _gram(xi) @ left)
            mixing, strength = mixing[:, :max_rank].T, strength[:max_rank]
            informed = strength > told * strength[0]
            mixing, strength = mixing[informed], strength[informed]
            directions = (xi.T @ (left @ mixing.T / strength).to(exact)).double()
        else:
            cross = xi.T @ left  # d x m: xi against the whitened data
            directions, strength, mixing = torch.linalg.svd(cross, full_matrices=False)
        # Of the variance that the sample happens to have along a direction, as the strongest have
        # more than one. Chance alone explains a fraction m/n.
        along = (xi @ directions.to(exact)).double()
        variance = along.square().sum(0)
        chance = min(size / num, 0.5)
        explained = (strength.square() / variance - chance) / (1 - chance)
        keep = explained > 0
        keep[max_rank:] = False
        if not keep.any():
            keep[0] = True
        self.basis = directions[:, keep].to(like).contiguous()
        to_basis = strength[keep, None] * mixing[keep]
        # What the ridge leaves, times what it leaves less here than of a fresh simulation.
        shrunk = singular * filtered
        left_over = (along[:, keep] - (left * shrunk) @ to_basis.T).square().sum(0)
        fresh = left_over / (1 - shrunk.sum() / num) ** 2
        self.scale = fresh.clamp(1e-6, 1).sqrt().to(like)
        if wide:
            weights = (to_basis * filtered / singular) @ left.T
            self.gain = weights.to(like) @ deviation
        else:
            self.gain = ((to_basis * filtered) @ right[varies]).to(like)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        coefficients = over(y.flatten(1) - self.center, self.spread) @ self.gain.T
        return ContractedNormal(
            coefficients @ self.basis.T,
            self.basis,
            self.scale.expand(y.shape[0], -1),
            validate_args=False,
        )


def _gram(rows: Tensor) -> Tensor:
    """Inner products ``(n, n)`` of rows ``(n, d)`` in double precision."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for columns in rows.split(2**12, 1):
        total += columns.double() @ columns.double().T
    return total


def _left(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values, the largest first, of what has this Gram
    matrix."""
    squares, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1), squares.clamp_min(0).sqrt().flip(0)


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
            large field; the first of :func:`candidates` when missing.
    """
    physics, likelihood = problem.physics, problem.likelihood
    if not (isinstance(physics, LinearPhysics) and isinstance(likelihood, Likelihood)):
        return RegressionStart()
    # Linear in the field is not linear in the coordinates, unless they are all but the same.
    if problem.transform is not None and not isinstance(problem.transform, SoftBox):
        return RegressionStart()
    if likelihood.noise_scale(**params) is None:
        return RegressionStart()
    kind = kind or candidates(problem, whitening, params)[0]
    if kind == "varying":
        num_data = problem.observation_shape.numel()
        return VaryingOperatorStart(physics, likelihood, whitening, num_data)
    if kind == "fixed":
        return FixedOperatorStart(physics, likelihood, whitening)
    if kind == "spectral":
        if not isinstance(whitening, SpectralWhitening):
            raise ValueError(
                "'whitening' must be spectral for a spectral start; got "
                f"{type(whitening).__name__}"
            )
        return SpectralStart(physics, likelihood, whitening)
    return TruncatedOperatorStart(physics, likelihood, whitening)


def start_kind(start: GaussianStart | None) -> str | None:
    """What :func:`build_start` has to be told to make such a start again."""
    kinds = {SpectralStart: "spectral", TruncatedOperatorStart: "truncated"}
    return kinds.get(type(start))  # type: ignore[arg-type]


def candidates(
    problem: InverseProblem, whitening: Whitening, params: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Kinds of start for linear physics with Gaussian noise: exact ones where they fit in memory,
    and otherwise those to choose from."""
    physics, likelihood = problem.physics, problem.likelihood
    assert isinstance(physics, LinearPhysics) and isinstance(likelihood, Likelihood)
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
) -> GaussianStart:
    """Fit the Gaussian start of a problem.

    Where there are several candidates, the one that gives the fields behind some of the
    observations the highest density.

    Args:
        problem: prior, physics and noise.
        whitening: coordinates of the start.
        simulations: fields ``(n, *event)``, observations ``(n, *obs)`` and parameters.
        max_rank: most directions kept with many data of a varying operator, and in a regression.
    """
    x, y, params = simulations
    start = build_start(problem, whitening, params).to(x.device)
    few = {name: value[:32] for name, value in params.items()}
    if isinstance(start, FixedOperatorStart):
        start.fit(params)
    elif isinstance(start, TruncatedOperatorStart):
        start.fit(few, max_rank)
    elif isinstance(start, SpectralStart):
        start.fit(few, max_rank)
        if "truncated" in candidates(problem, whitening, params):
            other = build_start(problem, whitening, params, "truncated").to(x.device)
            assert isinstance(other, TruncatedOperatorStart)
            other.fit(few, max_rank)
            if score(other, whitening, simulations) > score(start, whitening, simulations):
                return other
    elif isinstance(start, RegressionStart):
        num, size = len(x), max(whitening.dim, y[0].numel())
        if min(num, y[0].numel()) * whitening.dim > WIDE:
            num = min(num, DENSE_LIMIT, max(256, REGRESSED // size))
        start.fit(whitening.whiten(x[:num]), y[:num], max_rank)
    return start


def score(
    start: GaussianStart,
    whitening: Whitening,
    simulations: tuple[Tensor, Tensor, Mapping[str, Tensor]],
) -> float:
    """Mean log density, in nats, of the fields behind the last few of some simulations."""
    x, y, params = (simulations[0][-SCORED:], simulations[1][-SCORED:], simulations[2])
    q = start(y, {name: value[-SCORED:] for name, value in params.items()})
    return float(q.log_prob(whitening.whiten(x)).double().mean())
