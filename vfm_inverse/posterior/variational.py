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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vfm_inverse.flow.adapter import NoiseAdapter
from vfm_inverse.flow.flow_map import FlowMap
from vfm_inverse.flow.transport import Base
from vfm_inverse.gaussian.amplitude_mixture import classes_of
from vfm_inverse.gaussian.frames import standard_law
from vfm_inverse.gaussian.normals import ContractedNormal, standard_normal
from vfm_inverse.gaussian.operator_start import GaussianStart
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.networks.encoders import FieldFeatures, VectorFeatures
from vfm_inverse.networks.stations import StationFeatures
from vfm_inverse.posterior.answer import Answer, Condition, Networks, check_modes
from vfm_inverse.posterior.assembly import Choice, build, rebuild
from vfm_inverse.posterior.card import Card, Standing, complaint
from vfm_inverse.posterior.push_forward import PushForward
from vfm_inverse.posterior.sweeps import ending
from vfm_inverse.posterior.validity import ValidRange
from vfm_inverse.problem.checks import check_batch, check_params
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.fingerprints import fingerprint
from vfm_inverse.runtime.warnings import CalibrationWarning
from vfm_inverse.sampling.exact import AS_SAMPLED, exact_draws

__all__ = ["VariationalFlowMap"]


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
        exact: whether draws are made exact, where likelihood and prior have densities
            (:mod:`vfm_inverse.sampling.exact`); it may be set later, too.
        config: how :meth:`for_problem` was called, for the checkpoint.
        valid_range: of the observations that it was trained on.

    Attributes:
        card: what the calibration of this map found
            (:func:`vfm_inverse.calibration.certification.certify`), or ``None``.
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
        exact: bool = False,
        config: Mapping[str, Any] | None = None,
        valid_range: ValidRange | None = None,
    ) -> None:
        super().__init__()
        check_modes(precision, observation, adapter)
        self.networks = Networks(flow_map, adapter)
        self.likelihood, self.log_prior = likelihood, log_prior
        self.whitening = whitening
        self.features = features
        self.start = start
        self.range = ValidRange() if valid_range is None else valid_range
        self.observation_shape = observation_shape
        self.param_shapes = dict(param_shapes)
        self.param_types = dict(param_types or {})
        self.observation = observation
        self.steps = steps
        self.precision = precision
        self.exact = exact
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
    def resamples(self) -> bool:
        """Whether draws are exact as they are sampled."""
        return self.exact and self.likelihood is not None and self.log_prior is not None

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one field."""
        return self.whitening.event_shape

    @classmethod
    @checked(
        "model",
        problem="InverseProblem",
        adapter="str",
        observation="str",
        whitening=("str", "Whitening"),
        precision="str",
        network="str",
        start="str",
    )
    def for_problem(
        cls,
        problem: InverseProblem,
        *,
        adapter: str | None = None,
        observation: str = "both",
        gaussian_start: bool = True,
        whitening: str | Whitening = "auto",
        steps: int = 1,
        precision: str = "single",
        network: str = "auto",
        width: int | None = None,
        depth: int | None = None,
        max_rank: int = 128,
        start: str = "auto",
        exact: str | bool = "auto",
        num_simulations: int = 20_000,
        seed: int = 0,
        progress: bool = True,
    ) -> VariationalFlowMap:
        """Build an untrained map for a problem; with a Gaussian start it already is the classical
        posterior.

        Args:
            problem: what to invert.
            adapter: family of ``q(z | y)``: ``"contraction"`` (the default with a Gaussian start),
                ``"full"`` (the default without one, up to 64 dimensions), ``"diagonal"`` (above),
                ``"low-rank"``, ``"mixture"`` or ``"spline"``.
            observation: where the observation enters: ``"adapter"``, ``"context"`` or ``"both"``.
            gaussian_start: start from the Gaussian answer: whitened coordinates, preconditioned
                map, informed adapter.
            whitening: ``"auto"``, ``"dense"``, ``"spectral"``, ``"low-rank"``, ``"identity"`` or a
                fitted :class:`~vfm_inverse.gaussian.whitening_base.Whitening`.
            steps: steps of the flow map for one draw.
            precision: ``"single"``, or ``"half"`` for networks that compute in bfloat16.
            network: ``"mlp"`` or ``"u-net"``; ``"auto"`` takes a U-Net for fields of more than 64
                numbers, and for vectors of 32 or more that are a signal: neighbours correlate in
                the prior as others do not, and the observation can be brought to their places.
            width: hidden width (MLP, default 128) or channels (U-Net, default 32).
            depth: residual blocks (MLP, default 3) or halvings (U-Net, by the field's size).
            max_rank: most informed directions kept with many data of a varying operator, and in a
                regression.
            start: ``"auto"`` (the one that suits), ``"gaussian"`` (the exact answer of a Gaussian
                prior for linear physics with Gaussian noise, else a regression),
                ``"regression"``, ``"amplitudes"`` (a mixture over how strong fields are, scale by
                scale, for the same physics), ``"laplace"`` (the Gaussian at the mode of each
                posterior) or ``"frame"`` (around the mode, with the physics in the coordinates:
                draws fit the data though it is not linear). The last two take a differentiable
                physics with Gaussian noise, and some hundred evaluations of it an observation.
            exact: ``"auto"``: up to 16 unknowns are drawn from the exact posterior where prior and
                likelihood have densities (:mod:`vfm_inverse.sampling.exact`) and are not linear
                and Gaussian, so that the map is exact as it is; ``False``: never.
            num_simulations: simulations that whitening, start and features are fitted on; fewer of
                large fields, to stay within a quarter of a gigabyte. A prior given by fewer
                samples is whitened by all of these, one without end by up to 150 times as many
                draws (:mod:`vfm_inverse.gaussian.streamed_moments`).
            seed: fixes simulations and initial weights.
            progress: show a progress bar where it takes longer than some seconds.

        Raises:
            ValueError: an unknown name, a number out of range, or a combination that cannot work.
        """
        choice = Choice(
            adapter,
            observation,
            gaussian_start,
            whitening,
            steps,
            precision,
            network,
            width,
            depth,
            max_rank,
            start,
            exact,
        )
        return cls(**build(problem, choice, num_simulations, seed, progress)._asdict())

    @classmethod
    def from_config(
        cls,
        problem: InverseProblem,
        config: Mapping[str, Any],
        whitening: Whitening | None = None,
    ) -> VariationalFlowMap:
        """The same map as :meth:`for_problem` made, unfitted: a checkpoint fills in the numbers.

        The problem computes in the type of the map from then on.

        Args:
            problem: whose map it is.
            config: as :attr:`config` of the map.
            whitening: one of the kind it was built with, if that was a class of your own.
        """
        return cls(**rebuild(problem, config, whitening)._asdict())

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
                card: of the training simulations), see :mod:`vfm_inverse.posterior.validity`.
        """
        return self.posterior(*self.batch(y, params))

    def posterior(
        self, y: Tensor, params: Mapping[str, Tensor], batched: bool = True
    ) -> PushForward:
        """The posterior of observations ``(n, *obs)`` that :meth:`batch` has checked; its ``raw``
        is that of the map alone."""
        answer = self.answer(self.condition(y, params))
        draws = partial(exact_draws, self, y, params, batched=batched) if self.resamples else None
        return PushForward(
            answer.noise,
            lambda z: self.decode(z, answer),
            self.event_shape,
            batched,
            self.whitening.support,
            draws,
            ending(self.log_prior, self.likelihood, y, params, self.config.get("sweeps", 0)),
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
            assert isinstance(start, ContractedNormal | None)  # for_problem saw to it
            return Answer(flow_map.at(features, start, half), noise, Base(noise))
        q = adapter(features, start, half)
        if self.observation == "adapter":
            return Answer(flow_map.at(half=half), q, Base(q))
        bound = flow_map.at(features, None, half, classes_of(q))
        return Answer(bound, q, Base(standard_law(q)), q)

    def decode(self, z: Tensor, answer: Answer) -> Tensor:
        """Noise ``(*sample, n, d)`` to fields ``(*sample, n, *event)``."""
        return self.whitening.unwhiten(answer.generate(z, self.steps))

    @checked(path="path")
    def save(self, path: str | Path) -> None:
        """Write a checkpoint that :func:`vfm_inverse.load` reads back; see
        :mod:`vfm_inverse.runs.checkpoint`.

        It holds weights, whitening, Gaussian start, features, how to rebuild its problem, what
        came of its training, and its calibration card.

        Raises:
            OSError: the file cannot be written.
            TypeError: ``path`` is none.
        """
        card = None if self.card is None else json.loads(self.card.to_json())
        header = {"config": self.config, "card": card, "training": self.training_note}
        storage.write(path, self.state_dict(), "model", header)

    def provenance(self) -> dict[str, str | int | float]:
        """What a data set made with this map should say about it, its card included."""
        weights = self.weights_fingerprint()
        verdict, reason = self.standing(weights)
        card = None if verdict == "uncertified" else self.card
        held = {} if card is None else {"calibration_card": card.to_json()}
        return {
            "observation_enters": self.observation,
            "flow_map_steps": self.steps,
            "model": json.dumps(self.config, sort_keys=True),
            "weights_sha256": weights,
            **({"draws": AS_SAMPLED} if self.resamples else {}),
            "calibration_verdict": verdict,
            "calibration_reason": reason,
            **held,
        }

    def weights_fingerprint(self) -> str:
        """SHA-256 of all that draws depend on, so of the whitening and the Gaussian start too; the
        range of validity is not part of it."""
        tensors = {k: v for k, v in self.state_dict().items() if not k.startswith("range.")}
        how = f"{self.observation} {self.steps} {self.precision}{' exact' * self.resamples}"
        return fingerprint(how, tensors)

    def standing(self, weights: str | None = None) -> tuple[Standing, str]:
        """Verdict on the map as it is now, and why: ``"pass"``, ``"fail"`` or ``"uncertified"``.

        Args:
            weights: its :meth:`weights_fingerprint`, where that is known already.
        """
        if self.card is None:
            return "uncertified", "its calibration was never checked"
        if self.card.weights_sha256 != (weights or self.weights_fingerprint()):
            return "uncertified", "its weights changed after its calibration was checked"
        return "pass" if self.card.verdict == "pass" else "fail", self.card.reason

    def warn_unless_certified(self, name: str, stacklevel: int = 2) -> None:
        """Warn when the map failed its calibration or was not checked as it is.

        Args:
            name: what to call it.
            stacklevel: whose line the warning names, as in :func:`warnings.warn`.
        """
        if (text := complaint(name, *self.standing())) is not None:
            warnings.warn(text, CalibrationWarning, stacklevel=stacklevel + 1)
