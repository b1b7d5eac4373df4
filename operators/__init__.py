"""Observation operators: deepinv ``LinearPhysics`` with exact adjoints.

Forward- and reverse-mode derivatives and ``vmap`` go through all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.operators import observation
from vfm_inverse.operators.observation import MatrixObservations, PointObservations

__all__ = ["MatrixObservations", "PointObservations", "examples"]


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of every operator of the pack, ``x`` a batch of fields that fit."""
    yield from observation.examples()
