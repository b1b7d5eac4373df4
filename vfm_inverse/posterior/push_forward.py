"""The posterior as a distribution: the law of what the map makes of noise, and draws that are made
exact where that is cheap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from vfm_inverse.gaussian.frames import standard_law, unstandardize
from vfm_inverse.problem.supports import report_outside
from vfm_inverse.runtime.values import check_shape
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.sampling.exact import warn_unsatisfied

__all__ = ["PushForward"]


CHUNK_NUMBERS = {"cpu": 2**16, "cuda": 2**22}
"""Numbers sent through the networks at once when sampling: bounds memory, stays in a processor's
cache and fills a graphics card."""


class PushForward(TorchDistribution):
    """The law of ``decode(z)``, ``z ~ latent``; draws cost one pass of the flow map each.

    Args:
        latent: law of the map's noise, batch shape ``(n,)``, event shape ``(d,)``: ``q(z | y)``;
            where the map is conditioned on y and works in the coordinates in which a Gaussian q is
            standard, N(0, I).
        decode: ``(*sample, n, d) -> (*sample, n, *event)``.
        event_shape: shape of one field.
        batched: whether the observations came with a batch dimension; without, draws have none
            either (``latent`` keeps its batch of one).
        stated: support of the prior that ``decode`` may leave; draws that do are reported.
        exact: number of draws to an :class:`~vfm_inverse.sampling.ensemble.Ensemble` of the exact
            posterior (:mod:`vfm_inverse.sampling.exact`), which :meth:`sample` then takes them
            from; ``rsample`` stays that of the map.
        ending: what comes after ``decode``, ``(k, n, *event)`` to the same shape; of ``sample``
            only, since it is not differentiable.

    Attributes:
        diagnostics: of the exact draws of the last :meth:`sample`, by name, one number for each
            observation: ``k_hat``, ``ess``, ``rung``, ...; empty for draws of the map.
        notes: how each observation was answered then, in a sentence.

    It has no ``log_prob``: the density of a push-forward needs the map's Jacobian determinant.
    With ``observation="adapter"``, ``latent.log_prob`` is the density that importance weights in
    noise space need.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        latent: TorchDistribution,
        decode: Callable[[Tensor], Tensor],
        event_shape: torch.Size,
        batched: bool = True,
        stated: constraints.Constraint | None = None,
        exact: Callable[[int], Ensemble] | None = None,
        ending: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._exact = exact
        self.diagnostics: dict[str, Tensor] = {}
        self.notes: tuple[str, ...] = ()
        self.latent, self._decode, self._batched = latent, decode, batched
        self._stated, self._ending = stated, ending
        batch_shape = latent.batch_shape if batched else torch.Size()
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def raw(self) -> PushForward:
        """The law of what the map makes of noise, as it is; itself where nothing is made exact."""
        if self._exact is None:
            return self
        return PushForward(
            self.latent, self._decode, self.event_shape, self._batched, self._stated
        )

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws ``(*sample, *batch, *event)``, differentiable where the latent's are."""
        shape = check_shape(sample_shape, "sample_shape")
        return self._finish(self._decode(self.latent.rsample(shape)), shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws ``(*sample, *batch, *event)``, a bounded number at a time and in the memory of the
        result; exact ones where the posterior was made with a way to them.

        Warns:
            CalibrationWarning: exact draws of some observations cannot be trusted.
        """
        sample_shape = check_shape(sample_shape, "sample_shape")
        if self._exact is not None:
            ensemble = self._exact(sample_shape.numel())
            self.diagnostics, self.notes = dict(ensemble.diagnostics), ensemble.notes
            # Behind this frame and that of the decorator is whose draws they are.
            warn_unsatisfied(self.diagnostics["satisfied"], stacklevel=3)
            drawn = ensemble.samples
            return drawn.unflatten(0, sample_shape) if sample_shape else drawn[0]
        # What makes a Gaussian of N(0, I) is done chunk by chunk, in cache.
        zeta = standard_law(self.latent).sample(torch.Size([sample_shape.numel()])).contiguous()
        event = torch.Size([*zeta.shape[:2], *self.event_shape])
        # The draws take the place of the noise that they are made of, where they fit.
        x = zeta.view(event) if event.numel() == zeta.numel() else zeta.new_empty(event)
        chunk = CHUNK_NUMBERS.get(zeta.device.type, CHUNK_NUMBERS["cuda"])
        size = max(1, chunk // max(1, zeta.shape[1:].numel()))
        for begin in range(0, len(zeta), size):
            rows = slice(begin, begin + size)
            drawn = self._decode(unstandardize(self.latent, zeta[rows]))
            x[rows] = drawn if self._ending is None else self._ending(drawn)
        report_outside(self._stated, x, len(self.event_shape))
        return self._finish(x.unflatten(0, sample_shape) if sample_shape else x[0], sample_shape)

    def _finish(self, x: Tensor, sample_shape: torch.Size) -> Tensor:
        return x if self._batched else x.squeeze(len(sample_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> PushForward:
        """Itself: there is one posterior for each observation."""
        if not self._batched or torch.Size(batch_shape) == self.batch_shape:
            return self
        raise ValueError(
            f"'batch_shape' must stay {tuple(self.batch_shape)}, one per observation; got "
            f"{tuple(batch_shape)}"
        )
