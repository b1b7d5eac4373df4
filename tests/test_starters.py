"""A first settings file or module: what it is filled in with, and that it runs as it is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from vfm_inverse.cli.program import main
from vfm_inverse.declared.starters import PHYSICS, write_starter
from vfm_inverse.runs.config_checks import check_config
from vfm_inverse.runs.recipes import make_problem
from vfm_inverse.runtime.config import read_config, recipe_of

SHORT = ["fit.steps=2", "fit.batch_size=8", "fit.num_validation=8", "model.num_simulations=100"]
SHORT += ["model.width=8", "model.depth=1"]
SHORT += ["calibration.num_simulations=10", "calibration.num_draws=10"]


def fields(path: Path, *, dated: bool = True) -> Path:
    """Forty maps of temperature, about 3 K apart."""
    values = 280 + 3 * np.random.default_rng(0).normal(size=(40, 6, 8))
    about = {"units": "K", "long_name": "air temperature"}
    lat = ("lat", np.linspace(30.0, 55.0, 6), {"units": "degrees_north"})
    lon = ("lon", np.linspace(0.0, 35.0, 8), {"units": "degrees_east"})
    dim, coords = "sample", {"lat": lat, "lon": lon}
    if dated:
        years = np.arange(1970, 2010).astype(str).astype("datetime64[ns]")
        dim, coords = "time", coords | {"time": ("time", years)}
    xr.Dataset({"tas": ((dim, "lat", "lon"), values, about)}, coords).to_netcdf(path)
    return path


def stations(path: Path, *, errors: bool = True) -> Path:
    rows = ["name,lat,lon,tas" + ",sigma" * errors]
    rows += [f"s{i},{32 + 3 * i},{4 * i + 1},281" + f",{0.5 + i / 10}" * errors for i in range(7)]
    path.write_text("\n".join(rows))
    return path


def pictures(folder: Path, channels: int = 1) -> Path:
    folder.mkdir()
    shape = (20, 30) + (channels,) * (channels > 1)
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 255, shape, dtype=np.uint8)
        np.save(folder / f"{i}.npy", values)
    return folder


def problem_of(path: Path) -> dict[str, Any]:
    check_config(read_config(path))
    table: dict[str, Any] = tomllib.loads(path.read_text())["problem"]
    return table


def test_fields_and_stations_fill_in_the_settings(tmp_path: Path) -> None:
    fields(tmp_path / "maps.nc")
    (tmp_path / "runs").mkdir()
    path, target = write_starter(
        tmp_path / "runs" / "maps.toml",
        source=tmp_path / "maps.nc",
        stations=stations(tmp_path / "stations.csv"),
    )
    assert target == str(path)
    assert problem_of(path) == {
        "prior": {
            "path": "../maps.nc",
            "variable": "tas",
            "sample": "time",
            "test": "2006-01-01/2009-01-01",
        },
        "physics": {"operator": "point-observations", "stations": "../stations.csv"},
        "noise": {"model": "gaussian", "sigma": "sigma"},
    }
    assert "air temperature, K" in path.read_text()


def test_what_the_files_do_not_say_is_a_guess_that_says_so(tmp_path: Path) -> None:
    source = fields(tmp_path / "maps.nc", dated=False)
    path, _ = write_starter(tmp_path / "a.toml", source=source)
    found = problem_of(path)
    assert found["prior"] | {"path": ""} == {
        "path": "",
        "variable": "tas",
        "sample": "sample",
        "test": 0.1,
    }
    assert found["physics"] == {"operator": "point-observations", "max_stations": 20}
    assert found["noise"] == {"model": "gaussian", "sigma": 0.3}
    assert "a guess, a tenth of the fields' spread of 3" in path.read_text()
    table = stations(tmp_path / "s.csv", errors=False)
    path, _ = write_starter(tmp_path / "b.toml", source=source, stations=table)
    assert problem_of(path)["noise"]["sigma"] == 0.3
    path, _ = write_starter(tmp_path / "c.toml", source=source, physics="mycode:Radar")
    assert problem_of(path)["physics"] == {"operator": "mycode:Radar"}


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_fill_in_the_settings(channels: int, tmp_path: Path) -> None:
    path, _ = write_starter(tmp_path / "a.toml", source=pictures(tmp_path / "pics", channels))
    found = problem_of(path)
    assert found["prior"] == {"path": "pics", "patch": 20, "grey": channels == 1, "test": 0.25}
    assert found["physics"]["operator"] == "deepinv:Blur"
    assert found["noise"] == {"model": "gaussian", "sigma": 0.05}
    assert "4 pictures of up to 20x30 pixels" in path.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "maps.nc"}, "must end in .toml; got 'out.txt'"),
        ({"stations": "s.csv"}, "go with '--from'; it is missing"),
        ({"physics": "deepinv:Blur"}, "go with '--from'; it is missing"),
        ({"source": "pics", "stations": "s.csv"}, "'--from' is a folder"),
        ({"source": "maps.nc", "stations": "s.csv", "physics": "deepinv:Blur"}, "no other"),
        ({"source": "maps.nc", "module": True}, "goes without '--from'"),
        ({"module": True}, "the name of a module must be letters"),
        ({"source": "empty"}, "must hold two pictures at least"),
        ({"source": "flat.nc"}, "a dimension that counts samples"),
        ({"source": "nothing.nc"}, "there is no 'nothing.nc'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields(Path("maps.nc"))
    stations(Path("s.csv"))
    pictures(Path("pics"))
    Path("empty").mkdir()
    xr.Dataset({"t": (("lat", "lon"), np.ones((3, 4)))}).to_netcdf("flat.nc")
    name = "out.txt" if ".toml" in message else "a-b.py" if "letters" in message else None
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_starter(name, **given)
    assert not {"out.txt", "a-b.py", "problem.toml"} & {f.name for f in tmp_path.iterdir()}


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text("mine")
    assert main(["new", str(tmp_path / "a.toml")]) == 2
    assert "exists already; choose another name" in capsys.readouterr().err
    assert (tmp_path / "a.toml").read_text() == "mine"


def trains(command: str, out: Path) -> None:
    """Run the command that `new` told, as short as can be."""
    target = command.split()[2]
    options = [part for setting in SHORT for part in ("--set", setting)]
    assert main(["train", target, "--out", str(out), "--json", *options]) == 0


def told(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["new", *options, "--json"]) == 0
    command: str = json.loads(capsys.readouterr().out)["command"]
    return command


@pytest.mark.parametrize(
    "options", [pytest.param([], marks=pytest.mark.slow), ["--code", "first_of_mine.py"]]
)
def test_starters_without_data_train(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trains(told(capsys, *options), tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    "kind", ["maps at stations", pytest.param("pictures", marks=pytest.mark.slow)]
)
def test_starters_of_data_train(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "pictures":
        options = ["--from", str(pictures(Path("pics")))]
    else:
        options = ["--from", str(fields(Path("maps.nc")))]
        options += ["--stations", str(stations(Path("stations.csv")))]
    trains(told(capsys, *options), tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("physics", PHYSICS)
def test_every_operator_that_starters_know_is_made(physics: str, tmp_path: Path) -> None:
    path, _ = write_starter(
        tmp_path / "a.toml", source=pictures(tmp_path / "pics", 3), physics=physics
    )
    x, y, _ = make_problem(recipe_of(str(path))).simulate(2, seed=0)
    assert x.shape == (2, 3, 20, 20) and len(y) == 2


def test_a_network_that_changes_is_made(tmp_path: Path) -> None:
    path, _ = write_starter(tmp_path / "a.toml", source=fields(tmp_path / "maps.nc"))
    x, y, params = make_problem(recipe_of(str(path))).simulate(2, seed=0)
    assert (x.shape, y.shape) == ((2, 1, 6, 8), (2, 20))
    assert {"coords", "mask"} <= params.keys()


def test_the_operator_of_the_module_is_linear_and_its_adjoint_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = told(capsys, "--code", "second_of_mine.py")
    assert command.startswith("vfm-inverse train second_of_mine:problem --out ")
    assert main(["verify", "second_of_mine:problem"]) == 0
