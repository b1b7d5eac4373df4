"""Runs, the report and the command line, with files that are made here."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from PIL import Image

import vfm_inverse as vi
from tests.benchmarks.behaviour_common import (
    Case,
    Results,
    answers,
    held_out,
    prefixed,
    unheard,
    untimed,
    weights,
)
from vfm_inverse import calibration, runs
from vfm_inverse.cli import main
from vfm_inverse.labelled import load_observation, observation_to_xarray, save_netcdf
from vfm_inverse.report import write_report
from vfm_inverse.runtime import storage

SETTINGS = """
[model]
num_simulations = 200
width = {width}
depth = 1

[fit]
steps = {steps}
batch_size = 16
num_validation = 32
log_every = 2

[calibration]
num_simulations = 30
num_draws = 20
"""

PROBLEMS = {
    "vectors": '[problem]\nname = "linear-gaussian"\ndim = 3\nobs_dim = 2\nsigma = [0.1, 1.0]\n',
    "maps": """
[problem.prior]
path = "maps.nc"
sample = "time"
test = "2003-01-01/2004-12-31"

[problem.physics]
operator = "point-observations"
stations = "stations.csv"
missing = 0.3

[problem.noise]
model = "gaussian"
sigma = [0.05, 0.5]
""",
    "networks": """
[problem.prior]
path = "maps.nc"
sample = "time"
variable = "tas"

[problem.physics]
operator = "point-observations"
max_stations = 5

[problem.noise]
model = "gaussian"
sigma = [0.05, 0.5]
""",
    "pictures": """
[problem.prior]
path = "images"
patch = 8
test = 0.4

[problem.physics]
operator = "deepinv:Blur"
filter = {name = "gaussian", sigma = 1.0}
padding = "circular"

[problem.noise]
model = "gaussian"
sigma = 0.05
""",
    "counts": """
[problem.prior]
path = "images"
patch = 8

[problem.physics]
operator = "deepinv:Inpainting"
mask = [0.3, 0.5]

[problem.noise]
model = "poisson"
gain = [0.01, 0.1]
""",
}

# Tables of further problems, which ``inspect`` makes and tells of: prior, physics, noise.
MAPS = 'path = "{}"\nsample = "time"'
IMAGES = 'path = "images"\npatch = 8'
AT_STATIONS = 'operator = "point-observations"\nstations = "stations.csv"'
TOLD = {
    "column of errors": (MAPS.format("maps.nc"), AT_STATIONS, 'model = "gaussian"\nsigma = "sd"'),
    "several files": (MAPS.format("part_*.nc"), AT_STATIONS, 'model = "laplace"\nb = [0.1, 0.2]'),
    "store": (MAPS.format("maps.zarr"), AT_STATIONS, 'model = "uniform"\na = 0.3'),
    "two variables": (
        MAPS.format("two.nc") + '\nvariable = ["tas", "pr"]',
        AT_STATIONS,
        'model = "fisher-tippett"\nl = 4.0',
    ),
    "held-out file": (
        MAPS.format("part_a.nc") + '\ntest = "part_b.nc"',
        AT_STATIONS,
        'model = "gaussian"\nsigma = 0.1',
    ),
    "tomography": (
        IMAGES,
        'operator = "deepinv:Tomography"\nangles = [0.0, 90.0]\nnormalize = false',
        'model = "log-poisson"\nN0 = 64.0\nmu = 0.1',
    ),
    "heat": (
        IMAGES,
        'operator = "heat-equation"\ntimes = [0.1]\ndiffusivity = 0.5',
        'model = "poisson-gaussian"\ngain = 0.1\nsigma = 0.2',
    ),
    "own operator": (IMAGES, 'operator = "own_code:Rows"\ngain = 2.0', None),
}
OWN_CODE = """
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from vfm_inverse.problem import InverseProblem


class Rows(LinearPhysics):
    def __init__(self, img_size, gain=1.0):
        super().__init__(img_size=img_size, noise_model=GaussianNoise(0.3))
        self.img_size, self.gain = img_size, gain

    def A(self, x, **kwargs):
        return self.gain * x[:, :, ::2]

    def A_adjoint(self, y, **kwargs):
        x = y.new_zeros(len(y), *self.img_size)
        x[:, :, ::2] = self.gain * y
        return x


def make(size=4):
    fields = torch.randn(40, 1, size, size, generator=torch.Generator().manual_seed(0))
    return InverseProblem(fields, physics=Rows((1, size, size)))
"""

SUBCOMMANDS = (
    *("new", "problems", "inspect", "train", "sample"),
    *("correct", "calibrate", "report", "verify", "demo"),
)

# Lines of what ``inspect`` says that no run has twice.
MEASURED = ("cost ", "files ")


# Files -------------------------------------------------------------------------------------------


@cache
def files() -> None:
    """What users have, in the current folder: fields, stations, pictures, settings."""
    rng = np.random.default_rng(0)
    lat, lon = np.linspace(60.0, 40.0, 6), np.linspace(-10.0, 11.0, 8)
    waves = np.sin(lat[:, None] / 5 + lon[None, :] / 4 + 6 * rng.random((60, 1, 1)))
    waves = (waves + 0.1 * rng.standard_normal(waves.shape)).astype(np.float32)
    time = np.arange("2000-01", "2005-01", dtype="datetime64[M]").astype("datetime64[ns]")
    coords = {
        "time": ("time", time),
        "lat": ("lat", lat, {"units": "degrees_north"}),
        "lon": ("lon", lon, {"units": "degrees_east"}),
    }
    about = {"units": "K", "long_name": "temperature anomaly"}
    data = xr.Dataset({"tas": (("time", "lat", "lon"), waves, about)}, coords)
    data.to_netcdf("maps.nc")
    data.assign(pr=2 * data.tas).to_netcdf("two.nc")
    data.to_zarr("maps.zarr", zarr_format=2)
    for name, part in {"a": slice(0, 30), "b": slice(30, 60)}.items():
        data.isel(time=part).to_netcdf(f"part_{name}.nc")
    Path("own_code.py").write_text(OWN_CODE)
    rows = ["Station,Latitude,LONGITUDE,sd", "a,42,-9,0.1", "b,45.5,0,0.2", "c,50,3,0.3"]
    Path("stations.csv").write_text("\n".join([*rows, "d,59,352,0.4"]) + "\n")
    seen = ["Station,value,sigma", "d,0.4,0.2", "a,-0.3,0.2", "b,0.1,0.2"]
    Path("seen.csv").write_text("\n".join(seen) + "\n")
    free = ["name,lat,lon,tas,sigma", "a,45.5,2,0.3,0.5", "b,45,5.5,,0.5", "c,51,1,-0.4,0.1"]
    Path("free.csv").write_text("\n".join(free) + "\n")
    Path("images").mkdir()
    ramp = np.linspace(0, 1, 20)[:, None] * np.linspace(0.2, 1, 30)[None, :]
    for number in range(5):
        grey = (255 * np.roll(ramp, number, 0)).astype(np.uint8)
        Image.fromarray(grey).save(f"images/{number}.png")
    for name, problem in PROBLEMS.items():
        width, steps = (16, 20) if name == "vectors" else (4, 4)
        Path(f"{name}.toml").write_text(problem + SETTINGS.format(width=width, steps=steps))


def command(*arguments: str | Path, told: bool = True) -> list[Any]:
    """Exit code of a command, what it printed, and with ``told`` what it said besides."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return [code, out.getvalue(), *([err.getvalue()] if told else [])]


@cache
def run_of(name: str) -> tuple[str, ...]:
    """Train by the settings of that name, into a folder of that name; what was printed."""
    files()
    with unheard():
        code, *said = command("train", f"{name}.toml", "--out", name, "--json", "--device", "cpu")
    assert code == 0, said
    return tuple(said)


def observation_of(name: str) -> str:
    """A file of two observations of the problem of a run."""
    _, problem = runs.open_run(name, warn=False)
    _, y, params = held_out(problem)
    save_netcdf(observation_to_xarray(y, problem, params), f"{name}-seen.nc")
    return f"{name}-seen.nc"


def page(path: str | Path) -> Results:
    """A report: its words, and its pictures."""
    html = Path(path).read_text()
    return {"page": html, "pictures": re.findall(r"base64,([^\"]*)", html)}


# Runs --------------------------------------------------------------------------------------------


def of_run(name: str) -> Results:
    """A run from its settings: what is in its folder, what opens it, what draws from it."""
    printed = run_of(name)
    vfm, problem = runs.open_run(name, warn=False)
    x, y, params = held_out(problem, 3)
    seen, card = observation_of(name), str(vfm.provenance()["calibration_card"])
    results: Results = {
        "printed": printed,
        "files": sorted(path.name for path in Path(name).iterdir()),
        "settings": (Path(name) / "config.json").read_text(),
        "log": untimed(Path(name) / "log.csv"),
        "checked": runs.open_calibration(name),
        **prefixed("report", page(Path(name) / "report.html")),
        "problem": [repr(problem), problem.describe_physics(), json.dumps(problem.kwargs)],
        "simulations": [x, y, params, problem.sample_prior(3, split="test", seed=2)],
        "card": card,
        # As bytes: these sums must stay what they are, for cards and settings to hold.
        "sums": [one.encode() for one in re.findall(r"\b[0-9a-f]{64}\b", card)],
        **answers(vfm, problem),
        "loaded": weights(vi.load(name, warn=False)),
        "written": xr.load_dataset(seen),
        "inspected": inspected(name, seen, f"{name}.toml"),
    }
    out = f"{name}-draws.nc"
    options = ["-n", "9", "--seed", "2", "--json", "--device", "cpu", "--out", out]
    results["sample"] = command("sample", name, seen, *options)
    results["draws in a file"] = xr.load_dataset(out)
    results["sample, summary"] = command("sample", name, seen, *options, "--summary", "--draws")
    results["summary in a file"] = xr.load_dataset(out)
    results["inspected draws"] = inspected(out)
    return results


def inspected(*paths: str | Path) -> list[Any]:
    """What ``inspect`` says of each, without what it measures."""
    told = []
    for path in paths:
        code, out, err = command("inspect", path)
        told.append([code, [line for line in out.splitlines() if not line.startswith(MEASURED)]])
        told.append(err)
    return told


def of_tables() -> Results:
    """Draws for stations in tables of comma-separated values."""
    results: Results = {}
    for name, table in {"maps": "seen.csv", "networks": "free.csv"}.items():
        run_of(name)
        _, problem = runs.open_run(name, warn=False)
        results[f"{name}, read"] = list(load_observation(table, problem))
        out = f"{name}-of-table.nc"
        options = ["-n", "6", "--json", "--device", "cpu", "--out", out]
        results[f"{name}, sample"] = command("sample", name, table, *options)
        results[f"{name}, draws"] = xr.load_dataset(out)
    return results


def in_words() -> Results:
    """What the commands print for people, and what they leave in the folder."""
    run_of("vectors")
    shutil.copytree("vectors", "words")
    seen, options = observation_of("vectors"), ["-n", "128", "--device", "cpu"]
    sizes = ["--num-simulations", "30", "--num-draws", "20", "--device", "cpu"]
    few = ["--num-simulations", "12", "--num-draws", "16", "--device", "cpu"]
    spoken = partial(command, told=False)
    results: Results = {
        "sample": spoken("sample", "words", seen, *options, "--out", "words.nc"),
        "correct": spoken("correct", "words", seen, *options, "--out", "corrected.nc"),
        "corrected": xr.load_dataset("corrected.nc"),
        "correct, summary": spoken(
            "correct", "words", seen, *options, "--out", "short.nc", "--summary"
        ),
        "corrected, summary": xr.load_dataset("short.nc"),
        "calibrate": spoken("calibrate", "words", *sizes),
        "calibrate, strict": spoken("calibrate", "words", *sizes, "--strict", "--seed", "3"),
        "calibrate, corrected": spoken("calibrate", "words", *few, "--corrected"),
        "checked, corrected": xr.load_dataset("words/calibration_corrected.nc"),
        "report": spoken("report", "words"),
        **prefixed("report", page("words/report.html")),
        "inspected": inspected(*sorted(Path("words").glob("*.nc")), "words", "corrected.nc"),
        "checkpoints": inspected(*sorted(Path("words").glob("*.safetensors"))),
    }
    return results


def wrong() -> Results:
    """What is said of commands that make no sense."""
    run_of("vectors")
    seen = observation_of("vectors")
    asked: dict[str, Iterable[str]] = {
        "no such run": ("sample", "nowhere", seen, "--out", "a.nc"),
        "no such file": ("sample", "vectors", "nothing.nc", "--out", "a.nc"),
        "input is output": ("sample", "vectors", seen, "--out", seen),
        "run is there": ("train", "vectors.toml", "--out", "vectors"),
        "other settings": (
            *("train", "vectors.toml", "--out", "vectors", "--resume"),
            *("--set", "fit.average_decay=0.5"),
        ),
        "unknown setting": ("train", "heat", "--out", "a", "--set", "model.widht=3"),
        "no number": ("train", "heat", "--out", "a", "--steps", "many"),
        "unknown problem": ("train", "heta", "--out", "a"),
        "unknown command": ("trian",),
        "inspect a folder": ("inspect", "images"),
        "verify nothing": ("verify", "nothing"),
    }
    return {name: command(*arguments) for name, arguments in asked.items()}


def helped() -> Results:
    """Help of all subcommands, the list of problems, the version."""
    results = {name: command(name, "--help") for name in SUBCOMMANDS}
    results["all"] = command("--help")
    results["version"] = command("--version")
    results["list"] = command("problems")
    results["list in JSON"] = command("problems", "--json")
    results["verify"] = command("verify", "gravity")
    results["verify in JSON"] = command("verify", "linear-gaussian", "--json")
    return results


def begun() -> Results:
    """First settings and modules, and what is said of the files that they are made of."""
    files()
    asked: dict[str, tuple[str, ...]] = {
        "fields.toml": ("--from", "maps.nc"),
        "stations.toml": ("--from", "maps.nc", "--stations", "stations.csv"),
        "blur.toml": ("--from", "images", "--physics", "deepinv:Blur"),
        "module.py": ("--code",),
    }
    results: Results = {}
    for name, options in asked.items():
        said = command("new", *options, f"new_{name}")
        results[name] = [said, Path(f"new_{name}").read_text()]
    found = ("maps.nc", "stations.csv", "free.csv", "new_fields.toml", "counts.toml")
    results["inspected"] = inspected(*found)
    _, out, _ = command("inspect", "maps.nc", "--json")
    results["inspected in JSON"] = json.loads(out)
    return results


def declared() -> Results:
    """What is said of further problems that settings declare or that are code of the user's."""
    files()
    results: Results = {}
    for name, tables in TOLD.items():
        path = Path(f"told-{name.replace(' ', '-')}.toml")
        parts = zip(("prior", "physics", "noise"), tables, strict=True)
        path.write_text("\n".join(f"[problem.{part}]\n{said}" for part, said in parts if said))
        results[name] = inspected(path)
    Path("own.toml").write_text('[problem]\nobject = "own_code:make"\nsize = 6\n')
    results["object"] = inspected("own.toml")
    results["verify"] = command("verify", "own_code:make")
    return results


def reported() -> Results:
    """The page of a check that fails, with a log and local tests."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(21, 60, 1, 4, 6, generator=generator)
    y = torch.randn(60, 2, generator=generator)
    checked = calibration.from_draws(0.4 + 0.8 * samples[1:], samples[0], y=y, local=True)
    rows = [{"step": 5 * i, "loss": 3.0 / (i + 1), "validation": 1.0 + i} for i in range(4)]
    write_report("page.html", checked, history=rows, provenance={"by": "me"}, title="A check")
    return {"checked": checked, **page("page.html")}


def shipped() -> Results:
    """The weights that come with the package."""
    (path,) = Path(vi.__file__).parent.rglob("demo.safetensors")
    tensors, header = storage.read(path, "demo")
    return {"weights": tensors, "steps": header["steps"]}


CASES: dict[str, Case] = {
    **{f"run {name}": partial(of_run, name) for name in PROBLEMS if name != "counts"},
    "run, tables": of_tables,
    "run, in words": in_words,
    "run, refused": wrong,
    "command line": helped,
    "command line, new": begun,
    "command line, declared": declared,
    "report": reported,
    "weights of the demo": shipped,
}
