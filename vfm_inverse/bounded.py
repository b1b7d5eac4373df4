r"""Priors with bounds: the map works in coordinates that have none.

Between :math:`a` and :math:`b`, either of which may be infinite, element by element

.. math:: x = a + (b - a)\, \Phi(v), \qquad x = a + e^v, \qquad x = b - e^{-v},

with the normal distribution function :math:`\Phi`: under a uniform prior in the first case, a
log-normal one in the second, :math:`v \sim \mathcal N`, so that the Gaussian start is exact in the
prior, and no draw ever leaves the support. A simplex is taken apart as a stick is broken, and for
every other support torch or Pyro may know a bijection (``biject_to``).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

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
from torch.special import ndtr, ndtri

__all__ = ["Box", "Joined", "Simplex", "report_outside", "support_of", "transform_of"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

ROOM = 4
"""Roundings that an interval is narrower where other transforms follow."""


class Box(Transform):
    """From the line to an interval, element by element.

    Args:
        low, high: ends of the interval, numbers or one for each element of the event; an infinite
            end is none.

    Raises:
        ValueError: an interval is empty.
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, low: Tensor | float, high: Tensor | float) -> None:
        super().__init__()
        self.low, self.high = (
            end if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64)
            for end in (low, high)
        )
        if not bool((self.low < self.high).all()):
            raise ValueError(f"'low' must lie below 'high'; got {low} and {high}")
        self._finite = bool((self.low.isfinite() & self.high.isfinite()).all())

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """The interval."""
        return constraints.interval(self.low, self.high)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Box)
            and torch.equal(self.low, other.low)
            and torch.equal(self.high, other.high)
        )

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x), self.high.to(x)
        if self._finite:
            return (low + (high - low) * ndtr(x)).clamp(low, high)
        above, below = low > -math.inf, high < math.inf
        base, top = low.where(above, 0.0), high.where(below, 0.0)
        largest = 0.9 * math.log(torch.finfo(x.dtype).max)
        up = base + x.clamp_max(largest).exp()
        down = top - (-x).clamp_max(largest).exp()
        inside = torch.where(above & below, base + (top - base) * ndtr(x), up)
        y = torch.where(above, inside, torch.where(below, down, x))
        # An open end is never reached.
        return y.clamp(_inward(low, math.inf), _inward(high, -math.inf))

    def _inverse(self, y: Tensor) -> Tensor:
        low, high = self.low.to(y), self.high.to(y)
        # A value that rounding put on an end has a finite coordinate all the same.
        edge = torch.finfo(y.dtype).eps / 4
        if self._finite:
            return ndtri(((y - low) / (high - low)).clamp(edge, 1 - 2 * edge))
        tiny = torch.finfo(y.dtype).tiny
        above, below = low > -math.inf, high < math.inf
        base, top = low.where(above, 0.0), high.where(below, 1.0)
        width = (top - base).where(above & below, 1.0)
        inside = ndtri(((y - base) / width).clamp(edge, 1 - 2 * edge))
        up, down = (y - base).clamp_min(tiny).log(), -(top - y).clamp_min(tiny).log()
        return torch.where(above, torch.where(below, inside, up), torch.where(below, down, y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log dy/dx`` of each element."""
        low, high = self.low.to(x), self.high.to(x)
        above, below = low > -math.inf, high < math.inf
        width = (high - low).where(above & below, 1.0)
        inside = width.log() - 0.5 * x.square() - LOG_SQRT_2PI
        open_ended = x * (above.to(x) - below.to(x))
        return torch.where(above & below, inside, open_ended)


class Simplex(Transform):
    """From ``(*, d - 1)`` to ``d`` positive numbers ``(*, d)`` whose sum is 1, by breaking a
    stick (torch's ``StickBreakingTransform``, accurate where almost nothing is left of it)."""

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def __init__(self) -> None:
        super().__init__()
        self._stick = transforms.StickBreakingTransform()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Simplex)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        y = self._stick(x).clamp_min(torch.finfo(x.dtype).tiny)
        return y / y.sum(-1, keepdim=True)

    def _inverse(self, y: Tensor) -> Tensor:
        y = y.clamp_min(torch.finfo(y.dtype).tiny)
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        pieces = torch.arange(left.shape[-1], 0, -1).to(y)
        return y[..., :-1].log() - left.log() + pieces.log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``(*, d - 1)`` to ``(*,)``, of the first ``d - 1`` numbers."""
        return self._stick.log_abs_det_jacobian(x, y)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """One number more."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """One number fewer."""
        return torch.Size((*shape[:-1], shape[-1] - 1))


class Joined(Transform):
    """Parts of a vector, each with a transform of its own.

    Args:
        parts: transforms of the parts, which may change their length.
        lengths: of the parts, after the transform.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, parts: Sequence[Transform], lengths: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.lengths = list(parts), [int(length) for length in lengths]
        self._inner = [
            part.inverse_shape((length,))[0]
            for part, length in zip(self.parts, self.lengths, strict=True)
        ]

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Joined) and self.lengths == other.lengths
        return same and self.parts == other.parts  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        pieces = x.split(self._inner, -1)
        return torch.cat([part(v) for part, v in zip(self.parts, pieces, strict=True)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        pieces = y.split(self.lengths, -1)
        return torch.cat([part.inv(v) for part, v in zip(self.parts, pieces, strict=True)], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of all parts together, ``(*, d)`` to ``(*,)``."""
        total = x.new_zeros(x.shape[:-1])
        pieces = zip(self.parts, x.split(self._inner, -1), y.split(self.lengths, -1), strict=True)
        for part, v, w in pieces:
            rate = part.log_abs_det_jacobian(v, w)
            total = total + (rate if rate.dim() < v.dim() else rate.sum(-1))
        return total

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """The parts' lengths together."""
        return torch.Size((*shape[:-1], sum(self.lengths)))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """The lengths together that the parts have without bounds."""
        return torch.Size((*shape[:-1], sum(self._inner)))


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
    base = prior
    while isinstance(base, Independent):
        base = base.base_dist
    if _is_chain(base):
        before = _ends(base.base_dist)
        assert before is not None  # as the chain has ends
        # A log-uniform law is one of the uniform law before it, and normal coordinates are, too.
        if all(bool(end.isfinite().all()) for end in before) and _elementwise(base):
            inner = transform_of(base.base_dist)
            if isinstance(inner, Box):
                # Back through the transforms, rounding must not lead out of the law before them.
                room = ROOM * torch.finfo(inner.low.dtype).eps
                room = room * torch.maximum(inner.low.abs(), inner.high.abs())
                inner = Box(inner.low + room, inner.high - room)
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
    """Say how many of the draws ``x (*batch, *event)`` lie outside a support of :func:`support_of`.

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
    return torch.broadcast_tensors(first, last)  # type: ignore[return-value]


def _bijection(support: constraints.Constraint, event_dim: int) -> Transform | None:
    """The bijection of a support that is no interval, or ``None``."""
    if isinstance(support, type(constraints.simplex)):
        return Simplex()
    if isinstance(support, constraints.cat | constraints.stack):
        parts = []
        for part in support.cseq:
            ends = _ends_of(_plain(part))
            parts.append(_bijection(part, event_dim) if ends is None else _box(ends))
        dim = support.dim if support.dim < 0 else support.dim - event_dim
        whole = all(part is not None for part in parts)
        if whole and isinstance(support, constraints.cat) and dim == -1:
            return Joined(parts, support.lengths)
        kept = all(part is not None and part.inverse_shape((2, 2)) == (2, 2) for part in parts)
        if kept and isinstance(support, constraints.stack):
            return transforms.StackTransform(parts, dim)
        return None
    try:
        found: Transform = torch.distributions.biject_to(support)
    except NotImplementedError:
        return None
    return found


def _plain(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _box(ends: tuple[Tensor, Tensor]) -> Transform:
    free = bool(torch.isinf(ends[0]).all()) and bool(torch.isinf(ends[1]).all())
    return transforms.identity_transform if free else Box(*ends)


def _is_chain(prior: Distribution) -> bool:
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
        not isinstance(part, transforms.ReshapeTransform) for part in _parts(prior.transforms)
    )


def _inward(end: Tensor, towards: float) -> Tensor:
    """The nearest normal number inside of an open end; an infinite end stays."""
    inner = torch.nextafter(end, torch.full_like(end, towards))
    tiny = math.copysign(torch.finfo(end.dtype).tiny, towards)
    return end.where(end.isinf(), inner.where(end != 0, tiny))
