"""The command line: every subcommand on a tiny problem, and every refusal with its text."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xarray as xr

from vfm_inverse import problems
from vfm_inverse.cli.arguments import build_parser
from vfm_inverse.cli.commands import SUBCOMMANDS, settings_of
from vfm_inverse.cli.program import main
from vfm_inverse.posterior.card import Card
from vfm_inverse.runs.folder import open_run
from vfm_inverse.runtime.config import RunConfig, check_keys, read_config

SETTINGS = """
[problem]
name = "linear-gaussian"
dim = 3
obs_dim = 2

[model]
num_simulations = 500
width = 16
depth = 1

[fit]
steps = 4
batch_size = 16
log_every = 2
num_validation = 16

[calibration]
num_simulations = 40
num_draws = 20
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "settings.toml").write_text(SETTINGS)
    command = ["train", str(folder / "settings.toml"), "--out", str(folder / "run"), "--json"]
    assert main(command) == 0
    return folder / "run"


@pytest.fixture
def observation(tmp_path: Path) -> Path:
    """Two observations of the run's problem, as a user would bring them."""
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2)
    _, y, _ = problem.simulate(2, seed=5)
    path = tmp_path / "observation.nc"
    dims = ("observation", *problem.observation_labels.dims)
    xr.Dataset({"observed": (dims, y)}).to_netcdf(path)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *command: str | Path) -> str:
    """The one line on stderr of a command that must be refused."""
    assert main([str(part) for part in command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("vfm-inverse: error: ")
    return captured.err


# Help -------------------------------------------------------------------------------------------


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom vfm_inverse.cli.program import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'deepinv', 'numpy', 'xarray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "calibrate" in done.stdout


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_every_subcommand_has_help_and_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_an_unknown_subcommand_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


# What the subcommands do ------------------------------------------------------------------------


def test_the_package_is_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vfm_inverse", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("vfm_inverse", run_name="__main__", alter_sys=True)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("vfm-inverse ")


def test_problems_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["problems"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(problems.available())
    assert main(["problems", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"problems": problems.available()}


def test_train_leaves_a_run_folder(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "training.safetensors",
        "log.csv",
        "calibration.nc",
        "report.html",
    }
    config = json.loads((run / "config.json").read_text())
    assert config["problem"] == {"name": "linear-gaussian", "dim": 3, "obs_dim": 2}


def test_sample_writes_labelled_draws(
    run: Path, observation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "posterior.nc"
    command = ["sample", str(run), str(observation), "-n", "7", "--out", str(out), "--seed", "3"]
    assert main(command) == 0
    assert "7 draws for 2 observation(s)" in capsys.readouterr().out
    with xr.open_dataset(out) as first:
        assert first.sizes["draw"] == 7
        assert first.sizes["observation"] == 2
        assert first.attrs["problem"] == "linear-gaussian"
        assert first.attrs["calibration_verdict"] in {"pass", "fail"}
        assert first.attrs["seed"] == 3
        values = first["field"].values
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draws"] == 7
    with xr.open_dataset(out) as again:
        assert (again["field"].values == values).all()


def test_correct_writes_weighted_draws(
    run: Path, observation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corrected.nc"
    command = ["correct", str(run), str(observation), "-n", "256", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "observation 1: " in printed
    assert "256 draws for 2 observation(s)" in printed
    with xr.open_dataset(out) as stored:
        assert stored["weight"].dims == ("draw", "observation")
        assert float(stored["weight"].sum("draw")[0]) == pytest.approx(1, abs=1e-3)
        assert stored["satisfied"].values.tolist() == [1, 1]
        assert "k-hat" in str(stored["note"].values[0])
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["satisfied"] == 2
    assert main([*command[:3], "-n", "10", "--out", str(out)]) == 2
    assert "'num_samples' must be a multiple of 32" in capsys.readouterr().err


def test_calibrate_writes_the_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-simulations", "30", "--num-draws", "19"]
    assert main(["calibrate", str(run), *sizes, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with xr.open_dataset(run / "calibration.nc") as stored:
        assert stored.attrs["num_simulations"] == 30
        assert stored.attrs["verdict"] == printed["verdict"]
        card = Card.from_json(stored.attrs["calibration_card"])
    assert (card.verdict, card.num_simulations) == (printed["verdict"], 30)
    assert open_run(run, warn=False)[0].card == card
    assert 0 <= printed["coverage_90"] <= 1
    assert [list(one.values()) for one in printed["grades"]] == card.grades
    # For people, a line each.
    assert main(["calibrate", str(run), *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    for aspect, grade, size in card.grades:
        assert f"{aspect:<20}{grade:<12}{size}" in lines
    assert any("the untrained map's" in line and line.startswith("CRPS") for line in lines)


@pytest.mark.parametrize("fault", ["uncertified", "fail"])
def test_sample_correct_and_report_say_what_is_not_certified(
    fault: str, run: Path, observation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    vfm, _ = open_run(folder, warn=False)
    if fault == "fail":
        assert vfm.card is not None
        vfm.card = replace(vfm.card, verdict="fail", reason="draws too high")
    else:
        with torch.no_grad():
            next(iter(vfm.networks.parameters())).add_(1e-3)
    vfm.save(folder / "model.safetensors")
    draw = [str(folder), str(observation), "-n", "256", "--out", str(tmp_path / "draws.nc")]
    said = {"fail": "failed its calibration: draws too high", "uncertified": "is uncertified: its"}
    for command in (["sample", *draw], ["correct", *draw], ["report", str(folder)]):
        assert main([*command, "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["calibration"] == fault
        assert captured.err.count("\n") == 1 and captured.err.startswith("vfm-inverse: warning: ")
        assert said[fault] in captured.err
    with xr.open_dataset(tmp_path / "draws.nc") as stored:
        assert stored.attrs["calibration_verdict"] == fault
        assert ("calibration_card" in stored.attrs) == (fault == "fail")
    # Who calibrates it is not told to calibrate it; from then on it is certified.
    sizes = ["--num-simulations", "40", "--num-draws", "19"]
    assert main(["calibrate", str(folder), *sizes, "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["sample", *draw]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "calibration of the map: pass" in captured.out


def test_an_observation_out_of_range_is_pointed_out(
    run: Path, observation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = xr.load_dataset(observation)
    far["observed"][1] += 1000.0
    far.to_netcdf(tmp_path / "far.nc")
    command = ["sample", str(run), str(tmp_path / "far.nc"), "--out", str(tmp_path / "draws.nc")]
    assert main(command) == 0
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1
    assert "warning: 1 of 2 observations lie outside the range of the certified" in warned


def test_report_writes_the_page_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run / "report.html"
    page.unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert "<html" in page.read_text()


def test_a_run_is_resumed_and_never_overwritten(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run.parent / "settings.toml"
    assert "already holds a run" in refusal(capsys, "train", settings, "--out", run)
    assert main(["train", str(settings), "--out", str(run), "--resume", "--json"]) == 0


def test_the_command_line_wins_over_the_file(settings: Path) -> None:
    options = ["--steps", "9", "--seed", "7", "--set", "problem.sigma=0.5"]
    options += ["--set", "model.adapter=full"]
    command = ["train", str(settings), "--out", "unused", *options]
    config = settings_of(build_parser(SUBCOMMANDS).parse_args(command))
    assert config.fit["steps"] == 9
    assert config.fit["seed"] == config.model["seed"] == 7
    assert config.problem.items() >= {"dim": 3, "obs_dim": 2, "sigma": 0.5}.items()
    assert config.model["adapter"] == "full"


def test_only_train_leaves_seed_and_device_to_the_settings(settings: Path) -> None:
    parse = build_parser(SUBCOMMANDS).parse_args
    for command in (["calibrate", "run"], ["report", "run"], ["demo"]):
        args = parse(command)
        assert (args.seed, args.device) == (0, "auto")
    config = settings_of(parse(["train", str(settings), "--out", "unused"]))
    assert not {"seed", "device"} & {*config.fit, *config.model}


# Refusals ---------------------------------------------------------------------------------------


def test_an_unknown_problem_suggests_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, "train", "linear-gausian", "--out", tmp_path / "run")
    assert "unknown problem 'linear-gausian'; did you mean 'linear-gaussian'?" in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("fit.stepz=4", "unknown key in [fit]: 'stepz'; did you mean 'steps'?"),
        ("model.adaptor='full'", "unknown key in [model]: 'adaptor'; did you mean 'adapter'?"),
        ("fits.steps=4", "unknown section: 'fits'; did you mean 'fit'?"),
        ("calibration.num_draw=9", "did you mean 'num_draws'?"),
        ("problem.dimm=4", "unknown setting ['dimm'] of problem 'linear-gaussian'"),
        ("model.adapter='fancy'", "got 'fancy'"),
        ("fit.steps=0", "'steps' in [fit] must be an integer of at least 1 or 'auto'; got 0"),
        ("steps", "'--set' must be SECTION.KEY=VALUE; got 'steps'"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(
    change: str, text: str, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", settings, "--out", tmp_path / "run", "--set", change]
    assert text in refusal(capsys, *command)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_no_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", tmp_path / "missing.toml", "--out", tmp_path / "run"]
    assert "No such file or directory: " in refusal(capsys, *command)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("not = [toml", "is not a settings file"),
        (
            "[problem]\nsize = 3",
            "[problem] must have a 'name' or an 'object', one string, or the tables",
        ),
        ("problem = 3", "'problem' must be a table; got 3"),
    ],
)
def test_a_damaged_settings_file(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(content)
    with pytest.raises(ValueError) as refused:
        read_config(path)
    assert text in str(refused.value)


def test_a_folder_that_cannot_be_written(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file in the place of the folder: refused for every user, root included.
    command = ["train", settings, "--out", settings / "run"]
    assert "Not a directory" in refusal(capsys, *command)


@pytest.mark.parametrize("command", ["calibrate", "report"])
def test_a_folder_without_a_run(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(tmp_path) in refusal(capsys, command, tmp_path)


def test_a_pickle_for_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert "never opened" in refusal(capsys, "calibrate", tmp_path)


def test_a_missing_observation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", run, tmp_path / "missing.nc", "--out", tmp_path / "posterior.nc"]
    assert "missing.nc" in refusal(capsys, *command)


def test_a_foreign_observation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.nc"
    foreign.write_text("no netCDF")
    command = ["sample", run, foreign, "--out", tmp_path / "posterior.nc"]
    assert "not a readable netCDF file" in refusal(capsys, *command)
    assert not (tmp_path / "posterior.nc").exists()


def test_an_unknown_device(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'device' must be" in refusal(capsys, "calibrate", run, "--device", "abacus")


def test_debug_raises_what_is_otherwise_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown problem"):
        main(["train", "nonsense", "--out", str(tmp_path / "run"), "--debug"])


def test_interruption_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(problems, "available", interrupt)
    assert main(["problems"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_diverged_training_exits_with_1(
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def diverge(*args: object, **kwargs: object) -> None:
        raise FloatingPointError("loss term 'flow' is not finite at step 3")

    monkeypatch.setattr("vfm_inverse.training.loop.TrainingState.advance", diverge)
    assert main(["train", str(settings), "--out", str(tmp_path / "run"), "--json"]) == 1
    assert "loss term 'flow' is not finite" in capsys.readouterr().err


# Settings ---------------------------------------------------------------------------------------


def test_only_the_problem_is_required() -> None:
    config = RunConfig.from_tables({"problem": {"name": "checkerboard"}})
    assert config == RunConfig({"name": "checkerboard"})


def test_reserved_arguments_are_not_settings() -> None:
    def build(problem: object, *, width: int = 3) -> None: ...

    check_keys("model", {"width": 4}, build, reserved=["problem"])
    with pytest.raises(ValueError, match=r"unknown key in \[model\]: 'problem'; known are width"):
        check_keys("model", {"problem": 4}, build, reserved=["problem"])
