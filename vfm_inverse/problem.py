r"""An inverse problem: a prior over fields, and how a field becomes an observation.

.. math:: x \sim p(x), \qquad \psi \sim p(\psi), \qquad y \sim p(y \mid x, \psi),

with parameters :math:`\psi` of the physics and its noise (a mask, sigma, ...) that may differ from
one sample to the next and may be none. The observation is given by exactly one of a deepinv
``Physics`` with its noise model, a likelihood (fields to a distribution) or a simulator (fields to
observations, without a density). All else here is bookkeeping: shapes, splits, seeds, checks of
what comes in, and the names and units that labelled output needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
import xarray as xr
from deepinv.physics import Physics
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from vfm_inverse.bounded import box_of
from vfm_inverse.labels import AxisLabels
from vfm_inverse.likelihood import Likelihood
from vfm_inverse.priors import LabelledPrior, Prior, moments, samplers
from vfm_inverse.randomness import seeded

__all__ = ["InverseProblem"]

Split = Literal["train", "test"]
Params = dict[str, Tensor]
LABELLED = (xr.Dataset, xr.DataArray)


class InverseProblem:
    """Prior, observation model, parameters and labels of one inverse problem.

    Args:
        prior: samples ``(n, *event)``; a callable ``num -> (num, *event)``; a torch distribution
            over one field; or an ``xarray`` object with a ``sample`` dimension (held by dask: a
            draw reads only the samples that it needs). ``*event`` is ``(d,)`` for vectors, ``(C,
            L)`` or ``(C, H, W)`` for fields. Samples are drawn with replacement.
        physics: a deepinv ``Physics`` whose noise model has a density (see ``noise_laws``).
        likelihood: callable ``(x, **params) -> Distribution`` over observations, whose batch shape
            is that of ``x``.
        simulator: callable ``(x, **params) -> y``; what needs a density then refuses.
        transform: torch ``Transform``, element by element, from unbounded values to the support of
            the prior, in whose domain the map then works: ``ExpTransform()`` for positive fields,
            say. A distribution on a box has its own (``bounded.Box``).
        params: callable ``num -> dict`` of parameters, each ``(num, ...)``, which the observation
            model takes by name.
        test_prior: held-out prior of the same kinds. Without one, the last tenth of a prior given
            by samples is held out (nothing below 20 samples); a callable or a distribution serves
            both.
        reference: callable ``(y, **params) -> Distribution`` over fields: the exact or a
            gold-standard posterior.
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
        physics: as given, or None.
        device, dtype: of the draws.

    Raises:
        TypeError: an argument is of no kind listed above.
        ValueError: the prior is empty or not finite, the noise is zero or has no density, or
            shapes do not fit.
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
        given = {"physics": physics, "likelihood": likelihood, "simulator": simulator}
        chosen = [f"'{key}'" for key, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise ValueError(
                "give exactly one of 'physics', 'likelihood' and 'simulator'; got "
                + (" and ".join(chosen) or "none")
            )
        self.name = name
        self.kwargs = dict(kwargs or {})
        self.device = torch.device("cpu")
        self.physics = physics
        self.likelihood = likelihood
        self.transform = transform or box_of(prior)
        self._simulator = simulator
        self._params = params
        self._reference = reference
        self._prior = prior
        self._samplers = samplers(prior, test_prior)

        with seeded(0):  # one sample shows the shapes; the caller's random stream must not notice
            x, x_test = self._samplers["train"](1), self._samplers["test"](1)
            self.field_shape, self.dtype = x.shape[1:], x.dtype
            self._prior_device = x.device
            if x_test.shape != x.shape:
                raise ValueError(
                    f"'test_prior' has fields of shape {tuple(x_test.shape[1:])}; "
                    f"'prior' has {tuple(self.field_shape)}"
                )
            if physics is not None:
                self.likelihood = Likelihood(physics, event_dim=len(self.field_shape))
            example_params = self._sample_params(1)
            self.param_shapes = {key: value.shape[1:] for key, value in example_params.items()}
            y = self._observe(x, example_params)
        if not bool(torch.isfinite(y).all()):
            raise ValueError("an observation simulated from the prior is not finite")
        self.observation_shape = y.shape[1:]

        labelled = LabelledPrior.read(prior) if isinstance(prior, LABELLED) else None
        self.field_labels = AxisLabels.of_field(
            self.field_shape,
            dims=dims,
            coords=coords,
            units=units,
            long_name=long_name,
            prior=labelled,
        )
        self.observation_labels = AxisLabels.of_observation(
            self.observation_shape,
            dims=obs_dims,
            coords=obs_coords,
            units=obs_units,
            fields=self.field_labels,
        )

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
        _check_num(num)
        with seeded(_stream(seed, split)):
            return self._sample_prior(num, split)

    def sample_params(self, num: int, *, seed: int | None = None) -> Params:
        """Draw parameters, each ``(num, *shape)``; an empty dict where the problem has none."""
        _check_num(num)
        with seeded(seed):
            return self._sample_params(num)

    def simulate(
        self, num: int, *, split: Split = "train", seed: int | None = None
    ) -> tuple[Tensor, Tensor, Params]:
        """Draw ``(x, y, params)`` from the joint law.

        Equal seeds give different draws in the two splits, so that a test never repeats what was
        trained on.

        Returns:
            Fields ``(num, *field_shape)``, observations ``(num, *observation_shape)`` and
            parameters.
        """
        _check_num(num)
        with seeded(_stream(seed, split)):
            x = self._sample_prior(num, split)
            params = self._sample_params(num)
            return x, self._observe(x, params), params

    def record(self, num: int, *, seed: int | None = None) -> InverseProblem:
        """The same problem with ``num`` simulations drawn now and for all; see
        :class:`~vfm_inverse.records.RecordedProblem`."""
        from vfm_inverse.records import RecordedProblem

        return RecordedProblem(self, num, seed)

    def observe(self, x: Tensor, *, seed: int | None = None, **params: Tensor) -> Tensor:
        """Noisy observations ``(*batch, *observation_shape)`` of ``x`` ``(*batch, *field_shape)``.

        Raises:
            ValueError: the shape of ``x`` or the parameters do not fit the problem.
        """
        batch = self._check_field(x)
        checked = self._check_params(params, batch)
        with seeded(seed):
            return self._observe(x.to(self.device, self.dtype), checked)

    def log_likelihood(self, x: Tensor, y: Tensor, **params: Tensor) -> Tensor:
        """``log p(y | x)`` in nats, ``(*batch,)``, for ``x`` ``(*batch, *field_shape)``.

        ``y`` broadcasts against ``(*batch, *observation_shape)``.

        Raises:
            ValueError: the problem has a simulator only, or shapes do not fit.
        """
        if self.likelihood is None:
            raise ValueError(
                "this problem has a simulator and no likelihood; give 'physics' or 'likelihood' "
                "to use what needs a density"
            )
        self._check_field(x)
        return self.likelihood(x, **params).log_prob(y)

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
        if self.transform is not None:
            return None
        return moments(self._prior) if isinstance(self._prior, Distribution) else None

    @property
    def log_prior(self) -> Callable[[Tensor], Tensor] | None:
        """``log p(x)`` in nats, ``(*batch, *field_shape)`` to ``(*batch,)``; ``None`` unless the
        prior is a distribution."""
        if not isinstance(self._prior, Distribution):
            return None
        prior, home = self._prior, self._prior_device
        # A distribution stays on the device where its parameters are.
        return lambda x: prior.log_prob(x.to(home)).to(x.device)

    def check_observation(
        self, y: Tensor, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Params]:
        """Check an observation at the border and bring it to the problem's device and dtype.

        Args:
            y: observations ``(batch, *observation_shape)``.
            params: their parameters, each ``(batch, *shape)`` or a number for all.

        Raises:
            TypeError: ``y`` is no floating-point tensor.
            ValueError: wrong shape, a value that is not finite, missing or unknown parameters.
        """
        if not isinstance(y, Tensor):
            raise TypeError(f"'y' must be a torch.Tensor; got {type(y).__name__}")
        if not y.is_floating_point():
            raise TypeError(f"'y' must hold floating-point numbers; got {y.dtype}")
        if y.shape[1:] != self.observation_shape or y.dim() == len(self.observation_shape):
            hint = "; add a batch dimension" if y.shape == self.observation_shape else ""
            raise ValueError(
                f"'y' must have shape (batch, {_inner(self.observation_shape)}); "
                f"got {tuple(y.shape)}{hint}"
            )
        missing = int((~torch.isfinite(y)).sum())
        if missing:
            raise ValueError(
                f"'y' must be finite; {missing} of {y.numel()} values are not. NaN means 'not "
                "observed' in labelled data only: see vfm_inverse.labelled.load_observation"
            )
        return y.to(self.device, self.dtype), self._check_params(params or {}, y.shape[:1])

    def to(self, device: torch.device | str) -> Self:
        """Move prior samples and physics; draws are on ``device`` from then on."""
        self.device = torch.device(device)
        for sampler in self._samplers.values():
            sampler.to(self.device)
        if self.physics is not None:
            self.physics.to(self.device)
        return self

    def describe_physics(self) -> str:
        """The observation model in one line, for provenance."""
        if isinstance(self.likelihood, Likelihood):
            return repr(self.likelihood)
        kind = "simulator" if self.likelihood is None else "likelihood"
        how = self.likelihood or self._simulator
        return f"{kind} {getattr(how, '__qualname__', type(how).__name__)}"

    def __repr__(self) -> str:
        return (
            f"InverseProblem({self.name or 'unnamed'}: field {tuple(self.field_shape)}, "
            f"observation {tuple(self.observation_shape)}, params {sorted(self.param_shapes)}, "
            f"{self.describe_physics()})"
        )

    def _sample_prior(self, num: int, split: str) -> Tensor:
        return self._samplers[split](num).to(self.device)

    def _sample_params(self, num: int) -> Params:
        params = {} if self._params is None else self._params(num)
        for key, value in params.items():
            if value.dim() == 0 or value.shape[0] != num:
                raise ValueError(
                    f"'params' must return tensors with leading dimension {num}; "
                    f"'{key}' has shape {tuple(value.shape)}"
                )
        return {key: value.to(self.device) for key, value in params.items()}

    def _observe(self, x: Tensor, params: Params) -> Tensor:
        # Drawn from the density even where there is a physics: deepinv's noise models broadcast
        # some per-sample parameters wrongly, and what is simulated and what is inverted must
        # agree.
        if self.likelihood is not None:
            return self.likelihood(x, **params).sample()
        assert self._simulator is not None  # the constructor saw to it
        return self._simulator(x, **params)

    def _check_field(self, x: Tensor) -> torch.Size:
        lead = x.dim() - len(self.field_shape)
        if lead < 1 or x.shape[lead:] != self.field_shape:
            raise ValueError(
                f"'x' must have shape (*batch, {_inner(self.field_shape)}); got {tuple(x.shape)}"
            )
        return x.shape[:lead]

    def _check_params(self, params: Mapping[str, Tensor], batch: torch.Size) -> Params:
        unknown = sorted(params.keys() - self.param_shapes.keys())
        missing = sorted(self.param_shapes.keys() - params.keys())
        if unknown or missing:
            raise ValueError(
                f"this problem takes the parameters {sorted(self.param_shapes)}"
                + (f"; unknown {unknown}" if unknown else "")
                + (f"; missing {missing}" if missing else "")
            )
        checked = {}
        for key, shape in self.param_shapes.items():
            value = torch.as_tensor(params[key], device=self.device)
            expected = batch[-1:] + shape
            if value.dim() == 0:
                value = value.expand(expected)
            if value.shape != expected:
                raise ValueError(
                    f"'{key}' must have shape ({_inner(expected)}); got {tuple(value.shape)}"
                )
            if value.is_floating_point():
                value = value.to(self.dtype)
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"'{key}' must be finite")
            checked[key] = value
        return checked


def _stream(seed: int | None, split: str) -> int | None:
    """Seed of a split: the two splits of one seed are different streams."""
    if split not in ("train", "test"):
        raise ValueError(f"'split' must be 'train' or 'test'; got {split!r}")
    if seed is None or split == "train":
        return seed
    # torch's CPU generator looks at the lower 32 bits of a seed only.
    return seed ^ 0x7E57_7E57


def _check_num(num: int) -> None:
    if num < 1:
        raise ValueError(f"'num' must be positive; got {num}")


def _inner(shape: Sequence[int]) -> str:
    return ", ".join(str(size) for size in shape)
