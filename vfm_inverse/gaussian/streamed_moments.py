r"""Mean and covariance of a prior that can be drawn from without end, in bounded memory.

In whitened coordinates :math:`n` draws give the covariance :math:`I + E` with entries of
:math:`E` of size :math:`1/\sqrt n`. A Gaussian posterior with mean :math:`\mu` and covariance
:math:`C` is then off by

.. math:: \delta\mu = C E \mu \quad\text{to first order, so by}\quad C^{1/2} E \mu

in posterior standard deviations: no more than :math:`|\mu| / \sqrt n` in each. With at most
:math:`r = \min(d, m)` directions that :math:`m` data inform, and an observation that lies
:math:`b` = :data:`FAR_OUT` prior standard deviations out along each of them, :math:`|\mu|^2 = b^2
r`, and an error of :math:`\tau` = :data:`TOLERANCE` takes

.. math:: n = b^2 r / \tau^2

draws: that is the rule. Draws of a law with heavier tails err more. What was reached is
therefore measured: two halves of the draws have covariances :math:`C_1` and :math:`C_2`, and with
:math:`W` the whitening of both, :math:`E = W (C_1 - C_2) W^\top / 2` has the size of the error of
their mean.

Draws come in blocks, each with a seed of its own and of a size that depends on :math:`d` alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vfm_inverse.runtime.scaling import center_and_spread, over, tamed

__all__ = ["StreamedMoments", "sampling_error", "stream_moments"]

FAR_OUT = 3.0
"""Prior standard deviations, along every informed direction, at which errors are stated."""

TOLERANCE = 0.02
"""Error of the posterior mean there, in posterior standard deviations, that is aimed at."""

FOLD = 150
"""Most draws for one of those at hand, whose number says what is affordable."""

NUMBERS = 2**29
"""Most numbers that are drawn."""

PRODUCTS = 2**36
"""Most products of two numbers that are added up: some seconds of one core."""

PATIENCE = 120.0
"""Seconds after which draws end that are slow to make."""

BLOCK_NUMBERS, BLOCK_DRAWS = 2**21, 2**12
"""Most numbers and most draws in one block."""


class StreamedMoments(NamedTuple):
    """What is known of a prior from many draws.

    Attributes:
        num: how many.
        mean: ``(d,)``.
        spread: standard deviations ``(d,)``.
        correlation: ``(d, d)``, zero along what never varies; in double precision, as the next.
        difference: half of what the correlations of two halves of the draws differ by, ``(d, d)``.
    """

    num: int
    mean: Tensor
    spread: Tensor
    correlation: Tensor
    difference: Tensor


class Sums:
    """Number, sum and sum of products of rows, in double precision."""

    def __init__(self, rows: Tensor) -> None:
        dim = rows.shape[1]
        self.num = 0
        self.total = rows.new_zeros(dim, dtype=torch.float64)
        self.products = rows.new_zeros(dim, dim, dtype=torch.float64)
        self.add(rows)

    def add(self, rows: Tensor) -> None:
        """Count rows ``(n, d)``."""
        rows = rows.double()
        self.num += len(rows)
        self.total += rows.sum(0)
        self.products.addmm_(rows.mT, rows)


def covariance(num: int, total: Tensor, products: Tensor) -> Tensor:
    """Covariance ``(d, d)`` from sums."""
    mean = total / num
    return (products - num * torch.outer(mean, mean)) / max(num - 1, 1)


def stream_moments(
    draw: Callable[[int, int], Tensor] | None, first: Tensor, num_data: int, seed: int
) -> StreamedMoments | None:
    """Moments of the draws at hand and of as many more as the rule asks for.

    There are no more than :data:`FOLD`, :data:`NUMBERS` and :data:`PRODUCTS` allow, and those that
    are slow to make end after :data:`PATIENCE`, at a power of two of blocks.

    Args:
        draw: number and seed to draws ``(num, *event)``; None where there are no others.
        first: draws ``(n, *event)``, whose mean and spread are the origin and the units.
        num_data: m, numbers in an observation.
        seed: of all blocks.

    Returns:
        The moments; None where so few of ``first`` make a variance that moments say nothing.

    Raises:
        ValueError: a draw is not finite.
    """
    if tamed(first) is not first:
        return None
    flat = first.flatten(1)
    center, spread = center_and_spread(flat)
    z = over(flat - center, spread)
    halves = Sums(z[::2]), Sums(z[1::2])
    size, begin = block_size(flat.shape[1]), time.monotonic()
    blocks = 0 if draw is None else num_blocks(len(flat), flat.shape[1], num_data)
    for block in range(blocks):
        doubled = block > 0 and block & (block - 1) == 0
        if doubled and 2 * (time.monotonic() - begin) > PATIENCE:
            break
        state = np.random.SeedSequence([seed, 11, block]).generate_state(1)
        assert draw is not None
        x = draw(size, int(state[0])).flatten(1)
        halves[block % 2].add(over(x - center, spread))
    one, two = halves
    num = one.num + two.num
    total, products = one.total + two.total, one.products + two.products
    if lost := int((~torch.isfinite(total)).sum()):
        raise ValueError(
            f"'prior' must draw fields that are finite, without bounds too; {lost} of "
            f"{len(total)} numbers were not among {num} draws"
        )
    found = covariance(num, total, products)
    own = found.diagonal().clamp_min(0).sqrt()
    apart = covariance(*vars(one).values()) - covariance(*vars(two).values())
    share = math.sqrt(one.num * two.num) / num  # a half where they are equal
    return StreamedMoments(
        num,
        center + spread * (total / num).to(spread),
        spread * own.to(spread),
        over(over(found, own).T, own),
        share * over(over(apart, own).T, own),
    )


def num_blocks(num: int, dim: int, num_data: int) -> int:
    """Blocks beside ``num`` draws of ``dim`` numbers; none where they would not be twice as
    many."""
    asked = FAR_OUT**2 * min(dim, num_data) / TOLERANCE**2
    most = min(asked, FOLD * num, NUMBERS / dim, PRODUCTS / dim**2)
    return math.ceil((most - num) / block_size(dim)) if most > 2 * num else 0


def block_size(dim: int) -> int:
    """Draws of ``dim`` numbers in one block."""
    return max(1, min(BLOCK_DRAWS, BLOCK_NUMBERS // dim))


def sampling_error(difference: Tensor, inverse_root: Tensor, num_data: int) -> float:
    """Error of the posterior mean of far-out observations that is left by the number of draws, in
    posterior standard deviations: root mean square over directions, and no more than it is.

    Args:
        difference: as of :class:`StreamedMoments`.
        inverse_root: symmetric whitening ``(d, d)`` of the correlation.
        num_data: m, numbers in an observation.
    """
    root = inverse_root.double()
    dim = max(1, int((difference.diagonal() != 0).sum()))
    size = float((root @ difference @ root).norm())
    return FAR_OUT * math.sqrt(min(dim, num_data)) * size / dim
