"""Where prior fields come from: tensors, functions, distributions and labelled archives.

``samplers`` turns any of them into two functions ``num -> (num, *event)``, one for training and
one for tests, and checks on the way that they are not empty, floating-point and finite. Archives
held by dask are read lazily: a draw touches the samples it needs and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    ReshapeTransform,
    TransformedDistribution,
)

from vfm_inverse.random_fields import MaternField

__all__ = ["LabelledPrior", "Prior", "Sampler", "moments", "samplers"]

Prior = Tensor | Callable[[int], Tensor] | Distribution | xr.Dataset | xr.DataArray

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
        if SAMPLE not in source.dims:
            raise ValueError(f"'prior' must have a dimension '{SAMPLE}'; got {tuple(source.dims)}")
        if not 2 <= source.ndim <= 4:
            raise ValueError(
                f"'prior' must have one to three dimensions besides '{SAMPLE}'; "
                f"got {tuple(source.dims)}"
            )
        if source.size == 0:
            raise ValueError(f"'prior' is empty; its sizes are {dict(source.sizes)}")
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

    def take(self, index: Tensor) -> Tensor:
        """Samples ``(n, *event)`` at ``index`` ``(n,)``, each of them read once."""
        needed, where = torch.unique(index, return_inverse=True)
        return LabelledPrior(self.data.isel({SAMPLE: needed.numpy()})).values()[where]

    def values(self) -> Tensor:
        """All samples, ``(n, *event)`` in torch's default floating-point type."""
        if self.data.dtype.kind not in "fiu":
            raise ValueError(f"'prior' must hold real numbers; got {self.data.dtype}")
        values = torch.from_numpy(np.array(self.data.values, dtype=np.float64))
        return values.to(torch.get_default_dtype()).reshape(-1, *self.event_shape)


class Sampler:
    """Draws of one split: ``sampler(num)`` is ``(num, *event)``, floating-point and finite.

    Samples are drawn with replacement.
    """

    def __init__(self, source: Tensor | LabelledPrior | Callable[[int], Tensor]) -> None:
        self.source = source

    def __call__(self, num: int) -> Tensor:
        """Draw and check."""
        if isinstance(self.source, Tensor | LabelledPrior):
            # Indices are drawn on the CPU, so that a seed picks the same samples on every device.
            index = torch.randint(len(self.source), (num,))
            if isinstance(self.source, Tensor):
                return self.source[index.to(self.source.device)]
            x = self.source.take(index)
        else:
            x = self.source(num)
        if not isinstance(x, Tensor):
            raise TypeError(f"'prior' must draw a torch.Tensor; got {type(x).__name__}")
        if not x.is_floating_point() or x.dim() < 2 or len(x) != num or x.numel() == 0:
            raise ValueError(
                f"'prior' must draw floating-point tensors ({num}, *event); "
                f"got {tuple(x.shape)} of {x.dtype}"
            )
        _check_finite(x)
        return x

    def to(self, device: torch.device) -> None:
        """Move samples that are held as a tensor."""
        if isinstance(self.source, Tensor):
            self.source = self.source.to(device)


def samplers(prior: Prior, test_prior: Prior | None = None) -> dict[str, Sampler]:
    """Samplers of the splits ``train`` and ``test``.

    Without ``test_prior``, the last tenth of a prior given by samples is held out, nothing of one
    with fewer than 20; a function or a distribution serves both splits.

    Raises:
        TypeError: a prior is of no known kind.
        ValueError: it is empty or not finite, or a distribution over something other than one
            field.
    """
    source = _source(prior)
    if test_prior is not None:
        return {"train": Sampler(source), "test": Sampler(_source(test_prior))}
    if isinstance(source, Tensor | LabelledPrior) and len(source) >= FEWEST_SPLIT:
        kept = len(source) - len(source) // HELD_OUT
        return {"train": Sampler(source[:kept]), "test": Sampler(source[kept:])}
    return {"train": Sampler(source), "test": Sampler(source)}


def _source(prior: Prior) -> Tensor | LabelledPrior | Callable[[int], Tensor]:
    if isinstance(prior, xr.Dataset | xr.DataArray):
        labelled = LabelledPrior.read(prior)
        if labelled.lazy:
            return labelled
        prior = labelled.values()
    if isinstance(prior, Tensor):
        if prior.dim() < 2 or not prior.is_floating_point():
            raise ValueError(
                "'prior' must hold floating-point samples (n, *event); "
                f"got {tuple(prior.shape)} of {prior.dtype}"
            )
        if prior.numel() == 0:
            raise ValueError(f"'prior' is empty; got shape {tuple(prior.shape)}")
        _check_finite(prior)
        return prior
    if isinstance(prior, Distribution):
        if prior.batch_shape or not prior.event_shape:
            raise ValueError(
                "'prior' must be a distribution over one field; got batch shape "
                f"{tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}. "
                "torch.distributions.Independent makes batch dimensions part of the event"
            )
        return lambda num: prior.sample(torch.Size([num]))
    if callable(prior):
        return prior
    raise TypeError(
        "'prior' must be a tensor of samples, a callable, a torch Distribution or an xarray "
        f"object; got {type(prior).__name__}"
    )


def _check_finite(x: Tensor) -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        raise ValueError(
            f"'prior' must be finite; {int((~finite).sum())} of {x.numel()} values are not"
        )


def moments(prior: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean ``(d,)`` and covariance ``(d, d)`` of the flattened field in double precision.

    ``None`` unless the distribution states them: a multivariate normal (low rank too), a Matérn
    field, or independent components with a mean and a variance, reshaped or not.
    """
    if isinstance(prior, TransformedDistribution):
        reshaped = all(isinstance(transform, ReshapeTransform) for transform in prior.transforms)
        return moments(prior.base_dist) if reshaped else None
    if isinstance(prior, MultivariateNormal | LowRankMultivariateNormal):
        return prior.mean.double(), prior.covariance_matrix.double()
    if isinstance(prior, MaternField):
        return prior.mean.double().flatten(), prior.covariance_matrix
    if isinstance(prior, Independent) and not prior.base_dist.event_shape:
        try:
            return prior.mean.double().flatten(), prior.variance.double().flatten().diag()
        except NotImplementedError:
            return None
    return None
