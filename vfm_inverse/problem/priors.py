"""Where prior fields come from: tensors, functions, distributions and labelled archives.

``samplers`` turns any of them into two functions ``num -> (num, *event)``, one for training and
one for tests, which draw in the problem's floating-point type and check that what they draw is
finite. Archives held by dask are read lazily: a draw touches the samples it needs and nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    ReshapeTransform,
    TransformedDistribution,
)

from vfm_inverse.formats.fill_values import decoded
from vfm_inverse.problem.random_fields import MaternField
from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.runtime.calls import attempt
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.values import shorten

__all__ = ["LabelledPrior", "LogPrior", "Prior", "Sampler", "is_gaussian", "moments", "samplers"]

Prior = (
    Tensor
    | np.ndarray
    | Callable[[int], Tensor | np.ndarray]
    | Distribution
    | xr.Dataset
    | xr.DataArray
)

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)

SAMPLE, CHANNEL = "sample", "channel"
HELD_OUT = 10  # one sample in ten of a prior given by samples is held out for tests ...
FEWEST_SPLIT = 20  # ... unless there are fewer than this: then both splits are the whole set


@dataclass(frozen=True)
class LabelledPrior:
    """Prior samples in an ``xarray`` object, read when they are drawn if dask holds them.

    The dimensions besides ``sample`` become an event by their number: one ``(d,)``, two ``(1, H,
    W)``, three ``(C, H, W)``. A dimension called ``channel`` comes first and counts as the
    channel, so that ``channel`` and one other become ``(C, L)``.
    """

    data: xr.DataArray

    @classmethod
    def read(cls, source: xr.Dataset | xr.DataArray) -> Self:
        """Find the samples and bring ``sample`` to the front.

        Raises:
            ValueError: several variables, no or an empty ``sample`` dimension, or too many
                dimensions.
        """
        if isinstance(source, xr.Dataset):
            if len(source.data_vars) != 1:
                raise ValueError(
                    "'prior' must hold one data variable; got "
                    f"{sorted(map(str, source.data_vars))}. Pass one of them, or stack them: "
                    f"prior.to_dataarray('{CHANNEL}')"
                )
            (source,) = source.data_vars.values()
        source = unstacked(source)
        if SAMPLE not in source.dims:
            raise ValueError(f"'prior' must have a dimension '{SAMPLE}'; got {tuple(source.dims)}")
        if not 2 <= source.ndim <= 4:
            raise ValueError(
                f"'prior' must have one to three dimensions besides '{SAMPLE}'; "
                f"got {tuple(source.dims)}"
            )
        if source.size == 0:
            raise ValueError(f"'prior' is empty; its sizes are {dict(source.sizes)}")
        # Packed numbers and cells that were never written, however it was opened.
        physical = decoded(source.rename("fields").to_dataset())
        source = physical["fields"].rename(source.name)
        rest = sorted(
            (dim for dim in source.dims if dim != SAMPLE), key=lambda dim: dim != CHANNEL
        )
        return cls(source.transpose(SAMPLE, *rest))

    @property
    def lazy(self) -> bool:
        """Whether dask holds the values."""
        return self.data.chunks is not None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one field as a tensor."""
        shape = self.data.shape[1:]
        return (1, *shape) if len(shape) == 2 and self.data.dims[1] != CHANNEL else shape

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes, without a channel of size one."""
        dims = tuple(str(dim) for dim in self.data.dims[1:])
        single = len(dims) == len(self.event_shape) > 1 and self.event_shape[0] == 1
        return dims[1:] if single else dims

    @property
    def coords(self) -> dict[str, xr.Variable]:
        """The coordinates of a field: all that do not depend on the sample."""
        return {
            str(name): coord.variable.to_base_variable()
            for name, coord in self.data.coords.items()
            if set(coord.dims) <= set(self.dims)
        }

    def __len__(self) -> int:
        return self.data.sizes[SAMPLE]

    def __getitem__(self, part: slice) -> LabelledPrior:
        return LabelledPrior(self.data.isel({SAMPLE: part}))

    def take(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Samples ``(n, *event)`` at ``index`` ``(n,)``, each of them read once."""
        needed, where = torch.unique(index, return_inverse=True)
        return LabelledPrior(self.data.isel({SAMPLE: needed.numpy()})).values(dtype)[where]

    def values(self, dtype: torch.dtype | None = None) -> Tensor:
        """All samples, ``(n, *event)`` in the type given or torch's default."""
        dtype = dtype or torch.get_default_dtype()
        return real_tensor(self.data, "prior", dtype=dtype).reshape(-1, *self.event_shape)


class Sampler:
    """Draws of one split: ``sampler(num)`` is ``(num, *event)``, finite and of one type.

    Samples are drawn with replacement.

    Args:
        source: samples, or a function that draws them.
        dtype: of the draws; by default single or double precision as the source has it, torch's
            default type where that holds integers or comes from NumPy.
    """

    def __init__(
        self, source: Tensor | LabelledPrior | Callable[[int], Any], dtype: torch.dtype | None
    ) -> None:
        self.source, self.dtype = source, dtype

    def __call__(self, num: int) -> Tensor:
        """Draw and check."""
        if isinstance(self.source, Tensor | LabelledPrior):
            # Indices are drawn on the CPU, so that a seed picks the same samples on every device.
            index = torch.randint(len(self.source), (num,))
            if isinstance(self.source, Tensor):
                return self.source[index.to(self.source.device)]
            x = self.source.take(index, self.dtype)
        else:
            x = self._drawn(attempt(self.source, "prior", num), num)
        _check_finite(x)
        return x

    @property
    def size(self) -> int | None:
        """Samples that there are; None where each draw is a new one."""
        return len(self.source) if isinstance(self.source, Tensor | LabelledPrior) else None

    def held(self, most: int) -> Tensor | None:
        """All samples ``(n, *event)``, each once, where they are given and at most ``most``."""
        source = self.source
        if not isinstance(source, Tensor | LabelledPrior) or len(source) > most:
            return None
        return source if isinstance(source, Tensor) else source.values(self.dtype)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Move samples that are held as a tensor; draw in another type."""
        self.dtype = dtype or self.dtype
        if isinstance(self.source, Tensor):
            self.source = self.source.to(device=device, dtype=dtype)

    def _drawn(self, value: Any, num: int) -> Tensor:
        is_tensor = isinstance(value, Tensor)
        dtype = None if is_tensor else torch.get_default_dtype()
        x = real_tensor(value, "prior", dtype=self.dtype or dtype)
        if x.dim() < 2 or len(x) != num or x.numel() == 0:
            raise ValueError(
                f"'prior' must draw {num} fields, ({num}, *event); got {tuple(x.shape)}"
            )
        return x


def unstacked(source: Labelled) -> Labelled:
    """With what a dimension was stacked of, as coordinates along it, which files can hold."""
    indexes = source.indexes.items()
    stacked = [dim for dim, index in indexes if isinstance(index, pd.MultiIndex)]
    return source.reset_index([dim for dim in stacked if dim in source.dims])


def samplers(
    prior: Prior | LabelledPrior, test_prior: Prior | None = None, dtype: torch.dtype | None = None
) -> dict[str, Sampler]:
    """Samplers of the splits ``train`` and ``test``, in the type given or the prior's own.

    Without ``test_prior``, the last tenth of a prior given by samples is held out, nothing of one
    with fewer than 20; a function or a distribution serves both splits.

    Raises:
        TypeError: a prior is of no known kind.
        ValueError: it is empty or not finite, or a distribution over something other than one
            field.
    """
    source = _source(prior, "prior", dtype)
    if test_prior is not None:
        held_out = _source(test_prior, "test_prior", dtype)
        train, test = Sampler(source, dtype), Sampler(held_out, dtype)
    elif isinstance(source, Tensor | LabelledPrior) and len(source) >= FEWEST_SPLIT:
        kept = len(source) - len(source) // HELD_OUT
        train, test = Sampler(source[:kept], dtype), Sampler(source[kept:], dtype)
    else:
        train, test = Sampler(source, dtype), Sampler(source, dtype)
    return {"train": train, "test": test}


def _source(
    prior: Any, name: str, dtype: torch.dtype | None
) -> Tensor | LabelledPrior | Callable[[int], Any]:
    if isinstance(prior, xr.Dataset | xr.DataArray):
        prior = LabelledPrior.read(prior)
    if isinstance(prior, LabelledPrior):
        if prior.lazy:
            return prior
        prior = prior.values(dtype)
    if isinstance(prior, Distribution):
        if prior.batch_shape or not prior.event_shape:
            raise ValueError(
                "'prior' must be a distribution over one field; got batch shape "
                f"{tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}. "
                "torch.distributions.Independent makes batch dimensions part of the event"
            )
        return Drawn(prior)
    if callable(prior):
        return prior
    if not isinstance(prior, Tensor) and not hasattr(prior, "__array__"):
        raise TypeError(
            f"'{name}' must be samples (n, *event), a callable, a torch Distribution or an xarray "
            f"object; got {type(prior).__name__}"
        )
    if not isinstance(prior, Tensor):
        prior = real_tensor(prior, name, dtype=dtype or torch.get_default_dtype())
    samples = real_tensor(prior, name, dtype=dtype).detach()
    if samples.dim() < 2:
        raise ValueError(
            f"'{name}' must hold samples (n, *event); got {tuple(samples.shape)}: one number a "
            "field is (n, 1)"
        )
    if samples.numel() == 0:
        raise ValueError(f"'{name}' is empty; got shape {tuple(samples.shape)}")
    _check_finite(samples, name)
    return samples


@dataclass(frozen=True)
class Drawn:
    """Draws of a distribution, as a function of their number."""

    law: Distribution

    def __call__(self, num: int) -> Tensor:
        """Draws ``(num, *event)``."""
        return self.law.sample(torch.Size([num]))


class LogPrior:
    """``log p(x)`` in nats, ``(*batch, *event)`` to ``(*batch,)``: minus infinity outside the
    support.

    Args:
        prior: distribution over one field.
        device: where its parameters are.

    Attributes:
        prior: as given.
    """

    def __init__(self, prior: Distribution, device: torch.device) -> None:
        self.prior, self._device = prior, device
        with seeded(0):
            # Not every law of one's own draws a single field.
            self._inside = prior.sample(torch.Size([1]))[0]

    @classmethod
    def of(cls, prior: Any, device: torch.device) -> Self | None:
        """That of a prior of any kind; ``None`` unless it is a distribution."""
        return cls(prior, device) if isinstance(prior, Distribution) else None

    def __call__(self, x: Tensor) -> Tensor:
        """The density of fields, in their type and on their device."""
        home = x.to(self._device)
        inside = self._supports(home)
        if inside is None or bool(inside.all()):
            return self._density(home).to(x)
        shaped = inside.reshape(*inside.shape, *[1] * self._inside.dim())
        density = self._density(torch.where(shaped, home, self._inside.to(home)))
        return torch.where(inside, density, -torch.inf).to(x)

    def _density(self, x: Tensor) -> Tensor:
        try:
            return self.prior.log_prob(x)
        except ValueError as error:  # torch prints all of the numbers
            raise ValueError(
                f"the prior states no density at these fields: {shorten(str(error))}"
            ) from error

    def _supports(self, x: Tensor) -> Tensor | None:
        """Which fields ``(*batch, *event)`` lie in the support, ``(*batch,)``; None if unknown."""
        lead = x.dim() - self._inside.dim()
        try:
            support: Any = self.prior.support
            found: Tensor = support.check(x)
        except (NotImplementedError, AttributeError, RuntimeError):
            return None
        return found.flatten(lead).all(-1) if found.dim() > lead else found


def _check_finite(x: Tensor, name: str = "prior") -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        raise ValueError(
            f"'{name}' must be finite; {int((~finite).sum())} of {x.numel()} values are not"
        )


def is_gaussian(prior: Any) -> bool:
    """Whether a prior is a distribution of one of the Gaussian kinds that :func:`moments` knows,
    reshaped or not."""
    if isinstance(prior, TransformedDistribution):
        reshaped = all(isinstance(transform, ReshapeTransform) for transform in prior.transforms)
        return reshaped and is_gaussian(prior.base_dist)
    while isinstance(prior, Independent):
        prior = prior.base_dist
    return isinstance(prior, MultivariateNormal | LowRankMultivariateNormal | MaternField | Normal)


def moments(prior: Any) -> tuple[Tensor, Tensor] | None:
    """Mean ``(d,)`` and covariance ``(d, d)`` of the flattened field in double precision.

    ``None`` unless it is a distribution that states them: a multivariate normal (low rank too), a
    Matérn field, or independent components with a mean and a variance, reshaped or not; and unless
    all are finite and every variance is positive.
    """
    if not isinstance(prior, Distribution) or (stated := _moments(prior)) is None:
        return None
    mean, covariance = (moment.detach().double() for moment in stated)
    finite = bool(mean.isfinite().all()) and bool(covariance.isfinite().all())
    return (mean, covariance) if finite and bool((covariance.diagonal() > 0).all()) else None


def _moments(prior: Distribution) -> tuple[Tensor, Tensor] | None:
    # In double precision from standard deviations on, whose squares may leave the single range.
    if isinstance(prior, TransformedDistribution):
        reshaped = all(isinstance(transform, ReshapeTransform) for transform in prior.transforms)
        return moments(prior.base_dist) if reshaped else None
    if isinstance(prior, MultivariateNormal):
        root = prior.scale_tril.double()
        return prior.mean, root @ root.mT
    if isinstance(prior, LowRankMultivariateNormal):
        factor = prior.cov_factor.double()
        return prior.mean, factor @ factor.mT + prior.cov_diag.double().diag()
    if isinstance(prior, MaternField):
        return prior.mean.flatten(), prior.covariance_matrix
    if isinstance(prior, Independent):
        base = prior.base_dist
        while isinstance(base, Independent):
            base = base.base_dist
        if base.event_shape:
            return None
        try:
            mean, std = base.mean.flatten(), base.stddev.flatten()
        except NotImplementedError:
            return None
        # The root of a variance that has left the range of single precision, or nearly.
        rooted = type(base).stddev is Distribution.stddev and std.dtype != torch.float64
        if rooted and not bool(((std > 1e-15) & (std < 1e15)).all()):
            return None
        return mean, std.double().square().diag()
    return None
