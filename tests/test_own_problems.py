"""Problems of the user's own, by ``module:object``: the run folder remembers how they are made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.cli.program import main
from vfm_inverse.runs.folder import open_run
from vfm_inverse.runs.recipes import make_problem
from vfm_inverse.runtime.config import Recipe
from vfm_inverse.runtime.warnings import CalibrationWarning
from vfm_inverse.training.loop import fit
from vfm_inverse.training.run_settings import read_settings

MODULE = '''
"""A problem of somebody's own."""

import torch
from deepinv.physics import GaussianNoise
from torch.distributions import Independent, Normal

import vfm_inverse as vi
from vfm_inverse.operators import MatrixObservations


def make(dim: int = 3, sigma: float = 0.2, scale: float = 1.0) -> vi.InverseProblem:
    matrix = scale * torch.eye(dim)[:2]
    prior = Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)
    return vi.InverseProblem(prior, physics=MatrixObservations(matrix, GaussianNoise(sigma)))


def broken() -> vi.InverseProblem:
    raise KeyError("radar")


def nothing() -> int:
    return 3


problem = make(2)
'''

QUICK = ["--steps", "2", "--batch-size", "8", "--json", "--device", "cpu"]
for setting in (
    "model.num_simulations=200",
    "model.width=8",
    "model.depth=1",
    "fit.num_validation=8",
    "calibration.num_simulations=40",
    "calibration.num_draws=20",
):
    QUICK += ["--set", setting]

names = iter(f"own_module_{number}" for number in range(100))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module, of a name that no test had before, in the current folder."""
    name = next(names)
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def observe(path: Path, dim: int = 2) -> Path:
    xr.Dataset({"observed": ("datum", torch.ones(dim).numpy())}).to_netcdf(path)
    return path


def fresh(code: str) -> None:
    """As another process would find it: not imported, its folder nowhere on the path."""
    sys.modules.pop(code, None)
    sys.path[:] = [entry for entry in sys.path if not entry.endswith("/code")]


def test_a_run_remembers_its_problem_in_another_folder(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "mine"
    own = f"problem.scale=2.0 {code}:make".split()
    assert main(["train", own[1], "--out", str(run), *QUICK, "--set", own[0]]) == 0
    assert read_settings(run)["problem"] == {"object": f"{code}:make", "scale": 2.0}
    assert read_settings(run)["folder"] == str(Path.cwd())
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    obs, out = str(observe(tmp_path / "obs.nc")), str(tmp_path / "post.nc")
    for command in (
        ["sample", str(run), obs, "-n", "8", "--out", out],
        ["correct", str(run), obs, "-n", "256", "--out", out],
        ["calibrate", str(run), "--num-simulations", "40", "--num-draws", "20"],
        ["report", str(run)],
    ):
        fresh(code)
        assert main([*command, "--json"]) == 0
        assert "changed since" not in capsys.readouterr().err
    with xr.open_dataset(out) as draws:
        assert draws.attrs["problem"] == f"{code}:make"
        assert json.loads(draws.attrs["problem_kwargs"]) == {"scale": 2.0}
    fresh(code)
    vfm = vi.load(run, warn=False)
    assert vfm.likelihood is not None
    assert torch.equal(vfm.likelihood(torch.ones(1, 3)).mean, torch.full((1, 2), 2.0))


def test_code_that_is_gone_or_elsewhere(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", f"{code}:make", "--out", str(run), *QUICK]) == 0
    draw = [str(observe(tmp_path / "obs.nc")), "-n", "2", "--out", str(tmp_path / "post.nc")]
    capsys.readouterr()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "code", elsewhere)
    monkeypatch.chdir(tmp_path)
    fresh(code)
    assert main(["sample", str(run), *draw]) == 2
    said = capsys.readouterr().err
    assert f"No module named '{code}'" in said and "did you mean" not in said
    assert "'--problem module:object', or problem= in Python" in said
    # Moved together, the run finds its code; elsewhere it is named.
    shutil.copytree(run, tmp_path / "moved" / "run")
    shutil.copytree(elsewhere, tmp_path / "moved" / "code")
    assert main(["sample", str(tmp_path / "moved" / "run"), *draw]) == 0
    fresh(code)
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(tmp_path))]
    monkeypatch.chdir(elsewhere)
    assert main(["sample", str(run), *draw, "--problem", f"{code}:make"]) == 0
    assert "changed" not in capsys.readouterr().err
    # What is named is another problem, and that is said.
    assert main(["sample", str(run), *draw, "--problem", f"{code}:problem"]) == 2
    source = elsewhere / f"{code}.py"
    source.write_text(MODULE.replace("scale: float = 1.0", "scale: float = 1.5"))
    fresh(code)
    assert main(["sample", str(run), *draw]) == 0
    assert f"the physics of {code}:make changed since the map" in capsys.readouterr().err


def test_a_file_by_itself_imports_nothing(code: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", f"{code}:problem", "--out", str(run), *QUICK]) == 0
    problem = sys.modules[code].problem
    sys.modules.pop(code)
    with pytest.raises(ValueError, match="problem of your own .*; pass it as 'problem'"):
        vi.load(run / "model.safetensors")
    assert code not in sys.modules
    assert vi.load(run / "model.safetensors", problem, warn=False).card is not None


def test_fit_writes_the_folder_that_train_writes(code: str, tmp_path: Path) -> None:
    def trained(problem: vi.InverseProblem, folder: Path, steps: int = 2) -> None:
        sizes = {"num_simulations": 200, "width": 8, "depth": 1}
        vfm = vi.VariationalFlowMap.for_problem(problem, **sizes)
        made = {"steps": steps, "batch_size": 8, "num_validation": 8, "device": "cpu"}
        fit(vfm, problem, **made, checkpoint_dir=folder, progress=False)

    problem = make_problem(Recipe({"object": f"{code}:make", "dim": 4}))
    trained(problem, tmp_path / "run")
    assert read_settings(tmp_path / "run")["fit"]["steps"] == 2
    assert open_run(tmp_path / "run", warn=False)[1].kwargs == {"dim": 4}
    # The settings are those of the training that was last.
    trained(problems.load("linear-gaussian", dim=3), tmp_path / "run", steps=3)
    tables = read_settings(tmp_path / "run")
    assert tables["problem"] == {"name": "linear-gaussian", "dim": 3} and "folder" not in tables
    assert tables["fit"]["steps"] == 3 and tables["model"]["width"] == 8
    with pytest.raises(ValueError, match="is of a problem of your own, and its 'config.json'"):
        own = vi.InverseProblem(torch.rand(99, 2), simulator=lambda x: x, name="travel-times")
        trained(own, tmp_path / "run")
        vi.load(tmp_path / "run")
    with pytest.warns(CalibrationWarning):
        vi.load(tmp_path / "run", own)


@pytest.mark.parametrize(
    ("target", "settings", "text"),
    [
        ("CODE:make", ["problem.dimm=3"], "unknown key in [CODE:make]: 'dimm'; did you mean"),
        ("CODE:broken", [], "'CODE:broken' failed: KeyError: 'radar'"),
        (
            "CODE:nothing",
            [],
            "'CODE:nothing' must be an InverseProblem or a function that returns",
        ),
        ("CODE:problem", ["problem.dim=3"], "'CODE:problem' is no function and takes no ['dim']"),
        ("CODE:none", [], "'CODE' has no 'none'"),
        ("no_such_thing:make", [], "No module named 'no_such_thing': 'no_such_thing:make' is nei"),
        ("CODE:", [], "an object must be named as module:object; got 'CODE:'"),
        ("CODE", [], "one of your own is module:object"),
        ("CODE:make", ["problem.name='heat'"], "[problem] must have a 'name' or an 'object'"),
    ],
)
def test_what_cannot_be_a_problem(
    target: str,
    settings: list[str],
    text: str,
    code: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", target.replace("CODE", code), "--out", str(tmp_path / "run")]
    for setting in settings:
        command += ["--set", setting]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert text.replace("CODE", code) in said and said.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_settings_of_an_earlier_version_name_the_same_problem(tmp_path: Path) -> None:
    old = {"problem": "heat", "problem_kwargs": {"size": 8}, "model": {}, "fit": {}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_settings(tmp_path)["problem"] == {"name": "heat", "size": 8}


# As the installed program runs: without the current folder among its modules.
PROGRAM = "import sys; from vfm_inverse.cli.program import main; sys.exit(main())"


@pytest.mark.slow
def test_every_command_in_a_process_of_its_own(code: str, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads on busy cores wait for each other

    def shell(*command: str, folder: Path = tmp_path) -> str:
        words = [sys.executable, "-P", "-c", PROGRAM, *command]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stderr

    obs = str(observe(tmp_path / "obs.nc"))
    shell("train", f"{code}:make", "--out", "../run", *QUICK, folder=tmp_path / "code")
    shell("sample", "run", obs, "-n", "8", "--out", "post.nc")
    shell("correct", "run", obs, "-n", "256", "--out", "post.nc")
    sizes = ["--num-simulations", "40", "--num-draws", "20"]
    shell("calibrate", "run", *sizes)
    assert "changed" not in shell("report", "run")
