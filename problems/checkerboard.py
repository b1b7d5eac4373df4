r"""checkerboard: a posterior of separate pieces (Variational Flow Maps, arXiv 2603.07276).

``x`` is uniform on 8 of the 16 unit cells of :math:`[-2, 2]^2`, those whose column and row have an
even sum, and ``y = x_1 + 0.1 eps``. Every column holds two cells, so :math:`x_1` alone is uniform
on :math:`[-2, 2]` and the posterior is exact without rejection: :math:`x_1 \mid y` is
:math:`\mathcal N(y, \sigma^2)` cut to :math:`[-2, 2]` and :math:`x_2 \mid x_1` uniform on the two
cells of its column.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.special import log_ndtr, ndtri

from vfm_inverse.operators import MatrixObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level

__all__ = ["Checkerboard", "CheckerboardPosterior", "make", "on_board"]

EDGE = 2.0**-22  # cells are half open; below this, single precision would round onto the next one


def make(sigma: Sigma = 0.1) -> InverseProblem:
    """Build the problem: ``x`` ``(2,)``, ``y`` ``(1,)``.

    Args:
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
    """
    level, params = noise_level(sigma)

    def reference(y: Tensor, sigma: Tensor | float = level) -> CheckerboardPosterior:
        return CheckerboardPosterior(y[:, 0], torch.as_tensor(sigma).to(y))

    return InverseProblem(
        prior=Checkerboard(),
        physics=MatrixObservations(torch.tensor([[1.0, 0.0]]), GaussianNoise(level)),
        params=params,
        reference=reference,
        units="1",
        obs_units="1",
    )


def on_board(x: Tensor) -> Tensor:
    """Whether points ``(*, 2)`` lie on one of the eight cells, ``(*)``."""
    inside = ((x >= -2) & (x < 2)).all(-1)
    return inside & (x.floor().sum(-1) % 2 == 0)


def _second(x_1: Tensor) -> Tensor:
    """Uniform on the two cells of the column: one that starts at an even number has -2 and 0."""
    row = x_1.floor() % 2 - 2 * (torch.rand_like(x_1) < 0.5)
    return row + torch.rand_like(x_1).clamp(max=1 - EDGE)


class Board(constraints.Constraint):
    """Points ``(*, 2)`` of the eight cells."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Whether they are, ``(*)``."""
        return on_board(value)


class Checkerboard(TorchDistribution):
    """The uniform law on the eight cells, of density 1/8."""

    support = Board()
    arg_constraints: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``(*sample_shape, 2)``."""
        x_1 = 4 * torch.rand(torch.Size(sample_shape)) - 2
        return torch.stack([x_1, _second(x_1)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of points ``(*, 2)``, minus infinity off the board."""
        inside = torch.where(on_board(value), 0.0, -math.inf).to(value)
        return inside - math.log(8)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Checkerboard:
        """Itself: there is one board.

        Raises:
            ValueError: a batch is asked for.
        """
        if torch.Size(batch_shape):
            raise ValueError(f"'batch_shape' must be empty; got {tuple(batch_shape)}")
        return self


class CheckerboardPosterior(TorchDistribution):
    """``p(x | y)`` for ``y`` ``(batch,)`` and ``sigma`` a number or ``(batch,)``."""

    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}

    def __init__(self, y: Tensor, sigma: Tensor) -> None:
        self.y, self.sigma = torch.broadcast_tensors(y, sigma)
        super().__init__(self.y.shape, torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Exact draws ``(*sample_shape, batch, 2)``."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.y.shape
            low, high, sign = self._limits()
            # torch's ndtr is (1 + erf)/2, without digits in the tail; its log_ndtr has them.
            p_low, p_high = log_ndtr(low).exp(), log_ndtr(high).exp()
            uniform = torch.rand(shape, dtype=torch.float64, device=self.y.device)
            z = ndtri(p_low + (p_high - p_low) * uniform).clamp(low, high)
            x_1 = (sign * (self.y.abs() + self.sigma * z)).to(self.y.dtype).clamp(-2, 2 - EDGE)
            return torch.stack([x_1, _second(x_1)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of points ``(*, batch, 2)``, minus infinity off the board."""
        low, high, _ = self._limits()
        z = (value[..., 0].double() - self.y) / self.sigma
        mass = log_ndtr(high) + torch.log1p(-torch.exp(log_ndtr(low) - log_ndtr(high)))
        log_normal = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - self.sigma.double().log()
        inside = on_board(value)
        return torch.where(inside, log_normal - mass - math.log(2), -math.inf).to(self.y.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CheckerboardPosterior:
        """The same law over a larger batch."""
        shape = torch.Size(batch_shape)
        return CheckerboardPosterior(self.y.expand(shape), self.sigma.expand(shape))

    def _limits(self) -> tuple[Tensor, Tensor, Tensor]:
        # Mirrored to y >= 0: both limits then lie in the lower tail, where digits are kept.
        y, sigma = self.y.double().abs(), self.sigma.double()
        return (-2 - y) / sigma, (2 - y) / sigma, torch.where(self.y < 0, -1.0, 1.0).to(y)
