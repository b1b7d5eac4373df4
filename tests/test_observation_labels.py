"""What belongs to observations: units and errors, names along them, rows of their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from vfm_inverse import problems
from vfm_inverse.labelled.read import Observation, read_observation
from vfm_inverse.labelled.write import (
    load_observation,
    observation_to_xarray,
    save_netcdf,
    to_xarray,
)
from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem

NOISE = dinv.physics.GaussianNoise(0.1)
VALUES = np.arange(12.0).reshape(3, 4)


def grid(units: str | None = None, **labels: Any) -> InverseProblem:
    return InverseProblem(
        torch.randn(30, 1, 3, 4),
        physics=dinv.physics.Denoising(NOISE),
        params=lambda num: {"sigma": torch.rand(num) + 0.1},
        dims=("y", "x"),
        units=units,
        **labels,
    )


def stations(units: str | None = "K", grid_units: str = "degrees_north") -> InverseProblem:
    """A network of up to four stations; what it observes has no units of its own."""
    return InverseProblem(
        torch.randn(30, 1, 3, 4),
        physics=PointObservations((1, 3, 4), noise_model=NOISE),
        params=lambda num: {
            "coords": torch.rand(num, 4, 2),
            "mask": torch.ones(num, 4),
            "sigma": torch.rand(num, 4) + 0.1,
        },
        dims=("lat", "lon"),
        coords={"lat": ("lat", [50.0, 55.0, 60.0], {"units": grid_units}), "lon": np.arange(4.0)},
        units=units,
    )


FRAME = pd.DataFrame(
    {
        "name": ["A", "B", "C"],
        "lat": [50.0, 52.5, 60.0],
        "lon": [0.0, 1.5, 3.0],
        "value": [1.0, np.nan, 3.0],
        "std": [0.1, 0.2, 0.3],
    }
)


def table(**columns: Any) -> xr.Dataset:
    frame = xr.Dataset.from_dataframe(FRAME).rename(index="station").drop_vars("station")
    return frame.assign({name: ("station", *given) for name, given in columns.items()})


def written(observation: Observation, problem: InverseProblem, path: Path) -> xr.Dataset:
    """The file of draws of an observation."""
    draws = torch.zeros(2, len(observation.y), *problem.field_shape)
    y, params, labels = observation
    save_netcdf(to_xarray(draws, problem, y, params=params, observation=labels), path)
    return xr.load_dataset(path, decode_timedelta=True)


# Errors and units ---------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["s", "seconds since 2000-01-01"])
def test_errors_may_be_durations(units: str) -> None:
    problem = grid(units)
    data = xr.Dataset({"observed": (("y", "x"), VALUES), "error_std": np.timedelta64(500, "ms")})
    assert load_observation(data, problem)[1]["sigma"].tolist() == [0.5]
    each = np.full((3, 4), np.timedelta64(1500, "ms"))
    _, params = load_observation(data.assign(error_std=(("y", "x"), each)), problem)
    assert params["sigma"].tolist() == [1.5]
    with pytest.raises(ValueError, match="'error_std' holds durations, and the problem is in 'K'"):
        load_observation(data, grid("K"))


def test_errors_of_dates_and_of_levels() -> None:
    pytest.importorskip("cf_units")
    days = grid("days since 2000-01-01")
    data = xr.Dataset({"observed": (("y", "x"), VALUES), "error_std": ((), 12.0)})
    data["error_std"].attrs["units"] = "hours"
    assert load_observation(data, days)[1]["sigma"].tolist() == [0.5]
    data["observed"].attrs["units"] = data["error_std"].attrs["units"] = "lg(re 1 mW)"
    with pytest.raises(ValueError, match="'error_std' is in .* a width has no conversion"):
        load_observation(data, grid("W"))


def test_without_the_library_a_day_is_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfm_inverse.formats.units._udunits", lambda: None)
    data = xr.Dataset(
        {"observed": (("y", "x"), VALUES), "error_std": ((), 0.5, {"units": "days"})}
    )
    _, params = load_observation(data, grid("days since 2000-01-01"))
    assert params["sigma"].tolist() == [0.5]
    celsius = table(value=([1.0, np.nan, 3.0], {"units": "degC"}))
    with pytest.raises(ValueError, match=r"in 'K'.*vfm-inverse\[io\]"):
        load_observation(celsius, stations())


@pytest.mark.parametrize("units", ["K", b"K", " kelvin ", None])
def test_units_are_text_whatever_wrote_them(units: Any) -> None:
    data = xr.DataArray(VALUES, dims=("y", "x"), attrs={"units": units, "error_std": 1.0})
    assert load_observation(data, grid("K"))[0][0, 0].tolist() == VALUES.tolist()


@pytest.mark.parametrize("stated", ["0.3 K", np.array([0.1, 0.2])])
def test_an_error_in_an_attribute_is_one_number(stated: Any) -> None:
    data = xr.DataArray(VALUES, dims=("y", "x"), attrs={"error_std": stated})
    with pytest.raises(ValueError, match="attribute 'error_std' .* must be one number; got"):
        load_observation(data, grid())


def test_stations_observe_in_the_units_of_the_field() -> None:
    pytest.importorskip("cf_units")
    celsius = {"units": "degC"}
    y, params = load_observation(table(value=([1.0, np.nan, 3.0], celsius)), stations())
    assert torch.allclose(y[0], torch.tensor([274.15, 276.15, 0.0, 0.0]))
    assert torch.allclose(params["sigma"][0, :2], torch.tensor([0.1, 0.3]))
    # What is of another kind the simulator may well have made of the field.
    other = table(value=([1.0, np.nan, 3.0], {"units": "m"}))
    assert load_observation(other, stations())[0][0, :2].tolist() == [1.0, 3.0]
    durations = np.array([1000, "NaT", 3000], "m8[ms]")
    errors = np.array([100, "NaT", 300], "m8[ms]")
    y, params = load_observation(table(value=(durations,), std=(errors,)), stations("s"))
    assert y[0, :2].tolist() == [1.0, 3.0]
    assert torch.allclose(params["sigma"][0, :2], torch.tensor([0.1, 0.3]))


def test_units_that_the_problem_does_not_say_are_asked_for() -> None:
    pytest.importorskip("cf_units")
    halves = InverseProblem(
        torch.randn(30, 1, 3, 4), simulator=lambda x: x[:, 0, 0] + torch.randn(4), units="K"
    )
    data = xr.DataArray(VALUES[0], dims="datum", attrs={"units": "degC"})
    with pytest.raises(ValueError, match="the observation is in 'degC', the field in 'K'.*obs_un"):
        load_observation(data, halves)
    for units in ("kelvin", "m"):
        y, _ = load_observation(data.assign_attrs(units=units), halves)
        assert y[0].tolist() == VALUES[0].tolist()


# Tables -------------------------------------------------------------------------------------


def test_columns_of_frames_are_taken_by_meaning() -> None:
    problem = stations()
    objects = FRAME.assign(value=np.array([1.0, None, 3.0], dtype=object))
    assert load_observation(objects, problem)[0][0, :2].tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="the table has several columns 'lat'"):
        load_observation(FRAME.set_axis(["name", "lat", "lat", "value", "std"], axis=1), problem)
    with pytest.raises(ValueError, match="rows lie along 'observation', which counts tables"):
        load_observation(table().rename(station="observation"), problem)


def test_all_columns_come_back_whatever_they_are_called(tmp_path: Path) -> None:
    odd = ["u/v", "u_v", "%RH", "-x", "end ", "", "weight", "draw", "station_lat", "é", "param_q"]
    extra = {name: [10.0 * k, 1.0, 2.0] for k, name in enumerate(odd)}
    kinds = {
        "when": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
        "took": pd.to_timedelta([1, None, 3], "h"),
        "kind": pd.Categorical(["a", None, "b"]),
        "id": [2**60 + 1, 2, 3],
    }
    problem = stations()
    observation = read_observation(FRAME.assign(**extra, **kinds), problem)
    file = written(observation, problem, tmp_path / "a.nc")
    columns = {name for name, column in file.variables.items() if column.dims == ("station",)}
    assert len(columns) == len(FRAME.columns) + len(odd) + len(kinds) + 1
    first = sorted(float(file[name][0]) for name in columns if file[name].dtype.kind == "f")
    assert set(extra[name][0] for name in odd) <= set(first)
    assert file["id"].values.tolist() == kinds["id"]
    assert file["kind"].values.tolist() == ["a", "", "b"]
    # A file of draws is an observation too, and its rows go on to the next.
    again = read_observation(tmp_path / "a.nc", problem)
    assert torch.equal(again.y, observation.y)
    next_file = written(again, problem, tmp_path / "b.nc")
    for name in columns:
        xr.testing.assert_equal(next_file[name], file[name])


# Labels along 'observation' ------------------------------------------------------------------

TWO = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["site", "number"])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"observation": ["p", "q"]}, {"observation": ["p", "q"]}),
        ({"c": ("observation", pd.Categorical(["p", "q"]))}, {"c": ["p", "q"]}),
        ({"a/b": ("observation", [1, 2])}, {"a_b": [1, 2]}),
        (
            xr.Coordinates.from_pandas_multiindex(TWO, "observation"),
            {"site": ["a", "b"], "number": [1, 2]},
        ),
    ],
)
def test_labels_of_every_kind_are_written(
    labels: Any, expected: dict[str, list[Any]], tmp_path: Path
) -> None:
    problem = problems.load("linear-gaussian")
    _, y, _ = problem.simulate(2, seed=1)
    source = observation_to_xarray(y, problem).assign_coords(labels)
    file = written(read_observation(source, problem), problem, tmp_path / "a.nc")
    for name, values in expected.items():
        assert file[name].dims == ("observation",) and file[name].values.tolist() == values


def test_names_and_attributes_beside_the_data_travel(tmp_path: Path) -> None:
    problem = problems.load("linear-gaussian")
    _, y, _ = problem.simulate(2, seed=1)
    source = observation_to_xarray(y, problem).assign(
        site=("observation", ["p", "q"]), ess=("observation", [1.0, 2.0])
    )
    said = {"title": "campaign 7", "a/b": "c", "levels": [1, 2], 3: "three", "coordinates": "lat"}
    source = source.assign_attrs({**said, "content_sha256": "of another file"})
    file = written(read_observation(source, problem), problem, tmp_path / "a.nc")
    assert file["site"].values.tolist() == ["p", "q"] and "ess" not in file
    assert file.attrs["observation_title"] == "campaign 7" and file.attrs["a_b"] == "c"
    assert file.attrs["levels"] == "[1, 2]" and file.attrs["3"] == "three"
    assert torch.equal(load_observation(tmp_path / "a.nc", problem)[0], y)


def test_names_that_netcdf_cannot_hold_are_seen_when_the_problem_is_made() -> None:
    for name in ("(m)", "a/b", "end ", ""):
        with pytest.raises(ValueError, match="'dims' must not use the name"):
            InverseProblem(torch.randn(30, 3), simulator=lambda x: x + 1, dims=(name,))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder and no file; open a store with xarray"):
        load_observation(tmp_path, grid())


def test_a_failed_write_says_so_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot write '.*a\.nc': ") as error:
        save_netcdf(xr.Dataset({"a": ((), object())}), tmp_path / "a.nc")
    assert str(error.value).count("cannot write") == 1
