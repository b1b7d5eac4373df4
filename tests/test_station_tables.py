"""Tables of stations as people have them: places, columns, units and rows in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from vfm_inverse.formats.places import positions
from vfm_inverse.formats.table_columns import table_of
from vfm_inverse.labelled.station_tables import own_rows
from vfm_inverse.labelled.write import load_observation
from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem

ROWS = 4


def network(
    first: Any, second: Any, dims: tuple[str, str] = ("lat", "lon"), **kwargs: Any
) -> InverseProblem:
    """A problem of up to four stations on a grid with these coordinates."""
    shape = (1, np.size(np.asarray(_values(first))), np.size(np.asarray(_values(second))))
    given = {"mask": lambda n: torch.ones(n, ROWS), "sigma": lambda n: torch.ones(n, ROWS)}
    noise = dinv.physics.GaussianNoise(0.1)
    settings = {
        "units": "K",
        "obs_units": "K",
        "coords": dict(zip(dims, (first, second), strict=True)),
    }
    return InverseProblem(
        torch.randn(40, *shape),
        physics=PointObservations(shape, noise_model=noise),
        params=lambda n: {
            "coords": torch.rand(n, ROWS, 2),
            **{name: make(n) for name, make in given.items()},
        },
        dims=dims,
        **(settings | kwargs),
    )


def _values(axis: Any) -> Any:
    return axis[1] if isinstance(axis, tuple) else axis


def axis(name: str, values: Any, **attrs: str) -> Any:
    return (name, np.asarray(values), attrs)


def table(**columns: Any) -> xr.Dataset:
    given = {"value": [1.0], "lat": [1.0], "lon": [1.0], "std": [0.1]} | columns
    return xr.Dataset({name: ("station", np.asarray(column)) for name, column in given.items()})


def place(problem: InverseProblem, axis: int = 1, **columns: Any) -> float:
    return float(load_observation(table(**columns), problem)[1]["coords"][0, 0, axis])


LAT = np.array([0.0, 1.0, 2.0])


# Places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "station", "expected"),
    [
        (np.arange(200.0, 301.0, 10.0), -90.0, 0.7),
        (np.arange(-160.0, -59.0, 10.0), 270.0, 0.7),
        (np.arange(300.0, 199.0, -10.0), -90.0, 0.3),
        (np.r_[150.0:181:10, -170.0:-119:10], -150.0, 6 / 9),
        (np.r_[150.0:181:10, -170.0:-119:10], 185.0, 3.5 / 9),
        (np.r_[-120.0:-171:-10, 180.0:149:-10], -150.0, 3 / 9),
        (np.arange(0.0, 361.0, 10.0), 355.0, 35.5 / 36),
        (np.arange(0.0, 361.0, 10.0), 360.0, 1.0),  # as it stands, not the node at 0
        (np.arange(0.0, 361.0, 10.0), 0.0, 0.0),
        (np.arange(-180.0, 181.0, 10.0), 270.0, 9 / 36),
        (np.array([0.0, 200.0]), 50.0, 0.25),  # a step of more than half a turn
        (np.array([0.0, 200.0]), 730.0, 0.05),
    ],
)
def test_longitudes_have_a_place_whatever_the_turn(
    nodes: np.ndarray, station: float, expected: float
) -> None:
    assert place(network(LAT, nodes), lon=[station]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("nodes", "station", "said"),
    [
        (np.arange(0.0, 351.0, 10.0), 355.0, "repeat the first in the prior, at 360"),
        (np.arange(0.0, 351.0, 10.0), -5.0, "between its last node and its first"),
        (np.r_[300.0:360:10, 0.0:61:10], 180.0, "1 stations lie outside the grid"),
        (np.r_[300.0:360:10, 0.0:61:10], 100.0, "the first is at 100"),
        (np.array([0.0, 20.0, 10.0, 30.0]), 10.0, "'lon' neither rises nor falls"),
        (np.array([0.0, 10.0, 10.0, 30.0]), 10.0, "'lon' neither rises nor falls"),
        (np.array([0.0, np.nan, 10.0]), 10.0, "'lon' neither rises nor falls"),
        (np.arange(0.0, 21.0, 10.0), np.nan, "1 stations have a value and no 'lon'"),
        (np.arange(0.0, 21.0, 10.0), np.inf, "1 stations have a value and no 'lon'"),
    ],
)
def test_places_off_the_grid_are_refused(nodes: np.ndarray, station: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        place(network(LAT, nodes), lon=[station])


def test_only_longitudes_go_round() -> None:
    for name, attrs in {"x": {}, "lon": {"units": "m"}, "rlon": {"units": "degrees"}}.items():
        problem = network(LAT, axis(name, np.arange(0.0, 101.0, 10.0), **attrs), ("lat", name))
        with pytest.raises(ValueError, match="outside the grid"):
            place(problem, **{name: [370.0]})
    known = axis("x", np.arange(0.0, 101.0, 10.0), standard_name="longitude")
    assert place(network(LAT, known, ("lat", "x")), lon=[370.0]) == pytest.approx(0.1)
    radians = axis("lon", np.linspace(0.0, 3.0, 7), units="radian")
    assert place(network(LAT, radians), lon=[1.0 - 2 * np.pi]) == pytest.approx(1 / 3)


def test_rows_that_are_no_stations_may_have_no_place() -> None:
    columns = {
        "value": [np.nan, 2.0, np.nan],
        "lat": [np.nan, 2.0, 77.0],
        "lon": [np.inf, 0.0, -999.0],
        "std": [np.nan, 0.1, -1.0],
    }
    y, params = load_observation(table(**columns), network(LAT, LAT))
    assert y.tolist() == [[2.0, 0, 0, 0]] and params["mask"].tolist() == [[1.0, 0, 0, 0]]
    assert params["coords"][0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rows", [0, 2])
def test_no_station_at_all_is_a_mask_of_zeros(rows: int) -> None:
    empty = {"value": np.full(rows, np.nan)} | dict.fromkeys(("lat", "lon", "std"), np.ones(rows))
    y, params = load_observation(table(**empty), network(LAT, LAT))
    assert not y.any() and not params["mask"].any()


def test_one_station_twice_and_a_table_of_one_row() -> None:
    problem = network(LAT, LAT)
    twice = xr.concat([table(), table(value=[3.0])], "station")
    y, params = load_observation(twice, problem)
    assert y[0, :2].tolist() == [1.0, 3.0] and params["mask"].sum() == 2
    alone = table().assign_coords(station=["A"]).isel(station=0)
    assert torch.equal(load_observation(alone, problem)[0], load_observation(table(), problem)[0])


def test_an_axis_of_one_node_takes_stations_there_only() -> None:
    node = xr.Variable("lat", [45.0])
    there = xr.DataArray([[45.0, np.nan]], name="lat")
    assert positions(there, np.array([[True, False]]), node, "lat").tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="outside the grid, which has 'lat' from 45 to 45"):
        positions(there + 1, np.array([[True, False]]), node, "lat")


def test_single_precision_of_large_coordinates_is_no_fault() -> None:
    northing = 5.2e6 + np.arange(0.0, 101.0, 10.0) + 0.3
    problem = network(northing, LAT, ("y", "x"))
    columns = {"y": northing[-1:].astype(np.float32), "x": [0.0]}
    assert place(problem, axis=0, **columns) == pytest.approx(1.0, abs=5e-3)


def test_axes_of_dates_place_dates() -> None:
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-04"], "M8[ns]")
    problem = network(days, LAT, ("time", "lon"))
    noon = np.array(["2020-01-03"], "M8[s]")
    assert place(problem, axis=0, time=noon) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="'time' of the grid are dates"):
        place(problem, time=[1.0])
    with pytest.raises(ValueError, match="1 stations have a value and no 'time'"):
        place(problem, time=np.array(["NaT"], "M8[ns]"))


def test_latitude_and_longitude_beside_indices_and_grids_with_two_dimensions() -> None:
    """Auxiliary coordinates along one axis place stations; those along two do not."""
    shape = (1, 3, 4)
    labels: dict[str, Any] = {"latitude": ("j", LAT), "longitude": ("i", np.arange(4.0))}
    problem = network(LAT, np.arange(4.0), ("j", "i"), coords=labels)
    assert place(problem, lon=[1.5]) == pytest.approx(0.5)
    curved = {name: (("j", "i"), np.zeros(shape[1:])) for name in ("nav_lat", "nav_lon")}
    problem = network(LAT, np.arange(4.0), ("j", "i"), coords=curved)
    with pytest.raises(ValueError, match="no coordinate of numbers along 'j' alone"):
        place(problem)


# Units ------------------------------------------------------------------------------------------


def test_places_are_converted_or_refused() -> None:
    pytest.importorskip("cf_units")
    metres = [axis(name, np.linspace(0, 1000, 5), units="m") for name in "yx"]
    problem = network(*metres, ("y", "x"))
    rows = table(y=[0.5], x=[0.25])
    for name, units in (("y", "km"), ("x", "kilometres")):
        rows[name].attrs["units"] = units
    coords = load_observation(rows, problem)[1]["coords"]
    torch.testing.assert_close(coords[0, 0], torch.tensor([0.5, 0.25]))
    rows["y"].attrs["units"] = "degrees_north"
    with pytest.raises(ValueError, match="'y' is in 'degrees_north', the problem in 'm'"):
        load_observation(rows, problem)
    # Latitudes are no northings, even where nothing says their unit.
    with pytest.raises(ValueError, match="the table lacks the stations' 'y'"):
        load_observation(table(), problem)


def test_rotated_and_swapped_axes_are_refused() -> None:
    grid = network(axis("lat", LAT, units="degrees_north"), axis("lon", LAT, units="degrees_east"))
    swapped = table()
    swapped["lat"].attrs["units"] = "degrees_east"
    with pytest.raises(ValueError, match="swapped"):
        load_observation(swapped, grid)
    with pytest.raises(ValueError, match="lacks the stations' 'lat'"):
        load_observation(table().rename(lat="rlat", lon="rlon"), grid)


def test_durations_and_their_errors_are_numbers_of_the_unit() -> None:
    problem = network(LAT, LAT, units="s", obs_units="s")
    columns = {"value": np.array([1500], "m8[ms]"), "std": np.array([100], "m8[ms]")}
    y, params = load_observation(table(**columns), problem)
    assert y[0, 0] == 1.5 and params["sigma"][0, 0] == pytest.approx(0.1)
    nothing = load_observation(table(value=np.array(["NaT"], "m8[s]")), problem)
    assert not nothing[1]["mask"].any()
    with pytest.raises(ValueError, match="durations, and the problem is in 'K'"):
        load_observation(table(**columns), network(LAT, LAT))


@pytest.mark.parametrize("column", ["value", "lat", "std"])
@pytest.mark.parametrize(
    "values", [[1 + 2j], ["warm"], np.array(["2020-01-01"], "M8[s]"), np.array([{}], object)]
)
def test_what_is_no_number_is_refused(column: str, values: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{column}|numbers"):
        load_observation(table(**{column: values}), network(LAT, LAT))


def test_types_of_numbers_do_not_matter() -> None:
    problem = network(LAT, LAT)
    expected = load_observation(table(), problem)
    for dtype in ("f4", ">f8", "f2", "i2", "u1", np.longdouble):
        columns = {name: np.array([1], dtype) for name in ("value", "lat", "lon")}
        y, params = load_observation(table(**columns), problem)
        assert torch.equal(y, expected[0]) and torch.equal(params["coords"], expected[1]["coords"])


# Columns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"lat": "Latitude", "lon": "LONGITUDE", "std": "Sigma", "value": "VALUE"},
        {"lat": "station_lat", "lon": "station_lon", "std": "error", "value": "Observed"},
        {"lat": "nav_lat", "lon": "lng", "value": "t2m"},
        {"lat": " lat", "lon": "lon ", "value": "field"},
    ],
)
def test_columns_go_by_many_names(names: dict[str, str]) -> None:
    problem = network(LAT, LAT)
    renamed = table(name=["A"], when=np.array(["2020-01-01"], "M8[ns]")).rename(names)
    expected, found = load_observation(table(), problem), load_observation(renamed, problem)
    assert torch.equal(found[0], expected[0])
    for name, param in expected[1].items():
        assert torch.equal(found[1][name], param), name


def test_standard_names_and_neighbours_of_the_value() -> None:
    problem = network(LAT, LAT)
    rows = table().rename(lat="a", lon="b", value="t")
    rows["a"].attrs["standard_name"], rows["b"].attrs["standard_name"] = "latitude", "longitude"
    assert load_observation(rows, problem)[0][0, 0] == 1
    rows["a"].attrs, rows["b"].attrs = {"units": "degrees_north"}, {"units": "degree_E"}
    assert load_observation(rows, problem)[0][0, 0] == 1
    rows["a"].attrs["bounds"] = "corners"
    rows["corners"] = ("station", [0.0])
    rows["t"].attrs["grid_mapping"] = "mapping"
    rows["mapping"] = 0
    assert load_observation(rows, problem)[0][0, 0] == 1
    with pytest.raises(ValueError, match="cannot tell which variable is the observation"):
        load_observation(rows.assign(height=("station", [3.0])), problem)


def test_rows_along_the_dimension_of_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="rows lie along 'observation'.* call .*'station'"):
        load_observation(table().rename(station="observation"), network(LAT, LAT))


def test_a_table_has_one_dimension_of_rows() -> None:
    problem = network(LAT, LAT)
    at_once = table().assign(value=table()["value"].expand_dims(time=1))
    y, _ = load_observation(at_once, problem)
    assert y.tolist() == [[1.0, 0, 0, 0]]
    assert own_rows(at_once, problem, set())["value"].values.tolist() == [1.0]
    with pytest.raises(ValueError, match="'value' has the dimensions .*; a table of stations has"):
        load_observation(table().assign(value=at_once["value"].isel(time=[0, 0])), problem)
    with pytest.raises(ValueError, match="'value' lacks the dimension 'station'"):
        load_observation(table().assign(value=1.0), problem)


FRAME = pd.DataFrame(
    {"name": ["A", "B", None], "value": [1.0, None, 3.0], "lat": [0, 1, 2], "lon": [2, 1, 0]}
).assign(std=0.1)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        FRAME.convert_dtypes(),
        FRAME.astype({"value": object, "lat": object}),
        FRAME.astype({"lat": "category", "std": "Float32"}),
        FRAME.set_index("name"),
        FRAME.set_index(["lat", "lon"]),
        FRAME.set_index("lat", drop=False),
        FRAME.assign(station=["x", "y", "z"]),
        FRAME.assign(when=pd.date_range("2020", periods=3, tz="Europe/Paris")),
        FRAME.iloc[[0, 1, 2]].set_index(pd.Index([7, 8, 9])),
    ],
)
def test_pandas_tables_are_read(frame: pd.DataFrame) -> None:
    y, params = load_observation(frame, network(LAT, LAT))
    assert y.tolist() == [[1.0, 3.0, 0, 0]]
    assert params["coords"][0, :2].tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_pandas_tables_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="several columns 'lat'"):
        table_of(pd.concat([FRAME, FRAME["lat"]], axis=1))
    with pytest.raises(TypeError, match="columns must have names; got 0"):
        table_of(pd.DataFrame(np.zeros((2, 2))))


# My own rows ------------------------------------------------------------------------------------


def test_own_rows_are_those_of_the_table(tmp_path: Path) -> None:
    problem = network(LAT, LAT)
    rows = table_of(FRAME.assign(draw=[True, False, True], when=pd.date_range("2020", periods=3)))
    rows["draw"].attrs = {"ancillary_variables": "draw name", "flag": True, "none": None}
    rows["odd/name"] = ("station", np.array([1, None, "x"], object))
    rows["z"] = ("station", np.array([1 + 1j, 0, 0]))
    rows["half"] = ("station", np.ones(3, np.float16))
    rows["lag"] = ("station", np.array([1, 2, "NaT"], "m8[s]"))
    rows = rows.assign_coords(station=["p", "q", "r"])
    own = own_rows(rows, problem, {"draw", "station", "value", "lat", "lon"})
    own.to_netcdf(tmp_path / "rows.nc", engine="netcdf4")
    with xr.open_dataset(tmp_path / "rows.nc", decode_timedelta=True) as file:
        assert set(file.sizes) == {"table_station"}
        assert file["row_of_observed"].values.tolist() == [0, -1, 1]
        assert file["table_station"].values.tolist() == ["p", "q", "r"]
        assert file["name"].values.tolist() == ["A", "B", ""]
        assert file["odd_name"].values.tolist() == ["1", "", "x"]
        assert np.array_equal(file["station_value"], FRAME["value"], equal_nan=True)
        assert file["station_draw"].values.tolist() == [True, False, True]
        assert file["station_draw"].attrs["ancillary_variables"] == "station_draw name"
        assert (file["when"].values == rows["when"].values).all()
        assert np.isnat(file["lag"].values).tolist() == [False, False, True]
    # The observed values, joined to the list.
    y, _ = load_observation(rows, problem)
    row = own["row_of_observed"].values
    assert y[0, row[row >= 0]].tolist() == FRAME["value"].dropna().tolist()


def test_own_rows_of_several_tables_and_of_many_keys() -> None:
    problem = network(LAT, LAT)
    first = table_of(FRAME).drop_vars("name")
    several = xr.concat(
        [first, first.assign(value=first["value"].shift(station=1))], "observation"
    )
    own = own_rows(several, problem, {"observation"})
    assert own["row_of_observed"].dims == ("observation", "station")
    assert own["row_of_observed"].values.tolist() == [[0, -1, 1], [-1, 0, -1]]
    keys = FRAME.set_index(["lat", "lon"])[["value", "std"]].to_xarray().stack(cell=("lat", "lon"))
    keys = keys.dropna("cell", how="all")
    y, _ = load_observation(keys, problem)
    own = own_rows(keys, problem, {"lat", "lon"})
    assert y[0, :2].tolist() == [1.0, 3.0] and own.sizes == {"cell": 3}
    assert own["station_lat"].values.tolist() == [0, 1, 2]
    one = own_rows(table().isel(station=0), problem, set())
    assert one["row_of_observed"].values.tolist() == [0] and one["lat"].values.tolist() == [1.0]
