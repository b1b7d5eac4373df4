"""Which values a prior distribution says are possible, and the transform that keeps to them.

Ends of an interval are followed through the transforms of a ``TransformedDistribution``: its own
support is the range of its last transform, whatever came before it, but a log-uniform law has the
bounds of the uniform law that it is made of.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
    transforms,
)
from torch.distributions.transforms import Transform

from vfm_inverse.problem.bounded import Box, Joined, Simplex

__all__ = ["report_outside", "support_of", "transform_of"]

ROOM = 4
"""Roundings that an interval is narrower where other transforms follow."""


def transform_of(prior: object) -> Transform | None:
    """From unbounded values to the support of a prior distribution; ``None`` where it has no
    bounds, or states none that a bijection is known for.

    Raises:
        ValueError: the support is discrete.
    """
    if not isinstance(prior, Distribution):
        return None
    if (ends := _ends(prior)) is None:
        support = _support(prior)
        return None if support is None else _bijection(support, len(prior.event_shape))
    base: Distribution = prior
    while isinstance(base, Independent):
        base = base.base_dist
    if _is_chain(base):
        before = _ends(base.base_dist)
        closed = before is not None and all(bool(end.isfinite().all()) for end in before)
        # A log-uniform law is one of the uniform law before it, and normal coordinates are, too.
        if closed and _elementwise(base):
            inner = transform_of(base.base_dist)
            if isinstance(inner, Box):
                # Back through the transforms, rounding must not lead out of the law before them.
                rounding = ROOM * torch.finfo(inner.low.dtype).eps
                room = rounding * torch.maximum(inner.low.abs(), inner.high.abs())
                inner = Box(inner.low + room, inner.high - room)
            assert inner is not None  # as both ends are finite
            return transforms.ComposeTransform([inner, *base.transforms])
    unbounded = bool(torch.isinf(ends[0]).all()) and bool(torch.isinf(ends[1]).all())
    return None if unbounded else Box(*ends)


def support_of(prior: object) -> constraints.Constraint | None:
    """The support that a prior distribution states, where :func:`transform_of` has no bijection
    that would keep draws in it; ``None`` where it has, and where all values are possible."""
    if not isinstance(prior, Distribution) or transform_of(prior) is not None:
        return None
    return None if _ends(prior) is not None else _support(prior)


def report_outside(
    support: constraints.Constraint | None, x: Tensor, event_dim: int, stacklevel: int = 3
) -> None:
    """Say how many draws ``x (*batch, *event)`` lie outside a support of :func:`support_of`.

    Warns:
        UserWarning: some do.
    """
    if support is None:
        return
    try:
        inside = support.check(x)
    except (NotImplementedError, RuntimeError, ValueError):
        return
    inside = inside.reshape(*x.shape[: x.dim() - event_dim], -1).all(-1)
    if lost := int((~inside).sum()):
        warnings.warn(
            f"{lost} of {inside.numel()} draws lie outside the prior's support, "
            f"{str(support)[:60]}, to which no transform is known; give the problem a 'transform' "
            "from unbounded values to it",
            stacklevel=stacklevel,
        )


def _support(prior: Distribution) -> constraints.Constraint | None:
    """The support, unless none is stated; discrete ones are refused."""
    try:
        support: Any = prior.support
    except (NotImplementedError, AttributeError):
        return None
    if not isinstance(support, constraints.Constraint) or constraints.is_dependent(support):
        return None
    support = _plain(support)
    try:
        discrete = bool(support.is_discrete)
    except NotImplementedError:
        return None
    if discrete:
        raise ValueError(
            f"'prior' must be a law of real numbers; the support of {type(prior).__name__} is "
            f"discrete ({support})"
        )
    return support


def _ends(prior: Distribution) -> tuple[Tensor, Tensor] | None:
    """Ends of the interval in which each element lies, infinite where there is none; ``None``
    where the support is no interval element by element, or not known."""
    if isinstance(prior, Independent):
        return _ends(prior.base_dist)
    if isinstance(prior, MixtureSameFamily):
        ends = _ends(prior.component_distribution)
        dim = len(prior.event_shape)
        if ends is None:
            return None
        low, high = (end if end.dim() <= dim else end.movedim(-1 - dim, 0) for end in ends)
        if ends[0].dim() > dim:
            low, high = low.amin(0), high.amax(0)
        return low, high
    if _is_chain(prior):
        before = _ends(prior.base_dist)
        if before is None or not all(_monotone(part) for part in _parts(prior.transforms)):
            return _ends_of(_support(prior))
        shape = prior.base_dist.batch_shape + prior.base_dist.event_shape
        images = [end.expand(shape) for end in before]
        for part in prior.transforms:
            images = [part(image) for image in images]
        ends = torch.minimum(*images), torch.maximum(*images)
        return None if bool(torch.isnan(ends[0]).any()) else ends
    return _ends_of(_support(prior))


def _ends_of(support: constraints.Constraint | None) -> tuple[Tensor, Tensor] | None:
    if support is None:
        return None
    if isinstance(support, type(constraints.real)):
        return torch.tensor(-math.inf), torch.tensor(math.inf)
    low, high = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if low is None and high is None:
        return None
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    first, last = (
        end if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64)
        for end in (low, high)
    )
    return torch.broadcast_tensors(first, last)


def _bijection(support: constraints.Constraint, event_dim: int) -> Transform | None:
    """The bijection of a support that is no interval, or ``None``."""
    if isinstance(support, type(constraints.simplex)):
        return Simplex()
    if isinstance(support, constraints.cat | constraints.stack):
        dim = support.dim if support.dim < 0 else support.dim - event_dim
        parts: list[Transform] = []
        for part in support.cseq:
            ends = _ends_of(_plain(part))
            found = _bijection(part, event_dim) if ends is None else _box(ends)
            if found is None:
                return None
            parts.append(found)
        if isinstance(support, constraints.cat):
            return Joined(parts, support.lengths) if dim == -1 else None
        kept = all(part.inverse_shape((2, 2)) == (2, 2) for part in parts)
        return transforms.StackTransform(parts, dim) if kept else None
    try:
        return torch.distributions.biject_to(support)
    except NotImplementedError:
        return None


def _plain(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _box(ends: tuple[Tensor, Tensor]) -> Transform:
    free = bool(torch.isinf(ends[0]).all()) and bool(torch.isinf(ends[1]).all())
    return transforms.identity_transform if free else Box(*ends)


def _is_chain(prior: Distribution) -> TypeGuard[TransformedDistribution]:
    """Whether the support is read off the last of its transforms, which does not know what came
    before it."""
    stated, plain = (
        inspect.getattr_static(kind, "support") for kind in (type(prior), TransformedDistribution)
    )
    return isinstance(prior, TransformedDistribution) and stated is plain


def _parts(chain: Sequence[Transform]) -> list[Transform]:
    parts: list[Transform] = []
    for part in chain:
        if isinstance(part, transforms.ComposeTransform):
            parts += _parts(part.parts)
        elif isinstance(part, transforms.IndependentTransform):
            parts += _parts([part.base_transform])
        else:
            parts.append(part)
    return parts


def _monotone(part: Transform) -> bool:
    """Whether ends of an interval go to ends."""
    if isinstance(part, transforms.AffineTransform | transforms.ReshapeTransform):
        return True
    return bool(part.bijective) and part.domain.event_dim == 0


def _elementwise(prior: TransformedDistribution) -> bool:
    return all(
        _monotone(part) and not isinstance(part, transforms.ReshapeTransform)
        for part in _parts(prior.transforms)
    )
