r"""The posterior of given observations, as an unnormalised density that draws can be held against.

A map answers with :math:`x = f(u)`, :math:`u \sim r`, and the coordinates ``u`` of its noise are
where corrections work: there the draws come from a law of known density r, close to N(0, I), and
the posterior differs from it only as far as the map is wrong. With the whitened field
:math:`\xi(u)` the target is

* for a map of the prior (``observation="adapter"``): :math:`\mathcal N(z; 0, I)\, p(y \mid x)`,
  :math:`z = \mu + C^{1/2} u` under a Gaussian q. No Jacobian, and no density of the prior: it is
  exact for the prior that the map has learned;
* for a conditional map: :math:`p(\xi)\, p(y \mid x)\, |\det \partial \xi / \partial u|`. The
  determinant takes one forward-mode derivative a dimension, and the prior needs a density. It is
  exact for a map that is one to one (:meth:`Target.weigh`);
* the same without the determinant in the ``direct`` coordinates
  :math:`\xi = \mu + C^{1/2} u`: the density of the draws is then unknown, which Markov chains do
  not mind. Draws of :math:`\mathcal N(0, s^2 I)` in these coordinates take the place of the map's
  where a ``width`` s is given: their density is known, and wide ones reach modes that the map
  misses.

All densities are up to a constant for each observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from vfm_inverse.flow.flow_map import ConditionedMap
from vfm_inverse.flow.transport import Base
from vfm_inverse.gaussian.amplitude_mixture import classes_of
from vfm_inverse.gaussian.frames import standard_law, standardize, unstandardize
from vfm_inverse.gaussian.normals import standard_normal
from vfm_inverse.gaussian.whitening_base import Whitening
from vfm_inverse.runtime.arrays import rows_of

__all__ = ["Map", "Target"]

TRANSPORT_LIMIT = 64
"""Most dimensions for which the determinant of a map is taken."""

CHUNK = 2**22
"""Numbers of activations or Jacobians held at once, roughly; bounds memory."""


class Answered(Protocol):
    """A map at given observations: :class:`vfm_inverse.posterior.answer.Answer`."""

    @property
    def map(self) -> ConditionedMap:
        """Of noise to data."""

    @property
    def q(self) -> TorchDistribution:
        """The adapter's law."""

    @property
    def base(self) -> Base:
        """Where the map begins."""

    @property
    def frame(self) -> TorchDistribution | None:
        """In whose standard coordinates the map works."""

    @property
    def noise(self) -> TorchDistribution:
        """Law of what the map starts from."""

    def generate(self, z: Tensor, steps: int) -> Tensor:
        """Noise ``(*sample, n, d)`` to whitened data."""


class Map(Protocol):
    """What a target needs of a map, which stands above it:
    :class:`vfm_inverse.posterior.variational.VariationalFlowMap`."""

    @property
    def likelihood(self) -> Callable[..., Distribution] | None:
        """``x, **params`` to the law of the observation."""

    @property
    def log_prior(self) -> Callable[[Tensor], Tensor] | None:
        """Log density of the prior of x."""

    @property
    def whitening(self) -> Whitening:
        """Coordinates of the map."""

    @property
    def observation(self) -> str:
        """Where the observation enters."""

    @property
    def steps(self) -> int:
        """Steps of the map for one draw."""

    def condition(self, y: Tensor, params: Mapping[str, Tensor]) -> Any:
        """What the networks are given."""

    def answer(
        self, condition: Any, networks: Any = None, precision: str | None = None
    ) -> Answered:
        """What they make of it."""


class Target:
    """Posteriors of n observations, in d coordinates each.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)``.
        params: their parameters.
        direct: leave the map out of the coordinates. By default only where its determinant would
            be needed in more than ``TRANSPORT_LIMIT`` dimensions.
        steps: of the map; as many as it usually takes by default.
        known: take the prior's density for a map of the prior, too, instead of what that map has
            learned of it.
        width: standard deviation s of Gaussian draws in direct coordinates, in place of the
            map's.

    Attributes:
        num: n.
        dim: d.
        direct: whether the draws' density is unknown.
        prior_map: whether the map is one of the prior.

    Raises:
        ValueError: the map has no likelihood, or needs a density of the prior and has none.
    """

    def __init__(
        self,
        vfm: Map,
        y: Tensor,
        params: Mapping[str, Tensor],
        direct: bool | None = None,
        steps: int | None = None,
        *,
        known: bool = False,
        width: float | None = None,
    ) -> None:
        if vfm.likelihood is None:
            raise ValueError(
                "correction needs a likelihood; this map was made for a problem with a simulator "
                "only"
            )
        prior_map = vfm.observation == "adapter" and not known
        if not prior_map and vfm.log_prior is None:
            raise ValueError(
                "correction of a map that is conditioned on y needs the prior's density, or a map "
                "of the prior: correction.auto(..., prior_map=correction.fit_prior(problem)), or "
                "give the problem a torch Distribution as prior; got "
                f"observation={vfm.observation!r}"
            )
        self.vfm, self.y, self.params = vfm, y, dict(params)
        self.steps = steps or vfm.steps
        with torch.no_grad():
            condition = vfm.condition(y, params)
            # Rounding to half precision would leave the map without a derivative.
            self.answer = vfm.answer(condition, precision="single")
        if classes_of(self.answer.q) is not None:
            raise ValueError(
                "'vfm' must not start from a mixture over amplitudes, whose classes have no "
                "density in the coordinates of the map: build it with start='regression' or "
                "another, or correct it with a 'prior_map'"
            )
        self.num, self.dim = y.shape[0], vfm.whitening.dim
        self.prior_map, self._known, self.width = prior_map, known, width
        if direct is None:
            direct = self.dim > TRANSPORT_LIMIT or width is not None
        self.direct = direct and not prior_map
        # In whose standard coordinates u is, or what the map makes of u.
        self._frame = self.answer.q if prior_map else self.answer.frame
        if self.direct and self._frame is None:
            of_prior = vfm.observation == "adapter"
            self._frame = self.answer.q if of_prior else self.answer.map.target
        self.reference: TorchDistribution = (
            standard_law(self.answer.q) if prior_map else self.answer.noise
        )
        self._normal = standard_normal(self.num, vfm.whitening.mean)

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """The map's own draws, ``(num, n, d)``; Gaussian ones where there is a width."""
        if self.width is not None:
            return self.width * self._normal.sample(torch.Size([num]))
        u = self.reference.sample(torch.Size([num]))
        if not self.direct:
            return u
        xi = self._chunked(lambda part: self.answer.generate(part, self.steps), u)
        return xi if self._frame is None else standardize(self._frame, xi)

    def field(self, u: Tensor) -> Tensor:
        """``x (num, n, *event)`` at ``u (num, n, d)``."""
        return self.vfm.whitening.unwhiten(self.whitened(u))

    def whitened(self, u: Tensor) -> Tensor:
        """``xi (num, n, d)`` at ``u (num, n, d)``."""
        if self.direct:
            return u if self._frame is None else unstandardize(self._frame, u)
        if self.prior_map:
            return self.answer.generate(unstandardize(self.answer.q, u), self.steps)
        return self.answer.generate(u, self.steps)

    @torch.no_grad()
    def locate(self, x: Tensor) -> Tensor:
        """Coordinates ``(num, n, d)`` that the reverse map finds for fields ``x (num, n,
        *event)``: those that it maps about there. Of a map of the prior."""

        def one(part: Tensor) -> Tensor:
            z = self.answer.map.encode(
                self.vfm.whitening.whiten(part), self.steps, self.answer.base.time
            )
            return standardize(self.answer.q, z)

        return self._chunked(one, x)

    def log_reference(self, u: Tensor) -> Tensor:
        """Log density of the draws, ``(num, n)``.

        Raises:
            ValueError: that of the map's is unknown in direct coordinates.
        """
        if self.width is not None:
            return self._normal.log_prob(u / self.width)
        if self.direct:
            raise ValueError(
                f"the density of this map's draws is unknown: that takes a determinant in "
                f"{self.dim} dimensions, and {TRANSPORT_LIMIT} are the most; use correction.mcmc, "
                "or build the map with observation='adapter'"
            )
        return self.reference.log_prob(u)

    def log_normal(self, u: Tensor) -> Tensor:
        """``log N(u; 0, I)``, ``(num, n)``."""
        return self._normal.log_prob(u)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of the posterior, ``(num, n)``; minus infinity where it is not a number."""
        value = self._chunked(self._log_prob, u)
        return torch.where(value.isnan(), -torch.inf, value)

    @torch.no_grad()
    def log_prob_and_folds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``log_prob`` at the map's draws, ``(num, n)``, and the share of them at which the map
        turns space inside out, ``(n,)``.

        The density of the posterior in u counts a field as often as the map reaches it: once if
        the map is one to one, which one that folds over itself is not.
        """
        if self.prior_map or self.direct:
            return self.log_prob(u), u.new_zeros(self.num)

        def both(part: Tensor) -> Tensor:
            zeta, log_det, sign = self._map_with_log_det(part)
            return torch.stack([self._log_prob_at(zeta, log_det), sign], -1)

        value, sign = self._chunked(both, u).unbind(-1)
        value = torch.where(value.isnan(), -torch.inf, value)
        return value, (sign < 0).to(u).mean(0)

    def score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``log_prob`` and its gradient in u, ``(num, n)`` and ``(num, n, d)``."""

        def both(part: Tensor) -> Tensor:
            part = part.detach().requires_grad_(True)
            with torch.enable_grad():
                value = self._log_prob(part)
                (gradient,) = torch.autograd.grad(value.sum(), part)
            return torch.cat([value.detach().unsqueeze(-1), gradient], -1)

        value, gradient = self._chunked(both, u).split([1, self.dim], -1)
        finite = torch.isfinite(value) & torch.isfinite(gradient).all(-1, keepdim=True)
        return (
            torch.where(finite, value, -torch.inf).squeeze(-1),
            torch.where(finite, gradient, 0.0),
        )

    def log_ratio(self, u: Tensor) -> Tensor:
        """Log density of the posterior against that of the draws, ``(*sample, n)``;
        differentiable."""
        many = u if u.dim() > 2 else u.unsqueeze(0)
        value = self._log_prob(many) - self.log_reference(many)
        return value.reshape(u.shape[:-1])

    def noise_log_prob(self, z: Tensor) -> Tensor:
        """Log density of the posterior at noise ``z (num, n, d)`` of the map; differentiable."""
        if not self.prior_map:
            return self._log_prob(z)
        x = self.vfm.whitening.unwhiten(self.answer.generate(z, self.steps))
        return self._normal.log_prob(z) + self._log_likelihood(x)

    def differentiable(self, u: Tensor) -> Tensor:
        """:meth:`log_prob` for callers that take gradients themselves: neither chunked nor
        cleaned."""
        return self._log_prob(u)

    def without_map(self, u: Tensor) -> tuple[Target, Tensor]:
        """The same posteriors in direct coordinates, where a gradient costs no pass of the map,
        and draws ``u (num, n, d)`` there; itself where no determinant is needed."""
        if self.direct or self.prior_map:
            return self, u
        direct = Target(self.vfm, self.y, self.params, True, self.steps)
        xi = self._chunked(self.whitened, u)
        return direct, xi if direct._frame is None else standardize(direct._frame, xi)

    def around(self, width: float) -> Target:
        """The same posteriors in direct coordinates, with Gaussian draws of this width."""
        return Target(
            self.vfm, self.y, self.params, True, self.steps, known=self._known, width=width
        )

    def rows(self, rows: slice | Tensor, steps: int | None = None) -> Target:
        """The target of some of the observations, with as many steps of the map or others."""
        params = rows_of(self.params, rows)
        return Target(
            self.vfm,
            self.y[rows],
            params,
            self.direct,
            steps or self.steps,
            known=self._known,
            width=self.width,
        )

    def _log_prob(self, u: Tensor) -> Tensor:
        if self.prior_map:
            z = unstandardize(self.answer.q, u)
            return self.noise_log_prob(z) + self._frame_log_det(u, z)
        if self.direct:
            return self._log_prob_at(u, u.new_zeros(()))
        return self._log_prob_at(*self._map_with_log_det(u)[:2])

    def _log_prob_at(self, zeta: Tensor, log_det: Tensor) -> Tensor:
        """Under a conditional map, from what the map makes of u and its ``log |det|``."""
        log_prior = self.vfm.log_prior
        assert log_prior is not None  # the constructor saw to it
        xi = zeta if self._frame is None else unstandardize(self._frame, zeta)
        x = self.vfm.whitening.unwhiten(xi)
        log_det = log_det + self._frame_log_det(zeta, xi) + self.vfm.whitening.log_det(xi)
        return log_prior(x) + self._log_likelihood(x) + log_det

    def _log_likelihood(self, x: Tensor) -> Tensor:
        likelihood = self.vfm.likelihood
        assert likelihood is not None
        return likelihood(x, **self.params).log_prob(self.y)

    def _frame_log_det(self, zeta: Tensor, xi: Tensor) -> Tensor | float:
        """``log |d xi / d zeta|`` of the law in whose standard coordinates ``zeta`` is; constant
        for a Gaussian."""
        q = self._frame
        if q is None or standard_law(q) is q:
            return 0.0
        return self.log_normal(zeta) - q.log_prob(xi)

    def _map_with_log_det(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The map in its own coordinates, ``(num, n, d)``, its ``log |det|`` and the determinant's
        sign, ``(num, n)``."""
        basis = torch.eye(self.dim, dtype=u.dtype, device=u.device)

        def along(direction: Tensor) -> Any:
            return torch.func.jvp(
                lambda v: self.answer.map.generate(v, self.steps, self.answer.base.time),
                (u,),
                (direction.expand_as(u),),
            )

        zeta, columns = torch.func.vmap(along)(basis)
        sign, log_det = torch.linalg.slogdet(columns.movedim(0, -1))
        return zeta[0], log_det, sign

    def _chunked(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        cost = self.num * max(self.dim, 64)
        if not self.prior_map and not self.direct:
            cost *= self.dim
        rows = max(1, CHUNK // cost)
        return torch.cat([function(part) for part in u.split(rows)])
