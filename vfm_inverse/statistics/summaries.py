r"""Posterior draws in a few numbers an element: mean, standard deviation and quantiles.

With draws :math:`x_1 \dots x_L` of weights :math:`w_l` that sum to one,

.. math::
   m = \sum_l w_l x_l, \qquad s^2 = \sum_l w_l (x_l - m)^2,

and the quantile at level :math:`p` is the smallest :math:`x_l` at which the weights of all draws
up to it reach :math:`p`; draws of equal weight are interpolated as :func:`numpy.quantile` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vfm_inverse.runtime.settings import brief

__all__ = ["QUANTILES", "levels", "scratch", "statistics"]

QUANTILES = (0.05, 0.5, 0.95)
"""Levels unless others are asked for."""

SLICE = 2**24
"""Numbers that are sorted at once."""

IN_MEMORY = 2**26
"""Numbers that are held in memory; more go to a file."""


def levels(quantiles: Any) -> tuple[float, ...]:
    """Levels of quantiles as numbers.

    Raises:
        ValueError: they are not increasing numbers between 0 and 1.
    """
    try:
        found = tuple(float(level) for level in quantiles)
        rising = all(a < b for a, b in zip((0.0, *found), (*found, 1.0), strict=True))
    except (TypeError, ValueError):
        found, rising = (), False
    if not found or not rising:
        raise ValueError(
            "'quantiles' must be increasing numbers above 0 and below 1; got " + brief(quantiles)
        )
    return found


def statistics(
    draws: np.ndarray, quantiles: Sequence[float], weights: np.ndarray | None = None
) -> Mapping[str, np.ndarray]:
    """Mean, standard deviation and quantiles over the first axis.

    Args:
        draws: ``(num_draws, *)``; not a number everywhere comes of none.
        quantiles: levels ``(q,)``.
        weights: of the first axes of ``draws``, ``(num_draws,)`` or ``(num_draws, n)``; equal
            unless given.

    Returns:
        ``mean`` and ``std`` ``(*)``, ``quantiles`` ``(q, *)``, of the type of ``draws``.
    """
    num, shape = len(draws), draws.shape[1:]
    flat = draws.reshape(num, int(np.prod(shape)))
    width = flat.shape[1]
    mean, std = np.full((2, width), np.nan, draws.dtype)
    points = np.full((len(quantiles), width), np.nan, draws.dtype)
    if weights is not None and num:
        weights = None if (weights == weights[0]).all() else weights.reshape(num, -1)
    step = max(1, SLICE // max(num, 1))
    for first in range(0, width if num else 0, step):
        part = slice(first, first + step)
        x = np.asarray(flat[:, part], dtype=np.float64)
        w = None
        if weights is not None:
            owner = np.arange(first, first + x.shape[1]) // (width // weights.shape[1])
            w = weights[:, owner].astype(np.float64)
        mean[part] = m = np.average(x, 0, w)
        std[part] = np.sqrt(np.average((x - m) ** 2, 0, w))
        points[:, part] = (
            np.quantile(x, quantiles, axis=0) if w is None else _inverse(x, quantiles, w)
        )
    return {
        "mean": mean.reshape(shape),
        "std": std.reshape(shape),
        "quantiles": points.reshape(-1, *shape),
    }


def _inverse(x: np.ndarray, quantiles: Sequence[float], weights: np.ndarray) -> np.ndarray:
    """Quantiles ``(q, m)`` of weighted draws ``(num, m)``."""
    order = np.argsort(x, axis=0)
    total = np.cumsum(np.take_along_axis(weights, order, 0), axis=0)
    found = []
    for level in quantiles:
        place = (total < level * total[-1]).sum(0, keepdims=True).clip(max=len(x) - 1)
        found.append(np.take_along_axis(x, np.take_along_axis(order, place, 0), 0)[0])
    return np.stack(found)


@contextmanager
def scratch(shape: Sequence[int], dtype: Any, folder: Path) -> Iterator[np.ndarray]:
    """An array to write to, in memory or, where it is large, in a nameless file of a folder."""
    if int(np.prod(shape)) <= IN_MEMORY:
        yield np.empty(shape, dtype)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, dtype, "w+", shape=tuple(shape))
