"""Ctrl-C, SIGTERM and kill: what was done is kept, and the command that goes on is printed."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.cli.program import main
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.interruption import Interrupted, going_on
from vfm_inverse.training import loop as training
from vfm_inverse.training.loop import fit
from vfm_inverse.training.state import TrainingState

QUICK: dict[str, Any] = {"steps": 30, "batch_size": 16, "num_validation": 16, "log_every": 5}
QUICK |= {"progress": False, "device": "cpu"}
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def problem() -> InverseProblem:
    return problems.load("linear-gaussian", dim=2, obs_dim=1)


def build(problem: InverseProblem) -> vi.VariationalFlowMap:
    settings = {"gaussian_start": False, "width": 8, "depth": 1, "num_simulations": 200}
    return vi.VariationalFlowMap.for_problem(problem, **settings)


def weights(vfm: vi.VariationalFlowMap) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(vfm.networks.parameters()).detach()


def send(number: int, at: int, times: int = 1) -> Callable[[dict[str, float]], None]:
    """A callback that signals this process at a step."""

    def call(row: dict[str, float]) -> None:
        for _ in range(times if row["step"] == at else 0):
            signal.raise_signal(number)

    return call


@SIGNALS
def test_a_signal_ends_a_training_that_resumes_to_the_same_bits(
    number: int, problem: InverseProblem, tmp_path: Path
) -> None:
    whole, cut = build(problem), build(problem)
    fit(whole, problem, **QUICK)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=r"stopped at step 10 of 30; .* saved in .*resume=True"):
        fit(cut, problem, checkpoint_dir=tmp_path, callbacks=[send(number, 10)], **QUICK)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert storage.read(tmp_path / "training.safetensors", "training")[1]["step"] == 10
    resumed = build(problem)
    fit(resumed, problem, checkpoint_dir=tmp_path, resume=True, **QUICK)
    assert torch.equal(weights(resumed), weights(whole))


def test_without_a_folder_the_map_has_the_best_weights_so_far(problem: InverseProblem) -> None:
    vfm = build(problem)
    with pytest.raises(Interrupted, match=r"step 25 of 30; the map has the weights of step 2[02]"):
        fit(vfm, problem, callbacks=[send(signal.SIGINT, 25)], **QUICK)
    assert not torch.equal(weights(vfm), weights(build(problem)))


@SIGNALS
def test_a_second_signal_stops_at_once(
    number: int, problem: InverseProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stuck(self: TrainingState, *args: object) -> None:
        calls.append(signal.raise_signal(number))
        calls.append(signal.raise_signal(number))
        raise AssertionError("went on")

    monkeypatch.setattr(TrainingState, "advance", stuck)
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(build(problem), problem, **QUICK)
    assert len(calls) == 1 and not isinstance(stop.value, Interrupted)


def test_handlers_of_the_program_and_other_threads_are_left_alone(problem: InverseProblem) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        history = fit(build(problem), problem, callbacks=[send(signal.SIGTERM, 10)], **QUICK)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM] and history[-1]["step"] == 30
    rows: list[dict[str, float]] = []
    job = threading.Thread(target=lambda: rows.extend(fit(build(problem), problem, **QUICK)))
    job.start()
    job.join()
    assert rows[-1]["step"] == 30


def test_a_checkpoint_is_written_every_minute_besides(
    problem: InverseProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, calls = TrainingState.advance, iter(range(100))

    def killed(self: TrainingState, *args: Any) -> Any:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return advance(self, *args)

    monkeypatch.setattr(TrainingState, "advance", killed)
    for minute, step in ((1e9, None), (0.0, 7)):
        calls = iter(range(100))
        monkeypatch.setattr(training, "SAVED_EVERY", minute)
        with pytest.raises(KeyboardInterrupt):
            fit(build(problem), problem, checkpoint_dir=tmp_path, **QUICK)
        path = tmp_path / "training.safetensors"
        found = storage.read(path, "training")[1]["step"] if path.exists() else None
        assert found == step


def test_what_a_callback_raises_ends_the_training_and_loses_nothing(
    problem: InverseProblem, tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []

    def enough(row: dict[str, float]) -> None:
        rows.append(row)
        if row["step"] == 20:
            raise StopIteration("seen enough")

    with pytest.raises(StopIteration, match="seen enough"):
        fit(build(problem), problem, checkpoint_dir=tmp_path, callbacks=[enough], **QUICK)
    history = fit(
        build(problem),
        problem,
        checkpoint_dir=tmp_path,
        resume=True,
        callbacks=(rows.append,),
        **QUICK,
    )
    assert rows == history
    assert [row["step"] for row in rows if "validation" in row] == [0, 8, 15, 22, 30]
    rows[-1]["loss"] = 0.0  # theirs to change
    assert history[-1]["loss"] != 0.0


# The command line -------------------------------------------------------------------------------

TRAIN = ["train", "linear-gaussian", "--steps", "12", "--json"]
TRAIN += ["--set", "fit.batch_size=8", "--set=fit.num_validation=16", "--set=model.width=8"]
TRAIN += ["--set=model.num_simulations=200", "--set=model.depth=1"]
TRAIN += ["--set=calibration.num_simulations=20", "--set=calibration.num_draws=10"]


def resume(said: str) -> list[str]:
    """The arguments of the command that goes on, as a shell would read them."""
    program, *words = shlex.split(said.partition("go on with: ")[2])
    assert program == "vfm-inverse" and words[-1] == "--resume"
    return words


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("a step", signal.SIGINT),
        ("the calibration", signal.SIGTERM),
        ("the report", signal.SIGINT),
    ],
)
def test_an_interrupted_command_says_how_it_goes_on(
    moment: str,
    number: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "a 'run'"
    advance, calls = TrainingState.advance, iter(range(100))

    def interrupted(self: TrainingState, *args: Any) -> Any:
        if next(calls) == 5:
            os.kill(os.getpid(), number)
        return advance(self, *args)

    def stop(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("went on")

    if moment == "a step":
        monkeypatch.setattr(TrainingState, "advance", interrupted)
    else:
        name = "calibrate_run" if moment == "the calibration" else "report_run"
        monkeypatch.setattr(f"vfm_inverse.runs.folder.{name}", stop)
    assert main([*TRAIN, "--out", str(out)]) == 130
    monkeypatch.undo()
    monkeypatch.setattr(
        "vfm_inverse.runs.folder.report_run", lambda *args, **kwargs: None
    )  # seconds
    said = capsys.readouterr().err
    assert ("stopped at step 6 of 12; the run is saved in" in said) == (moment == "a step")
    # Not to be written over by the same command.
    assert main([*TRAIN, "--out", str(out)]) == 2
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    assert main(resume(said)) == 0
    assert (out / "calibration.nc").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **kwargs: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(training, "begin", killed)
    with pytest.raises(SystemExit):
        main([*TRAIN, "--out", str(tmp_path)])
    monkeypatch.undo()
    monkeypatch.setattr("vfm_inverse.runs.folder.report_run", lambda *args, **kwargs: None)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", ".lock"}
    assert main([*TRAIN, "--out", str(tmp_path)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    other = [*TRAIN, "--out", str(tmp_path), "--resume", "--set=model.width=9"]
    assert main(other) == 2
    assert "these differ (there, here): {'model.width': (8, 9)}" in capsys.readouterr().err
    assert main([*TRAIN, "--out", str(tmp_path), "--resume"]) == 0
    assert "training starts at step 0" in capsys.readouterr().err


def test_the_command_that_goes_on_is_what_was_typed() -> None:
    words = ["train", "heat", "--out", "my run", "--set", "fit.objective={tau=1}"]
    typed = "train heat --out 'my run' --set 'fit.objective={tau=1}' --resume"
    assert going_on(words, "/usr/bin/vfm-inverse") == f"vfm-inverse {typed}"
    assert (
        going_on([*words, "--resume"], "x/vfm_inverse/__main__.py")
        == f"python -m vfm_inverse {typed}"
    )
