r"""Two-time flow maps.

The path :math:`x_t = (1 - t)\, x_0 + t\, x_1` joins data (t = 0) to noise (t = 1). A flow map
:math:`X(x_s, s, t)` carries a point of the path's probability flow from time s to time t, in
either direction; its derivative on the diagonal is the velocity :math:`v(x, t) = \partial_t X(x,
s, t)|_{s = t}` (Boffi et al. 2025, https://arxiv.org/abs/2505.18825).

If the data are Gaussian, :math:`x_0 \sim \mathcal N(\mu, C)` with noise N(0, I), so is every
:math:`x_t \sim \mathcal N(m_t, L_t^2)`, :math:`m_t = (1-t)\mu`, :math:`L_t^2 = (1-t)^2 C + t^2 I`,
and the exact map only re-scales. The network therefore learns what is left, in coordinates of unit
variance:

.. math:: X(x_s, s, t) = m_t + L_t \bigl[\zeta_s + (t - s)\, u_\theta(\zeta_s, s, t)\bigr], \qquad
          \zeta_s = L_s^{-1} (x_s - m_s).

With a zero-initialised last layer this **is** the Gaussian flow before any training, and it is the
identity at s = t whatever the network says.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vfm_inverse.gaussian.amplitude_mixture import Classes
from vfm_inverse.gaussian.normals import ContractedNormal

__all__ = ["ConditionedMap", "FlowMap"]


class ConditionedMap(NamedTuple):
    """A flow map at given observations: a :class:`~vfm_inverse.flow.transport.Transport`.

    Attributes:
        flow_map: the map.
        context: ``(n, ...)``, what its network sees of them, or ``None``.
        target: Gaussian approximation of the data's law given them, batch shape ``(n,)``; ``None``
            for N(0, I).
        half: whether the network, and nothing else, computes in bfloat16.
        classes: where points have a coordinate more, from which a class is read: the network sees
            the class, and the coordinate stays what it is.
    """

    flow_map: FlowMap
    context: Tensor | None = None
    target: ContractedNormal | None = None
    half: bool = False
    classes: Classes | None = None

    def transport(self, x: Tensor, s: Tensor | float, t: Tensor | float) -> Tensor:
        """``X(x_s, s, t)``, ``(*sample, n, d)``."""
        x, context, u = self._split(x)
        moved = self.flow_map(x, s, t, context, self.target, self.half)
        return moved if u is None else torch.cat([moved, u], -1)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """``v(x, t)``, ``(*sample, n, d)``."""
        x, context, u = self._split(x)
        velocity = self.flow_map.velocity(x, t, context, self.target, self.half)
        return velocity if u is None else torch.cat([velocity, torch.zeros_like(u)], -1)

    def paired(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Noise ``x1 (n, d)`` for data ``x0``: of the same class, where there are classes."""
        return x1 if self.classes is None else torch.cat([x1[..., :-1], x0[..., -1:]], -1)

    def generate(self, z: Tensor, steps: int = 1, begin: float = 1.0) -> Tensor:
        """``f(z) = X(z, begin, 0)``: noise to data in ``steps`` equal steps."""
        return self._march(z, begin, 0.0, steps)

    def encode(self, x: Tensor, steps: int = 1, end: float = 1.0) -> Tensor:
        """``f^{-1}(x) = X(x, 0, end)``: data to noise."""
        return self._march(x, 0.0, end, steps)

    def rows(self, rows: slice) -> ConditionedMap:
        """The map at some of the observations."""
        context = None if self.context is None else self.context[rows]
        target = None if self.target is None else self.target[rows]
        moved = self._replace(context=context, target=target)
        return moved if self.classes is None else moved._replace(classes=self.classes[rows])

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The coordinates of the map, what its network sees, and the coordinate of the class."""
        if self.classes is None or self.context is None:
            return x, self.context, None
        return x[..., :-1], self.classes.beside(self.context, x[..., -1]), x[..., -1:]

    def _march(self, x: Tensor, start: float, end: float, steps: int) -> Tensor:
        if steps < 1:
            raise ValueError(f"'steps' must be at least 1; got {steps}")
        times = [start + (end - start) * i / steps for i in range(steps + 1)]
        for s, t in pairwise(times):
            x = self.transport(x, s, t)
        return x


class FlowMap(nn.Module):
    """Two-time flow map over flat vectors.

    Args:
        network: ``(x (k n, d), s, t, context (n, ...)) -> (k n, d)``, see
            :mod:`vfm_inverse.networks.layers`.
        preconditioned: start from the Gaussian flow (above); otherwise
            ``X = x_s + (t - s) network``.

    In every method points are ``(*sample, n, d)`` and times broadcast against ``(*sample, n)``;
    ``context (n, ...)`` goes to the network, ``target`` (batch shape ``(n,)``) is the Gaussian
    approximation of the data's law given the observation, if there is one, N(0, I) otherwise, and
    ``half`` has the network compute in bfloat16.
    """

    def __init__(self, network: nn.Module, preconditioned: bool = True) -> None:
        super().__init__()
        self.network = network
        self.preconditioned = preconditioned

    def forward(
        self,
        x: Tensor,
        s: Tensor | float,
        t: Tensor | float,
        context: Tensor | None = None,
        target: ContractedNormal | None = None,
        half: bool = False,
    ) -> Tensor:
        """``X(x_s, s, t)``, ``(*sample, n, d)``; a time that all points share may be a number."""
        standard = s == 1.0 if isinstance(s, float) else False
        plain = t == 1.0 or (t == 0.0 and target is None) if isinstance(t, float) else False
        s, t = (torch.as_tensor(u, dtype=x.dtype, device=x.device) for u in (s, t))
        if not self.preconditioned:
            return x + (t - s).unsqueeze(-1) * self._evaluate(x, s, t, context, half)
        # At the ends nothing is left to standardise.
        zeta = x if standard else self._standardize(x, s, target)
        drift = self._evaluate(zeta, s, t, context, half)
        zeta = torch.addcmul(zeta, (t - s).unsqueeze(-1), drift)
        return zeta if plain else self._unstandardize(zeta, t, target)

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        target: ContractedNormal | None = None,
        half: bool = False,
    ) -> Tensor:
        """``v(x, t)``, the time derivative of the map on its diagonal, ``(*sample, n, d)``."""
        if not self.preconditioned:
            return self._evaluate(x, t, t, context, half)
        zeta = self._standardize(x, t, target)
        drift = self._evaluate(zeta, t, t, context, half)
        # d/dt (m_t + L_t zeta) + L_t drift; L_t dL_t/dt = t I - (1 - t) C.
        time = t.unsqueeze(-1)
        sigma = path_std(time)
        rest = (2 * time - 1) / sigma * zeta + sigma * drift
        if target is None:
            return rest
        along = path_std(time, target.scale)
        rate = (time - (1 - time) * target.scale.square()) / along
        informed = rate * target.project(zeta) + along * target.project(drift)
        return rest + target.lift(informed - target.project(rest)) - target.loc

    def at(
        self,
        context: Tensor | None = None,
        target: ContractedNormal | None = None,
        half: bool = False,
        classes: Classes | None = None,
    ) -> ConditionedMap:
        """The map at given observations, which can march in several steps."""
        return ConditionedMap(self, context, target, half, classes)

    def _evaluate(
        self, x: Tensor, s: Tensor, t: Tensor, context: Tensor | None, half: bool
    ) -> Tensor:
        """The network on all samples at once."""
        lead = x.shape[:-1]
        s, t = (u.expand(lead).flatten() if u.dim() else u.reshape(1) for u in (s, t))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            out = self.network(x.flatten(0, -2), s, t, context)
        return out.to(x.dtype).unflatten(0, lead)

    def _standardize(self, x: Tensor, t: Tensor, target: ContractedNormal | None) -> Tensor:
        time = t.unsqueeze(-1)
        sigma = path_std(time)
        if target is None:
            return x / sigma
        centered = (x - (1 - time) * target.loc) / sigma
        return target.contract(centered, sigma / path_std(time, target.scale))

    def _unstandardize(self, zeta: Tensor, t: Tensor, target: ContractedNormal | None) -> Tensor:
        time = t.unsqueeze(-1)
        sigma = path_std(time)
        if target is None:
            return sigma * zeta
        scaled = sigma * target.contract(zeta, path_std(time, target.scale) / sigma)
        return (1 - time) * target.loc + scaled


def path_std(t: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Standard deviation of ``(1 - t) x_0 + t x_1`` for data of standard deviation ``scale`` and
    unit noise."""
    return ((1 - t).square() * scale**2 + t.square()).sqrt()
