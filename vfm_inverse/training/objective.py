r"""The joint loss of a variational flow map, returned by name.

With whitened data :math:`\xi`, its flow loss :math:`\mathcal L_\theta`
(:mod:`vfm_inverse.flow.losses`) and the adapter :math:`q_\phi`, the loss is the sum of

* ``flow``: :math:`\frac{1}{2\tau^2} \mathcal L_\theta` on pairs of data and noise;
* ``forward`` (latent neural posterior estimation): :math:`-\log q_\phi(z^* \mid y)` at the code of
  the simulated truth,
  :math:`z^* = \bar f^{-1}(\xi)`; where the observation also conditions the map, the adapter
  approximates the posterior of the data themselves and :math:`z^* = \xi`. Mass-covering, needs
  only a density;
* ``reverse`` (Variational Flow Maps, https://arxiv.org/abs/2603.07276, eq. 9):
  :math:`\mathbb E_q[-\log p(y \mid \bar f(z))] + \mathrm{KL}(q_\phi \Vert \mathcal N(0, I))`.

A bar marks the exponential moving average of the networks: gradients of the adapter's terms reach
the adapter only. Everything sums over dimensions and averages over the batch; mixing means and
sums would re-weight the likelihood.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from vfm_inverse.flow.couplings import COUPLINGS
from vfm_inverse.flow.losses import FLOW_LOSSES, diagonal, sample_times
from vfm_inverse.flow.transport import Base
from vfm_inverse.gaussian.amplitudes_start import AmplitudesStart
from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.gaussian.normals import standard_normal
from vfm_inverse.posterior.answer import Answer, Networks
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.settings import check_settings
from vfm_inverse.training.frame_pool import Frames

__all__ = ["PRESETS", "Objective", "Phase", "phases_of"]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "vfm": {"forward": 0.0, "reverse": 1.0, "coupling": "adapter", "adaptive": True},
}
"""Named settings of :class:`Objective`: ``"vfm"`` is the loss of the Variational Flow Maps
paper."""


HEALTH = ("kl_per_dim", "mean_sigma", "dispersion", "semigroup", "round_trip")


class Phase(NamedTuple):
    """A part of a training.

    Attributes:
        name: what it trains, see :meth:`Objective.enter_phase`.
        share: of the steps.
    """

    name: str
    share: float


class Objective(nn.Module):
    """Everything that training minimises, as one module.

    Args:
        vfm: the map to train.
        flow_loss: ``"lagrangian"``, ``"eulerian"`` or ``"semigroup"``, added to the diagonal loss;
            ``"diagonal"`` for that alone (plain flow matching, whose one-step map is not trained).
        coupling: ``"independent"``; with ``observation="adapter"`` also ``"minibatch-ot"`` or
            ``"adapter"``.
        flow, forward, reverse: weights of the terms. ``forward=None`` is 1, or 0 for a contraction
            adapter under a conditional map, whose Gaussian start then stays as it is.
        alpha: share of the batch whose noise the adapter draws, with ``coupling="adapter"``.
        tau: scale of the flow loss against the others, ``1 / (2 tau^2)``.
        off_diagonal: share of the batch on which the off-diagonal loss is computed.
        adaptive: divide the total by ``sg(total + 0.01)``.
        adapter_share: share of the training steps, at its beginning, that train the adapter alone;
            it is then frozen and the map is trained. A conditional map works in the adapter's
            coordinates, and a frame that moves while the map learns costs more than it brings.
            ``None`` is a half for an adapter that is trained under a conditional map, else 0:
            both at once.

    Attributes:
        phases: what is trained one after the other.
        phase: the one that is on; ``"joint"`` at first.

    Raises:
        ValueError: an unknown name, or a term that the map cannot have.
    """

    def __init__(
        self,
        vfm: VariationalFlowMap,
        *,
        flow_loss: str = "lagrangian",
        coupling: str = "independent",
        flow: float = 1.0,
        forward: float | None = None,
        reverse: float = 0.0,
        alpha: float = 0.5,
        tau: float = 0.5**0.5,
        off_diagonal: float = 0.25,
        adaptive: bool = False,
        adapter_share: float | None = None,
    ) -> None:
        super().__init__()
        numbers = check_settings("objective", {k: v for k, v in locals().items() if k != "vfm"})
        flow, forward, reverse = (numbers[k] for k in ("flow", "forward", "reverse"))
        alpha, tau, off_diagonal = (numbers[k] for k in ("alpha", "tau", "off_diagonal"))
        adaptive, adapter_share = numbers["adaptive"], numbers["adapter_share"]
        check_terms(vfm, flow_loss, coupling, reverse, forward)
        joint = vfm.observation == "adapter"
        if forward is None:
            learns = vfm.adapter is not None and (joint or vfm.adapter.family.learns)
            forward = 1.0 if learns else 0.0
        if vfm.adapter is None:
            forward = 0.0
        if adapter_share is None:
            adapter_share = 0.5 if forward and flow and not joint else 0.0
        if not (flow or forward or reverse):
            raise ValueError("one of 'flow', 'forward' and 'reverse' must be above 0; got none")
        if (adapter_share and not (forward or reverse)) or (0 < adapter_share < 1 and not flow):
            raise ValueError(
                "'adapter_share' must be 0 unless there are terms for adapter and map; got "
                f"{adapter_share:g} with flow={flow:g}, forward={forward:g}, reverse={reverse:g}"
            )
        self.vfm = vfm
        self.average: Networks = copy.deepcopy(vfm.networks).requires_grad_(False)
        self.flow_loss, self.coupling = flow_loss, coupling
        self.flow, self.forward_weight, self.reverse = flow / (2 * tau**2), forward, reverse
        self.alpha, self.off_diagonal, self.adaptive = alpha, off_diagonal, adaptive
        self.phases = phases_of(adapter_share)
        self.phase = "joint"

    @property
    def names(self) -> tuple[str, ...]:
        """Every loss term and health figure that a row of the log may hold."""
        terms = ["loss"]
        terms += ["forward"] * bool(self.forward_weight)
        terms += ["misfit", "kl"] * bool(self.reverse)
        if self.flow:
            terms += ["diagonal"] + [self.flow_loss] * (self.flow_loss != "diagonal")
        of_adapter = HEALTH[:3] if self.vfm.adapter is not None else ()
        return (*terms, *of_adapter, *HEALTH[3:])

    def forward(self, x: Tensor, y: Tensor, **params: Tensor) -> dict[str, Tensor]:
        """All terms for simulations ``x (n, *event)``, ``y (n, *obs)``, each a scalar; ``"loss"``
        is their sum."""
        vfm = self.vfm
        xi = vfm.whitening.whiten(x)
        condition = vfm.condition(y, params)
        with torch.no_grad():
            average = vfm.answer(condition, self.average)
        # A frozen adapter is its average.
        answer = average.with_map(vfm.flow_map) if self.phase == "map" else vfm.answer(condition)
        terms: dict[str, Tensor] = {}
        if self.forward_weight and self.phase != "map":
            code = self._code(xi, average)
            terms["forward"] = -self.forward_weight * answer.q.log_prob(code).mean()
        if self.reverse and self.phase != "map":
            terms |= self._reverse(answer.q, average, y, params)
        if self.flow and self.phase != "adapter":
            # The frame is the averaged adapter's: it moves slowly, and is the one that will be
            # used.
            terms |= self._flow(average.to_frame(xi), answer._replace(base=average.base))
        return self._summed(terms)

    def of_frames(self, frames: Frames) -> dict[str, Tensor]:
        """The same for simulations in the coordinates of their frames, which no adapter changes:
        it takes no physics."""
        return self._summed(self._flow(frames.zeta, self._framed(frames, self.vfm.networks)))

    def _framed(self, frames: Frames, networks: Networks) -> Answer:
        """Networks in the coordinates of frames."""
        law = standard_normal(len(frames.zeta), frames.zeta)
        half = self.vfm.precision == "half"
        return Answer(networks.flow_map.at(frames.features, half=half), law, Base(law))

    def _summed(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        total = torch.stack(list(terms.values())).sum()
        if self.adaptive:
            total = total / (total.detach().abs() + 0.01)
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def _flow(self, x0: Tensor, answer: Answer) -> dict[str, Tensor]:
        """The flow loss for data ``x0 (n, d)`` in the map's coordinates."""
        prior = self.vfm.observation == "adapter"
        x1 = torch.randn_like(x0) if prior else answer.noise.sample()
        x1 = COUPLINGS[self.coupling](x0, x1, answer.q.sample, self.alpha)
        x1 = answer.map.paired(x0, x1)
        n, begin = x0.shape[0], answer.base.time
        # Each of the two losses has a pair at least.
        share = min(max(1, round(self.off_diagonal * n)), n - 1)
        k = 0 if self.flow_loss == "diagonal" else share
        # Differences in time would drown in half precision.
        off, on = answer.map.rows(slice(k))._replace(half=False), answer.map.rows(slice(k, n))
        terms = {
            "diagonal": diagonal(
                on.velocity,
                x0[k:],
                x1[k:],
                begin * torch.rand(n - k, dtype=x0.dtype, device=x0.device),
            )
        }
        if k:
            s, t = sample_times(k, x0, prior, begin)
            terms[self.flow_loss] = FLOW_LOSSES[self.flow_loss](
                off.transport, off.velocity, x0[:k], x1[:k], s, t
            )
        return {name: self.flow * value.sum() / n for name, value in terms.items()}

    def _reverse(
        self, q: TorchDistribution, average: Answer, y: Tensor, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        likelihood = self.vfm.likelihood
        assert likelihood is not None  # the constructor saw to it
        z = q.rsample()
        misfit = -likelihood(self.vfm.decode(z, average), **params).log_prob(y)
        divergence = q.log_prob(z) - standard_normal(z.shape[0], z).log_prob(z)
        return {"misfit": self.reverse * misfit.mean(), "kl": self.reverse * divergence.mean()}

    @torch.no_grad()
    def _code(self, xi: Tensor, average: Answer) -> Tensor:
        """What the adapter should find likely of whitened truths ``(n, d)``: their noise under a
        map of the prior, themselves under a conditional map."""
        prior = self.vfm.observation == "adapter"
        return average.map.encode(xi, self.vfm.steps, average.base.time) if prior else xi

    def enter_phase(self, phase: str) -> None:
        """``"adapter"`` trains the adapter alone, ``"map"`` the map with the adapter's averaged
        weights frozen, ``"joint"`` both."""
        if phase == "map" and self.phase != "map" and self.vfm.adapter is not None:
            average = self.average.adapter
            assert average is not None
            self.vfm.adapter.load_state_dict(average.state_dict())
        self.phase = phase

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the averaged networks towards the current ones by ``1 - decay``."""
        for mean, value in zip(
            self.average.parameters(), self.vfm.networks.parameters(), strict=True
        ):
            mean.lerp_(value, 1 - decay)

    @torch.no_grad()
    def health(self, x: Tensor, y: Tensor, **params: Tensor) -> dict[str, float]:
        """Figures to watch, of the averaged networks.

        ``kl_per_dim``: KL(q || N(0, I)) over d, a draw's estimate; ``mean_sigma``: mean standard
        deviation of q; ``dispersion``: mean squared error of the codes of the truths in standard
        deviations of q, 1 if calibrated; ``semigroup``: RMS of
        ``X(., 1, 0) - X(X(., 1, .5), .5, 0)``; ``round_trip``: RMS of ``f(f^{-1}(xi)) - xi``; it
        says little of a conditional map, which is never trained to encode.
        """
        vfm = self.vfm
        answer = vfm.answer(vfm.condition(y, params), self.average)
        xi = vfm.whitening.whiten(x)
        figures = {}
        if vfm.adapter is not None:
            draws = answer.q.sample((32,))
            z, std = draws[0], draws.std(0)
            divergence = answer.q.log_prob(z) - standard_normal(z.shape[0], z).log_prob(z)
            figures["kl_per_dim"] = divergence.mean() / z.shape[-1]
            figures["mean_sigma"] = std.mean()
            code = self._code(xi, answer)
            figures["dispersion"] = ((code - draws.mean(0)) / std).square().mean()
        figures |= self._map_health(answer.to_frame(xi), answer)
        return {name: float(value) for name, value in figures.items()}

    @torch.no_grad()
    def health_of_frames(self, frames: Frames) -> dict[str, float]:
        """The same in the coordinates of frames; ``dispersion`` is the mean squared coordinate of
        the truths."""
        figures = self._map_health(frames.zeta, self._framed(frames, self.average))
        figures["dispersion"] = frames.zeta.square().mean()
        return {name: float(value) for name, value in figures.items()}

    def _map_health(self, x0: Tensor, answer: Answer) -> dict[str, Tensor]:
        """What is watched of the map, at data ``x0 (n, d)`` in its coordinates."""
        law, z, begin = answer.map, answer.noise.sample(), answer.base.time
        one, two = law.generate(z, 1, begin), law.generate(z, 2, begin)
        back = law.generate(law.encode(x0, 1, begin), 1, begin)
        return {
            "semigroup": (one - two).square().mean().sqrt(),
            "round_trip": (back - x0).square().mean().sqrt(),
        }


def phases_of(adapter_share: float) -> tuple[Phase, ...]:
    """All at once without a share for the adapter, else the adapter and then the map."""
    if not adapter_share:
        return (Phase("joint", 1.0),)
    rest = (Phase("map", 1 - adapter_share),) if adapter_share < 1 else ()
    return (Phase("adapter", adapter_share), *rest)


def check_terms(
    vfm: VariationalFlowMap,
    flow_loss: str,
    coupling: str,
    reverse: float,
    forward: float | None = None,
) -> None:
    """Refuse names that are none and terms that the map cannot have.

    Raises:
        ValueError: as :class:`Objective`.
    """
    if flow_loss not in (*FLOW_LOSSES, "diagonal"):
        raise ValueError(
            f"'flow_loss' must be one of {[*FLOW_LOSSES, 'diagonal']}; got {flow_loss!r}"
        )
    if coupling not in COUPLINGS:
        raise ValueError(f"'coupling' must be one of {tuple(COUPLINGS)}; got {coupling!r}")
    joint = vfm.observation == "adapter"
    if not joint and (reverse or coupling != "independent"):
        raise ValueError(
            "'reverse' and couplings need observation='adapter': a map conditioned on y has "
            f"no prior of its own; got observation={vfm.observation!r}, reverse={reverse}, "
            f"coupling={coupling!r}"
        )
    if forward and isinstance(vfm.start, FrameStart | AmplitudesStart):
        raise ValueError(
            "'forward' must be 0 for a start with the physics or classes of amplitude in its "
            f"frame, which no adapter changes; got {forward:g}"
        )
    if reverse and vfm.likelihood is None:
        raise ValueError("'reverse' needs a likelihood; this problem has a simulator only")
    if reverse and vfm.adapter is not None and not vfm.adapter.family.has_rsample:
        raise ValueError("'reverse' needs reparametrised draws; the mixture family has none")
