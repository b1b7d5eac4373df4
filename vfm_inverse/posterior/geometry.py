"""What the shape of fields says: where a map works, and whether convolutions suit it."""

from __future__ import annotations

import math

from deepinv.physics import LinearPhysics
from torch import Tensor

from vfm_inverse.networks.stations import is_table
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.scaling import center_and_spread, over

__all__ = ["grid_shape", "inner_shape", "is_ordered", "suits_convolutions"]

SMALL_FIELD = 64
"""Largest field that is better served by an MLP than by convolutions."""

SHORTEST_SIGNAL = 32
"""Shortest vector that may be better served by convolutions than by an MLP."""


def inner_shape(problem: InverseProblem) -> tuple[int, ...]:
    """Shape of a field's values without bounds, where the map works."""
    shape = problem.field_shape
    return tuple(shape if problem.transform is None else problem.transform.inverse_shape(shape))


def grid_shape(problem: InverseProblem) -> tuple[int, ...]:
    """Shape of a field as convolutions see it: a vector is one channel."""
    shape = tuple(problem.field_shape)
    return shape if len(shape) > 1 else (1, *shape)


def suits_convolutions(problem: InverseProblem, free: Tensor) -> bool:
    """Whether places mean something in a field, given samples ``(n, *event)`` of the values
    without bounds: a field of some size, or a vector that is an ordered signal."""
    shape = tuple(problem.field_shape)
    if inner_shape(problem) != shape:
        return False
    if len(shape) > 1:
        return math.prod(shape) > SMALL_FIELD
    observed = tuple(problem.observation_shape)
    lifted = observed == shape or isinstance(problem.physics, LinearPhysics)
    if shape[0] < SHORTEST_SIGNAL or not lifted or is_table(observed, problem.param_shapes):
        return False
    return is_ordered(free)


def is_ordered(x: Tensor) -> bool:
    """Whether neighbours in vectors ``(n, d)`` correlate as other pairs do not: of what mean
    ``|correlation|`` leaves to 1, half at most."""
    columns = x[:1000, :2048]
    center, spread = center_and_spread(columns)
    standard = over(columns - center, spread)
    correlation = (standard.mT @ standard / len(standard)).abs().clamp_max(1)
    off = correlation.sum() - correlation.diagonal().sum()
    others = off / (correlation.numel() - len(correlation))
    return bool(1 - correlation.diagonal(1).mean() < 0.5 * (1 - others))
