r"""A frame with the physics in it: randomise-then-optimise, as coordinates.

With the misfit :math:`r(\xi)` and its Jacobian :math:`J` at the mode :math:`\xi^*`
(:mod:`vfm_inverse.gaussian.gauss_newton`), :math:`C = (I + J^\top J)^{-1}`, the coordinates of
:math:`\xi` are

.. math:: T_y(\xi) = C^{1/2} \bigl(\xi + J^\top r(\xi)\bigr).

They are exact and take one evaluation of the physics. :math:`T_y(\xi^*) = 0`, and :math:`\partial
T_y / \partial \xi = C^{1/2} (I + J^\top J(\xi))` is :math:`C^{-1/2}` there: for linear physics
:math:`T_y(\xi) = C^{-1/2} (\xi - \mu)`, wherever the mode was taken to be, since y enters through
the true residual. For other physics a draw :math:`\zeta \sim \mathcal N(0, I)` brought back
solves :math:`T_y(\xi) = \zeta`, as the randomise-then-optimise of Bardsley, Solonen, Haario and
Laine 2014 (https://doi.org/10.1137/140964023) does, and has the density

.. math:: q(\xi) = \mathcal N\bigl(T_y(\xi); 0, I\bigr)\,
                   \Bigl|\det \frac{\partial T_y}{\partial \xi}\Bigr|, \qquad
          \Bigl|\det \frac{\partial T_y}{\partial \xi}\Bigr|
          = \prod \sqrt{\lambda_i}\; \bigl|\det\bigl(I + \hat J^\top J(\xi) V\bigr)\bigr|,

in the few directions :math:`V` that the data inform, :math:`J = \hat J V^\top`. A link between
whitened coordinates and the field, as of a bounded prior, is part of the misfit (Wang, Bardsley,
Solonen, Cui and Marzouk 2017, https://doi.org/10.1137/16M1080938).

Back goes a chord iteration, without a gradient of the physics: from :math:`\xi_0 = \xi^* + C^{1/2}
\zeta`,

.. math:: \xi_{j+1} = \xi_j - a\, C^{1/2} H_j \bigl(T_y(\xi_j) - \zeta\bigr), \qquad H_0 = I,

kept only where :math:`|T_y - \zeta|` falls; then :math:`a \leftarrow \min(1, 2a)`, else :math:`a
\leftarrow a/3`. :math:`H_j` learns from every step, kept or not: it is changed least so that it
takes the change of :math:`T_y` to the step that caused it (the second method of Broyden 1965,
https://doi.org/10.1090/S0025-5718-1965-0198670-6), at a product of vectors a step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from vfm_inverse.gaussian.amplitude_mixture import AmplitudeMixture
from vfm_inverse.gaussian.frames import Framed
from vfm_inverse.gaussian.misfit import Misfit
from vfm_inverse.gaussian.normals import (
    ContractedNormal,
    StandardNormal,
    by_observation,
    standard_normal,
)

__all__ = ["PhysicsFrame", "StartLaw"]

CHORDS = 3
"""Chord steps from the frame back, each an evaluation of the physics."""

UNSOLVED = 0.05
"""``|T_y(xi) - zeta|^2 / d`` above which a draw is not solved."""

DENSITY_LIMIT = 256
"""Most informed directions with which the density is computed."""


class PhysicsFrame(Framed, TorchDistribution):
    """The law of ``xi`` with ``T_y(xi) ~ N(0, I)``, over vectors ``(d,)``, batch shape ``(n,)``.

    Args:
        laplace: the Gaussian at the mode, with directions for each observation.
        weighted: ``U diag(s)``, ``(n, m, r)``: times the directions of ``laplace``, ``J``.
        misfit: of the n observations.
        minimum: the objective at the mode, ``(n,)``, in nats.
        chords: steps from the frame back.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        laplace: ContractedNormal,
        weighted: Tensor,
        misfit: Misfit,
        minimum: Tensor,
        chords: int = CHORDS,
    ) -> None:
        self.laplace, self.weighted, self.misfit = laplace, weighted, misfit
        self.minimum, self.chords = minimum, chords
        super().__init__(laplace.batch_shape, laplace.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mode, mean of the Gaussian there: ``(n, d)``."""
        return self.laplace.mean

    @property
    def variance(self) -> Tensor:
        """Variances of the Gaussian at the mode, ``(n, d)``."""
        return self.laplace.variance

    @property
    def excess(self) -> Tensor:
        """Twice the minimum over the number of data, ``(n,)``: near 1 or below where the mode was
        found, for Gaussian noise of the stated size."""
        return 2 * self.minimum / self.misfit.shape[0]

    def description(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a network is told of the law: mode and standard deviations, ``(n, d)``, and the
        logarithm of the excess, ``(n, 1)``."""
        std = self.variance.clamp_min(0).sqrt()
        return self.mean, std, self.excess.clamp(1e-6, 1e6).log().unsqueeze(1)

    def standardize(self, z: Tensor) -> Tensor:
        """``T_y(z)``, ``(*sample, n, d)``."""
        return self._coordinates(z, self.misfit(z))

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """``z`` with ``T_y(z) = zeta``, as near as the chord steps come, ``(*sample, n, d)``."""
        return self.solve(zeta)[0]

    def solve(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        """``xi (*sample, n, d)`` and what is left, ``|T_y(xi) - zeta|^2 / d``, ``(*sample, n)``;
        infinite where the physics fails."""
        xi = self.laplace.unstandardize(zeta)
        gap = self.standardize(xi) - zeta
        left = _mean_square(gap)
        size = torch.ones_like(left)
        secants: list[tuple[Tensor, Tensor]] = []
        for _ in range(self.chords):
            step = -size.unsqueeze(-1) * _through(secants, gap)
            tried = xi + self.laplace.contract(step, self.laplace.scale)
            there = self.standardize(tried) - zeta
            value = _mean_square(there)
            secants.append(_secant(secants, step, there - gap))
            falls = value < left
            kept = falls.unsqueeze(-1)
            xi, gap = torch.where(kept, tried, xi), torch.where(kept, there, gap)
            left = torch.where(falls, value, left)
            size = torch.where(falls, (2 * size).clamp_max(1.0), size / 3)
        return xi, left

    def unsolved(self, zeta: Tensor) -> Tensor:
        """Share of draws ``zeta (*sample, n, d)`` of each observation that are not solved,
        ``(n,)``."""
        left = self.solve(zeta)[1]
        return (~(left <= UNSOLVED)).to(zeta).reshape(-1, left.shape[-1]).mean(0)

    def standard(self) -> StandardNormal:
        """N(0, I)."""
        return standard_normal(self.batch_shape[0], self.mean)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws ``(*sample, n, d)``, one of N(0, I) brought back each."""
        return self.unstandardize(self.standard().rsample(sample_shape))

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` can be computed."""
        return self.weighted.shape[-1] <= DENSITY_LIMIT

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, n, d)``, ``(*sample, n)``.

        It is exact for what solves ``T_y(xi) = zeta`` where that has one solution; it takes the
        Jacobian of the physics at every value.

        Raises:
            NotImplementedError: there are more informed directions than :data:`DENSITY_LIMIT`.
        """
        d, informed = self.event_shape[0], self.weighted.shape[-1]
        if not self.has_density:
            raise NotImplementedError(
                f"the density of a start with the physics in it takes a determinant, up to "
                f"{DENSITY_LIMIT} informed directions; got {informed}"
            )
        flat = value.reshape(-1, d)
        own = torch.arange(len(self.misfit), device=value.device).repeat(
            len(flat) // max(len(self.misfit), 1)
        )
        residual, jacobian = self.misfit[own].linearize(flat)
        basis = self.laplace.basis
        assert isinstance(basis, Tensor)
        change = self.weighted[own].double().mT @ (jacobian.double() @ basis[own].double())
        change.diagonal(dim1=-2, dim2=-1).add_(1.0)
        log_det = torch.linalg.slogdet(change)[1].to(value).reshape(value.shape[:-1])
        zeta = self._coordinates(value, residual.reshape(*value.shape[:-1], -1))
        normal = -0.5 * (zeta.square() + math.log(2 * math.pi)).sum(-1)
        return normal + log_det + self.laplace.scale.log().sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PhysicsFrame:
        """Itself: there is one law for each observation."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        raise ValueError(
            f"'batch_shape' must stay {tuple(self.batch_shape)}, one per observation; got "
            f"{tuple(batch_shape)}"
        )

    def __getitem__(self, rows: slice) -> PhysicsFrame:
        """The laws of some of the observations."""
        parts = self.laplace[rows], self.weighted[rows], self.misfit[rows], self.minimum[rows]
        return PhysicsFrame(*parts, self.chords)

    def _coordinates(self, xi: Tensor, residual: Tensor) -> Tensor:
        """``C^{1/2} (xi + J^T r)``: the second term along the informed directions only."""
        law = self.laplace
        pull = law.scale * by_observation(residual, self.weighted)
        return law.contract(xi, law.scale) + law.lift(pull)


def _mean_square(gap: Tensor) -> Tensor:
    """``|gap|^2 / d``, infinite where it is not finite."""
    return gap.square().mean(-1).nan_to_num(torch.inf, torch.inf)


def _through(secants: list[tuple[Tensor, Tensor]], gap: Tensor) -> Tensor:
    """``H gap``, ``H = I + sum of u v^T``."""
    result = gap
    for u, v in secants:
        result = result + u * (v * gap).sum(-1, keepdim=True)
    return result


def _secant(
    secants: list[tuple[Tensor, Tensor]], step: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    """The ``u, v`` after which ``H change = step``; zeros where the change is none or not
    finite."""
    square = change.square().sum(-1, keepdim=True)
    usable = square.isfinite() & (square > 0)
    v = torch.where(usable, change / torch.where(usable, square, 1.0), 0.0)
    change = torch.where(usable, change, 0.0)
    return torch.where(usable, step - _through(secants, change), 0.0), v


StartLaw = ContractedNormal | PhysicsFrame | AmplitudeMixture
"""What a start may answer with."""
