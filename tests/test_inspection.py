"""What a run, a data file and a settings file are, in about ten lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from vfm_inverse import problems
from vfm_inverse.cli.program import main
from vfm_inverse.labelled.write import observation_to_xarray, save_netcdf
from vfm_inverse.runs.inspection import in_lines, inspect_path

SETTINGS = """
[problem]
name = "gaussian-field"
size = 8
num_points = 5
sigma = [0.1, 0.5]

[model]
num_simulations = 300
width = 8
depth = 1

[fit]
steps = 4
batch_size = 8
num_validation = 8

[calibration]
num_simulations = 20
num_draws = 20
"""


def temperatures() -> xr.Dataset:
    values = 280 + 5 * np.random.default_rng(0).normal(size=(48, 3, 4)).astype("f4")
    values[3, 1, 1] = np.nan
    about = {"units": "K", "long_name": "air temperature"}
    time = np.arange("2000-01", "2004-01", dtype="datetime64[M]").astype("datetime64[ns]")
    lat = ("lat", [30.0, 40.0, 50.0], {"units": "degrees_north"})
    coords = {"time": time, "lat": lat, "lon": [0.0, 5.0, 10.0, 15.0]}
    return xr.Dataset({"tas": (("time", "lat", "lon"), values, about)}, coords)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, its settings, an observation, its posterior and fields."""
    home = tmp_path_factory.mktemp("inspection")
    (home / "settings.toml").write_text(SETTINGS)
    assert main(["train", str(home / "settings.toml"), "--out", str(home / "run"), "--json"]) == 0
    problem = problems.load("gaussian-field", size=8, num_points=5, sigma=[0.1, 0.5])
    _, y, params = problem.simulate(2, seed=1)
    save_netcdf(observation_to_xarray(y, problem, params), home / "y.nc")
    command = ["sample", str(home / "run"), str(home / "y.nc"), "-n", "9", "--json"]
    assert main([*command, "--out", str(home / "draws.nc")]) == 0
    assert main([*command, "--out", str(home / "summary.nc"), "--summary"]) == 0
    temperatures().to_netcdf(home / "fields.nc")
    temperatures().to_zarr(home / "fields.zarr", consolidated=False)
    rows = ["name,lat,lon,tas,sigma", "a,35.5,2,281,0.5", "b,45,12.5,,0.5", "c,31,1,279.5,1"]
    (home / "stations.csv").write_text("\n".join(rows))
    return home


def test_a_run_tells_labels_card_range_cost_and_files(home: Path) -> None:
    found = inspect_path(home / "run")
    assert found["what"] == "a trained run"
    assert found["problem"] == "gaussian-field(size=8, num_points=5, sigma=[0.1, 0.5])"
    assert found["field"]["sizes"] == {"y": 8, "x": 8}
    assert found["observation"]["sizes"] == {"station": 5}
    assert found["parameters"] == {"sigma": "(a number)"}
    assert found["training"].startswith("4 of 4 steps, the weights of step ")
    assert found["calibration"].split(":")[0] in ("pass", "fail")
    assert 0.09 < found["checked_range"]["sigma"]["from"] < found["checked_range"]["sigma"]["to"]
    assert "ms here, 1000 draws of it" in found["cost"]
    assert found["files"].keys() >= {"config.json", "model.safetensors", "report.html"}
    lines = in_lines(home / "run", found)
    assert len(lines) <= 14
    assert json.loads(json.dumps(found)) == found


def test_the_weights_are_counted(home: Path) -> None:
    from vfm_inverse.runtime.storage import read

    path = home / "run" / "model.safetensors"
    weights = sum(value.numel() for value in read(path, "model")[0].values())
    for place in (path, home / "run"):
        assert inspect_path(place)["map"]["weights"] == weights


def test_an_interrupted_run_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    found = inspect_path(tmp_path / "run")
    assert found["what"] == "a run whose training is not finished"
    assert "go on with the same 'vfm-inverse train' command and --resume" in found["training"]
    (tmp_path / "run" / "training.safetensors").unlink()
    assert "nothing was saved yet" in inspect_path(tmp_path / "run")["training"]


def test_a_run_that_cannot_be_opened_still_tells_what_it_can(home: Path, tmp_path: Path) -> None:

    from vfm_inverse.runtime import storage

    tensors, header = storage.read(home / "run" / "model.safetensors", "model")
    header["config"]["problem"] = {"name": None, "kwargs": {}}
    storage.write(tmp_path / "model.safetensors", tensors, "model", header)
    found = inspect_path(tmp_path)
    assert "problem of your own" in found["cannot_be_opened"]
    assert found["problem"] == "of your own()"
    assert found["calibration"].split(":")[0] in ("pass", "fail")


@pytest.mark.parametrize("name", ["fields.nc", "fields.zarr"])
def test_fields_tell_what_counts_samples_and_what_is_missing(name: str, home: Path) -> None:
    found = inspect_path(home / name)
    assert found["what"] == "fields, which may be the samples of a prior"
    assert found["samples"] == "48 along 'time', each of 12 numbers"
    assert found["tas"]["coords"]["time"] == {
        "from": "2000-01-01",
        "to": "2003-12-01",
        "units": None,
    }
    assert found["tas"]["units"] == "K"
    values = temperatures().tas.values
    assert found["tas"]["std"] == pytest.approx(np.nanstd(values, dtype="f8"), rel=1e-6)
    assert found["missing"].startswith("1 numbers are NaN")
    assert "lat 30 to 50 degrees_north" in "\n".join(in_lines(name, found))


def test_large_fields_are_looked_at_in_part(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfm_inverse.formats.surveys.LOOKED_AT", 120)
    found = inspect_path(home / "fields.nc")
    assert found["tas"]["looked_at"] == 10
    assert found["samples"].startswith("48 ")


@pytest.mark.parametrize(
    ("name", "what", "entries"),
    [
        ("y.nc", "observations", ["observed", "error_std"]),
        ("draws.nc", "posterior draws", ["field", "observed", "calibration", "checked_range"]),
        ("summary.nc", "posterior summary", ["mean", "std", "quantiles", "levels", "draws"]),
        ("run/calibration.nc", "calibration of a map", ["verdict", "reason", "checked_with"]),
        ("run/model.safetensors", "trained map", ["problem", "map", "calibration"]),
        ("run/training.safetensors", "state of a training", ["training"]),
    ],
)
def test_files_of_ours_are_known(name: str, what: str, entries: list[str], home: Path) -> None:
    found = inspect_path(home / name)
    assert found["what"] == what
    assert found.keys() >= set(entries)
    assert len(in_lines(name, found)) <= 14


def test_a_table_tells_its_columns(home: Path) -> None:
    found = inspect_path(home / "stations.csv")
    assert found["what"] == "table of 3 stations"
    assert found["column name"] == "a to c"
    assert found["column lat"] == "31 to 45 (place)"
    assert found["column tas"] == "279.5 to 281 (the values) 1 missing"
    assert found["column sigma"] == "0.5 to 1 (standard deviation of the error)"


def test_settings_are_checked_and_their_problem_is_told(home: Path, tmp_path: Path) -> None:
    found = inspect_path(home / "settings.toml")
    assert found["problem"] == "gaussian-field"
    assert found["field"]["sizes"] == {"y": 8, "x": 8}
    assert found["fit"]["steps"] == 4
    for wrong, message in [
        ("[fit]\nstep = 3", r"unknown key in \[fit\]: 'step'; did you mean 'steps'"),
        ("[fit]\nsteps = -3", r"'steps' in \[fit\] must be an integer"),
        ("[model]\nadaptor = 3", r"unknown key in \[model\]: 'adaptor'; did you mean 'adapter'"),
        ("[fot]", "unknown section: 'fot'"),
    ]:
        (tmp_path / "s.toml").write_text(f'[problem]\nname = "gravity"\n{wrong}\n')
        with pytest.raises(ValueError, match=message):
            inspect_path(tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "there is no"),
        ("text.nc", "words", "is not a readable netCDF file"),
        ("a.csv", "", "is not a readable table of comma-separated values"),
        ("m.safetensors", "words", "is not a readable safetensors file"),
        ("s.toml", "= 3", "is not a settings file"),
        ("folder", "/", "is a folder that holds no run"),
    ],
)
def test_what_is_nothing_is_refused(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content == "/":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        inspect_path(path)


def test_the_command_line_prints_lines_or_json(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(home / "fields.nc")]) == 0
    assert "fields, which may be the samples of a prior" in capsys.readouterr().out
    assert main(["inspect", str(home / "fields.nc"), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["tas"]["sizes"] == {"time": 48, "lat": 3, "lon": 4}
    assert main(["inspect", str(home / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("vfm-inverse: error: there is no")


def test_data_files_do_not_wait_for_torch(home: Path) -> None:
    code = (
        "import sys\nfrom vfm_inverse.cli.program import main\n"
        "for name in sys.argv[1:]:\n    assert main(['inspect', name]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    names = ["fields.nc", "stations.csv", "y.nc", "draws.nc", "run/model.safetensors"]
    command = [sys.executable, "-c", code, *(str(home / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
