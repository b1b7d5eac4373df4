r"""Is an observation like those that a map was trained and checked on?

Two thousand numbers of an observation that are each unremarkable can together be impossible, and
one dead sensor disappears in a mean over the others.  Observations of simulations, standardised
number by number to ``z``, are therefore described by their leading directions ``V`` (at most
:data:`RANK`, and half as many as there are numbers) and by what those leave,
``r = z - V V^T z`` over its own standard deviation, and looked at in several ways (Jackson and
Mudholkar 1979, https://doi.org/10.1080/00401706.1979.10489779, for the first two):

* *patterns*: root mean square of the coordinates ``V^T z``, each over its standard deviation;
* *remainder*: root mean square of ``r``: too rough, too noisy, another operator;
* *one datum*: the largest ``|r_i|``: a single bad reading;
* for each parameter, its number farthest from the middle of its range and, where it has several,
  their mean.

Of a table of stations, what :func:`~vfm_inverse.networks.stations.summary` says of it is looked
at.

**Edge.**  Each statistic ``s`` has an edge, from simulations that had no part in fitting it. Above
the ``m + 1`` largest value ``u`` of ``n`` (``m`` a tenth) its tail is taken as a generalised
Pareto law,

.. math:: P(s > u + t) = \frac{m + 1}{n + 1} (1 + \xi t / \sigma)^{-1/\xi},

with the shape from probability-weighted moments (Hosking and Wallis 1987,
https://doi.org/10.1080/00401706.1987.10488243), at least 0 and one standard error up, and the
scale that gives the mean excess.  A light tail is so taken as exponential, a heavy one is
followed.  With ``K`` statistics and a call of ``B`` observations the edge is at
``p = FALSE_ALARM / (K B)`` (Bonferroni): in any dimension, a call whose observations are all like
the simulated ones warns with a probability of about :data:`FALSE_ALARM` at most.  Where data have
tails as heavy as Student's t with 3 degrees of freedom, it can be a few per cent for a call of
hundreds of observations, as the tail is then read off far outside the simulations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vfm_inverse.networks.stations import is_table, row_columns, summary
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.scaling import FittedBuffers, center_and_spread

__all__ = ["FALSE_ALARM", "ValidRange"]

FALSE_ALARM = 1e-3
"""Probability that a call warns although all its observations are like the simulated ones."""

RANK = 32
"""Most leading directions of the observations."""

SIMULATIONS = 2000
"""Most simulations that directions and scales, and then the edge, are fitted on."""

TAIL = 10
"""One in so many simulations is in the tail."""

LEAST_EXCESS = 0.01
"""Smallest mean excess over ``u``, as a share of it: what never varies still needs room for
rounding."""

LEAST_SPREAD = 1e-6
"""Smallest spread of a number, as a share of its size."""

FARTHEST = 1e9
"""Most standard deviations that a number counts as away."""


class ValidRange(FittedBuffers):
    """Distance of observations from those of simulations, in units of the edge of their range."""

    center: Tensor
    spread: Tensor
    basis: Tensor
    scale: Tensor
    rest: Tensor
    middle: Tensor
    reach: Tensor
    start: Tensor
    tail: Tensor
    shape: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("center", "spread", "scale", "rest"):
            self.register_buffer(name, torch.zeros(0))
        for name in ("basis", "middle", "reach"):
            self.register_buffer(name, torch.zeros(0, 0))
        for name in ("start", "tail", "shape"):
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("counts", torch.zeros(2))  # excesses, simulations behind the edge

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "farthest" in state_dict:  # checkpoints of format 1 know no such range
            for name in ("center", "spread", "farthest"):
                del state_dict[prefix + name]
            state_dict |= {prefix + name: value for name, value in self.named_buffers()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def fitted(self) -> bool:
        """Whether there is a range at all."""
        return self.start.numel() > 0

    def fit(self, y: Tensor, params: Mapping[str, Tensor]) -> None:
        """Fit directions and scales on one part of simulations ``(n, *obs)``, the edge on another.

        Args:
            y: observations, at most ``2 * SIMULATIONS`` of which are used; of fewer than 4 there
                is no range.
            params: their parameters.
        """
        num = min(SIMULATIONS, len(y) // 2)
        if num < 2:
            return
        first = rows_of(params, slice(num))
        raw = _numbers(y[:num], first)
        self.center, self.spread = center_and_spread(raw)
        # What hardly varies still needs room for rounding.
        self.spread = torch.maximum(self.spread, LEAST_SPREAD * self.center.abs())
        z = self._standard(raw)
        rank = min(RANK, z.shape[1] // 2, num // 4)
        if rank:
            with seeded(0):
                _, _, basis = torch.svd_lowrank(z, min(rank + 8, *z.shape))
            self.basis = basis[:, :rank].contiguous()
        else:
            self.basis = z.new_zeros(z.shape[1], 0)
        along = z @ self.basis
        self.scale = along.square().mean(0).sqrt().clamp_min(1e-6)
        self.rest = (z - along @ self.basis.T).square().mean(0).sqrt().clamp_min(1e-3)
        middle, reach = [], []
        for value in _parameters(y[:num], first):
            low, high = value.amin(), value.amax()
            mean, spread = center_and_spread(value.mean(1))
            middle.append(torch.stack([low / 2 + high / 2, mean]))
            reach.append(torch.stack([high / 2 - low / 2, spread]))
        if middle:
            self.middle, least = torch.stack(middle), 1e-3 * torch.stack(middle).abs()
            self.reach = torch.maximum(torch.stack(reach), least)
        later = slice(num, num + SIMULATIONS)
        self.fit_edge(y[later], rows_of(params, later))

    def fit_edge(self, y: Tensor, params: Mapping[str, Tensor]) -> None:
        """Put the edge where simulations ``(n, *obs)`` have it, with directions and scales as they
        are."""
        ordered = self.statistics(y, params).clamp_min(1e-3).sort(0, descending=True).values
        count = max(1, len(y) // TAIL)
        self.start = ordered[count]
        excess = ordered[:count] - self.start
        mean = excess.mean(0)
        weight = torch.arange(count).to(excess) / max(1, count - 1)  # 0 for the largest
        moment = (weight.unsqueeze(1) * excess).mean(0)
        heavy = mean <= 2 * moment
        shape = torch.where(heavy, 1.0, 2 - mean / torch.where(heavy, 1.0, mean - 2 * moment))
        error = (1 + shape.clamp_min(0)) / math.sqrt(count)
        self.shape = (shape + error).clamp(1e-3, 1.0)
        mean = torch.maximum(mean, LEAST_EXCESS * self.start)
        self.tail = mean * (1 - self.shape.clamp_max(0.9))
        self.counts = ordered.new_tensor([count, len(y)])

    def statistics(self, y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """What is looked at, ``(n, K)``; larger is farther."""
        z = self._standard(_numbers(y, params))
        along = z @ self.basis
        rest = (z - along @ self.basis.T) / self.rest
        found = [_rms(along / self.scale)] if self.basis.shape[1] else []
        found += [_rms(rest), rest.abs().amax(1)]
        for row, value in enumerate(_parameters(y, params)):
            (middle, mean), (reach, spread) = self.middle[row], self.reach[row]
            found.append(_away(value - middle, reach).abs().amax(1))
            if value.shape[1] > 1:
                found.append(_away(value.mean(1) - mean, spread).abs())
        return torch.stack(found, 1)

    def _standard(self, raw: Tensor) -> Tensor:
        return _away(raw - self.center, self.spread)

    def names(self, y: Tensor, params: Mapping[str, Tensor]) -> list[str]:
        """What the columns of :meth:`statistics` are about."""
        own = ["the patterns of y"] if self.basis.shape[1] else []
        own += ["the remainder of y", "one datum of y"]
        for name in _parameter_names(y, params):
            own.append(f"'{name}'")
            if params[name][0].numel() > 1:
                own.append(f"the mean of '{name}'")
        return own

    def distance(
        self, y: Tensor, params: Mapping[str, Tensor], together: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """How far observations ``(n, *obs)`` lie, over the edge for a call of so many.

        Args:
            y: observations.
            params: their parameters.
            together: observations in a call, ``n`` when missing.

        Returns:
            Distance ``(n,)``, above 1 outside the range and 0 where none was fitted; and the
            statistic that is farthest, ``(n,)``, an index into :meth:`names`.
        """
        if not self.fitted:
            return y.new_zeros(len(y)), torch.zeros(len(y), dtype=torch.long, device=y.device)
        count, num = self.counts.tolist()
        probability = FALSE_ALARM / (len(self.start) * max(1, together or len(y)))
        ratio = max(1.0, (count + 1) / (num + 1) / probability)
        # The predictive law of the next excess over count of them, in place of log(ratio).
        steps = count * math.expm1(math.log(ratio) / count)
        growth = (self.shape * steps).clamp_max(80.0).expm1()
        edge = self.start + self.tail * growth / self.shape
        farthest = (self.statistics(y, params) / edge).max(1)
        return farthest.values, farthest.indices

    def complaint(self, y: Tensor, params: Mapping[str, Tensor], simulations: str) -> str | None:
        """What to say of observations ``(n, *obs)`` that lie outside the range; ``None`` if none
        does.

        Args:
            y: observations.
            params: their parameters.
            simulations: words for the simulations that the edge is from.
        """
        distance, which = self.distance(y, params)
        outside = int((distance > 1).sum())
        if not outside:
            return None
        worst = int(distance.argmax())
        return (
            f"{outside} of {len(distance)} observations lie outside the range of the {simulations}"
            f", the farthest (index {worst}) at {float(distance[worst]):.3g} times its edge, by "
            f"{self.names(y, params)[int(which[worst])]}. The posterior there was never checked: "
            "look at the data, their units and parameters, or train and calibrate on simulations "
            "that cover them"
        )


def _numbers(y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """An observation as one vector, ``(n, size)``."""
    shapes = {name: value.shape[1:] for name, value in params.items()}
    return summary(y, params) if is_table(y.shape[1:], shapes) else y.flatten(1)


def _parameter_names(y: Tensor, params: Mapping[str, Tensor]) -> list[str]:
    """Parameters that have a range of their own; a table's columns are part of its summary."""
    shapes = {name: value.shape[1:] for name, value in params.items()}
    rows = row_columns(y.shape[1:], shapes) if is_table(y.shape[1:], shapes) else ()
    return sorted(set(params) - set(rows))


def _parameters(y: Tensor, params: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Numbers of each parameter, ``(n, size)``; what stands beside a datum that is not observed
    does not count."""
    for name in _parameter_names(y, params):
        value, mask = params[name], params.get("mask")
        if name != "mask" and mask is not None and value.shape == y.shape:
            seen = (mask != 0).reshape(len(y), *(1,) * (y.dim() - mask.dim()), *mask.shape[1:])
            seen = seen.expand(y.shape)
            total = torch.where(seen, value, 0.0).flatten(1).sum(1)
            count = seen.flatten(1).sum(1)
            mean = torch.where(count > 0, total / count, value.flatten(1).mean(1))
            value = torch.where(seen, value, mean.view(-1, *(1,) * (y.dim() - 1)))
        yield value.reshape(len(value), -1).to(y.dtype)  # integers have a range too


def _away(deviation: Tensor, spread: Tensor) -> Tensor:
    """``deviation / spread``, at most :data:`FARTHEST`; that far off what is always 0."""
    tiny = torch.finfo(deviation.dtype).tiny
    return (deviation / spread.clamp_min(tiny)).clamp(-FARTHEST, FARTHEST)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(1).sqrt()
