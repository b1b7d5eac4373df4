"""Units of measurement, as CF and UDUNITS spell and convert them.

Conversion is that of UDUNITS, by the library cf-units (extra ``io``). Without it the commonest
equal spellings are known, and units that differ are refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["converted", "duration", "same_units"]

SPELLINGS = (
    ("1", "", "dimensionless", "unitless", "none"),
    ("K", "kelvin", "kelvins", "degK", "degree_K", "deg_K"),
    ("degC", "celsius", "Celsius", "degrees_celsius", "degree_Celsius", "deg_C", "°C"),
    ("m", "metre", "metres", "meter", "meters"),
    ("km", "kilometre", "kilometres", "kilometer", "kilometers"),
    ("s", "sec", "second", "seconds"),
    ("h", "hr", "hour", "hours"),
    ("d", "day", "days"),
    ("%", "percent"),
    ("Pa", "pascal", "pascals"),
    ("degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN"),
    ("degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE"),
)
"""Equal spellings, for where the library is not installed."""

DURATIONS = {
    "ns": ("ns", "nanosecond", "nanoseconds"),
    "us": ("us", "µs", "microsecond", "microseconds"),
    "ms": ("ms", "millisecond", "milliseconds", "msec"),
    "s": ("s", "sec", "second", "seconds"),
    "m": ("min", "minute", "minutes"),
    "h": ("h", "hr", "hour", "hours"),
    "D": ("d", "day", "days"),
    "W": ("week", "weeks"),
}
"""NumPy's time units by the names that they go by."""


def same_units(one: str | None, other: str | None) -> bool:
    """Whether numbers in one unit are the same numbers in another."""
    one, other = _plain(one), _plain(other)
    if one == other:
        return True
    first, second = _parsed(one), _parsed(other)
    if first is None or second is None or not first.is_convertible(second):
        return False
    there = first.convert(np.array([0.0, 1.0]), second)
    return bool(np.allclose(there, [0.0, 1.0], rtol=0, atol=1e-12))


def converted(
    values: np.ndarray, units: str, target: str, name: str, *, difference: bool = False
) -> np.ndarray:
    """Values of one unit in another, float64.

    Args:
        values: numbers in ``units``.
        units, target: as UDUNITS writes them.
        name: of the values, for the message.
        difference: of standard deviations and widths, which the offset between degrees Celsius
            and kelvin does not concern.

    Raises:
        ValueError: the units cannot be converted, or nothing here can do it.
    """
    first, second = _parsed(_plain(units)), _parsed(_plain(target))
    if first is None or second is None or not first.is_convertible(second):
        hint = "" if _library() else "; to convert units, install 'vfm-inverse[io]'"
        raise ValueError(f"{name} is in '{units}', the problem in '{target}'{hint}")
    values = np.array(values, dtype=np.float64)
    if difference:
        low, high = first.convert(np.array([0.0, 2.0**20]), second)
        return values * ((high - low) / 2.0**20)
    return np.asarray(first.convert(values, second), dtype=np.float64)


def duration(values: np.ndarray, units: str, name: str) -> np.ndarray:
    """Durations ``timedelta64`` as numbers of a unit of time, float64; NaT is NaN.

    Raises:
        ValueError: the unit is none of time.
    """
    for code, names in DURATIONS.items():
        if units.strip().lower() in names:
            return np.asarray(values / np.array(1, f"m8[{code}]"), dtype=np.float64)
    raise ValueError(
        f"{name} holds durations, and the problem is in '{units}', no unit of time; divide them "
        "by a unit, as in values / numpy.timedelta64(1, 's')"
    )


def _plain(units: str | None) -> str:
    units = str(units or "").strip()
    return next((names[0] for names in SPELLINGS if units in names), units)


@lru_cache
def _library() -> Any:
    try:
        import cf_units
    except ImportError:
        return None
    return cf_units


@lru_cache
def _parsed(units: str) -> Any:
    """The unit; None where it is unknown, or nothing here knows units."""
    if (library := _library()) is None:
        return None
    try:
        unit = library.Unit(units)
    except ValueError:
        return None
    return None if unit.is_unknown() or unit.is_no_unit() else unit
