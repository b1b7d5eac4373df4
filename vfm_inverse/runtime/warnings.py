"""The warning that draws are not vouched for."""

from __future__ import annotations

__all__ = [
    "CalibrationWarning",
]


class CalibrationWarning(UserWarning):
    """Draws that no calibration vouches for: the map is uncertified or failed, or the observation
    lies outside the range that was checked."""
