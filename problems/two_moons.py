r"""two-moons: a posterior of two thin crescents, the local and the global shape at once.

.. math:: \theta \sim \mathcal U[-1, 1]^2, \quad
          a \sim \mathcal U(-\tfrac\pi2, \tfrac\pi2), \quad r \sim \mathcal N(0.1, 0.01^2), \quad
          y = \begin{pmatrix} r\cos a + 0.25 \\ r\sin a \end{pmatrix} + \frac{1}{\sqrt 2}
          \begin{pmatrix} -|\theta_1 + \theta_2| \\ -\theta_1 + \theta_2 \end{pmatrix}.

In polar coordinates around the moving centre :math:`c(\theta)` the likelihood has the density
:math:`\mathcal N(r; 0.1, 0.01^2) / (\pi r)` on the right half-plane and none on the left. (A
negative radius would lie there; its probability, 1e-23, is left out.)

The posterior is exact. Turned by 45 degrees, :math:`\theta` is :math:`(\pm q_1, q_2)` with
:math:`q = p - y`, :math:`q_1 \ge 0`, and the box is :math:`q_1 + |q_2| \le \sqrt 2`. At a given
angle these three inequalities are linear in ``r``: the radius is a normal cut to an interval, the
angle has the density of that interval's mass, and the two signs are equally likely.

Source: Greenberg, Nonnenmacher and Macke 2019 (https://arxiv.org/abs/1905.07488), as task T.8 of
Lueckmann et al. 2021 (https://arxiv.org/abs/2101.04653).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.boxes import TruncatedNormal, uniform_box

__all__ = ["Crescent", "TwoMoonsPosterior", "make"]

RADIUS, WIDTH, SHIFT = 0.1, 0.01, 0.25
ROOT = math.sqrt(2)
NODES = 1024  # of the angle, whose density is linear between them: in total variation 4e-6 off


def make() -> InverseProblem:
    """Build the problem: ``theta`` ``(2,)``, ``y`` ``(2,)``."""
    return InverseProblem(
        prior=uniform_box(2, 1),
        likelihood=Crescent,
        reference=TwoMoonsPosterior,
        units="1",
        obs_units="1",
    )


class Crescent(TorchDistribution):
    """``p(y | theta)`` for ``theta`` ``(*, 2)``: a half-circle of radius 0.1, blurred by 0.01."""

    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta
        total, difference = theta.sum(-1), theta[..., 1] - theta[..., 0]
        self.centre = torch.stack([SHIFT - total.abs() / ROOT, difference / ROOT], -1)
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``(*sample_shape, *, 2)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        a = math.pi * (self.theta.new_empty(shape).uniform_() - 0.5)
        r = RADIUS + WIDTH * self.theta.new_empty(shape).normal_()
        return self.centre + torch.stack([r * a.cos(), r * a.sin()], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``(*, 2)``; left of the centre minus infinity, with gradient zero."""
        p_1, p_2 = (value - self.centre).unbind(-1)
        right = p_1 > torch.finfo(p_1.dtype).tiny
        # Replaced before the square root and the logarithm: their gradients would be NaN there.
        r = torch.hypot(torch.where(right, p_1, RADIUS), p_2)
        log_normal = -0.5 * ((r - RADIUS) / WIDTH) ** 2 - math.log(WIDTH * math.sqrt(2 * math.pi))
        return torch.where(right, log_normal - torch.log(math.pi * r), -math.inf)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Crescent:
        """The same law over a larger batch."""
        return Crescent(self.theta.expand(torch.Size(batch_shape) + self.event_shape))


class TwoMoonsPosterior(TorchDistribution):
    """``p(theta | y)`` for ``y`` ``(*, 2)``.

    Raises:
        ValueError: no ``theta`` of the box explains an observation.
    """

    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}

    def __init__(self, y: Tensor) -> None:
        self.y = y
        # In double precision: rounded to single, the ends would lie beyond the half-circle's.
        angles = torch.linspace(
            -math.pi / 2, math.pi / 2, NODES, dtype=torch.float64, device=y.device
        )
        log_mass = self._radius(angles.expand(*y.shape[:-1], NODES)).log_mass
        largest = log_mass.amax(-1, keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            raise ValueError("'y' must lie within reach of a theta in [-1, 1]^2; one does not")
        self.angles, self.density = angles, torch.exp(log_mass - largest)
        cells = (self.density[..., 1:] + self.density[..., :-1]) / 2  # trapezoids
        self.cumulative = cells.cumsum(-1)
        # Evidence over the prior's density: two signs, the angle uniform over pi.
        self.log_normalizer = (
            largest[..., 0] + torch.log(2 * self.cumulative[..., -1] / (NODES - 1))
        ).to(y.dtype)
        super().__init__(y.shape[:-1], y.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``(*sample_shape, *, 2)``, without rejection."""
        with torch.no_grad():
            num = math.prod(sample_shape)
            uniform = self.density.new_empty(3, *self.batch_shape, num).uniform_()
            a, node = self._angle(uniform[0], uniform[1])
            # Where the interval closes inside a cell, the cell's better end stands for the rest.
            a = torch.where(torch.isfinite(self._radius(a).log_mass), a, node)
            r = self._radius(a).sample()
            y_1, y_2 = self.y.double().unsqueeze(-2).unbind(-1)
            q_1 = (r * a.cos() + SHIFT - y_1) * torch.where(uniform[2] < 0.5, -1.0, 1.0)
            q_2 = r * a.sin() - y_2
            theta = torch.stack([q_1 + q_2, q_1 - q_2], -1) / ROOT
            edge = 1 - torch.finfo(self.y.dtype).eps  # rounding may step over one
            theta = theta.movedim(-2, 0).to(self.y.dtype).clamp(-edge, edge)
            return theta.reshape(*sample_shape, *self.batch_shape, 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``(*, 2)``, minus infinity outside of the box."""
        inside = (value.abs() <= 1).all(-1)
        log_density = Crescent(value).log_prob(self.y) - self.log_normalizer
        return torch.where(inside, log_density, -math.inf)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TwoMoonsPosterior:
        """The same law over a larger batch."""
        return TwoMoonsPosterior(self.y.expand(torch.Size(batch_shape) + self.event_shape))

    def _angle(self, which: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Angles ``(*, n)`` from uniform numbers, and the end of each one's cell of more mass."""
        total = self.cumulative[..., -1:]
        cell = torch.searchsorted(self.cumulative, which * total, right=True).clamp(max=NODES - 2)
        left, right = self.density.gather(-1, cell), self.density.gather(-1, cell + 1)
        # The inverse of a quadratic, in the form without cancellation.
        root = torch.sqrt(left**2 + where * (right**2 - left**2))
        fraction = where * (left + right) / (left + root)
        step = self.angles[1] - self.angles[0]
        return self.angles[0] + (cell + fraction) * step, self.angles[cell + (right > left)]

    def _radius(self, a: Tensor) -> TruncatedNormal:
        """The law of the radius at angles ``(*, n)``: cut to where theta lies in the box."""
        y_1, y_2 = self.y.double().unsqueeze(-2).unbind(-1)
        slope_1 = a.cos()
        low = ((y_1 - SHIFT) / slope_1).clamp_min(0)
        high = torch.full_like(low, math.inf)
        for sign in (1, -1):  # slope r <= room
            slope, room = slope_1 + sign * a.sin(), ROOT - SHIFT + y_1 + sign * y_2
            bound = room / torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
            high = torch.where(slope >= 0, torch.minimum(high, bound), high)
            low = torch.where(slope < 0, torch.maximum(low, bound), low)
        return TruncatedNormal(torch.full_like(low, RADIUS), WIDTH, low, high)
