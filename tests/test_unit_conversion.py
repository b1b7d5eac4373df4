"""Units of measure: equal spellings, conversion, widths, durations, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vfm_inverse.formats.units import converted, duration, is_time, same_units

EQUAL = [
    ("kelvin", "K"),
    ("Kelvin", "degK"),
    ("", "1"),
    ("dimensionless", "1"),
    ("m", "metre"),
    ("Meters", "m"),
    ("degC", "celsius"),
    ("degrees Celsius", "degree_C"),
    ("%", "percent"),
    ("degree_N", "degrees_north"),
    ("degrees_east", "degrees"),
    ("m s-1", "m/s"),
    ("mbar", "hPa"),
    ("seconds", "s"),
    ("Days", "d"),
    (" m  s-1", "m s-1"),
    ("of my own", "of my own"),
    (None, "K"),
]
DIFFERENT = [
    ("K", "degC"),
    ("%", "1"),
    ("mPa", "MPa"),
    ("degrees_north", "degrees_east"),
    ("m", "km"),
    ("ms", "m"),
    ("of my own", "m"),
]


@pytest.fixture(params=["with the library", "without it"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without it":
        monkeypatch.setitem(sys.modules, "cf_units", None)
        return False
    pytest.importorskip("cf_units")
    return True


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cf_units", None)


def test_spellings_of_one_unit_are_equal_and_other_units_are_not(library: bool) -> None:
    for a, b in EQUAL:
        assert same_units(a, b) and same_units(b, a), (a, b)
        values = converted(np.array([1, 2]), a, b, "lat", difference=True)
        assert values.dtype == np.float64 and values.tolist() == [1.0, 2.0]
    for a, b in DIFFERENT:
        assert not same_units(a, b) and not same_units(b, a), (a, b)


@pytest.mark.parametrize(
    "a, b", [("m2 s-2", "J kg-1"), ("N", "newton"), ("kg kg-1", "1"), ("W m-2", "W/m**2")]
)
def test_the_library_knows_more_spellings(a: str, b: str) -> None:
    pytest.importorskip("cf_units")
    assert same_units(a, b)


@pytest.mark.parametrize(
    "units, target, factor, offset",
    [
        ("degC", "K", 1.0, 273.15),
        ("K", "celsius", 1.0, -273.15),
        ("degF", "degC", 5 / 9, -160 / 9),
        ("km", "m", 1e3, 0.0),
        ("%", "1", 1e-2, 0.0),
        ("g/kg", "kg kg-1", 1e-3, 0.0),
        ("1e-3", "1", 1e-3, 0.0),
        ("mbar", "Pa", 1e2, 0.0),
        ("mm/day", "m s-1", 1e-3 / 86400, 0.0),
        ("degrees_east", "radian", np.pi / 180, 0.0),
        ("hours", "days", 1 / 24, 0.0),
        ("days since 2000-01-01", "hours since 2000-01-02", 24.0, -24.0),
    ],
)
def test_numbers_and_widths_are_converted(
    units: str, target: str, factor: float, offset: float
) -> None:
    pytest.importorskip("cf_units")
    values = np.array([[20.0, np.nan, -3.0]], dtype=np.float32)
    found = converted(values, units, target, "value")
    np.testing.assert_allclose(found, factor * values.astype(float) + offset, rtol=1e-12)
    width = converted(values, units, target, "error_std", difference=True)
    np.testing.assert_allclose(width, factor * values.astype(float), rtol=1e-11)


def test_a_logarithm_converts_but_its_width_does_not() -> None:
    pytest.importorskip("cf_units")
    np.testing.assert_allclose(
        converted(np.array([0.0, 10.0]), "dBZ", "mm6 m-3", "value"), [1.0, 10.0], rtol=1e-9
    )
    with pytest.raises(ValueError, match="a width has no conversion"):
        converted(np.ones(1), "dBZ", "mm6 m-3", "error_std", difference=True)


@pytest.mark.parametrize(
    "units, target, why",
    [
        ("m", "K", "lat is in 'm', the problem in 'K'; one cannot be converted to the other"),
        ("degrees", "1", "one cannot be converted"),
        ("days since 2000-01-01", "days", "one cannot be converted"),
        ("of my own", "m", "UDUNITS knows no unit 'of my own'"),
        ("m", "deg K", "UDUNITS knows no unit 'deg K'"),
        ("degrees_north", "degrees_east", "are the two axes swapped"),
    ],
)
def test_what_cannot_be_converted_is_refused(units: str, target: str, why: str) -> None:
    pytest.importorskip("cf_units")
    with pytest.raises(ValueError, match=why):
        converted(np.ones(2), units, target, "lat")


def test_without_the_library_the_extra_is_named(no_library: None) -> None:
    with pytest.raises(ValueError, match=r"y is in 'km', the problem in 'm'; .*vfm-inverse\[io"):
        converted(np.ones(2), "km", "m", "y")
    with pytest.raises(ValueError, match=r"vfm-inverse\[io\]"):
        converted(np.ones(2), "of my own", "m", "y")


def test_numbers_of_no_meaning_are_refused() -> None:
    for values in (np.ones(2) + 1j, np.array(["a"]), np.array(["2020-01-01"], "datetime64[D]")):
        with pytest.raises(TypeError, match="'y' must hold real numbers"):
            converted(values, "m", "m", "y")


def test_durations_become_numbers_of_a_unit(library: bool) -> None:
    for unit, factor in {
        "s": 1e-3,
        "Milliseconds": 1.0,
        "hours": 1e-3 / 3600,
        "days": 1e-3 / 86400,
    }.items():
        assert is_time(unit)
        values = np.array([1500, 0, "NaT"], "timedelta64[ms]")
        expected = np.array([1500.0, 0.0, np.nan]) * factor
        np.testing.assert_allclose(duration(values, unit, "observed"), expected, rtol=1e-15)
    # Other steps; exact where it can be.
    assert duration(np.array([3], "timedelta64[D]"), "s", "observed").tolist() == [259200.0]
    assert duration(np.array([3], "timedelta64[25s]"), "s", "observed").tolist() == [75.0]
    assert duration(np.array([3], "timedelta64[ns]"), "s", "observed").tolist() == [3e-9]
    assert duration(np.array([5], "timedelta64[ps]"), "ns", "observed").tolist() == [5e-3]
    assert np.isnan(duration(np.array(["NaT"], "timedelta64"), "s", "observed")).all()
    # Seconds beyond what nanoseconds can count.
    assert duration(np.array([10**12], "timedelta64[s]"), "s", "observed").tolist() == [1e12]
    for unit in ("m", "1", "days since 2000-01-01", "of my own", None):
        assert not is_time(unit)
        with pytest.raises(ValueError, match="observed holds durations"):
            duration(values, unit, "observed")
    for dtype in ("timedelta64[M]", "timedelta64"):
        with pytest.raises(ValueError, match="of a fixed length"):
            duration(np.array([1], dtype), "s", "observed")
    with pytest.raises(TypeError, match="observed must hold durations"):
        duration(np.ones(2), "s", "observed")


def test_durations_of_a_rarer_unit() -> None:
    pytest.importorskip("cf_units")
    values = np.array([14], "timedelta64[D]")
    np.testing.assert_allclose(duration(values, "fortnight", "observed"), [1.0], rtol=1e-12)
