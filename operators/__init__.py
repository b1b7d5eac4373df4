"""Forward operators: deepinv ``Physics``, batched, with exact derivatives.

Forward- and reverse-mode derivatives and ``vmap`` go through all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.operators import darcy, dynamics, eikonal, observation, spectral
from vfm_inverse.operators.darcy import Darcy
from vfm_inverse.operators.dynamics import Lorenz63, Lorenz96, Trajectory
from vfm_inverse.operators.eikonal import FirstArrivals
from vfm_inverse.operators.observation import MatrixObservations, PointObservations
from vfm_inverse.operators.spectral import KuramotoSivashinsky, Vorticity
from vfm_inverse.operators.waves import FullWaveform

__all__ = [
    "Darcy",
    "FirstArrivals",
    "FullWaveform",
    "KuramotoSivashinsky",
    "Lorenz63",
    "Lorenz96",
    "MatrixObservations",
    "PointObservations",
    "Trajectory",
    "Vorticity",
    "examples",
]


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of every operator of the pack, ``x`` a batch of fields that fit."""
    for module in (observation, darcy, eikonal, dynamics, spectral):
        yield from module.examples()
