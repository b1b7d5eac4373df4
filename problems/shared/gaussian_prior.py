r"""The classical answer as a baseline: the posterior under a Gaussian fit of the training fields.

With :math:`x \sim \mathcal N(m, C)` (sample mean and covariance of prior draws), linear physics
and Gaussian noise, the posterior is Gaussian in closed form: the Wiener filter with its
covariance. It is exact for the fitted prior only, so it is no reference posterior for photographs.

A fixed operator goes through one decomposition for all observations (``conjugate``). Where a mask
:math:`M` changes from one observation to the next, the precision is factorised for each:

.. math:: \Lambda = C^{-1} + M / \sigma^2 = R R^\top, \qquad
          x = m + \Lambda^{-1} M (y - m) / \sigma^2 + R^{-\top} \epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from deepinv.physics import Inpainting, LinearPhysics
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian

__all__ = ["MaskedNormal", "fit_gaussian", "gaussian_prior_posterior"]

NUM_FIT, CHUNK = 40_000, 4_000
# Variance of rounding to 8 bits: pixels are not known better, and the covariance becomes positive
# definite.
ROUNDING = (1 / 255) ** 2 / 12

_conjugate: WeakKeyDictionary[InverseProblem, ConjugateGaussian] = WeakKeyDictionary()
_fitted: WeakKeyDictionary[InverseProblem, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def gaussian_prior_posterior(
    problem: InverseProblem, y: Tensor, **params: Tensor
) -> TorchDistribution:
    """Posterior of ``y`` ``(batch, *observation)`` under a Gaussian fit of the training fields.

    The fit (40,000 prior draws) and the decomposition are made at the first call and kept with the
    problem. Draws have shape ``(num_draws, batch, *field)``.

    Raises:
        ValueError: the physics is not linear with Gaussian noise, or has parameters other than
            ``sigma`` and, for deepinv's ``Inpainting``, ``mask``.
    """
    physics, likelihood = problem.physics, problem.likelihood
    sigma = likelihood.noise_scale(**params) if isinstance(likelihood, Likelihood) else None
    if not isinstance(physics, LinearPhysics) or sigma is None:
        raise ValueError("the Gaussian baseline needs a linear physics with Gaussian noise")
    y, params = problem.check_observation(y, params)
    mean, covariance = fit_gaussian(problem)
    varying = params.keys() - {"sigma"}
    if varying == {"mask"} and isinstance(physics, Inpainting):
        return MaskedNormal(mean, covariance, y, params["mask"], sigma)
    if varying:
        raise ValueError(
            f"the Gaussian baseline has no closed form for the parameters {sorted(varying)}"
        )
    if problem not in _conjugate:
        nodes = torch.eye(len(mean), dtype=problem.dtype, device=problem.device)
        with torch.no_grad():
            columns = physics.A(nodes.reshape(-1, *problem.field_shape)).flatten(1)
        _conjugate[problem] = ConjugateGaussian(
            mean, covariance, columns.mT.cpu(), problem.field_shape
        )
    return _conjugate[problem].posterior(y, sigma)


def fit_gaussian(problem: InverseProblem) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and covariance ``(d, d)`` of the flattened training fields, in float64."""
    if problem not in _fitted:
        size = problem.field_shape.numel()
        total = torch.zeros(size, dtype=torch.float64)
        second = torch.zeros(size, size, dtype=torch.float64)
        for chunk in range(NUM_FIT // CHUNK):
            x = problem.sample_prior(CHUNK, seed=chunk).cpu().flatten(1).double()
            total += x.sum(0)
            second += x.mT @ x
        mean = total / NUM_FIT
        covariance = second / NUM_FIT - torch.outer(mean, mean)
        _fitted[problem] = (mean, covariance + ROUNDING * torch.eye(size, dtype=torch.float64))
    return _fitted[problem]


class MaskedNormal(TorchDistribution):
    """Gaussian posterior of fields seen through a mask each.

    Args:
        mean, covariance: of the prior, ``(d,)`` and ``(d, d)``.
        y: observations ``(batch, *field)``.
        mask: zeros and ones, broadcasting to ``y``.
        sigma: noise standard deviation, a number or ``(batch,)``.

    Each call factorises one ``(d, d)`` precision an observation, a few at a time: memory stays
    bounded.
    """

    support = constraints.real
    arg_constraints: dict[str, Any] = {}
    _chunk = 16

    def __init__(
        self, mean: Tensor, covariance: Tensor, y: Tensor, mask: Tensor, sigma: Tensor
    ) -> None:
        self.prior_mean = mean.double().to(y.device)
        self.prior_precision = torch.cholesky_inverse(
            torch.linalg.cholesky(covariance.double())
        ).to(y.device)
        self.y = y
        self.weight = (mask != 0).expand(y.shape).flatten(1).double() / torch.as_tensor(
            sigma, device=y.device
        ).double().reshape(-1, 1).square()
        super().__init__(y.shape[:1], y.shape[1:], validate_args=False)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of the batch with the factor ``R`` and the mean, ``(b, d, d)`` and ``(b, d)``."""
        pull = self.weight * (self.y.double().flatten(1) - self.prior_mean)
        for start in range(0, len(self.y), self._chunk):
            part = slice(start, start + self._chunk)
            factor = torch.linalg.cholesky(
                self.prior_precision + torch.diag_embed(self.weight[part])
            )
            shift = torch.cholesky_solve(pull[part].unsqueeze(-1), factor).squeeze(-1)
            yield part, factor, self.prior_mean + shift

    @cached_property
    def mean(self) -> Tensor:
        """``(batch, *field)``."""
        return torch.cat([mean for _, _, mean in self._blocks()]).to(self.y).reshape(self.y.shape)

    @cached_property
    def variance(self) -> Tensor:
        """``(batch, *field)``."""
        diagonals = [
            torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
            for _, factor, _ in self._blocks()
        ]
        return torch.cat(diagonals).to(self.y).reshape(self.y.shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, batch, *field)``."""
        sample_shape = torch.Size(sample_shape)
        draws = self.y.new_empty(sample_shape.numel(), *self.y.shape)
        with torch.no_grad():
            for part, factor, mean in self._blocks():
                noise = torch.randn(
                    *mean.shape, len(draws), dtype=factor.dtype, device=factor.device
                )
                x = torch.linalg.solve_triangular(factor.mT, noise, upper=True) + mean.unsqueeze(
                    -1
                )
                draws[:, part] = (
                    x.permute(2, 0, 1).reshape(len(draws), *self.y[part].shape).to(draws)
                )
        return draws.reshape(*sample_shape, *self.y.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of fields ``(*, batch, *field)``."""
        flat = value.double().flatten(-len(self.event_shape))
        flat = flat.expand(*flat.shape[:-2], len(self.y), flat.shape[-1])
        parts = []
        for part, factor, mean in self._blocks():
            # Batch first and draws as rows, so that no factor is copied for every draw.
            rows = (flat[..., part, :] - mean).movedim(-2, 0)
            zeta = rows.reshape(len(mean), -1, rows.shape[-1]) @ factor
            distance = zeta.square().sum(-1).reshape(rows.shape[:-1]).movedim(0, -1)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            parts.append(log_det - 0.5 * distance)
        normalizer = 0.5 * flat.shape[-1] * math.log(2 * math.pi)
        return (torch.cat(parts, -1) - normalizer).to(self.y.dtype)
