"""Packing, fill values and valid ranges count however a dataset was opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from vfm_inverse.formats.fill_values import decoded
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.priors import LabelledPrior

VALUES = np.arange(6.0)
FILL = netCDF4.default_fillvals["f4"]


def written(path: Path, kind: str, attrs: dict[str, Any], first: int = 0) -> Path:
    """A file of 0 to 5 as they are stored, of which the first few were never written."""
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("x", 6)
        variable = file.createVariable("a", kind, ("x",), fill_value=attrs.pop("_FillValue", None))
        variable.set_auto_maskandscale(False)
        variable.setncatts(attrs)
        variable[first:] = np.arange(first, 6)
    return path


def seen(path: Path, **options: Any) -> list[float]:
    with xr.open_dataset(path, **options) as file:
        return decoded(file)["a"].values.tolist()


OPENED = [{}, {"decode_cf": False}, {"mask_and_scale": False}, {"engine": "h5netcdf"}]


@pytest.mark.parametrize("options", OPENED)
def test_packed_data_are_unpacked_once(options: dict[str, Any], tmp_path: Path) -> None:
    attrs = {"scale_factor": 0.5, "add_offset": 3.0, "_FillValue": np.int16(4)}
    found = seen(written(tmp_path / "a.nc", "i2", attrs), **options)
    np.testing.assert_array_equal(found, [3.0, 3.5, 4.0, 4.5, np.nan, 5.5])


@pytest.mark.parametrize("options", OPENED)
@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "u2", "i4", "i8", "u8"])
def test_cells_never_written_hold_no_datum(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    found = seen(written(tmp_path / "a.nc", kind, {}, first=2), **options)
    np.testing.assert_array_equal(found, [np.nan, np.nan, 2, 3, 4, 5])


def test_a_fill_value_outlives_the_file_it_came_from() -> None:
    for values in (np.array([1.0, FILL], "f4"), np.array([1.0, FILL])):
        found = decoded(xr.Dataset({"a": ("x", values)}))["a"].values
        np.testing.assert_array_equal(found, [1.0, np.nan])


@pytest.mark.parametrize(
    ("scale", "limits", "expected"),
    [
        (0.5, {"valid_range": np.array([2, 4], "i2")}, [2, 3, 4]),  # packed as the data are
        (0.1, {"valid_range": np.array([0, 5], "i2")}, [0, 1, 2, 3, 4, 5]),
        (-0.5, {"valid_range": np.array([2, 4], "i2")}, [2, 3, 4]),
        (-0.5, {"valid_min": np.int16(2)}, [2, 3, 4, 5]),
        (-0.5, {"valid_max": np.int16(2)}, [0, 1, 2]),
        (0.5, {"valid_range": np.array([1.0, 2.0])}, [2, 3, 4]),  # of another type: unpacked
        (None, {"valid_min": np.int16(2)}, [2, 3, 4, 5]),
        (None, {"valid_range": "0 3"}, [0, 1, 2, 3, 4, 5]),  # says nothing
    ],
)
def test_valid_ranges_are_in_the_type_that_they_are_stated_in(
    scale: float | None, limits: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    attrs = limits if scale is None else {"scale_factor": scale, **limits}
    found = np.array(seen(written(tmp_path / "a.nc", "i2", dict(attrs))))
    assert np.flatnonzero(~np.isnan(found)).tolist() == expected
    np.testing.assert_allclose(found[expected], np.array(expected) * (scale or 1.0))


def test_several_fill_values_all_mean_the_same(tmp_path: Path) -> None:
    attrs = {"_FillValue": np.float32(1), "missing_value": np.array([2.0, 3.0], "f4")}
    found = seen(written(tmp_path / "a.nc", "f4", attrs), mask_and_scale=False)
    np.testing.assert_array_equal(found, [0, np.nan, np.nan, np.nan, 4, 5])


def test_whole_numbers_stay_whole_where_all_are_data(tmp_path: Path) -> None:
    with xr.open_dataset(written(tmp_path / "a.nc", "i8", {})) as file:
        assert decoded(file)["a"].dtype == np.int64


def test_factors_are_one_number() -> None:
    data = xr.Dataset({"a": ("x", VALUES, {"scale_factor": np.array([2.0])})})
    assert decoded(data)["a"].values.tolist() == (2 * VALUES).tolist()
    for wrong in ("2", 0.0, np.array([1.0, 2.0]), np.nan):
        data["a"].attrs["scale_factor"] = wrong
        with pytest.raises(ValueError, match="attribute 'scale_factor' of 'a' must be one number"):
            decoded(data)


def test_priors_are_physical_numbers_too(tmp_path: Path) -> None:
    fields = np.round(np.random.default_rng(0).normal(size=(30, 3)), 2)
    source = xr.Dataset({"t": (("sample", "x"), fields, {"units": "K"})}, {"x": [1.0, 2.0, 3.0]})
    packed = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 5.0, "_FillValue": -999}
    source.to_netcdf(tmp_path / "a.nc", encoding={"t": packed})
    with xr.open_dataset(tmp_path / "a.nc", decode_cf=False) as file:
        prior = LabelledPrior.read(file)
        np.testing.assert_allclose(prior.data.values, fields, atol=1e-6)
        assert prior.data.name == "t" and prior.data.attrs["units"] == "K"
    source["t"][3, 1] = FILL
    with pytest.raises(ValueError, match="'prior' must be finite; 1 of 90 values are not"):
        InverseProblem(source, simulator=lambda x: x + 1)
