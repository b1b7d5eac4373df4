r"""Centre and spread of every element, so that no answer depends on a unit.

Numbers are brought to :math:`z = (x - c) / s` element by element before anything is decomposed,
compared with a threshold or given to a network; all floors are relative to :math:`s`. An element
that never varies has :math:`s = 0` and :math:`z = 0`: it carries nothing, and
:math:`c + s z` is that constant to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FittedBuffers", "center_and_spread", "over", "tamed"]

DOMINATED = 30
"""Fewest samples that must share an element's variance; where fewer make it, as in a law without
variance, its spread is that of the middle of the samples."""

REACH = 6.0
"""Where samples are cut then, in distances from the median to the 16 and 84 % quantiles."""


def center_and_spread(values: Tensor, roundings: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element of ``values (n, *shape)``, both ``(*shape,)``.

    They are of the type of ``values``, whose squares may be beyond its range. The spread of a
    constant is 0 and its centre that constant, exactly; one value varies nowhere.

    Args:
        values: at least one of them.
        roundings: an element whose values differ by no more roundings than this counts as a
            constant.
    """
    # From the first value on: sums of numbers far from 0 would lose what varies.
    first = values[0]
    shifted = values - first
    reach = shifted.abs().amax(0)
    least = roundings * torch.finfo(values.dtype).eps * values.abs().amax(0)
    varies = reach > least
    shifted = shifted / torch.where(varies, reach, math.inf)
    mean = shifted.mean(0)
    std = (shifted - mean).square().sum(0).div(max(len(values) - 1, 1)).sqrt()
    reach = torch.where(varies, reach, 0.0)
    return first + reach * mean, reach * std


def over(values: Tensor, spread: Tensor) -> Tensor:
    """``values / spread``, and 0 where the spread is 0."""
    return values / torch.where(spread > 0, spread, math.inf)


def tamed(samples: Tensor) -> Tensor:
    """Samples ``(n, *shape)``, cut where a few of them make all of an element's variance.

    A second moment says nothing of such elements (Cauchy, Pareto), and its sampling error is
    without bound. What varies in less than a third of the samples is left as it is.
    """
    num = len(samples)
    center, spread = center_and_spread(samples)
    fourth = over(samples - center, spread).square().square().sum(0)
    # (sum z^2)^2 / sum z^4: how many samples share the variance.
    few = (num**2 < min(DOMINATED, num / 10) * fourth) & (spread > 0)
    if not bool(few.any()):
        return samples
    ordered = samples[:, few].sort(0).values
    low, middle, high = (ordered[round(share * (num - 1))] for share in (0.16, 0.5, 0.84))
    width = torch.maximum(middle - low, high - middle)
    width = torch.where(width > 0, REACH * width, math.inf)
    cut = samples.clone()
    cut[:, few] = samples[:, few].clamp(middle - width, middle + width)
    return cut


class FittedBuffers(nn.Module):
    """A module whose buffers take their shapes from the data they were fitted on.

    Loading a state dict therefore adopts the stored shapes instead of comparing them. A buffer
    named in ``LATER``, which earlier checkpoints do not have, is the number 1 until it is fitted,
    and not stored as long as it is that.
    """

    LATER: tuple[str, ...] = ()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.LATER:
            if destination[prefix + name].dim() == 0:
                del destination[prefix + name]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self.LATER:
            state_dict.setdefault(prefix + name, torch.ones_like(getattr(self, name)).max())
        for name, buffer in self.named_buffers(recurse=False):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
