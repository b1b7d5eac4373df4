r"""An inverse problem: a prior over fields, and how a field becomes an observation.

.. math:: x \sim p(x), \qquad \psi \sim p(\psi), \qquad y \sim p(y \mid x, \psi),

with parameters :math:`\psi` of the physics and its noise (a mask, sigma, ...) that may differ from
one sample to the next and may be none. The observation is given by exactly one of a deepinv
``Physics`` with its noise model, a likelihood (fields to a distribution) or a simulator (fields to
observations, without a density). All else here is bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import torch
import xarray as xr
from deepinv.physics import Physics
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from vfm_inverse.problem.checks import (
    check_axes,
    check_batch,
    check_data,
    check_drawn,
    check_fields,
    check_params,
)
from vfm_inverse.problem.labels import AxisLabels
from vfm_inverse.problem.observation_model import ObservationModel
from vfm_inverse.problem.priors import Prior
from vfm_inverse.problem.record import Record
from vfm_inverse.problem.simulation import Simulations, stream_of
from vfm_inverse.problem.splits import PriorSplits, Split
from vfm_inverse.problem.supports import support_of, transform_of
from vfm_inverse.problem.symmetries import Symmetry
from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.runtime.calls import attempt, check_kind
from vfm_inverse.runtime.config import Recipe
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.values import check_callable, check_integer, check_type, resolve_device

__all__ = ["InverseProblem"]

Params = dict[str, Tensor]


class InverseProblem:
    """Prior, observation model, parameters and labels of one inverse problem.

    Args:
        prior: samples ``(n, *event)``; a callable ``num -> (num, *event)``; a torch distribution
            over one field; or an ``xarray`` object with a ``sample`` dimension (held by dask: a
            draw reads only the samples that it needs). ``*event`` is ``(d,)`` for vectors, ``(C,
            L)``, ``(C, H, W)`` or ``(C, D, H, W)`` for fields. Samples are drawn with replacement.
        physics: a deepinv ``Physics`` whose noise model has a density (see ``noise_laws``).
        likelihood: callable ``(x, **params) -> Distribution`` over observations, batched as ``x``.
        simulator: callable ``(x, **params) -> y``; what needs a density then refuses.
        transform: torch ``Transform``, element by element, from unbounded values to the support of
            the prior, in whose domain the map then works: ``ExpTransform()`` for positive fields,
            say. A distribution on a box has its own (``bounded.Box``).
        params: callable ``num -> dict`` of parameters, each ``(num, ...)``, which the observation
            model takes by name; integers and booleans stay what they are.
        test_prior: held-out prior of the same kinds. Without one, the last tenth of a prior given
            by samples is held out (nothing below 20 samples); a callable or a distribution serves
            both.
        reference: callable ``(y, **params) -> Distribution``: the exact or a gold posterior.
        symmetries: each a pair ``(field, observation)`` of functions
            (:mod:`vfm_inverse.problem.symmetries`), of which a training makes more simulations.
        dtype: ``torch.float32`` or ``torch.float64``, the type of all numbers of the problem and
            of maps that are built for it. By default that of the prior's tensors; torch's default
            type where the prior is a NumPy or labelled array or holds integers.
        name, kwargs: how ``problems.load(name, **kwargs)`` rebuilds the problem.
        dims, coords, units, long_name: labels of a field, without the channel dimension where
            there is one channel; taken from a labelled prior unless given. ``coords`` as xarray
            takes them.
        obs_dims, obs_coords, obs_units: labels of an observation; those of the field where the
            shapes agree and none are given.

    Attributes:
        field_shape, observation_shape: event shapes.
        param_shapes: shape of each parameter, without its leading dimension.
        field_labels, observation_labels: labels as ``AxisLabels``.
        likelihood: ``(x, **params) -> Distribution``, or None with a simulator.
        transform: from unbounded values to the prior's support, or None.
        physics: as given, a copy of it where it computes in another type, or None.
        device, dtype: of the draws.
        simulations: finite ones, and a count of those left out.
        recipe: how it is made from a settings file, if it was (:mod:`vfm_inverse.runs.recipes`).

    Raises:
        TypeError: an argument is of no kind listed above.
        ValueError: the prior is empty or not finite, the noise is zero or has no density, or
            shapes do not fit.

    Warns:
        SimulationWarning: equal seeds do not give equal simulations (a generator of its own in
            the prior, ``params`` or the simulator).
    """

    def __init__(
        self,
        prior: Prior,
        *,
        physics: Physics | None = None,
        likelihood: Callable[..., Distribution] | None = None,
        simulator: Callable[..., Tensor] | None = None,
        transform: Transform | None = None,
        params: Callable[[int], Params] | None = None,
        test_prior: Prior | None = None,
        reference: Callable[..., Distribution] | None = None,
        symmetries: Sequence[Symmetry] = (),
        dtype: torch.dtype | None = None,
        name: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        coords: Mapping[str, Any] | None = None,
        units: str | None = None,
        long_name: str | None = None,
        obs_dims: Sequence[str] | None = None,
        obs_coords: Mapping[str, Any] | None = None,
        obs_units: str | None = None,
    ) -> None:
        check_callable(params=params, reference=reference)
        check_type(dtype)
        if transform is not None:
            check_kind(transform, "transform", "Transform")
        self.name, self.kwargs = name, dict(kwargs or {})
        self.rebuild: Callable[[], InverseProblem] | None = None
        self.recipe: Recipe | None = None
        self._kept: Record | None = None
        self.device = torch.device("cpu")
        self.transform = transform_of(prior) if transform is None else transform
        self.support = None if transform is not None else support_of(prior)
        self._params, self._reference = params, reference
        self.symmetries = tuple(Symmetry(*pair) for pair in symmetries)
        self._splits = PriorSplits(prior, test_prior, dtype)
        x = self._splits.example
        self.field_shape, self.dtype = x.shape[1:], x.dtype
        if dims is None and self._splits.labelled is None:
            check_axes(self.field_shape)
        event_dim = len(self.field_shape)
        self._model = ObservationModel(physics, likelihood, simulator, event_dim, self.dtype)
        self.simulations = Simulations(self._simulate, self._model)
        self._try_out(x)
        self.field_labels = AxisLabels.of_field(
            self.field_shape,
            dims=dims,
            coords=coords,
            units=units,
            long_name=long_name,
            prior=self._splits.labelled,
        )
        self.observation_labels = AxisLabels.of_observation(
            self.observation_shape,
            dims=obs_dims,
            coords=obs_coords,
            units=obs_units,
            fields=self.field_labels,
        )

    def _try_out(self, x: Tensor) -> None:
        """Learn what parameters look like, and that they and the model follow the seed."""
        with seeded(0):
            example = self._sample_params(2)
            self.simulations.try_out(x, example)
        self.param_shapes = {key: value.shape[1:] for key, value in example.items()}
        self.param_types = {
            key: value.dtype for key, value in example.items() if not value.is_floating_point()
        }

    @property
    def physics(self) -> Physics | None:
        """The physics, in the problem's type."""
        return self._model.physics

    @property
    def likelihood(self) -> Callable[..., Distribution] | None:
        """``(x, **params) -> Distribution`` over observations; None with a simulator."""
        return self._model.likelihood

    @property
    def observation_shape(self) -> torch.Size:
        """Shape of one observation."""
        assert self._model.shape is not None  # the constructor learnt it
        return self._model.shape

    def num_prior_samples(self, split: Split = "train") -> int | None:
        """Samples that a split draws from; None where it never gives one twice."""
        return self._splits.size(split) if self._kept is None else len(self._kept.rows(split))

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the field's axes, without a channel of size one."""
        return self.field_labels.dims

    @property
    def coords(self) -> Mapping[str, xr.Variable]:
        """Coordinates of the field."""
        return self.field_labels.coords

    @property
    def units(self) -> str | None:
        """Units of the field."""
        return self.field_labels.units

    @property
    def long_name(self) -> str | None:
        """What the field is."""
        return self.field_labels.long_name

    def sample_prior(self, num: int, *, split: Split = "train", seed: int | None = None) -> Tensor:
        """Draw fields ``(num, *field_shape)`` from the prior of the split."""
        num = check_integer(num, "num", 1)
        with seeded(stream_of(seed, split)):
            return self._sample_prior(num, split)

    def held_fields(self, most: int) -> Tensor | None:
        """The samples ``(n, *field_shape)`` that training draws from, if at most ``most``."""
        return (self._kept or self._splits).held(most)

    def sample_params(self, num: int, *, seed: int | None = None) -> Params:
        """Draw parameters, each ``(num, *shape)``; an empty dict where the problem has none."""
        num = check_integer(num, "num", 1)
        with seeded(seed):
            return self._sample_params(num)

    def simulate(
        self, num: int, *, split: Split = "train", seed: int | None = None
    ) -> tuple[Tensor, Tensor, Params]:
        """Draw ``(x, y, params)`` from the joint law.

        Equal seeds give different draws in the two splits, so that a test never repeats what was
        trained on. A simulation that is not finite is left out and replaced by another one: the
        prior is then that of the fields which the observation model can do.

        Returns:
            Fields ``(num, *field_shape)``, observations ``(num, *observation_shape)`` and
            parameters.

        Raises:
            ValueError: more than half of the simulations are not finite.

        Warns:
            SimulationWarning: how many were left out, at first and whenever ten times as many
                simulations were made.
        """
        num, stream = check_integer(num, "num", 1), stream_of(seed, split)
        if self._kept is not None:
            with seeded(seed):
                return self._kept.draw(num, split)
        with seeded(stream):
            return self.simulations(num, split)

    def record(self, num: int, *, seed: int | None = None) -> InverseProblem:
        """The same problem, whose simulations come from ``num`` that are drawn now, at least 10:
        the last tenth for the split ``"test"``, with replacement."""
        twin = copy(self)
        twin._kept = Record.drawn(self.simulate, num, seed)
        return twin

    def observe(self, x: Tensor, *, seed: int | None = None, **params: Tensor) -> Tensor:
        """Noisy observations ``(*batch, *observation_shape)`` of ``x`` ``(*batch, *field_shape)``.

        Raises:
            ValueError: the shape of ``x`` or the parameters do not fit the problem.
        """
        x, batch = check_fields(x, self.field_shape, dtype=self.dtype, device=self.device)
        checked = self._check_params(params, batch[-1])
        with seeded(seed):
            return self._model(x, checked)

    def log_likelihood(self, x: Tensor, y: Tensor, **params: Tensor) -> Tensor:
        """``log p(y | x)`` in nats, ``(*batch,)``, for ``x`` ``(*batch, *field_shape)``.

        ``y`` broadcasts against ``(*batch, *observation_shape)``. In the type of ``x``.

        Raises:
            ValueError: the problem has a simulator only, or shapes do not fit.
        """
        if self.likelihood is None:
            raise ValueError(
                "this problem has a simulator and no likelihood; give 'physics' or 'likelihood' "
                "to use what needs a density"
            )
        x, batch = check_fields(x, self.field_shape, device=self.device)
        y = check_data(y, self.observation_shape, batch, dtype=x.dtype, device=self.device)
        given = {k: real_tensor(v, k, device=self.device) for k, v in params.items()}
        return self.likelihood(x, **given).log_prob(y)

    def reference_posterior(self, y: Tensor, **params: Tensor) -> Distribution | None:
        """Exact or gold-standard posterior of ``y`` ``(batch, *observation_shape)``, or None."""
        if self._reference is None:
            return None
        y, params = self.check_observation(y, params)
        return self._reference(y, **params)

    def prior_moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean ``(d,)`` and covariance ``(d, d)`` of the flattened field, or of its unbounded
        values where there is a transform, in double precision; ``None`` unless the prior is a
        distribution that states them."""
        return None if self.transform is not None else self._splits.moments()

    @property
    def has_gaussian_prior(self) -> bool:
        """Whether the prior is a distribution that is known to be Gaussian."""
        return self._splits.gaussian

    @property
    def log_prior(self) -> Callable[[Tensor], Tensor] | None:
        """``log p(x)`` in nats, ``(*batch, *field_shape)`` to ``(*batch,)``; ``None`` unless the
        prior is a distribution."""
        return self._splits.log_prob()

    def check_observation(
        self, y: Tensor, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Params]:
        """Check an observation at the border and bring it to the problem's device and dtype.

        Args:
            y: observations ``(batch, *observation_shape)``.
            params: their parameters, each ``(batch, *shape)`` or a number for all.

        Raises:
            TypeError: ``y`` or a parameter holds no real numbers.
            ValueError: wrong shape, a value that is not finite, missing or unknown parameters.
        """
        y, _ = check_batch(
            y, self.observation_shape, dtype=self.dtype, device=self.device, single=False
        )
        return y, self._check_params(params, len(y))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move prior samples and physics to ``device``; compute and draw in ``dtype`` then."""
        self.device = self.device if device is None else resolve_device(device)
        self._splits.to(self.device, dtype)
        if dtype is not None and dtype != self.dtype:
            self.dtype = dtype
            self._model = self.simulations.model = self._model.cast(dtype)
        if self.physics is not None:
            self.physics.to(self.device)
        if self._kept is not None:
            self._kept = self._kept.to(self.device, self.dtype, self.param_types)
        return self

    def describe_physics(self) -> str:
        """The observation model in one line."""
        return self._model.describe()

    def __reduce__(self) -> Any:
        """A problem that ``problems.load`` made is made again where it is unpickled."""
        if self.rebuild is None:
            return super().__reduce__()
        return _rebuilt, (self.rebuild, self._kept, str(self.device), self.dtype)

    def __repr__(self) -> str:
        return (
            f"InverseProblem({self.name or 'unnamed'}: field {tuple(self.field_shape)}, "
            f"observation {tuple(self.observation_shape)}, params {sorted(self.param_shapes)}, "
            f"{self.describe_physics()})"
        )

    def _simulate(self, num: int, split: str) -> tuple[Tensor, Tensor, Params]:
        x = self._sample_prior(num, split)
        params = self._sample_params(num)
        return x, self._model(x, params), params

    def _sample_prior(self, num: int, split: str) -> Tensor:
        return self._splits.draw(num, split).to(self.device)

    def _sample_params(self, num: int) -> Params:
        drawn = {} if self._params is None else attempt(self._params, "params", num)
        return check_drawn(drawn, num, dtype=self.dtype, device=self.device)

    def _check_params(self, params: Mapping[str, Any] | None, num: int) -> Params:
        return check_params(
            params,
            self.param_shapes,
            num,
            dtype=self.dtype,
            device=self.device,
            types=self.param_types,
        )


def _rebuilt(
    rebuild: Callable[[], InverseProblem], kept: Record | None, *to: Any
) -> InverseProblem:
    problem = rebuild().to(*to)
    problem._kept = kept
    return problem
