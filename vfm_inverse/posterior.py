r"""The front door: a trained map that answers an observation with a posterior distribution.

A draw is :math:`x = m + S f(z)`, :math:`z \sim q(z \mid y)`, with the whitening :math:`(m, S)`,
the flow map's generator :math:`f = X(\cdot, 1, 0)` and the adapter :math:`q`. The observation
enters in one of three ways:

* ``adapter``: through q alone (Variational Flow Maps, https://arxiv.org/abs/2603.07276). One map
  of the prior serves every operator, and the noise-space posterior ``N(z; 0, I) p(y | f(z))`` is
  known without a Jacobian;
* ``context``: through the network of the map; q = N(0, I);
* ``both``: q is the best Gaussian (or mixture) approximation of the posterior of the data
  themselves, and the map, conditioned on y, carries it to the posterior. It works in coordinates
  in which q is N(0, I), so that what it has to learn is exactly what is not Gaussian.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution

from vfm_inverse.adapter import (
    NoiseAdapter,
    standard_law,
    standard_normal,
    standardize,
    unstandardize,
)
from vfm_inverse.card import CalibrationWarning, Card, standing, weights_fingerprint
from vfm_inverse.checks import check_batch, check_params, check_shape
from vfm_inverse.encoders import FieldFeatures, VectorFeatures
from vfm_inverse.flow_map import ConditionedMap, FlowMap
from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.operator_start import GaussianStart
from vfm_inverse.stations import StationFeatures
from vfm_inverse.supports import report_outside
from vfm_inverse.validity import ValidRange
from vfm_inverse.whitening import Whitening

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["Answer", "Condition", "Networks", "PushForward", "VariationalFlowMap"]

OBSERVATION_MODES = ("adapter", "context", "both")
PRECISIONS = ("single", "half")
CHUNK_NUMBERS = {"cpu": 2**16, "cuda": 2**22}
"""Numbers sent through the networks at once when sampling: bounds memory, stays in a processor's
cache and fills a graphics card."""


class Condition(NamedTuple):
    """What the networks are given of one batch of observations; neither part is trained."""

    features: Tensor
    start: ContractedNormal | None


class Answer(NamedTuple):
    """Networks at one batch of observations: where the noise comes from and what becomes of it.

    Attributes:
        map: the flow map.
        q: the adapter's law over whitened coordinates; N(0, I) without an adapter.
        noise: law of what the map starts from, batch shape ``(n,)``.
        frame: law in whose standard coordinates the map works; ``None`` for whitened ones.
    """

    map: ConditionedMap
    q: TorchDistribution
    noise: TorchDistribution
    frame: TorchDistribution | None = None

    def enter(self, xi: Tensor) -> Tensor:
        """Whitened coordinates ``(*sample, n, d)`` to those of the map."""
        return xi if self.frame is None else standardize(self.frame, xi)

    def under(self, flow_map: FlowMap) -> Answer:
        """The same with another flow map."""
        return self._replace(map=self.map._replace(flow_map=flow_map))

    def generate(self, z: Tensor, steps: int) -> Tensor:
        """Noise ``(*sample, n, d)`` to whitened data."""
        data = self.map.generate(z, steps)
        return data if self.frame is None else unstandardize(self.frame, data)


class Networks(nn.Module):
    """What is trained: the flow map and, unless ``observation="context"``, the adapter."""

    def __init__(self, flow_map: FlowMap, adapter: NoiseAdapter | None) -> None:
        super().__init__()
        self.flow_map = flow_map
        self.adapter = adapter


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
    ) -> None:
        self.latent, self._decode, self._batched = latent, decode, batched
        self._stated = stated
        batch_shape = latent.batch_shape if batched else torch.Size()
        super().__init__(batch_shape, event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws ``(*sample, *batch, *event)``, differentiable where the latent's are."""
        shape = check_shape(sample_shape, "sample_shape")
        return self._finish(self._decode(self.latent.rsample(shape)), shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws ``(*sample, *batch, *event)``, a bounded number at a time and in the memory of the
        result."""
        sample_shape = check_shape(sample_shape, "sample_shape")
        # What makes a Gaussian of N(0, I) is done chunk by chunk, in cache.
        zeta = standard_law(self.latent).sample(torch.Size([sample_shape.numel()])).contiguous()
        event = torch.Size([*zeta.shape[:2], *self.event_shape])
        # The draws take the place of the noise that they are made of, where they fit.
        x = zeta.view(event) if event.numel() == zeta.numel() else zeta.new_empty(event)
        chunk = CHUNK_NUMBERS.get(zeta.device.type, CHUNK_NUMBERS["cuda"])
        size = max(1, chunk // max(1, zeta.shape[1:].numel()))
        for begin in range(0, len(zeta), size):
            rows = slice(begin, begin + size)
            x[rows] = self._decode(unstandardize(self.latent, zeta[rows]))
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


class VariationalFlowMap(nn.Module):
    """``vfm(y, **params)`` is the posterior of x.

    Args:
        flow_map: two-time map in whitened coordinates.
        adapter: ``q(z | y)``; ``None`` with ``observation="context"``.
        likelihood: ``x, **params`` to the law of the observation, for the reverse objective and
            for corrections; ``None`` where the problem has only a simulator.
        log_prior: log density of the prior of x, where it is known, for corrections.
        whitening: coordinates of the map.
        features: description of an observation for the networks.
        observation_shape, param_shapes: of one observation and its parameters.
        param_types: of parameters that are integers or booleans.
        start: Gaussian approximation of the posterior, or ``None``.
        observation: ``"adapter"``, ``"context"`` or ``"both"``.
        steps: steps of the flow map for one draw.
        precision: ``"single"``, or ``"half"``: the networks compute in bfloat16, what stands
            around them (physics, densities, linear algebra) and every correction as before.
        config: how :meth:`for_problem` was called, for the checkpoint.

    Attributes:
        card: what the calibration of this map found (:func:`vfm_inverse.card.certify`), or
            ``None``.
        range: of the observations that it was trained or, with a card, checked on.

    :meth:`for_problem` makes all of these from a problem.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        adapter: NoiseAdapter | None,
        likelihood: Callable[..., Distribution] | None = None,
        *,
        log_prior: Callable[[Tensor], Tensor] | None = None,
        whitening: Whitening,
        features: VectorFeatures | FieldFeatures | StationFeatures,
        observation_shape: torch.Size,
        param_shapes: Mapping[str, torch.Size],
        param_types: Mapping[str, torch.dtype] | None = None,
        start: GaussianStart | None = None,
        observation: str = "both",
        steps: int = 1,
        precision: str = "single",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"'precision' must be one of {PRECISIONS}; got {precision!r}")
        if observation not in OBSERVATION_MODES:
            raise ValueError(
                f"'observation' must be one of {OBSERVATION_MODES}; got {observation!r}"
            )
        if (adapter is None) != (observation == "context"):
            raise ValueError(
                "'adapter' must be None exactly when observation='context'; got "
                f"observation={observation!r} "
                f"and adapter {type(adapter).__name__}"
            )
        self.networks = Networks(flow_map, adapter)
        self.likelihood, self.log_prior = likelihood, log_prior
        self.whitening = whitening
        self.features = features
        self.start = start
        self.range = ValidRange()
        self.observation_shape = observation_shape
        self.param_shapes = dict(param_shapes)
        self.param_types = dict(param_types or {})
        self.observation = observation
        self.steps = steps
        self.precision = precision
        self.config = dict(config or {})
        self.card: Card | None = None
        self.training_note: str | None = None

    @property
    def flow_map(self) -> FlowMap:
        """The two-time map."""
        return self.networks.flow_map

    @property
    def adapter(self) -> NoiseAdapter | None:
        """The adapter; none where the observation enters by context alone."""
        return self.networks.adapter

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one field."""
        return self.whitening.event_shape

    @classmethod
    def for_problem(cls, problem: InverseProblem, **options: Any) -> VariationalFlowMap:
        """Networks, whitening and Gaussian start that suit a problem; see
        :func:`vfm_inverse.build.build`."""
        from vfm_inverse.build import build

        return build(problem, **options)

    def forward(self, y: Any, **params: Any) -> PushForward:
        """The posterior of x given ``y (*obs)`` or ``(n, *obs)`` and parameters with the same
        batch, or numbers for all observations.

        Tensors and arrays of any real type are brought to the type and device of the map.

        Raises:
            TypeError: ``y`` or a parameter holds no real numbers.
            ValueError: wrong shape or parameter names, no observation, or a value that is not
                finite.

        Warns:
            CalibrationWarning: an observation lies outside the range that was checked (without a
                card: of the training simulations), see :mod:`vfm_inverse.validity`.
        """
        return self.posterior(*self.batch(y, params))

    def posterior(
        self, y: Tensor, params: Mapping[str, Tensor], batched: bool = True
    ) -> PushForward:
        """The posterior of observations ``(n, *obs)`` that :meth:`batch` has checked."""
        answer = self.answer(self.condition(y, params))
        return PushForward(
            answer.noise,
            lambda z: self.decode(z, answer),
            self.event_shape,
            batched,
            self.whitening.support,
        )

    def batch(self, y: Any, params: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], bool]:
        """Observations ``(n, *obs)`` and parameters, checked, and whether they came as a batch;
        raises and warns as :meth:`forward` does."""
        like = self.whitening.mean
        y, batched = check_batch(y, self.observation_shape, dtype=like.dtype, device=like.device)
        params = check_params(
            params,
            self.param_shapes,
            len(y),
            dtype=like.dtype,
            device=like.device,
            batched=batched,
            types=self.param_types,
        )
        simulations = "certified simulations" if self.card else "training simulations"
        if (complaint := self.range.complaint(y, params, simulations)) is not None:
            # Behind this and the two frames of nn.Module's call is whose observation it is.
            warnings.warn(complaint, CalibrationWarning, stacklevel=5)
        return y, params, batched

    def condition(self, y: Tensor, params: Mapping[str, Tensor]) -> Condition:
        """Features and Gaussian start of observations ``(n, *obs)``."""
        with torch.no_grad():
            start = None if self.start is None else self.start(y, params)
            return Condition(self.features(y, params, start), start)

    def answer(
        self,
        condition: Condition,
        networks: Networks | None = None,
        precision: str | None = None,
    ) -> Answer:
        """These networks, or others (an average, say), at the observations of ``condition``, in
        the map's precision or another."""
        networks = networks or self.networks
        flow_map, adapter = networks.flow_map, networks.adapter
        features, start = condition
        half = (precision or self.precision) == "half"
        if adapter is None:
            noise = standard_normal(features.shape[0], self.whitening.mean)
            return Answer(flow_map.at(features, start, half), noise, noise)
        q = adapter(features, start, half)
        if self.observation == "adapter":
            return Answer(flow_map.at(half=half), q, q)
        return Answer(flow_map.at(features, half=half), q, standard_law(q), frame=q)

    def decode(self, z: Tensor, answer: Answer) -> Tensor:
        """Noise ``(*sample, n, d)`` to fields ``(*sample, n, *event)``."""
        return self.whitening.unwhiten(answer.generate(z, self.steps))

    def model(self, y: Tensor, **params: Tensor) -> Tensor:
        """The posterior in noise space as a Pyro model; see :mod:`vfm_inverse.pyro_model`."""
        from vfm_inverse.pyro_model import model

        return model(self, y, **params)

    def guide(self, y: Tensor, **params: Tensor) -> Tensor:
        """The adapter as a Pyro guide for :meth:`model`."""
        from vfm_inverse.pyro_model import guide

        return guide(self, y, **params)

    def refine(self, y: Tensor, steps: int = 300, **options: Any) -> PushForward:
        """The posterior with its variational law improved for these observations; see
        :func:`vfm_inverse.pyro_model.refine`."""
        from vfm_inverse.pyro_model import refine

        return refine(self, y, steps, **options)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that :func:`vfm_inverse.load` reads back; see
        :mod:`vfm_inverse.checkpoint`."""
        from vfm_inverse.checkpoint import save

        save(self, path)

    def provenance(self) -> dict[str, str | int | float]:
        """What a data set made with this map should say about it, its card included."""
        weights = weights_fingerprint(self)
        verdict, reason = standing(self, weights)
        card = None if verdict == "uncertified" else self.card
        held = {} if card is None else {"calibration_card": card.to_json()}
        return {
            "observation_enters": self.observation,
            "flow_map_steps": self.steps,
            "model": json.dumps(self.config, sort_keys=True),
            "weights_sha256": weights,
            "calibration_verdict": verdict,
            "calibration_reason": reason,
            **held,
        }
