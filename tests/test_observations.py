"""Observations as files, frames and arrays of other programs hold them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deepinv as dinv
import netCDF4
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse.formats.units import converted, duration, same_units
from vfm_inverse.labelled import write as labelled
from vfm_inverse.labelled.read import read_observation
from vfm_inverse.labelled.write import load_observation
from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem

NOISE = dinv.physics.GaussianNoise(0.1)
VALUES = np.arange(16.0).reshape(4, 4)


def grid(dims: tuple[str, ...] = ("y", "x"), size: int = 4, **labels: Any) -> InverseProblem:
    return InverseProblem(
        torch.randn(60, 1, size, size),
        physics=dinv.physics.Inpainting((1, size, size), mask=0.5, noise_model=NOISE),
        params=lambda num: {"mask": (torch.rand(num, 1, size, size) > 0.5).float()},
        dims=dims,
        **labels,
    )


def read(source: Any, problem: InverseProblem) -> np.ndarray:
    return load_observation(source, problem)[0].squeeze(1).double().numpy()


# Axes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("y", "x"),
        ("lat", "x"),
        ("latitude", "longitude"),
        ("lat", "lon"),
        ("y", "lon"),
        ("y", "b"),
    ],
)
def test_a_square_field_is_never_read_transposed(names: tuple[str, str]) -> None:
    stored = xr.DataArray(VALUES, dims=names)
    for data in (stored, stored.transpose()):
        assert np.array_equal(read(data, grid())[0], VALUES)


@pytest.mark.parametrize("names", [("a", "b"), ("lat", "y"), ("lon", "x")])
def test_axes_that_do_not_say_what_they_are_are_refused(names: tuple[str, str]) -> None:
    problem = grid(("lat", "lon"))
    with pytest.raises(ValueError, match="cannot tell which of the observation's dimensions"):
        read(xr.DataArray(VALUES, dims=names), problem)


def test_attributes_say_what_an_axis_is() -> None:
    stored = xr.DataArray(VALUES.T, dims=("a", "b"))
    stored = stored.assign_coords(
        a=("a", np.arange(4.0), {"standard_name": "longitude"}),
        b=("b", np.arange(4.0), {"units": "degrees_north"}),
    )
    assert np.array_equal(read(stored, grid())[0], VALUES)


def test_an_extra_dimension_counts_observations() -> None:
    stack = np.stack([VALUES, VALUES + 1])
    days = np.array(["2020-01-01", "2020-01-02"], "M8[ns]")
    data = xr.DataArray(stack, dims=("time", "lat", "lon"), coords={"time": days})
    observation = read_observation(data, grid())
    assert np.array_equal(observation.y[:, 0].double().numpy(), stack)
    assert np.array_equal(observation.labels["observation"].values, days)
    one = read_observation(data.isel(time=[1]), grid())
    assert one.y.shape == (1, 1, 4, 4) and one.labels["time"].values[0] == days[1]


@pytest.mark.parametrize("kind", ["turned", "reversed", "metres", "single"])
def test_coordinates_are_compared_by_what_they_mean(kind: str) -> None:
    lon, y = np.array([0.0, 90.0, 180.0, 270.0]), np.array([0.0, 1.0, 2.0, 3.0])
    coords = {"y": ("y", y, {"units": "km"}), "lon": ("lon", lon, {"units": "degrees_east"})}
    problem = grid(("y", "lon"), coords=coords)
    data = xr.DataArray(VALUES, dims=("y", "lon"), coords=coords)
    if kind == "turned":
        data = data.roll(lon=2, roll_coords=True)
        data = data.assign_coords(lon=("lon", [-180.0, -90, 0, 90], {"units": "degrees_east"}))
    elif kind == "reversed":
        data = data.isel(y=slice(None, None, -1))
    elif kind == "metres":
        pytest.importorskip("cf_units")
        data = data.assign_coords(y=("y", 1000 * y, {"units": "m"}))
    else:
        data = data.assign_coords(lon=lon.astype("f4"))
    assert np.array_equal(read(data, problem)[0], VALUES)
    with pytest.raises(ValueError, match="coordinate 'y' of the observation is"):
        read(data.assign_coords(y=("y", data["y"].values * 3 + 1, data["y"].attrs)), problem)


def test_a_grid_may_have_both_ends_of_the_circle() -> None:
    coords = {"lon": ("lon", [0.0, 120.0, 240.0, 360.0], {"units": "degrees_east"})}
    data = xr.DataArray(VALUES, dims=("y", "lon"), coords=coords)
    assert np.array_equal(read(data, grid(("y", "lon"), coords=coords))[0], VALUES)


@pytest.mark.parametrize("names", [("rlat", "rlon"), ("plev", "lat")])
def test_axes_of_another_kind_are_not_taken_for_one_another(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot tell which of the observation's dimensions"):
        read(xr.DataArray(VALUES, dims=names), grid(("lat", "depth")))


def test_coordinates_with_holes_agree_where_both_have_them(tmp_path: Path) -> None:
    depth = np.array([1.0, np.nan, 3.0, 4.0])
    when = np.array(["2020-01-01", "NaT", "2020-01-03", "2020-01-04"], "M8[ns]")
    land = np.where(VALUES < 3, np.nan, VALUES)
    coords = {"depth": ("y", depth), "when": ("y", when), "nav_lat": (("y", "x"), land)}
    problem = grid(coords=coords)
    _, y, params = problem.simulate(2, seed=1)
    path = labelled.save_netcdf(
        labelled.observation_to_xarray(y, problem, params), tmp_path / "a.nc"
    )
    assert torch.equal(load_observation(path, problem)[0], y * params["mask"])
    other = labelled.observation_to_xarray(y, problem, params)
    with pytest.raises(ValueError, match="coordinate 'depth'"):
        read(other.assign_coords(depth=("y", [1.0, 2.0, 3.0, 4.0])), problem)


def test_a_scalar_time_may_differ_and_a_scalar_level_may_not() -> None:
    problem = grid(coords={"time": np.datetime64("2020-01-01", "ns"), "level": 500.0})
    data = xr.DataArray(
        VALUES, dims=("y", "x"), coords={"time": np.datetime64("2021-01-01", "ns")}
    )
    assert np.array_equal(read(data, problem)[0], VALUES)
    with pytest.raises(ValueError, match="coordinate 'level' of the observation"):
        read(data.assign_coords(level=850.0), problem)


# Kinds of data ----------------------------------------------------------------------


def test_durations_are_numbers_of_the_unit() -> None:
    problem = grid(units="hours")
    data = xr.DataArray((VALUES * 3600e9).astype("m8[ns]"), dims=("y", "x"))
    assert np.allclose(read(data, problem)[0], VALUES)
    holes = data.where(data != np.timedelta64(0), np.timedelta64("NaT"))
    _, params = load_observation(holes, problem)
    assert params["mask"].sum() == 15
    with pytest.raises(ValueError, match="holds durations, and the problem is in 'K'"):
        read(data, grid(units="K"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (VALUES + 1j, "complex"),
        (VALUES.astype("M8[D]"), "dates"),
        (VALUES.astype(str), "text"),
        (VALUES.astype(object), "Python objects"),
    ],
)
def test_what_is_no_number_is_refused(values: np.ndarray, said: str) -> None:
    with pytest.raises(TypeError, match=f"must hold real numbers; got {said}"):
        read(xr.DataArray(values, dims=("y", "x"), name="observed"), grid())


@pytest.mark.parametrize("units", ["seconds", "days", "days since 2000-01-01"])
def test_data_are_never_decoded_as_times(units: str, tmp_path: Path) -> None:
    problem = grid(obs_dims=("y", "x"), obs_units=units)
    _, y, params = problem.simulate(1, seed=0)
    path = tmp_path / "a.nc"
    labelled.save_netcdf(labelled.observation_to_xarray(y, problem, params), path)
    assert torch.equal(load_observation(path, problem)[0], y * params["mask"])


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "i4", "packed", "range", "missing"])
def test_cells_that_were_never_written_are_not_observed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("y", 4)
        file.createDimension("x", 4)
        stored = {"packed": "i2", "range": "f4", "missing": "f4"}.get(kind, kind)
        variable = file.createVariable("observed", stored, ("y", "x"))
        if kind == "packed":
            variable.scale_factor, variable.add_offset = 0.5, 3.0
        if kind == "range":
            variable.valid_range = np.array([4.0, 100.0], "f4")
        if kind == "missing":
            variable.missing_value = np.float32(-999.0)
        if kind == "range":
            variable[:] = VALUES
        elif kind == "missing":
            variable[:] = np.where(VALUES < 4, -999.0, VALUES)
        else:
            variable[1:] = VALUES[1:]
    y, params = load_observation(path, grid())
    assert not params["mask"][0, 0, 0].any() and params["mask"][0, 0, 1:].all()
    assert np.array_equal(y[0, 0, 1:].numpy(), VALUES[1:])


def test_plain_arrays_count_by_position() -> None:
    problem = grid()
    for source in (
        VALUES,
        VALUES.astype(">f4"),
        torch.tensor(VALUES),
        VALUES[None],
        VALUES.tolist(),
    ):
        assert np.array_equal(read(source, problem)[0], VALUES)
    _, params = load_observation(np.ma.masked_array(VALUES, VALUES < 4), problem)
    assert params["mask"].sum() == 12
    with pytest.raises(ValueError, match=r"'source' must have shape \(4, 4\) or \(batch, 4, 4\)"):
        read(VALUES[:3], problem)
    with pytest.raises(TypeError, match="'source' must hold real numbers"):
        read(VALUES + 1j, problem)


def test_neighbours_of_the_data_do_not_confuse(tmp_path: Path) -> None:
    data = xr.DataArray(VALUES, dims=("lat", "lon"), attrs={"grid_mapping": "crs"})
    coords = {"lat": ("lat", np.arange(4.0), {"bounds": "lat_bnds"}), "lon": np.arange(4.0)}
    dataset = xr.Dataset(
        {"tas": data, "crs": ((), 0), "lat_bnds": (("lat", "bnds"), np.zeros((4, 2)))},
        coords=coords,
        attrs={"institution": "ours", "history": "made"},
    )
    dataset.to_netcdf(tmp_path / "a.nc")
    observation = read_observation(tmp_path / "a.nc", grid())
    assert np.array_equal(observation.y[0, 0].numpy(), VALUES)
    out = labelled.observation_to_xarray(
        observation.y, grid(), observation.params, observation=observation.labels
    )
    assert out.attrs["institution"] == "ours" and out.attrs["history"].startswith("made\n")


# Units ----------------------------------------------------------------------


def test_equal_spellings_are_equal() -> None:
    for one, other in (
        ("K", "kelvin"),
        ("", "1"),
        (None, "1"),
        ("m", "metres"),
        ("degC", "celsius"),
    ):
        assert same_units(one, other)
    assert not same_units("degC", "K") and not same_units("m", "km")
    data = xr.DataArray(VALUES, dims=("y", "x"), attrs={"units": "kelvin"})
    assert np.array_equal(read(data, grid(units="K"))[0], VALUES)


def test_units_are_converted_and_errors_without_their_offset() -> None:
    pytest.importorskip("cf_units")
    problem = InverseProblem(
        torch.randn(60, 1, 4, 4),
        physics=dinv.physics.Denoising(NOISE),
        params=lambda num: {"sigma": torch.rand(num) + 0.1},
        dims=("y", "x"),
        units="K",
    )
    data = xr.DataArray(VALUES, dims=("y", "x"), attrs={"units": "degC", "error_std": 0.5})
    y, params = load_observation(data, problem)
    assert np.allclose(y[0, 0].numpy(), VALUES + 273.15) and float(params["sigma"]) == 0.5
    fahrenheit = data.assign_attrs(units="degF", error_std=0.9)
    assert float(load_observation(fahrenheit, problem)[1]["sigma"]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="the observation is in 'm', the problem in 'K'"):
        load_observation(data.assign_attrs(units="m"), problem)
    assert converted(np.array([1.0]), "g/kg", "kg kg-1", "q")[0] == pytest.approx(1e-3)


def test_without_the_library_other_units_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cf_units", None)
    assert same_units("kelvin", "K")
    with pytest.raises(ValueError, match=r"'degC', the problem in 'K'; .*vfm-inverse\[io\]"):
        converted(np.zeros(1), "degC", "K", "it")
    assert duration(np.array([90], "m8[s]"), "minutes", "it")[0] == 1.5


# Names ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["observed", "draw", "u/v", "level", "weight", "lat", "param_mask"]
)
def test_names_that_collide_are_changed(name: str, tmp_path: Path) -> None:
    prior = xr.DataArray(
        np.random.default_rng(0).normal(size=(60, 4, 4)),
        dims=("sample", "lat", "lon"),
        coords={"level": 500.0, "draw": 3, "lat": np.arange(4.0)},
        name=name,
    )
    problem = InverseProblem(prior, physics=dinv.physics.Denoising(NOISE))
    x, y, _ = problem.simulate(2, seed=1)
    path = labelled.save_netcdf(labelled.to_xarray(x[None], problem, y), tmp_path / "a.nc")
    with xr.open_dataset(path) as file:
        assert problem.field_labels.name in file and float(file["prior_draw"]) == 3


@pytest.mark.parametrize("dim", ["draw", "observation", "u/v"])
def test_dimensions_that_collide_are_refused_at_once(dim: str) -> None:
    prior = xr.DataArray(np.random.default_rng(0).normal(size=(60, 4)), dims=("sample", dim))
    with pytest.raises(ValueError, match=f"'dims' must not use the name '{dim}'"):
        InverseProblem(prior, simulator=lambda x: x + torch.randn_like(x))


def test_stacked_cells_are_written_as_what_they_were_stacked_of(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 5, 4))
    values[:, :2, :2] = np.nan
    coords = {"lat": np.arange(5.0), "lon": np.arange(4.0)}
    prior = xr.DataArray(values, dims=("sample", "lat", "lon"), coords=coords)
    cells = prior.stack(cell=("lat", "lon")).dropna("cell")
    problem = InverseProblem(
        cells, simulator=lambda x: x + torch.randn_like(x), obs_dims=("cell",)
    )
    x, y, _ = problem.simulate(2, seed=1)
    path = labelled.save_netcdf(labelled.to_xarray(x[None], problem, y), tmp_path / "a.nc")
    with xr.open_dataset(path) as file:
        assert file["lat"].dims == ("cell",) and file.sizes["cell"] == 16
    members = prior.isel(lat=slice(2, None)).expand_dims(member=2).stack(all=("member", "sample"))
    pooled = members.rename(all="sample2").reset_index("sample2", drop=True)
    assert InverseProblem(
        pooled.rename(sample2="sample"), physics=dinv.physics.Denoising(NOISE)
    ).field_shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"obs_coords": 3}, TypeError, "'obs_coords' must be a mapping"),
        ({"coords": {"component": object()}}, ValueError, "coordinate 'component' in 'coords'"),
        ({"coords": {1: [1, 2, 3]}}, TypeError, "'coords' must have names that are text"),
        ({"dims": "abc"}, TypeError, "'dims' must be a sequence of names"),
        ({"dims": (1,)}, TypeError, "'dims' must hold text only"),
        ({"units": 3}, TypeError, "'units' must be text"),
    ],
)
def test_labels_that_are_none_are_refused(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        InverseProblem(
            torch.randn(40, 3), simulator=lambda x: x + torch.randn_like(x), **arguments
        )


# Tables of stations ----------------------------------------------------------------------


def network(lon: np.ndarray, lat: np.ndarray | None = None) -> InverseProblem:
    lat = np.linspace(60.0, 50.0, 5) if lat is None else lat
    prior = xr.DataArray(
        280 + np.random.default_rng(0).normal(size=(60, len(lat), len(lon))),
        dims=("sample", "lat", "lon"),
        coords={
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
        attrs={"units": "K"},
        name="t2m",
    )
    return InverseProblem(
        prior,
        physics=PointObservations((1, len(lat), len(lon)), noise_model=NOISE),
        params=lambda num: {
            "coords": torch.rand(num, 6, 2),
            "mask": (torch.rand(num, 6) > 0.3).float(),
            "sigma": torch.rand(num, 6) + 0.1,
        },
        obs_units="K",
    )


TABLE = pd.DataFrame(
    {
        "name": ["A", "B", "C", "D"],
        "Latitude": [55.0, 50.0, 60.0, 52.5],
        "Longitude": [-20.0, 340.0, 10.0, -30.0],
        "value": [280.0, np.nan, 282.0, 281.0],
        "std": [0.5, 0.5, 0.4, 0.3],
        "when": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03", None]),
    }
)
SEAM = np.r_[300:360:10, 0:70:10].astype(float)


def test_longitudes_are_turned_to_where_the_grid_has_them() -> None:
    y, params = load_observation(TABLE, network(SEAM))
    assert y[0].tolist() == [280.0, 282.0, 281.0, 0.0, 0.0, 0.0]
    assert params["mask"][0].tolist() == [1, 1, 1, 0, 0, 0]
    expected = [[0.5, 4 / 12], [0.0, 7 / 12], [0.75, 3 / 12]]
    assert torch.allclose(params["coords"][0, :3], torch.tensor(expected), atol=1e-6)
    west = network(np.linspace(-60.0, 60.0, 13))
    assert torch.allclose(load_observation(TABLE, west)[1]["coords"], params["coords"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"Longitude": 100.0},
            ValueError,
            "3 stations lie outside the grid, which has 'lon' from",
        ),
        ({"Latitude": np.nan}, ValueError, "3 stations have a value and no 'lat'"),
        ({"value": "warm"}, TypeError, "'value' must hold real numbers"),
        ({"value": 1j}, TypeError, "'value' must hold real numbers; got complex"),
        ({"std": -1.0}, ValueError, "'error_std' must be positive"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        load_observation(TABLE.assign(**change), network(SEAM))


def test_a_grid_in_no_order_and_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match="'lat' neither rises nor falls"):
        load_observation(TABLE, network(SEAM, np.array([60.0, 50.0, 55.0, 52.0, 51.0])))
    globe = network(np.arange(0.0, 360.0, 10.0))
    with pytest.raises(
        ValueError, match="the first is at 355, between its last node and its first"
    ):
        load_observation(TABLE.assign(Longitude=355.0), globe)


def test_a_table_in_other_units_is_converted() -> None:
    pytest.importorskip("cf_units")
    table = TABLE.drop(columns="when").to_xarray()
    table["value"] = table["value"] - 273.15
    table["value"].attrs["units"] = "degC"
    y, params = load_observation(table, network(SEAM))
    assert torch.allclose(y[0, :3], torch.tensor([280.0, 282.0, 281.0]))
    assert torch.allclose(params["sigma"][0, :3], torch.tensor([0.5, 0.4, 0.3]))


def test_my_own_rows_come_back_with_the_draws(tmp_path: Path) -> None:
    problem = network(SEAM)
    observation = read_observation(TABLE, problem)
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=100, width=8)
    draws = vfm(observation.y, **observation.params).sample((3,))
    out = labelled.to_xarray(
        draws, problem, observation.y, params=observation.params, observation=observation.labels
    )
    labelled.save_netcdf(out, tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as file:
        assert file["name"].values.tolist() == TABLE["name"].tolist()
        assert np.array_equal(file["value"].values, TABLE["value"], equal_nan=True)
        assert pd.isna(file["when"].values).tolist() == [False, False, False, True]
        row = file["row_of_observed"].values
        assert row.tolist() == [0, -1, 1, 2]
        observed = file["observed"].values[0]
        assert np.array_equal(observed[row[row >= 0]], TABLE["value"].dropna())
    assert torch.equal(load_observation(tmp_path / "a.nc", problem)[0], observation.y)


def test_a_table_of_text_is_read(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "stations.csv", index=False)
    problem = network(SEAM)
    y, _ = load_observation(tmp_path / "stations.csv", problem)
    assert torch.equal(y, load_observation(TABLE, problem)[0])
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises((ValueError, TypeError), match="broken.csv"):
        load_observation(tmp_path / "broken.csv", problem)


def test_a_file_that_was_edited_is_read_with_a_warning(tmp_path: Path) -> None:
    problem = grid()
    _, y, params = problem.simulate(1, seed=1)
    path = labelled.save_netcdf(
        labelled.observation_to_xarray(y, problem, params), tmp_path / "a.nc"
    )
    with xr.open_dataset(path) as file:
        (file.load() * 2).assign_attrs(file.attrs).to_netcdf(tmp_path / "b.nc")
    with pytest.warns(UserWarning, match="b.nc' was edited since this package wrote it"):
        edited, _ = load_observation(tmp_path / "b.nc", problem)
    assert torch.allclose(edited, 2 * y * params["mask"])
