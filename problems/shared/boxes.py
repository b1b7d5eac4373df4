r"""Uniform priors on a box, and normals cut to one.

With :math:`\alpha = (a - m)/s` and :math:`\beta = (b - m)/s`, the normal :math:`\mathcal N(m,
s^2)` cut to :math:`[a, b]` has the density

.. math:: \frac{\mathcal N(x; m, s^2)}{\Phi(\beta) - \Phi(\alpha)}, \qquad a \le x \le b,

and :math:`x = m + s\,\Phi^{-1}(\Phi(\alpha) + u\,(\Phi(\beta) - \Phi(\alpha)))`, :math:`u` uniform
on :math:`[0, 1]`, is a draw without rejection. It is the posterior of a uniform prior under normal
noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Independent, TorchDistribution, Uniform, constraints
from torch import Tensor
from torch.special import log_ndtr, ndtri

__all__ = ["TruncatedNormal", "uniform_box"]


def uniform_box(dim: int, half: float) -> Independent:
    """The uniform law on ``[-half, half]^dim``; its log-density is minus infinity outside."""
    edge = torch.full((dim,), float(half))
    return Independent(Uniform(-edge, edge, validate_args=False), 1, validate_args=False)


class TruncatedNormal(TorchDistribution):
    """``N(loc, scale^2)`` cut to ``[low, high]``: tensors ``(*)``, or numbers.

    Computed in double precision; draws and densities have the dtype of ``loc``. Where the whole
    interval lies more than 37 standard deviations away, the tail underflows and draws fall on its
    nearest end; densities stay exact. ``low`` above ``high`` is an interval of mass zero.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        low: Tensor | float,
        high: Tensor | float,
    ) -> None:
        numbers = (torch.as_tensor(value).to(loc) for value in (scale, low, high))
        self.loc, self.scale, self.low, self.high = torch.broadcast_tensors(loc, *numbers)
        super().__init__(self.loc.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The interval."""
        return constraints.interval(self.low, self.high)

    @property
    def log_mass(self) -> Tensor:
        """Logarithm of the probability of the interval before the cut, ``(*)``, in double."""
        low, high, _ = self._limits()
        inside = torch.log1p(-torch.exp(log_ndtr(low) - log_ndtr(high)))
        return torch.where(low < high, log_ndtr(high) + inside, -math.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``(*sample_shape, *)``."""
        with torch.no_grad():
            low, high, sign = self._limits()
            # torch's ndtr is (1 + erf)/2, without digits in the tail; its log_ndtr has them.
            p_low, p_high = log_ndtr(low).exp(), log_ndtr(high).exp()
            shape = torch.Size(sample_shape) + self.loc.shape
            uniform = torch.rand(shape, dtype=torch.float64, device=self.loc.device)
            z = torch.where(p_high > 0, ndtri(p_low + (p_high - p_low) * uniform), high)
            z = sign * z.clamp(low, high)
            x = (self.loc.double() + self.scale.double() * z).to(self.loc.dtype)
            # Strictly inside: on an edge, where rounding may put a draw, no logit is finite.
            return x.clamp(
                torch.nextafter(self.low, self.high), torch.nextafter(self.high, self.low)
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``value`` ``(*)``, minus infinity outside of the interval."""
        zeta = (value.double() - self.loc) / self.scale
        log_normal = -0.5 * zeta**2 - 0.5 * math.log(2 * math.pi) - self.scale.double().log()
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, log_normal - self.log_mass, -math.inf).to(self.loc.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedNormal:
        """The same law over a larger batch."""
        shape = torch.Size(batch_shape)
        values = (self.loc, self.scale, self.low, self.high)
        return TruncatedNormal(*(value.expand(shape) for value in values))

    def _limits(self) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised limits, mirrored to the lower tail, where digits are kept."""
        loc, scale = self.loc.double(), self.scale.double()
        low, high = (self.low - loc) / scale, (self.high - loc) / scale
        mirrored = low + high > 0
        low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
        return low, high, torch.where(mirrored, -1.0, 1.0).to(loc)
