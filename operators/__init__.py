"""Forward operators of the sciences: deepinv ``Physics`` with exact adjoints and derivatives.

Forward- and reverse-mode derivatives and ``vmap`` go through all of them, and
:func:`~vfm_inverse.operators.verify.verify` certifies them and yours.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.operators import (
    advection_diffusion,
    bridges,
    gravity,
    heat,
    joint,
    magnetics,
    observation,
    rays,
    seismogram,
)
from vfm_inverse.operators.advection_diffusion import AdvectionDiffusion, wind_of_stream_function
from vfm_inverse.operators.bridges import NumpyPhysics, ScipyPhysics, simpeg_physics
from vfm_inverse.operators.gravity import GravityAnomaly
from vfm_inverse.operators.heat import HeatEquation
from vfm_inverse.operators.joint import TimeWindows, join
from vfm_inverse.operators.magnetics import MagneticAnomaly
from vfm_inverse.operators.observation import MatrixObservations, PointObservations
from vfm_inverse.operators.rays import StraightRays
from vfm_inverse.operators.seismogram import Seismogram, ricker
from vfm_inverse.operators.verify import Verification, verify

__all__ = [
    "AdvectionDiffusion",
    "GravityAnomaly",
    "HeatEquation",
    "MagneticAnomaly",
    "MatrixObservations",
    "NumpyPhysics",
    "PointObservations",
    "ScipyPhysics",
    "Seismogram",
    "StraightRays",
    "TimeWindows",
    "Verification",
    "examples",
    "join",
    "ricker",
    "simpeg_physics",
    "verify",
    "wind_of_stream_function",
]


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of every operator of the pack, ``x`` a batch of fields that fit."""
    yield from observation.examples()
    yield from heat.examples()
    yield from advection_diffusion.examples()
    yield from rays.examples()
    yield from gravity.examples()
    yield from magnetics.examples()
    yield from seismogram.examples()
    yield from joint.examples()
    yield from bridges.examples()
