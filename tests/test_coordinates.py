"""Coordinates of files beside those of the problem: as dates, durations, numbers and angles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from vfm_inverse.labelled.write import load_observation, observation_to_xarray, save_netcdf
from vfm_inverse.problem.inverse_problem import InverseProblem

VALUES = np.arange(12.0).reshape(3, 4)
DAYS = pd.date_range("2020-01-01", periods=3).values
SINCE = ("t", [0.0, 1.0, 2.0], {"units": "days since 2020-01-01"})


def grid(shape: tuple[int, int] = (3, 4), **labels: Any) -> InverseProblem:
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    return InverseProblem(torch.randn(30, 1, *shape), physics=physics, **labels)


def read(data: xr.DataArray, problem: InverseProblem) -> np.ndarray:
    return load_observation(data, problem)[0][0, 0].double().numpy()


COORDINATES = {
    "dates": DAYS,
    "counted dates": SINCE,
    "another calendar": xr.date_range(
        "2020-01-01", periods=3, calendar="360_day", use_cftime=True
    ),
    "durations": np.array([0, 1, 3], "m8[D]").astype("m8[ns]"),
    "counted durations": ("t", [0.0, 1.0, 3.0], {"units": "days"}),
    "booleans": ("t", [True, False, True]),
    "texts": ["", "b", "ä"],
    "attributes of files": ("t", [0.0, 1.0, 2.0], {"_FillValue": 1.0, "valid_max": 1.5}),
}


@pytest.mark.parametrize("kind", COORDINATES)
def test_every_coordinate_that_is_written_is_read_back(kind: str, tmp_path: Path) -> None:
    name = "land" if kind == "booleans" else "t"
    problem = grid(dims=("t", "x"), coords={name: COORDINATES[kind]})
    _, y, params = problem.simulate(2, seed=1)
    path = save_netcdf(observation_to_xarray(y, problem, params), tmp_path / "a.nc")
    assert torch.equal(load_observation(path, problem)[0], y)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DAYS, ("t", [2.0, 1.0, 0.0], {"units": "days since 2020-01-01"})),
        (DAYS, DAYS[::-1].astype("M8[s]")),
        (SINCE, DAYS[::-1]),
        (SINCE, ("t", [48.0, 24.0, 0.0], {"units": "hours since 2020-01-01"})),
        (("t", [0.0, 60.0, 120.0], {"units": "s"}), np.array([2, 1, 0], "m8[m]").astype("m8[s]")),
        (np.array([0, 1, 2], "m8[m]").astype("m8[s]"), ("t", [120, 60, 0], {"units": "s"})),
    ],
)
def test_times_are_compared_as_what_they_mean(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, tuple) and "since" in theirs[2]["units"] and isinstance(ours, tuple):
        pytest.importorskip("cf_units")
    problem = grid(dims=("t", "x"), coords={"t": ours})
    data = xr.DataArray(VALUES[::-1], dims=("t", "x"), coords={"t": theirs})
    assert np.array_equal(read(data, problem), VALUES)


def test_whole_numbers_are_no_durations() -> None:
    problem = grid(dims=("t", "x"), coords={"t": np.arange(3).astype("m8[ns]")})
    data = xr.DataArray(VALUES, dims=("t", "x"), coords={"t": [0, 1, 2]})
    with pytest.raises(ValueError, match=r"\[0 1 2\] \(int64\); the problem has .*timedelta64"):
        load_observation(data, problem)


def test_a_globe_that_closes_is_read_back(tmp_path: Path) -> None:
    coords = {"lon": ("lon", np.arange(0.0, 361.0, 10.0), {"units": "degrees_east"})}
    problem = grid((3, 37), dims=("lat", "lon"), coords=coords)
    _, y, _ = problem.simulate(1, seed=1)
    path = save_netcdf(observation_to_xarray(y, problem), tmp_path / "a.nc")
    assert torch.equal(load_observation(path, problem)[0], y)


@pytest.mark.parametrize("off", [1.0, 0.5, -1.0])
def test_a_grid_that_is_off_by_a_cell_is_refused(off: float) -> None:
    """Far from the origin a cell may be less than single precision holds."""
    northing = 5e6 + np.arange(3.0)
    problem = grid(dims=("y", "x"), coords={"y": northing})
    data = xr.DataArray(VALUES, dims=("y", "x"), coords={"y": northing + off})
    with pytest.raises(ValueError, match="coordinate 'y' of the observation is"):
        load_observation(data, problem)
    wide = 5e6 + 30.1 * np.arange(3)  # through single precision
    data = data.assign_coords(y=wide.astype("f4"))
    assert np.array_equal(read(data, grid(dims=("y", "x"), coords={"y": wide})), VALUES)
