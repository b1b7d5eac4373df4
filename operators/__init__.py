"""Forward operators of the sciences: deepinv ``Physics`` with exact adjoints and derivatives.

Forward- and reverse-mode derivatives and ``vmap`` go through all of them, and
:func:`~vfm_inverse.operators.verification.verify.verify` certifies them and yours.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.operators import (
    adjoint,
    advection_diffusion,
    bridges,
    darcy,
    dynamics,
    eikonal,
    gravity,
    heat,
    joint,
    magnetics,
    observation,
    rays,
    seismogram,
    spectral,
)
from vfm_inverse.operators.adjoint import AutogradAdjoint
from vfm_inverse.operators.advection_diffusion import AdvectionDiffusion, wind_of_stream_function
from vfm_inverse.operators.bridges import NumpyPhysics, ScipyPhysics, simpeg_physics
from vfm_inverse.operators.darcy import Darcy
from vfm_inverse.operators.dynamics import Lorenz63, Lorenz96, Trajectory
from vfm_inverse.operators.eikonal import FirstArrivals
from vfm_inverse.operators.gravity import GravityAnomaly
from vfm_inverse.operators.heat import HeatEquation
from vfm_inverse.operators.joint import TimeWindows, join
from vfm_inverse.operators.magnetics import MagneticAnomaly
from vfm_inverse.operators.observation import MatrixObservations, PointObservations
from vfm_inverse.operators.rays import StraightRays
from vfm_inverse.operators.seismogram import Seismogram, ricker
from vfm_inverse.operators.spectral import KuramotoSivashinsky, Vorticity
from vfm_inverse.operators.verification.verify import Verification, verify
from vfm_inverse.operators.waves import FullWaveform

__all__ = [
    "AdvectionDiffusion",
    "AutogradAdjoint",
    "Darcy",
    "FirstArrivals",
    "FullWaveform",
    "GravityAnomaly",
    "HeatEquation",
    "KuramotoSivashinsky",
    "Lorenz63",
    "Lorenz96",
    "MagneticAnomaly",
    "MatrixObservations",
    "NumpyPhysics",
    "PointObservations",
    "ScipyPhysics",
    "Seismogram",
    "StraightRays",
    "TimeWindows",
    "Trajectory",
    "Verification",
    "Vorticity",
    "examples",
    "join",
    "ricker",
    "simpeg_physics",
    "verify",
    "wind_of_stream_function",
]


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of every operator of the pack, ``x`` a batch of fields that fit."""
    for module in (
        observation,
        heat,
        advection_diffusion,
        rays,
        gravity,
        magnetics,
        seismogram,
        joint,
        adjoint,
        bridges,
        darcy,
        eikonal,
        dynamics,
        spectral,
    ):
        yield from module.examples()
