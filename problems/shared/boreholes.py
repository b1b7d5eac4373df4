"""What the problems between two boreholes share: the log-velocity in a square, depth downwards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vfm_inverse.problem.random_fields import MaternField

__all__ = ["DOWN", "log_velocity"]

DOWN = {"units": "m", "positive": "down"}
"""Attributes of a depth."""


def log_velocity(
    axis: np.ndarray, velocity: float, std: float, nu: float, length_scale: float, unit: str
) -> dict[str, Any]:
    """Prior and labels of fields ``(1, size, size)``, as ``InverseProblem`` takes them.

    Args:
        axis: nodes ``(size,)`` along each side, in metres from the upper left corner.
        velocity: median velocity.
        std: standard deviation of the log-velocity.
        nu, length_scale: of its Matérn covariance, the scale in units of the side.
        unit: of the velocity.

    Raises:
        ValueError: a setting is out of range.
    """
    shape = (len(axis), len(axis))
    return {
        "prior": MaternField(shape, nu, length_scale, std, mean=math.log(velocity)),
        "dims": ("z", "x"),
        "coords": {
            "z": ("z", axis, {**DOWN, "axis": "Z"}),
            "x": ("x", axis, {"units": "m", "axis": "X"}),
        },
        "units": "1",
        "long_name": f"log-velocity, ln(v / ({unit}))",
    }
