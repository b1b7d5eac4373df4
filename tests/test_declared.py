"""Problems that a settings file declares: priors, operators, noise, stations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from deepinv.physics import Blur, Inpainting, PoissonNoise, Tomography

from vfm_inverse.cli.program import main
from vfm_inverse.declared import prior as declared_prior
from vfm_inverse.declared.prior import read_prior
from vfm_inverse.declared.problem import declare
from vfm_inverse.formats.image_folders import Pictures
from vfm_inverse.labelled.read import read_observation
from vfm_inverse.labelled.write import load_observation
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs.recipes import make_problem
from vfm_inverse.runtime.config import Recipe, read_config
from vfm_inverse.training.run_settings import read_settings

NUM, LAT, LON = 60, np.linspace(60.0, 40.0, 6), np.linspace(-10.0, 11.0, 8)
GAUSSIAN = {"model": "gaussian", "sigma": 0.2}
CLIMATE = {"path": "tas.nc", "sample": "time"}
POINTS = {"operator": "point-observations", "stations": "stations.csv"}
STATIONS = """Station,Latitude,LONGITUDE,sd
a,42,-9,0.1
b,45.5,0,0.2
c,50,3,0.3
d,59,352,0.4
"""


def climate(num: int = NUM) -> xr.Dataset:
    rng = np.random.default_rng(0)
    waves = np.sin(LAT[:, None] / 5 + LON[None, :] / 4 + 6 * rng.random((num, 1, 1)))
    fields = waves + 0.1 * rng.standard_normal((num, len(LAT), len(LON)))
    about = {"units": "K", "long_name": "temperature anomaly"}
    time = pd.date_range("2000-01-01", periods=num, freq="MS")
    return xr.Dataset(
        {"tas": (("time", "lat", "lon"), fields.astype(np.float32), about)},
        {
            "time": time,
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": ("lon", LON, {"units": "degrees_east"}),
        },
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what users have."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("files")
    data = climate()
    data.to_netcdf(folder / "tas.nc")
    for part, name in ((slice(0, 30), "a"), (slice(30, 60), "b")):
        data.isel(time=part).to_netcdf(folder / f"part_{name}.nc")
    data.assign(pr=2 * data.tas).to_netcdf(folder / "two.nc")
    land = data.copy(deep=True)
    land.tas[:, :2, 0] = np.nan
    land.to_netcdf(folder / "land.nc")
    (folder / "stations.csv").write_text(STATIONS)
    (folder / "broken.nc").write_text("no netCDF")
    (folder / "nothing").mkdir()
    (folder / "images").mkdir()
    ramp = np.linspace(0, 1, 20)[:, None] * np.linspace(0.2, 1, 30)[None, :]
    for number in range(5):
        grey = (255 * np.roll(ramp, number, 0)).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{number}.png")
    return folder


def declared(files: Path, **tables: Any) -> InverseProblem:
    return declare({"prior": CLIMATE, "physics": POINTS, "noise": GAUSSIAN, **tables}, files)


# Priors ------------------------------------------------------------------------------------------


def test_fields_and_stations_from_files(files: Path) -> None:
    problem = declared(files, noise={"model": "gaussian", "sigma": [0.05, 0.5]})
    assert problem.field_shape == (1, 6, 8) and problem.dims == ("lat", "lon")
    assert (problem.units, problem.long_name) == ("K", "temperature anomaly")
    assert problem.observation_labels.units == "K"
    assert problem.observation_labels.coords["station"].values.tolist() == ["a", "b", "c", "d"]
    x, _, params = problem.simulate(200, seed=0)
    assert params["sigma"].shape == (200,)
    assert 0.05 <= float(params["sigma"].min()) < 0.1 and 0.4 < float(params["sigma"].max()) <= 0.5
    assert problem.physics is not None
    # Along latitude and longitude, wherever the seam of the circle is.
    places = xr.DataArray(x[:, 0], dims=("n", "lat", "lon"), coords={"lat": LAT, "lon": LON})
    expected = places.interp(
        lat=("s", [42.0, 45.5, 50.0, 59.0]), lon=("s", [-9.0, 0.0, 3.0, -8.0])
    )
    assert torch.allclose(problem.physics.A(x), torch.tensor(expected.values).to(x), atol=1e-4)


@pytest.mark.parametrize(
    ("test", "held_out"),
    [
        (0.1, slice(54, 60)),
        (0.5, slice(30, 60)),
        ("2001-01-01/2001-12-31", slice(12, 24)),
        ("2001/2001", slice(12, 24)),
        ("part_b.nc", slice(30, 60)),
    ],
)
def test_what_is_held_out_is_not_trained_on(files: Path, test: Any, held_out: slice) -> None:
    data = climate().tas.values
    fields = read_prior({**CLIMATE, "test": test}, files)
    assert isinstance(fields.train, xr.DataArray) and isinstance(fields.test, xr.DataArray)
    assert np.array_equal(fields.test.values, data[held_out])
    rest = data if test == "part_b.nc" else np.delete(data, held_out, 0)
    assert np.array_equal(fields.train.values, rest)


def test_several_files_variables_and_stores(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = climate()
    whole = declared(files, prior={**CLIMATE, "path": "part_*.nc"})
    x = declared(files).sample_prior(5, seed=0)
    assert torch.equal(whole.sample_prior(5, seed=0), x)
    both = {"path": "two.nc", "sample": "time", "variable": ["tas", "pr"]}
    two = declared(files, prior=both, physics={**POINTS, "missing": 0.5})
    assert two.field_shape == (2, 6, 8) and two.observation_shape == (2, 4)
    assert two.dims[0] == "channel" and two.coords["channel"].values.tolist() == ["tas", "pr"]
    # More than a machine should hold stays on the disk.
    monkeypatch.setattr(declared_prior, "IN_MEMORY", 1000)
    for path in ("tas.nc", "part_*.nc"):
        fields = read_prior({**CLIMATE, "path": path}, files)
        assert isinstance(fields.train, xr.DataArray) and fields.train.chunks is not None
        assert torch.equal(declared(files, prior=CLIMATE).sample_prior(5, seed=0), x)
    data.drop_encoding().to_zarr(files / "tas.zarr", zarr_format=2, mode="w")
    stored = read_prior({**CLIMATE, "path": "tas.zarr"}, files).train
    assert isinstance(stored, xr.DataArray) and stored.chunks is not None


def test_pictures_are_split_whole_and_scaled(files: Path, tmp_path: Path) -> None:
    from PIL import Image

    prior = {"path": "images", "patch": 8, "test": 0.4}
    blur = {"operator": "deepinv:Blur", "filter": {"name": "gaussian", "sigma": 1.0}}
    problem = declared(files, prior=prior, physics={**blur, "padding": "circular"})
    assert isinstance(problem.physics, Blur) and problem.field_shape == (1, 8, 8)
    assert problem.observation_labels.dims == ("y", "x")
    x = problem.sample_prior(64, seed=0)
    assert 0 <= float(x.min()) and float(x.max()) <= 1
    # Every patch is found in the pictures of its split, and in no other.
    for split, numbers in {"train": (0, 1, 2), "test": (3, 4)}.items():
        pictures = [np.asarray(Image.open(files / f"images/{n}.png")) / 255 for n in numbers]
        places = np.concatenate(
            [np.lib.stride_tricks.sliding_window_view(p, (8, 8)).reshape(-1, 64) for p in pictures]
        )
        drawn = problem.sample_prior(16, split=split, seed=1).flatten(1).numpy()  # type: ignore[arg-type]
        assert (abs(drawn[:, None] - places[None]).max(-1).min(1) < 1e-6).all()
    colour = np.stack([np.full((4, 6), v, np.uint8) for v in (255, 51, 0)], -1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    np.save(tmp_path / "float.npy", np.full((4, 6), 0.25))
    assert Pictures([tmp_path / "colour.png"])(2)[1, :, 3, 5].tolist() == pytest.approx(
        [1, 0.2, 0]
    )
    grey = 0.2126 + 0.7152 * 0.2
    drawn = Pictures([tmp_path / "colour.png", tmp_path / "float.npy"], grey=True)(50)
    assert drawn.shape == (50, 1, 4, 6)
    assert sorted({round(float(v), 4) for v in drawn.flatten()}) == [0.25, round(grey, 4)]


# Operators and noise -----------------------------------------------------------------------------


def test_operators_of_deepinv_and_of_the_package(files: Path) -> None:
    prior = {"path": "images", "patch": 8}
    masked = {"operator": "deepinv:Inpainting", "mask": [0.3, 0.5]}
    problem = declared(files, prior=prior, physics=masked)
    x, y, params = problem.simulate(400, seed=0)
    assert isinstance(problem.physics, Inpainting) and params["mask"].shape == (400, 1, 8, 8)
    share = params["mask"].flatten(1).mean(1)
    assert float(share.mean()) == pytest.approx(0.4, abs=0.02) and torch.all(
        y[params["mask"] == 0] == 0
    )
    fixed = [declared(files, prior=prior, physics={**masked, "mask": 0.4}) for _ in range(2)]
    assert torch.equal(fixed[0].physics.mask, fixed[1].physics.mask)  # type: ignore[union-attr]
    np.save(files / "mask.npy", np.eye(8)[None])
    stored = declared(files, prior=prior, physics={**masked, "mask": "mask.npy"}).physics
    assert stored is not None and torch.equal(stored.mask.squeeze(), torch.eye(8))
    rays = {"operator": "deepinv:Tomography", "angles": [0.0, 90.0], "normalize": False}
    counts = {"model": "poisson", "gain": [0.01, 0.1]}
    problem = declared(files, prior=prior, physics=rays, noise=counts)
    assert isinstance(problem.physics, Tomography) and set(problem.param_shapes) == {"gain"}
    assert isinstance(problem.physics.noise_model, PoissonNoise)
    heat = {"operator": "heat-equation", "times": [0.1], "diffusivity": 0.5}
    assert declared(files, prior=prior, physics=heat).observation_shape == (1, 8, 8)


def test_an_operator_of_your_own(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (files / "own_radar.py").write_text(
        "from deepinv.physics import GaussianNoise, LinearPhysics\n\n\n"
        "class Radar(LinearPhysics):\n"
        "    def __init__(self, img_size, gain=1.0):\n"
        "        super().__init__(img_size=img_size, noise_model=GaussianNoise(0.3))\n"
        "        self.gain = gain\n\n"
        "    def A(self, x, **kwargs):\n        return self.gain * x[:, :, ::2]\n"
    )
    radar = {"operator": "own_radar:Radar", "gain": 2.0}
    problem = declare({"prior": CLIMATE, "physics": radar}, files)
    assert problem.observation_shape == (1, 3, 8)
    assert "GaussianNoise(sigma=0.3)" in problem.describe_physics()
    with pytest.raises(ValueError, match=r"unknown key in \[own_radar:Radar\]: 'gian'"):
        declare({"prior": CLIMATE, "physics": {"operator": "own_radar:Radar", "gian": 1}}, files)


def test_networks_that_change_and_networks_that_miss_stations(files: Path) -> None:
    changing = {"operator": "point-observations", "max_stations": 7}
    problem = declared(files, physics=changing, noise={"model": "gaussian", "sigma": [0.1, 0.2]})
    shapes = {name: tuple(shape) for name, shape in problem.param_shapes.items()}
    assert shapes == {"coords": (7, 2), "mask": (7,), "sigma": (7,)}
    missing = declared(files, physics={**POINTS, "missing": 0.5})
    kept = missing.simulate(2000, seed=0)[2]["mask"].mean()
    assert float(kept) == pytest.approx(0.75, abs=0.02)
    by_column = declared(files, noise={"model": "gaussian", "sigma": "sd"})
    assert by_column.physics is not None
    sigma = by_column.physics.noise_model.sigma
    assert sigma.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


# Station tables as observations ------------------------------------------------------------------

ROWS = {
    "Station": ["d", "a", "b"],
    "lat": [59, 42, 45.5],
    "Lon": [-8.0, -9, 0],
    "value": [4.0, 1, 2],
}


@pytest.mark.parametrize("columns", [["Station"], ["lat", "Lon"], ["Station", "lat", "Lon"]])
def test_rows_find_their_stations(files: Path, tmp_path: Path, columns: list[str]) -> None:
    problem = declared(files, physics={**POINTS, "missing": 0.5})
    frame = pd.DataFrame(ROWS)[[*columns, "value"]]
    frame.to_csv(tmp_path / "obs.csv", index=False)
    frame.to_xarray().to_netcdf(tmp_path / "obs.nc")
    for name in ("obs.csv", "obs.nc"):
        y, params = load_observation(tmp_path / name, problem)
        assert y.tolist() == [[1, 2, 0, 4]] and params["mask"].tolist() == [[1, 1, 0, 1]]
    labels = read_observation(frame, problem).labels
    assert labels["row_of_observed"].values.tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Station": ["d", "a", "x"]}, "station x is none of the problem's: a, b, c, d"),
        ({"lat": [59, 42, 55]}, "row 3 of the table lies 2.4 grid cells from its station, b"),
        (
            {"Station": None, "lat": [59, 42, 45]},
            "row 3 of the table lies 0.12 grid cells from",
        ),
        ({"Station": ["d", "b", "b"], "lat": None, "Lon": None}, "several rows .* are station b"),
        ({"lat": [59, 42, 70]}, "1 stations lie outside the grid"),
    ],
)
def test_rows_that_are_none_of_the_stations(
    files: Path, change: dict[str, Any], text: str
) -> None:
    problem = declared(files, physics={**POINTS, "missing": 0.5})
    rows = {name: column for name, column in {**ROWS, **change}.items() if column is not None}
    with pytest.raises(ValueError, match=text):
        load_observation(pd.DataFrame(rows), problem)


def test_a_table_without_a_reader(files: Path, tmp_path: Path) -> None:
    problem = declared(files)
    (tmp_path / "obs.parquet").write_bytes(b"PAR1")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"with pyarrow: pip install 'vfm-inverse\[io\]'"):
            load_observation(tmp_path / "obs.parquet", problem)
        return
    with pytest.raises(ValueError, match="is not a readable Parquet file"):
        load_observation(tmp_path / "obs.parquet", problem)
    pd.DataFrame({**ROWS, "value": 1.0}).to_parquet(tmp_path / "obs.parquet")
    whole = declared(files, physics={**POINTS, "missing": 0.5})
    assert load_observation(tmp_path / "obs.parquet", whole)[0].tolist() == [[1, 1, 0, 1]]


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"prior": {"path": "tas.nc"}}, "no variable of .* has the dimension 'sample'"),
        ({"prior": {**CLIMATE, "path": "none.nc"}}, "there is no .*none.nc'"),
        ({"prior": {**CLIMATE, "path": "none_*.nc"}}, r"there is no .*none_\*.nc'"),
        ({"prior": {**CLIMATE, "path": "broken.nc"}}, "broken.nc' cannot be read as netCDF"),
        ({"prior": {**CLIMATE, "path": "nothing"}}, "has no pictures .* no zarr store"),
        ({"prior": {**CLIMATE, "path": "land.nc"}}, "2 places miss a value in every sample"),
        ({"prior": {**CLIMATE, "variable": "pr"}}, r"has no 'pr'; it has \['tas'\]"),
        ({"prior": {**CLIMATE, "path": "two.nc"}}, r"must say which of \['pr', 'tas'\]"),
        ({"prior": {**CLIMATE, "sampel": 3}}, "'sampel'; did you mean 'sample'"),
        ({"prior": {**CLIMATE, "test": 1.5}}, "'test' in .* above 0 and below 1.* got 1.5"),
        ({"prior": {**CLIMATE, "test": "2030/2031"}}, "holds out 0 of 60"),
        ({"prior": {**CLIMATE, "test": "late"}}, "must be a share, a range of labels"),
        ({"prior": {**CLIMATE, "test": "x/y"}}, "must be a range of 'time', which goes from"),
        ({"prior": {"path": "images/0.png"}}, "for training and for tests; got 1"),
        (
            {"prior": {"path": "images", "patch": 40}},
            "fewer than 'patch' = 40",
        ),
        ({"prior": {"path": "images", "grey": False}}, "is grey; give grey = true"),
        ({"physics": {}}, "must have an 'operator', one of"),
        ({"physics": {"operator": "point-observation"}}, "did you mean 'point-observations'"),
        ({"physics": {"operator": "deepinv:Blr"}}, "'Blr'; did you mean 'Blur'"),
        ({"physics": {"operator": "deepinv:Blur", "filtr": 1}}, "'filtr'; did you mean 'filter'"),
        (
            {"physics": {"operator": "deepinv:Blur", "filter": "gausian"}},
            "did you mean 'gaussian'",
        ),
        ({"physics": {"operator": "heat-equation"}}, r"lacks \['times'\], which heat-equation"),
        ({"physics": {"operator": "point-observations"}}, "must have 'stations', a table"),
        (
            {"physics": {**POINTS, "max_stations": 3}},
            "must have 'stations', a table",
        ),
        ({"physics": {**POINTS, "station": 3}}, "'station'; did you mean 'stations'"),
        ({"physics": {**POINTS, "stations": "none.csv"}}, "there is no file"),
        ({"noise": {}}, "must have a 'model', one of"),
        ({"noise": {"model": "gausian"}}, "'gausian'; did you mean 'gaussian'"),
        ({"noise": {"model": "gaussian"}}, "must state 'sigma' of the model 'gaussian'"),
        ({"noise": {**GAUSSIAN, "gain": 3}}, r"unknown key in \[problem.noise\]: 'gain'"),
        ({"noise": {**GAUSSIAN, "sigma": [0.5, 0.1]}}, r"'sigma' in .*; got \[0.5, 0.1\]"),
        ({"noise": {**GAUSSIAN, "sigma": -1}}, "'sigma' in .* must be a positive number"),
        ({"noise": {**GAUSSIAN, "sigma": "std"}}, "has no column 'std'; it has .*'sd'"),
        ({"noise": 3}, r"\[problem.noise\] must be a table; got 3"),
    ],
)
def test_what_a_settings_file_may_not_say(files: Path, tables: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, OSError), match=text):
        declared(files, **tables)


def test_a_declared_problem_lacks_no_table(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have the table \[problem.noise\]"):
        declare({"prior": CLIMATE, "physics": POINTS}, files)
    with pytest.raises(ValueError, match=r"must have the table \[problem.physics\]"):
        declare({"prior": CLIMATE, "noise": GAUSSIAN}, files)
    path = tmp_path / "settings.toml"
    path.write_text("[problem.prior]\n[problem.pysics]\n")
    with pytest.raises(ValueError, match=r"unknown key in \[problem\]: 'pysics'; did you mean"):
        read_config(path)


# From the shell ----------------------------------------------------------------------------------

SIZES = """
[model]
num_simulations = 200
width = 8
depth = 1
network = "mlp"
[fit]
steps = 2
batch_size = 8
num_validation = 8
[calibration]
num_simulations = 40
num_draws = 20
"""

CLIMATE_SETTINGS = """
[problem.prior]
path = "tas.nc"
sample = "time"
test = "2004-01-01/2004-12-31"
[problem.physics]
operator = "point-observations"
stations = "stations.csv"
[problem.noise]
model = "gaussian"
sigma = "sd"
"""

IMAGE_SETTINGS = """
[problem.prior]
path = "images"
patch = 8
[problem.physics]
operator = "deepinv:Blur"
filter = { name = "gaussian", sigma = 1.0 }
padding = "circular"
[problem.noise]
model = "gaussian"
sigma = 0.05
"""


def observation(kind: str, folder: Path) -> Path:
    from PIL import Image

    if kind == "climate":
        (folder / "obs.csv").write_text(
            "station,lat,lon,value\nd,59,-8,1\na,42,-9,0\nb,45.5,0,0\nc,50,3,0.5\n"
        )
        return folder / "obs.csv"
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(folder / "obs.png")
    return folder / "obs.png"


@pytest.mark.parametrize("kind", ["climate", "images"])
def test_a_declared_problem_trains_and_answers(
    kind: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "images":  # the other kind has its report written, which takes most of the time
        monkeypatch.setattr("vfm_inverse.runs.folder.report_run", lambda *args, **kwargs: None)
    settings = files / f"{kind}.toml"
    settings.write_text((CLIMATE_SETTINGS if kind == "climate" else IMAGE_SETTINGS) + SIZES)
    run = tmp_path / "run"
    command = ["train", str(settings), "--out", str(run), "--json", "--device", "cpu"]
    assert main(command) == 0, capsys.readouterr().err
    assert read_settings(run)["problem"] == read_config(settings).problem
    out = tmp_path / "post.nc"
    draw = [str(run), str(observation(kind, tmp_path)), "-n", "8", "--out", str(out)]
    assert main(["sample", *draw]) == 0, capsys.readouterr().err
    with xr.open_dataset(out) as draws:
        name = "tas" if kind == "climate" else "field"
        assert draws[name].dims[-2:] == (("lat", "lon") if kind == "climate" else ("y", "x"))
        assert "problem" in draws.attrs and draws.sizes["draw"] == 8
        if kind == "climate":
            assert draws["observed"].values.tolist() == [[0, 0, 0.5, 1]]
    assert main(["calibrate", str(run), "--num-simulations", "40", "--num-draws", "20"]) == 0
    assert "changed since" not in capsys.readouterr().err


# As the installed program runs: without the current folder among its modules.
PROGRAM = "import sys; from vfm_inverse.cli.program import main; sys.exit(main())"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["climate", "images"])
def test_every_command_in_a_process_of_its_own(kind: str, files: Path, tmp_path: Path) -> None:
    """The correction may say in one sentence why it does not work on a prior of samples."""
    settings = files / f"{kind}.toml"
    settings.write_text((CLIMATE_SETTINGS if kind == "climate" else IMAGE_SETTINGS) + SIZES)

    def shell(*command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-P", "-c", PROGRAM, *command]
        return subprocess.run(
            words,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )

    obs, draw = str(observation(kind, tmp_path)), ["--out", "post.nc"]
    done = [
        shell("train", str(settings), "--out", "run"),
        shell("sample", "run", obs, "-n", "8", *draw),
        shell("calibrate", "run", "--num-simulations", "40", "--num-draws", "20"),
        shell("report", "run"),
    ]
    for one in done:
        assert one.returncode == 0, one.stderr
        assert "changed since" not in one.stderr
    corrected = shell("correct", "run", obs, "-n", "256", *draw)
    assert corrected.returncode in (0, 2) and "Traceback" not in corrected.stderr
    assert corrected.returncode == 0 or corrected.stderr.count("error: ") == 1


def test_recipes_keep_their_folder(files: Path) -> None:
    table = {"prior": CLIMATE, "physics": POINTS, "noise": GAUSSIAN}
    problem = make_problem(Recipe(table, files))
    assert problem.recipe == Recipe(table, files)
    assert problem.name == "tas by point-observations"
