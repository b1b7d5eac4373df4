"""Units of measure: which spellings are equal, and numbers of one unit in another,

.. math:: v' = a v + b, \\qquad \\sigma' = |a| \\sigma,

a width or standard deviation without the offset. Units are those of the CF conventions, read by
UDUNITS (``cf-units``, in the extra ``io``). Without the extra, equal spellings of frequent units
are equal, and what would have to be converted is refused. Durations need no extra.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from vfm_inverse.runtime.arrays import real_array

__all__ = ["converted", "convertible", "duration", "is_time", "same_units"]

# Symbols differ by case (mPa, MPa); names do not, and stand in the plural too.
SYMBOLS = {
    "1": ("", "-", "[]"),
    "m": (),
    "km": (),
    "cm": (),
    "mm": (),
    "K": ("degK", "deg_K", "degreeK", "degree_K", "degreesK", "degrees_K", "°K"),
    "degC": ("deg_C", "degreeC", "degree_C", "degreesC", "degrees_C", "°C", "℃"),
    "degF": ("deg_F", "degreeF", "degree_F", "degreesF", "degrees_F", "°F"),
    "Pa": (),
    "hPa": ("mbar",),
    "%": (),
    "kg": (),
    "m s-1": ("m/s", "m s^-1", "m s**-1", "m.s-1", "ms^-1"),
    "kg kg-1": ("kg/kg", "kg kg^-1", "kg kg**-1"),
    "degrees": ("deg", "°"),
    "degrees_north": ("degree_N", "degrees_N", "degreeN", "degreesN"),
    "degrees_east": ("degree_E", "degrees_E", "degreeE", "degreesE"),
    "s": ("sec",),
    "ms": ("msec",),
    "us": ("µs", "μs", "usec"),
    "ns": (),
    "min": (),
    "h": ("hr",),
    "d": (),
}
NAMES = {
    "1": ("dimensionless", "unitless", "none"),
    "m": ("metre", "meter"),
    "km": ("kilometre", "kilometer"),
    "cm": ("centimetre", "centimeter"),
    "mm": ("millimetre", "millimeter"),
    "K": ("kelvin", "degree_kelvin"),
    "degC": ("celsius", "degree_celsius"),
    "degF": ("fahrenheit", "degree_fahrenheit"),
    "Pa": ("pascal",),
    "hPa": ("hectopascal", "millibar"),
    "%": ("percent",),
    "kg": ("kilogram",),
    "degrees": ("degree",),
    "degrees_north": ("degree_north",),
    "degrees_east": ("degree_east",),
    "s": ("second", "secs"),
    "ms": ("millisecond",),
    "us": ("microsecond",),
    "ns": ("nanosecond",),
    "min": ("minute", "mins"),
    "h": ("hour", "hrs"),
    "d": ("day",),
    "week": ("week",),
}
BY_SYMBOL = {other: first for first, others in SYMBOLS.items() for other in (first, *others)}
BY_NAME = {name: first for first, names in NAMES.items() for name in names}
DEGREES = {"degrees", "degrees_north", "degrees_east"}
NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
    "week": 604_800 * 10**9,
}
# NumPy's units of durations; its years and months have no length.
OF_NUMPY = {"m": "min", "D": "d", "W": "week", "us": "us", "μs": "us"} | {
    unit: unit for unit in ("ns", "ms", "s", "h")
}
FINER = {"ps": 10**3, "fs": 10**6, "as": 10**9}


def same_units(a: str | None, b: str | None) -> bool:
    """Whether two units are the same, however they are spelt; one that is not stated (None) is
    the same as any.

    ``degrees_north`` and ``degrees_east`` differ from one another, and from plain degrees not.
    """
    if a is None or b is None:
        return True
    first, second = _spelling(a), _spelling(b)
    if first == second:
        return True
    if {first, second} <= DEGREES:
        return "degrees" in (first, second)
    line = _line(first, second)
    return isinstance(line, tuple) and line[2] and _is_identity(*line[:2])


def convertible(one: str, other: str) -> bool:
    """Whether two units are of one kind; True where nothing here can tell."""
    return same_units(one, other) or (
        _udunits() is None or isinstance(_line(_spelling(one), _spelling(other)), tuple)
    )


def converted(
    values: np.ndarray,
    units: str | None,
    target: str | None,
    name: str,
    *,
    difference: bool = False,
) -> np.ndarray:
    """Numbers in another unit, float64 and of the same shape.

    Args:
        values: numbers in ``units``; NaN stays NaN.
        units, target: from and to; where one is not stated (None) the numbers are as they are.
        name: of what holds the numbers, for the message: ``the observation``, ``'lat'``.
        difference: they are standard deviations or widths, which have no offset: 1 degC is 1 K.

    Raises:
        TypeError: they are no real numbers.
        ValueError: a unit is unknown, one cannot be converted to the other, or the library that
            does so is not installed.
    """
    numbers = real_array(values, name.strip("'")).astype(np.float64)
    if units is None or target is None:
        return numbers
    first, second = _spelling(units), _spelling(target)
    if difference:  # the width of dates is a time
        first, second = (re.split(r"\s+since\s", unit)[0] for unit in (first, second))
        first, second = _spelling(first), _spelling(second)
    if same_units(first, second):
        return numbers
    if {first, second} <= DEGREES:
        raise ValueError(f"{_differ(name, units, target)}; are the two axes swapped?")
    line = _line(first, second)
    if isinstance(line, str):
        raise ValueError(f"{_differ(name, units, target)}; {line}")
    factor, offset, straight = line
    if difference:
        if not straight:
            raise ValueError(
                f"{_differ(name, units, target)}; a width has no conversion where one is a "
                "logarithm of the other"
            )
        return numbers * abs(factor)
    if straight:
        return numbers * factor + offset
    library = _udunits()
    assert library is not None  # _line has used it
    return np.asarray(library.Unit(first).convert(numbers, library.Unit(second)), np.float64)


def is_time(units: str | None) -> bool:
    """Whether a unit is one of time: seconds or days, not dates (``days since 2000-01-01``)."""
    if units is None:
        return False
    spelt = _spelling(units)
    return spelt in NANOSECONDS or isinstance(_line(spelt, "s"), tuple)


def duration(
    values: np.ndarray, units: str | None, name: str, *, difference: bool = False
) -> np.ndarray:
    """Durations (NumPy's ``timedelta64``) as numbers of a unit of time, float64; NaT is NaN.

    Args:
        values: durations.
        units: the unit.
        name: of what holds them, for the message.
        difference: they are standard deviations or widths, of dates too.

    Raises:
        TypeError: they are no durations.
        ValueError: the unit is none of time or not stated, or the durations are of years or
            months, which have no length.
    """
    values = np.asarray(values)
    if values.dtype.kind != "m":
        raise TypeError(f"{name} must hold durations (timedelta64); got {values.dtype}")
    if difference and units is not None:
        units = re.split(r"\s+since\s", str(units))[0]
    if units is None or not is_time(units):
        raise ValueError(
            f"{name} holds durations, and the problem is in '{units or '':.40}', no unit of time; "
            "divide them by a unit, as in values / numpy.timedelta64(1, 's')"
        )
    own = np.datetime_data(values.dtype)[0]
    numbers = _counts(values)
    if own in OF_NUMPY:
        numerator, denominator = NANOSECONDS[OF_NUMPY[own]], 1
    elif own in FINER:
        numerator, denominator = 1, FINER[own]
    elif not np.isfinite(numbers).any():  # NaT alone has no unit
        return numbers
    else:
        raise ValueError(
            f"{name} holds durations in {own if own != 'generic' else 'no unit'}; convert them "
            "to one of a fixed length, as in values.astype('timedelta64[s]')"
        )
    spelt = _spelling(units)
    denominator *= NANOSECONDS[spelt if spelt in NANOSECONDS else "s"]
    # One rounding: integers divide exactly where they can.
    if numerator >= denominator:
        numbers = numbers * (numerator / denominator)
    else:
        numbers = numbers / (denominator / numerator)
    return numbers if spelt in NANOSECONDS else converted(numbers, "s", spelt, name)


def _counts(values: np.ndarray) -> np.ndarray:
    """Durations in their own unit, float64."""
    step = np.datetime_data(values.dtype)[1]
    return np.where(np.isnat(values), np.nan, values.astype(np.int64) * np.float64(step))


def _spelling(units: Any) -> str:
    """One spelling of each frequent unit; any other with single spaces."""
    if isinstance(units, bytes):
        units = units.decode(errors="replace")
    if isinstance(units, int | float | np.number):  # an attribute ``units = 1``
        units = f"{units:g}"
    text = " ".join(str(units).split())
    if text in BY_SYMBOL:
        return BY_SYMBOL[text]
    word = text.casefold().replace(" ", "_").replace("degrees", "degree")
    for name in (word, word.removesuffix("s")):
        if name in BY_NAME:
            return BY_NAME[name]
    return text


def _udunits() -> ModuleType | None:
    try:
        import cf_units
    except ImportError:
        return None
    return cf_units


def _line(units: str, target: str) -> tuple[float, float, bool] | str:
    """Factor and offset, and whether that is all; or why there is no conversion."""
    if _udunits() is None:
        return (
            "conversion needs the library cf-units (pip install 'vfm-inverse[io]'), or give both "
            "in one unit"
        )
    return _line_of_udunits(units, target)


@lru_cache(maxsize=256)
def _line_of_udunits(units: str, target: str) -> tuple[float, float, bool] | str:
    library = _udunits()
    assert library is not None
    parsed = []
    for text in (units, target):
        try:
            unit = library.Unit(text)
        except ValueError:
            unit = library.Unit("unknown")
        if unit.is_unknown() or unit.is_no_unit():
            return f"UDUNITS knows no unit '{text:.40}'"
        parsed.append(unit)
    first, second = parsed
    # UDUNITS takes a radian for the number 1; a place in degrees is none of a grid from 0 to 1.
    angles = ["rad" in str(unit.definition) for unit in parsed]
    if not first.is_convertible(second) or angles[0] != angles[1]:
        return "one cannot be converted to the other"
    zero, one, far = first.convert(np.array([0.0, 1.0, 1024.0]), second)
    factor = float(one - zero)
    if zero != 0:  # a longer lever, for the digits that the offset takes
        factor = float(far - zero) / 1024.0
    straight = bool(np.isfinite(far)) and bool(np.isclose(one - zero, factor, rtol=1e-9, atol=0))
    straight = straight and bool(np.isclose(far - zero, 1024.0 * factor, rtol=1e-9, atol=0))
    return factor, float(zero), straight


def _is_identity(factor: float, offset: float) -> bool:
    return abs(factor - 1) < 1e-12 and offset == 0


def _differ(name: str, units: str, target: str) -> str:
    return f"{name} is in '{units!s:.40}', the problem in '{target!s:.40}'"
