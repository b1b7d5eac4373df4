"""How a field becomes an observation: one face for a physics, a likelihood and a simulator.

Whatever they return is brought to the problem's type, its shape is compared with the fields', and
one number a field becomes an observation of shape ``(1,)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NoReturn

import torch
from deepinv.physics import LogPoissonNoise, Physics
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution

from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.runtime.calls import raised_here
from vfm_inverse.runtime.values import check_callable, inner, shorten

__all__ = ["DataLaw", "ObservationModel", "StatedLikelihood", "cast_physics"]


class DataLaw(TorchDistribution):
    """The law of observations ``(*batch, *obs)`` behind a distribution that may declare them
    otherwise: data that are no event dimensions, one number a field, another type.

    Args:
        base: a distribution of whose batch shape ``batch`` is the beginning.
        batch: batch shape of the fields.
        dtype: of draws and densities.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real

    def __init__(self, base: Distribution, batch: torch.Size, dtype: torch.dtype) -> None:
        self.base, self._dtype = base, dtype
        self._data = len(base.batch_shape) - len(batch)
        whole = base.batch_shape + base.event_shape
        self._scalar = len(whole) == len(batch)
        event = torch.Size([1]) if self._scalar else whole[len(batch) :]
        super().__init__(batch, event, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the base has reparametrised draws."""
        return bool(self.base.has_rsample)

    @property
    def mean(self) -> Tensor:
        """Mean, ``(*batch, *obs)``."""
        return self._shaped(self.base.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of each datum, ``(*batch, *obs)``."""
        return self._shaped(self.base.variance)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws, ``(*sample, *batch, *obs)``."""
        return self._shaped(self.base.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Reparametrised draws, ``(*sample, *batch, *obs)``."""
        return self._shaped(self.base.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of data that broadcast against ``(*batch, *obs)``, ``(*batch,)``.

        Raises:
            ValueError: the law has no density at ``value``.
        """
        try:
            density = self.base.log_prob(value.squeeze(-1) if self._scalar else value)
        except ValueError as error:  # torch prints all of the numbers
            raise ValueError(
                f"the likelihood has no density at these data: {shorten(str(error))}"
            ) from error
        if self._data > 0:
            density = density.flatten(-self._data).sum(-1)
        return density.to(self._dtype)

    def _shaped(self, values: Tensor) -> Tensor:
        values = values.to(self._dtype)
        return values.unsqueeze(-1) if self._scalar else values


class StatedLikelihood:
    """A likelihood function of the user's, ``(x, **params) -> Distribution`` over observations.

    Args:
        function: as the user wrote it.
        event_dim: dimensions of one field.
    """

    def __init__(self, function: Callable[..., Distribution], event_dim: int) -> None:
        self.function, self.event_dim = function, event_dim

    def __call__(self, x: Tensor, **params: Tensor) -> DataLaw:
        """Law of the observations of fields ``(*batch, *event)``.

        Raises:
            TypeError: the function returns no distribution.
            ValueError: its batch shape is not that of the fields.
        """
        law, batch = self.function(x, **params), x.shape[: x.dim() - self.event_dim]
        if not isinstance(law, Distribution):
            raise TypeError(
                f"'likelihood' must return a torch Distribution; got {type(law).__name__}"
            )
        if law.batch_shape[: len(batch)] != batch:
            raise ValueError(
                f"'likelihood' must return a distribution whose batch shape begins with that of "
                f"the fields, {tuple(batch)}; got batch shape {tuple(law.batch_shape)} and event "
                f"shape {tuple(law.event_shape)} for fields of shape {tuple(x.shape)}"
            )
        return DataLaw(law, batch, x.dtype)

    def __repr__(self) -> str:
        return f"likelihood {_name(self.function)}"


class ObservationModel:
    """Fields to observations, in the type of the fields.

    Args:
        physics, likelihood, simulator: as
            :class:`~vfm_inverse.problem.inverse_problem.InverseProblem` takes them; one of them.
        event_dim: dimensions of one field.
        dtype: of the fields.

    Attributes:
        physics: in ``dtype``, or ``None``.
        likelihood: ``(x, **params) -> Distribution``, or ``None`` with a simulator.
        shape: of one observation, once :meth:`learn_shape` was called.

    Raises:
        TypeError: one of them is of another kind.
        ValueError: none or several are given, or the physics has no density.
    """

    def __init__(
        self,
        physics: Physics | None,
        likelihood: Callable[..., Distribution] | None,
        simulator: Callable[..., Any] | None,
        event_dim: int,
        dtype: torch.dtype,
    ) -> None:
        given = {"physics": physics, "likelihood": likelihood, "simulator": simulator}
        chosen = [f"'{key}'" for key, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise ValueError(
                "give exactly one of 'physics', 'likelihood' and 'simulator'; got "
                + (" and ".join(chosen) or "none")
            )
        check_callable(likelihood=likelihood, simulator=simulator)
        self.event_dim = event_dim
        self.physics = physics
        self.likelihood: Callable[..., Distribution] | None = None
        self._simulator = simulator
        if physics is not None:
            # Refuses first what is no physics.
            Likelihood(physics, event_dim=event_dim)
            self.physics = cast_physics(physics, dtype)
            self.likelihood = Likelihood(self.physics, event_dim=event_dim)
        elif likelihood is not None:
            self.likelihood = StatedLikelihood(likelihood, event_dim)
        self.shape: torch.Size | None = None

    @property
    def argument(self) -> str:
        """Which argument of the problem it is."""
        if self.physics is not None:
            return "physics"
        return "simulator" if self.likelihood is None else "likelihood"

    def __call__(self, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Noisy observations ``(*batch, *obs)`` of fields ``(*batch, *event)``.

        Raises:
            TypeError: what comes back holds no real numbers.
            ValueError: it is no observation for each of the fields, or of another shape than at
                first.
        """
        batch = x.shape[: x.dim() - self.event_dim]
        if self.likelihood is not None:
            # Drawn from the density even where there is a physics: deepinv's noise models
            # broadcast some per-sample parameters wrongly, and what is simulated and what is
            # inverted must agree.
            y = self.likelihood(x, **params).sample()
        else:
            assert self._simulator is not None  # the constructor saw to it
            y = self._simulator(x, **params)
            y = real_tensor(y, "simulator", dtype=x.dtype, device=x.device)
            if y.shape == batch:
                y = y.unsqueeze(-1)
        lead, shape = y.shape[: len(batch)], y.shape[len(batch) :]
        if lead != batch or not shape.numel() or not shape:
            raise ValueError(
                f"'{self.argument}' must return one observation for each field, "
                f"({inner(batch)}, *observation); got {tuple(y.shape)} for fields of shape "
                f"{tuple(x.shape)}" + channel_hint(x, self.argument)
            )
        if self.shape is not None and shape != self.shape:
            raise ValueError(
                f"'{self.argument}' must always return observations of one shape; got "
                f"{tuple(shape)} after {tuple(self.shape)}"
            )
        return y

    def learn_shape(self, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """See on a few fields what observations look like, and that a likelihood has a density.

        Returns:
            Observations of the fields.

        Raises:
            TypeError, ValueError: as for a call; whatever else the physics, likelihood or
                simulator raises is told in one sentence.
        """
        try:
            y = self(x, params)
            if self.likelihood is not None:
                density = self.likelihood(x, **params).log_prob(y)
                if density.shape != y.shape[:1]:
                    raise ValueError(
                        f"the density of '{self.argument}' must have the batch shape of the "
                        f"fields, {tuple(y.shape[:1])}; got shape {tuple(density.shape)}"
                    )
        except (ValueError, TypeError) as error:
            # Our own words, or somebody's from inside what they wrote.
            if not raised_here(error):
                self._tell(x, error)
            raise
        except Exception as error:
            self._tell(x, error)
        self.shape = y.shape[1:]
        return y

    def cast(self, dtype: torch.dtype) -> ObservationModel:
        """The same in another type."""
        stated = (
            self.likelihood.function if isinstance(self.likelihood, StatedLikelihood) else None
        )
        other = ObservationModel(self.physics, stated, self._simulator, self.event_dim, dtype)
        other.shape = self.shape
        return other

    def why_infinite(self) -> str:
        """What is known of observations that are not finite."""
        noise = getattr(self.physics, "noise_model", None)
        if not isinstance(noise, LogPoissonNoise):
            return ""
        return (
            ". A beam that no photon gets through reads infinity under log-Poisson noise: take "
            "more photons (N0), or a gain for which mu * A(x) is smaller"
        )

    def describe(self) -> str:
        """In one line, for provenance."""
        if self.physics is not None or isinstance(self.likelihood, StatedLikelihood):
            return repr(self.likelihood)
        return f"simulator {_name(self._simulator)}"

    def _tell(self, x: Tensor, error: Exception) -> NoReturn:
        other = "float32" if x.dtype == torch.float64 else "float64"
        raise ValueError(
            f"'{self.argument}' failed on a batch of fields of shape {tuple(x.shape)} and "
            f"{x.dtype}: {type(error).__name__}: {shorten(str(error))}. It must take fields "
            f"(num, {inner(x.shape[1:])}) and return (num, *observation); where it computes in "
            f"another precision, make the problem with dtype=torch.{other}"
            + channel_hint(x, self.argument)
        ) from error


def cast_physics(physics: Physics, dtype: torch.dtype) -> Physics:
    """A physics that computes in ``dtype``: itself, or a copy of it where its numbers are of
    another floating-point type."""
    _make_picklable(physics)
    if not any(_of_other_type(module, dtype) for module in physics.modules()):
        return physics
    try:
        physics = physics.clone()
    except (TypeError, RuntimeError):  # something that cannot be copied; deepinv knows of some
        physics = copy.copy(physics)
    physics._apply(lambda value: _cast(value, dtype))
    for module in physics.modules():  # numbers that are no buffers, and what new ones shall be
        for name, value in _of_other_type(module, dtype).items():
            setattr(module, name, _cast(value, dtype))
    return physics


def _of_other_type(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor | torch.dtype]:
    """What a module holds of another floating-point type: parameters, buffers, tensors and types
    that are plain attributes."""
    held = {**module._parameters, **module._buffers, **vars(module)}
    numbers = {k: v for k, v in held.items() if isinstance(v, Tensor | torch.dtype)}
    return {k: v for k, v in numbers.items() if _kind(_cast(v, dtype)) != _kind(v)}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    kind = _kind(value)
    if not kind.is_floating_point and not kind.is_complex:
        return value
    wanted = dtype.to_complex() if kind.is_complex else dtype
    return value.to(wanted) if isinstance(value, Tensor) else wanted


def _kind(value: Tensor | torch.dtype) -> torch.dtype:
    return value.dtype if isinstance(value, Tensor) else value


def _unchanged(x: Any, **kwargs: Any) -> Any:
    return x


def _nothing(**kwargs: Any) -> dict[str, Any]:
    return {}


def _make_picklable(physics: Physics) -> None:
    """Put functions that have a place in a module where deepinv's constructors leave local ones
    that do the same, so that a physics pickles."""
    for module in physics.modules():
        for name, value in vars(module).items():
            if not isinstance(value, FunctionType) or not value.__module__.startswith("deepinv."):
                continue
            for known in (_unchanged, _nothing):
                ours, theirs = known.__code__, value.__code__
                same = ours.co_code == theirs.co_code and ours.co_argcount == theirs.co_argcount
                if same and not value.__closure__:
                    setattr(module, name, known)


def channel_hint(x: Tensor, argument: str) -> str:
    """What may be wrong with the axes of fields ``(num, *event)`` that a physics refuses."""
    if argument != "physics" or x.dim() == 4:
        return ""
    if x.dim() == 3:
        return (
            ". Images are (n, channels, height, width): give those of one channel as "
            "prior.unsqueeze(1)"
        )
    if x.dim() == 2 and (side := math.isqrt(x.shape[1])) ** 2 == x.shape[1]:
        return f". Images are (n, channels, height, width): prior.reshape(-1, 1, {side}, {side})"
    return ""


def _name(function: Any) -> str:
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__qualname__", type(function).__name__))
