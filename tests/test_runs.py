"""Runs: which one a folder holds, what is written where, and text that is text."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.cli.arguments import build_parser
from vfm_inverse.cli.commands import SUBCOMMANDS, conclude
from vfm_inverse.cli.program import main
from vfm_inverse.labelled.write import observation_to_xarray, save_netcdf
from vfm_inverse.posterior.card import Card
from vfm_inverse.problem.fingerprints import problem_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs import folder as runs
from vfm_inverse.runs.folder import check_output, checked_log, open_run
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.files import locked
from vfm_inverse.training.loop import fit
from vfm_inverse.training.run_settings import read_settings, write_settings

SETTINGS = ["--steps", "4", "--batch-size", "8", "--json", "--device", "cpu"]
for setting in (
    "problem.dim=3",
    "model.num_simulations=300",
    "model.width=8",
    "model.depth=1",
    "fit.num_validation=8",
    "fit.log_every=2",
    "calibration.num_simulations=40",
    "calibration.num_draws=20",
):
    SETTINGS += ["--set", setting]

QUICK = {"steps": 4, "batch_size": 8, "num_validation": 8, "progress": False, "device": "cpu"}


def train(out: Path, *more: str) -> int:
    return main(["train", "linear-gaussian", "--out", str(out), *SETTINGS, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, and an observation beside it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(out) == 0
    problem = problems.load("linear-gaussian", dim=3)
    _, y, params = problem.simulate(2, seed=3)
    save_netcdf(observation_to_xarray(y, problem, params), out.parent / "obs.nc")
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copy(trained.parent / "obs.nc", tmp_path / "obs.nc")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Identity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("problem.seed=7", "'problem.seed': (None, 7)"),
        ("problem.dim=4", "'problem.dim': (3, 4)"),
        ("model.width=16", "'model.width': (8, 16)"),
        ("model.seed=1", "'model.seed': (None, 1)"),
        ("model.num_simulations=400", "'model.num_simulations': (300, 400)"),
        ("fit.average_decay=0.5", "'average_decay': (0.999, 0.5)"),
        ("fit.seed=1", "'seed': (0, 1)"),
        ("fit.validations=1", "'validations': (4, 1)"),
        ("fit.log_every=1", "'log_every': (2, 1)"),
        ("fit.objective={off_diagonal=0.5}", "'objective'"),
        ("fit.objective='vfm'", "need"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(
    change: str, named: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert train(run, "--resume", "--set", change) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.err.count("\n") == 1
    assert contents(run) == before


def test_what_the_map_does_not_depend_on_may_change(run: Path) -> None:
    before = open_run(run, warn=False)[0].state_dict()
    more = ["--set", "fit.checkpoint_every=1", "--set", "calibration.num_draws=30"]
    more += ["--set", "fit.objective={off_diagonal=0.25}"]  # the default, stated
    assert train(run, "--resume", *more) == 0
    vfm = open_run(run, warn=False)[0]
    assert all(torch.equal(before[k], v) for k, v in vfm.state_dict().items())
    assert vfm.card is not None and vfm.card.num_draws == 30
    assert read_settings(run)["calibration"]["num_draws"] == 30


def test_a_finished_map_is_not_trained_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / runs.STATE).unlink()
    before = contents(run)
    assert train(run, "--resume") == 2
    assert "no 'training.safetensors' to go on from" in capsys.readouterr().err
    assert contents(run) == before


def own(shift: float, noise: float = 0.1, spread: float = 1.0) -> InverseProblem:
    def simulator(x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] + shift + noise * torch.randn(len(x), 2)

    torch.manual_seed(0)
    return InverseProblem(spread * torch.randn(300, 3), simulator=simulator)


def test_a_problem_of_your_own_is_told_from_another(tmp_path: Path) -> None:
    """Functions of the same name, which do other things."""

    def made(problem: InverseProblem) -> vi.VariationalFlowMap:
        return vi.VariationalFlowMap.for_problem(
            problem, num_simulations=300, width=8, depth=1, gaussian_start=False
        )

    first = own(0.0)
    assert problem_fingerprint(first) == problem_fingerprint(own(0.0))
    fit(made(first), first, checkpoint_dir=tmp_path, **QUICK)
    before = contents(tmp_path)
    for other in (own(0.5), own(0.0, noise=0.2), own(0.0, spread=2.0)):
        assert problem_fingerprint(other) != problem_fingerprint(first)
        with pytest.raises(ValueError, match=r"these differ .*'problem'"):
            fit(made(first), other, checkpoint_dir=tmp_path, resume=True, **QUICK)
    wide = vi.VariationalFlowMap.for_problem(first, num_simulations=300, width=9, depth=1)
    with pytest.raises(ValueError, match=r"these differ .*'width': \(8, 9\)"):
        fit(wide, first, checkpoint_dir=tmp_path, resume=True, **QUICK)
    other_start = vi.VariationalFlowMap.for_problem(
        first, num_simulations=300, width=8, depth=1, gaussian_start=False, seed=5
    )
    with pytest.raises(ValueError, match="build it with the same 'seed'"):
        fit(other_start, first, checkpoint_dir=tmp_path, resume=True, **QUICK)
    assert contents(tmp_path) == before
    fit(made(first), own(0.0), checkpoint_dir=tmp_path, resume=True, **QUICK)


def test_a_fingerprint_leaves_the_problem_as_it_is() -> None:
    problem = problems.load("linear-gaussian")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = problem_fingerprint(problem)
    assert torch.equal(torch.rand(3), expected)
    problem.observe(torch.zeros(1, 4))
    assert problem_fingerprint(problem) == first
    assert problem_fingerprint(problems.load("linear-gaussian", seed=1)) != first
    # A generator of its own, which no seed reaches, is not held against a simulator.
    generator = torch.Generator()

    def simulator(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(x.shape, generator=generator)

    with pytest.warns(UserWarning, match="does not follow the seed"):
        restless = InverseProblem(torch.zeros(30, 2), simulator=simulator)
    assert problem_fingerprint(restless) == problem_fingerprint(restless)


def test_a_state_of_the_previous_format_is_gone_on_from(tmp_path: Path) -> None:
    """It has four settings, no fingerprint, and not what the map is built around."""

    problem = problems.load("linear-gaussian")
    options = {"num_simulations": 300, "width": 8, "depth": 1}
    vfm = vi.VariationalFlowMap.for_problem(problem, **options)
    fit(vfm, problem, checkpoint_dir=tmp_path, **QUICK)
    state, header = storage.read(tmp_path / runs.STATE, "training")
    state = {k: v for k, v in state.items() if not k.startswith("fixed.")}
    kept = {k: header["settings"][k] for k in ("steps", "batch_size", "seed", "learning_rate")}
    header = {k: v for k, v in header.items() if k not in ("model", "problem")}
    storage.write(tmp_path / runs.STATE, state, "training", {**header, "settings": kept})
    again = vi.VariationalFlowMap.for_problem(problem, **options)
    fit(again, problem, checkpoint_dir=tmp_path, resume=True, **QUICK)
    for name, value in vfm.networks.state_dict().items():
        assert torch.equal(again.networks.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"'steps': \(4, 5\)"):
        fit(again, problem, checkpoint_dir=tmp_path, resume=True, **{**QUICK, "steps": 5})


def test_one_training_or_calibration_a_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys\nfrom vfm_inverse.runtime.files import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = contents(run)
        for words in (["calibrate", str(run)], ["train", "linear-gaussian", "--out", str(run)]):
            assert main(words) == 2
            captured = capsys.readouterr()
            assert "another training or calibration is at work" in captured.err
            assert captured.err.count("\n") == 1
        problem = problems.load("linear-gaussian")
        vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=300, width=8, depth=1)
        with pytest.raises(OSError, match="another training or calibration is at work"):
            fit(vfm, problem, checkpoint_dir=run, **QUICK)
        assert contents(run) == before
        holder.kill()
    with locked(run):
        pass


# Settings and log --------------------------------------------------------------------------------


def test_settings_and_log_show_their_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == ""
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"steps": 4', '"steps": 5'))
    with pytest.raises(ValueError, match=r"config.json' is damaged or was edited"):
        read_settings(run)
    assert main(["report", str(run)]) == 0  # the map does not depend on it
    assert "warning: '" in (said := capsys.readouterr().err) and "config.json' is damaged" in said
    before = contents(run)
    assert train(run, "--resume") == 2
    assert "config.json' is damaged" in capsys.readouterr().err
    assert contents(run) == before
    for broken in ("[", "[]", "3", "[" * 100_000, "\x00"):
        (run / "config.json").write_text(broken)
        with pytest.raises(ValueError, match=r"config.json' is damaged"):
            read_settings(run)
    (run / "config.json").write_text(text)
    log = (run / "log.csv").read_bytes()
    (run / "log.csv").write_bytes(log.replace(b"2", b"3", 1))
    assert main(["report", str(run)]) == 0
    assert "log.csv' is not what the training wrote" in capsys.readouterr().err
    (run / "log.csv").unlink()
    assert checked_log(run) is None


def test_settings_of_an_earlier_version_are_read(run: Path) -> None:
    tables = read_settings(run)
    (run / "config.json").write_text(json.dumps(tables, indent=2) + "\n")
    assert read_settings(run) == tables


def test_flipped_bits_of_settings_and_log_are_noticed(run: Path) -> None:
    for name in ("config.json", "log.csv"):
        whole = (run / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 60)):
            raw = bytearray(whole)
            raw[place] ^= 1 << place % 8
            (run / name).write_bytes(raw)
            if name == "log.csv":
                with pytest.warns(UserWarning, match="is not what the training wrote"):
                    checked_log(run)
                continue
            with contextlib.suppress(ValueError):
                # White space between the entries says nothing.
                assert json.dumps(read_settings(run)) == json.dumps(
                    {k: v for k, v in json.loads(whole).items() if k != "sha256"}
                )
        (run / name).write_bytes(whole)


# Output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sample", "correct"])
@pytest.mark.parametrize(
    "out",
    [
        "obs.nc",
        "run/model.safetensors",
        "run/config.json",
        "run/calibration.nc",
        "run/report.html",
        "run/.lock",
        "run/../obs.nc",
        "soft.nc",
        "hard.nc",
        "linked/model.safetensors",
        "fifo",
        "run",
        "missing/post.nc",
        "fixed.nc",
    ],
)
def test_output_that_would_replace_something_is_refused_before_the_work(
    command: str, out: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = run.parent
    (here / "soft.nc").symlink_to("obs.nc")
    os.link(run / "model.safetensors", here / "hard.nc")
    (here / "linked").symlink_to(run)
    os.mkfifo(here / "fifo")
    (here / "fixed.nc").write_text("")
    os.chmod(here / "fixed.nc", 0o444)
    before = contents(run), (here / "obs.nc").read_bytes()
    words = [command, str(run), str(here / "obs.nc"), "--out", str(here / out)]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and Path(out).name in captured.err
    assert (contents(run), (here / "obs.nc").read_bytes()) == before


def test_output_may_be_a_new_file_of_the_folder(run: Path) -> None:
    check_output(run / "posterior.nc", run, run.parent / "obs.nc")
    (run / "posterior.nc").write_text("old")
    check_output(run / "posterior.nc", run)


def test_reports_and_calibrations_that_are_damaged_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "calibration.nc"
    whole = path.read_bytes()
    raw = bytearray(whole)
    where = whole.index(b"draws" if b"draws" in whole else b"verdict")
    raw[where] ^= 1
    for content in (bytes(raw), whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        assert main(["report", str(run)]) == 2
        captured = capsys.readouterr()
        assert "calibration.nc" in captured.err and captured.err.count("\n") == 1


def test_a_write_that_fails_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    words = ["sample", str(run), str(run.parent / "obs.nc"), "--out", str(run.parent / "p.nc")]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "p.nc': NetCDF: HDF error" in captured.err and captured.err.count("\n") == 1
    assert main(["calibrate", str(run), "--num-simulations", "20", "--num-draws", "10"]) == 2
    assert "calibration.nc': NetCDF: HDF error" in capsys.readouterr().err.splitlines()[-1]


# The terminal ------------------------------------------------------------------------------------


HOSTILE = "ok\ncalibration of the map: pass\x1b[2J\x07\u202e\x9b31m\u2028"


def test_text_of_files_is_printed_as_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vfm, _ = open_run(run, warn=False)
    assert vfm.card is not None
    vfm.card = Card(**{**vars(vfm.card), "verdict": "fail", "reason": HOSTILE})
    vfm.save(run / "model.safetensors")
    with xr.open_dataset(run / "calibration.nc") as stored:
        checked = stored.load()
    words = ["sample", str(run), str(run.parent / "obs.nc"), "--out", str(run.parent / "p.nc")]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "calibration of the map: fail" in captured.out
    for text in (captured.out, captured.err):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert not any(line.endswith("of the map: pass") for line in text.splitlines())
    assert r"\x1b[2J" in captured.err and captured.err.count("\n") == 1
    checked.attrs["reason"] = HOSTILE
    conclude(build_parser(SUBCOMMANDS).parse_args(["calibrate", "x"]), checked, run)
    assert r"ok\ncalibration of the map: pass\x1b[2J\x07\u202e\x9b31m\u2028" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_console_that_cannot_show_a_name(encoding: str, run: Path) -> None:
    out = run.parent / "pöst \u2713.nc"
    words = ["sample", str(run), str(run.parent / "obs.nc"), "-n", "3", "--out", str(out)]
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(words) == 0, err.getvalue()
    screen.seek(0)
    assert out.exists() and "3 draws for 2 observation(s)" in screen.read()


def test_names_that_are_no_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file name of bytes that are no UTF-8."""
    words = ["sample", str(run), os.fsdecode(b"/no/such/\xff.nc"), "--out", "p.nc"]
    assert main(words) == 2
    assert r"\udcff.nc" in capsys.readouterr().err


def test_nobody_reads_the_output() -> None:
    code = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "from vfm_inverse.cli.program import main\nsys.exit(main(['problems']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_written_settings_are_read(tmp_path: Path) -> None:
    from vfm_inverse.runtime.config import RunConfig

    config = RunConfig({"name": "heat", "size": 8}, {"width": 3}, {"steps": 2}, {})
    write_settings(tmp_path, config, problems.load("heat", size=8))
    tables = read_settings(tmp_path)
    assert {name: tables[name] for name in vars(config)} == vars(config)


def test_numbers_of_numpy_name_the_same_problem(tmp_path: Path) -> None:
    ours = problems.load("linear-gaussian", dim=np.int64(3), sigma=np.array([0.1, 0.5]))
    assert ours.kwargs == {"dim": 3, "sigma": [0.1, 0.5]}
    assert problems.load("linear-gaussian", sigma=np.float32(0.5)).kwargs == {"sigma": 0.5}
    vfm = vi.VariationalFlowMap.for_problem(ours, num_simulations=300, width=8, depth=1)
    fit(vfm, ours, checkpoint_dir=tmp_path, **QUICK)
    assert open_run(tmp_path, warn=False)[1].kwargs == ours.kwargs
    other = own(0.0)
    other.kwargs = {"sensor": object()}
    vfm = vi.VariationalFlowMap.for_problem(other, num_simulations=300, width=8, depth=1)
    with pytest.raises(ValueError, match="'kwargs' of the problem must be numbers"):
        fit(vfm, other, checkpoint_dir=tmp_path / "other", **QUICK)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "\xff", "a = 1\na = 2"])
def test_settings_that_cannot_be_read(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.toml").write_bytes(text.encode("latin-1"))
    out = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "settings.toml"), "--out", out]) == 2
    assert "settings.toml' is not a settings file" in capsys.readouterr().err
    assert main(["train", "heat", "--out", out, "--set", "fit.steps=" + "[" * 9_000]) == 2
    captured = capsys.readouterr().err
    assert "'steps' in [fit] must be an integer" in captured and len(captured) < 200
    assert os.listdir(tmp_path) == ["settings.toml"]


def test_too_little_memory_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised: list[Exception] = []

    def full(*args: Any, **kwargs: Any) -> None:
        raise raised[-1]

    monkeypatch.setattr("vfm_inverse.correction.auto", full)
    words = ["correct", str(run), str(run.parent / "obs.nc"), "--out", str(run.parent / "p.nc")]
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError("no")):
        raised.append(error)
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    raised.append(RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(words)
