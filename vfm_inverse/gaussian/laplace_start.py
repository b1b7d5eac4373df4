r"""Starts from the mode of the posterior, for physics that is not linear.

Each observation has its mode by Gauss-Newton (:mod:`vfm_inverse.gaussian.gauss_newton`). There,
``laplace`` is the Gaussian of the linearised physics, and ``frame`` the law that is N(0, I) in
coordinates with the physics itself in them (:mod:`vfm_inverse.gaussian.physics_frame`): its draws
fit the data, where those of a Gaussian do so only as far as the physics is linear across it.

The descent begins at the mean of a linear regression, and where it ends too high, at draws of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.gaussian.gauss_newton import laplace, mode, objective
from vfm_inverse.gaussian.matrix_free import noise_level
from vfm_inverse.gaussian.misfit import Misfit
from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.operator_start import GaussianStart
from vfm_inverse.gaussian.physics_frame import PhysicsFrame
from vfm_inverse.gaussian.regression_start import RegressionStart
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import rows_of

__all__ = ["FrameStart", "LaplaceStart", "LinearizedStart"]

BEGINNINGS = 16
"""Draws of the regression from which a descent that ended too high begins again."""

NUMBERS = 2**22
"""Numbers of Jacobians that are held at once: bounds memory."""


class Expansion(NamedTuple):
    """Physics and data around the mode of n posteriors.

    Attributes:
        misfit: residuals of the observations.
        law: the Gaussian at the mode.
        weighted: ``U diag(s)`` of the Jacobian there, ``(n, m, r)``.
        minimum: the objective there, ``(n,)``, in nats.
    """

    misfit: Misfit
    law: ContractedNormal
    weighted: Tensor
    minimum: Tensor


class LinearizedStart(GaussianStart):
    """What the observations say around the mode of each.

    Args:
        physics: differentiable physics, or one with a ``jacobian``.
        likelihood: gives the noise level of an observation.
        whitening: coordinates of the start.
        num_data: m, numbers in one observation.
    """

    FITTED = ()
    _physics: Physics
    _whitening: Whitening
    _num_data: int

    def __init__(
        self, physics: Physics, likelihood: Likelihood, whitening: Whitening, num_data: int
    ) -> None:
        super().__init__()
        # Not registered: they are the problem's and the map's.
        object.__setattr__(self, "_physics", physics)
        object.__setattr__(self, "_whitening", whitening)
        self._likelihood, self._num_data = likelihood, num_data
        self.regression = RegressionStart(whitening)

    @property
    def rank(self) -> int:
        """Largest number of informed directions."""
        return min(self._num_data, self._whitening.dim)

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Fit the regression; see that the physics has derivatives.

        Raises:
            ValueError: it has none.
        """
        self.regression.fit(x, y, params, max_rank)
        one = rows_of(params, slice(1))
        xi = torch.zeros_like(self._whitening.whiten(x[:1]))
        try:
            self.misfit(y[:1], one).linearize(xi)
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                "'start' must be 'auto' or 'regression' for a physics that autograd cannot "
                f"differentiate and that has no 'jacobian'; got {type(self._physics).__name__}"
            ) from error

    def misfit(self, y: Tensor, params: Mapping[str, Tensor]) -> Misfit:
        """Of observations ``(n, *obs)``."""
        noise = noise_level(self._likelihood, params, y)
        return Misfit(self._physics, self._whitening, y, noise, params)

    @torch.no_grad()
    def expand(self, y: Tensor, params: Mapping[str, Tensor]) -> Expansion:
        """Around the mode of observations ``(n, *obs)``."""
        misfit, prior = self.misfit(y, params), self.regression(y, params)
        others = prior.unstandardize(self._noise(y).expand(-1, len(y), -1))
        step = max(1, NUMBERS // (self._num_data * self._whitening.dim))
        parts = []
        for i in range(0, len(y), step):
            rows = slice(i, i + step)
            xi, minimum = mode(misfit[rows], prior.loc[rows], others[:, rows])
            law, weighted = laplace(xi, misfit[rows].linearize(xi)[1])
            parts.append((xi, law.basis, law.scale, weighted, minimum))
        xi, basis, scale, weighted, minimum = (
            torch.cat(pieces) for pieces in zip(*parts, strict=True)
        )
        law = ContractedNormal(xi, basis, scale, validate_args=False)
        return Expansion(misfit, law, weighted, minimum)

    def _noise(self, like: Tensor) -> Tensor:
        """The same N(0, I) for every observation, ``(k, 1, d)``: an answer depends on its
        observation alone."""
        generator = torch.Generator().manual_seed(0)
        shape = (BEGINNINGS, 1, self._whitening.dim)
        return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


class LaplaceStart(LinearizedStart):
    """The Gaussian at the mode."""

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian approximation at the mode of observations ``(n, *obs)``."""
        return self.expand(y, params).law


class FrameStart(LinearizedStart):
    """The law that is N(0, I) in coordinates with the physics in them."""

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> PhysicsFrame:
        """The law of observations ``(n, *obs)``, around the mode of each."""
        misfit, law, weighted, minimum = self.expand(y, params)
        return PhysicsFrame(law, weighted, misfit, minimum)

    @torch.no_grad()
    def around(self, xi: Tensor, y: Tensor, params: Mapping[str, Tensor]) -> PhysicsFrame:
        """The same around points ``xi (n, d)`` that are known to be modes, or near them."""
        misfit = self.misfit(y, params)
        residual, jacobian = misfit.linearize(xi)
        law, weighted = laplace(xi, jacobian)
        return PhysicsFrame(law, weighted, misfit, objective(xi, residual, 1.0))
