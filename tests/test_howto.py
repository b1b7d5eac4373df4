"""The how-to pages do what they say, with files that are made here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.image import imsave

from vfm_inverse.declared.problem import declare
from vfm_inverse.runtime.config import read_config

PAGES = Path(__file__).resolve().parents[1] / "docs" / "howto"
NAMES = ("Denver", "Ottawa", "Monterrey")


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language, in order."""
    text = (PAGES / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def fields(time: Any, seed: int = 0) -> xr.DataArray:
    """Smooth temperatures in K on a small grid of North America, one a time."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(len(time), 10, 12)).cumsum(1).cumsum(2) / 10
    return xr.DataArray(
        (280 + white).astype("float32"),
        dims=("time", "latitude", "longitude"),
        coords={
            "time": time,
            "latitude": ("latitude", np.linspace(15, 60, 10), {"units": "degrees_north"}),
            "longitude": ("longitude", np.linspace(225, 315, 12), {"units": "degrees_east"}),
        },
        name="air_temperature",
        attrs={"units": "K", "long_name": "air temperature"},
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the pages name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    years = pd.date_range("1900-06-01", periods=120, freq="YS-JUN")
    fields(years).to_netcdf("fields.nc")
    fields(pd.date_range("1960-01-01", "2009-12-01", freq="MS")).to_netcdf("monthly.nc")
    stations = re.search(r"^```text\n(.*?)^```", page("fields_and_stations.md"), re.M | re.S)
    assert stations is not None
    Path("stations.csv").write_text(stations[1])
    Path("images").mkdir()
    for number in range(5):
        picture = np.random.default_rng(number).random((40, 48)).cumsum(1) / 48
        imsave(f"images/{number}.png", picture, cmap="gray", vmin=0, vmax=1)
    return tmp_path


def page(name: str) -> str:
    return (PAGES / name).read_text()


def test_a_climatology_of_training_years_leaves_anomalies_with_their_units(folder: Path) -> None:
    exec(blocks("fields_and_stations.md", "python")[0], {})
    anomalies = xr.open_dataarray("anomalies.nc")
    assert anomalies.attrs["units"] == "K" and anomalies.dims[0] == "time"
    training = anomalies.sel(time=slice("1960", "1999"))
    assert abs(float(training.mean())) < 1e-3 < abs(float(anomalies.sel(time="2000").mean()))


def test_fields_and_stations_in_python(folder: Path) -> None:
    made: dict[str, Any] = {}
    code = blocks("fields_and_stations.md", "python")[1]
    assert "sample((1000,))" in code
    exec(code.replace("(1000,)", "(50,)"), made)
    problem = made["problem"]
    kept = fields(pd.date_range("1900-06-01", periods=120, freq="YS-JUN"))
    years = kept.time.dt.year.values
    kept = kept.values[(years < 1980) | (years > 1999)]
    assert torch.equal(problem.held_fields(1000), torch.from_numpy(kept).unsqueeze(1))
    posterior = xr.open_dataset("posterior.nc")
    assert posterior["air_temperature"].attrs["units"] == "K"
    # What is drawn knows the stations: two grid rows and columns away it is near the truth.
    std = posterior["air_temperature"].std("draw")
    assert float(std.sel(latitude=40, longitude=255, method="nearest").max()) < 0.6 * float(
        std.max()
    )


def test_images_in_python(folder: Path) -> None:
    made: dict[str, Any] = {}
    code = blocks("images.md", "python")[0]
    assert "sample((100,))" in code
    exec(code.replace("(100,)", "(20,)"), made)
    draws, truth, y = made["draws"], made["truth"], made["y"]
    assert draws.shape == (20, 4, 1, 32, 32)
    assert (draws.mean(0) - truth).square().mean() < 0.8 * (y - truth).square().mean()


@pytest.mark.slow
def test_a_prior_larger_than_memory(folder: Path) -> None:
    pytest.importorskip("zarr")
    stored = fields(range(60)).rename(time="sample").rename("fields")
    stored.chunk(sample=10).to_zarr("fields.zarr", zarr_format=2)
    made: dict[str, Any] = {}
    (code,) = blocks("larger_than_memory.md", "python")
    assert "steps=2000" in code
    exec(code.replace("steps=2000", "steps=2"), made)
    assert made["problem"].field_shape == (1, 10, 12)


@pytest.mark.parametrize("name", ["fields_and_stations.md", "images.md"])
def test_settings_and_code_are_short(name: str) -> None:
    (settings,) = blocks(name, "toml")
    tomllib.loads(settings)
    code = blocks(name, "python")[-1]
    assert max(len(part.strip().splitlines()) for part in (settings, code)) <= 28


@pytest.mark.parametrize("name", ["fields_and_stations.md", "images.md"])
def test_settings_declare_the_problem_and_start_a_run(folder: Path, name: str) -> None:
    (settings,) = blocks(name, "toml")
    Path("settings.toml").write_text(settings)
    config = read_config("settings.toml")
    assert config.fit["batch_size"] == 32 and config.calibration["num_draws"] == 200
    problem = declare(tomllib.loads(settings)["problem"], folder)
    shapes = {"fields_and_stations.md": ((1, 10, 12), (3,)), "images.md": ((1, 32, 32),) * 2}
    assert (problem.field_shape, problem.observation_shape) == shapes[name]
    truth, y, params = problem.simulate(2, split="test", seed=0)
    assert torch.equal(
        problem.observe(truth, seed=0, **params), problem.observe(truth, seed=0, **params)
    )
    if name == "fields_and_stations.md":
        assert problem.num_prior_samples() == 100 and problem.units == "K"
