"""Accidents of a run: killed at any moment, and bits that flip in its files.

Jobs run in forked children, which spares their imports, and are killed without warning at random
moments. Then the same command is given again: it must end with the bits of a run that nothing
disturbed, and leave no temporary file. ``KILLS`` and ``FLIPS`` in the environment set how often.
"""

from __future__ import annotations

import contextlib
import csv
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.cli import program as cli
from vfm_inverse.formats.netcdf_files import read_netcdf
from vfm_inverse.labelled.write import load_observation, observation_to_xarray, save_netcdf
from vfm_inverse.runs import folder as runs
from vfm_inverse.runtime import storage
from vfm_inverse.training import loop as training

KILLS = int(os.environ.get("KILLS", "6"))
FLIPS = int(os.environ.get("FLIPS", "40"))

TRAIN = ["--steps", "200", "--json", "--resume"]
TRAIN += [f"--set=fit.{key}" for key in ("batch_size=16", "num_validation=64")]
TRAIN += ["--set=fit.checkpoint_every=5", "--set=fit.log_every=10"]
TRAIN += ["--set=model.num_simulations=500", "--set=model.width=16", "--set=model.depth=1"]
TRAIN += ["--set=calibration.num_simulations=60", "--set=calibration.num_draws=30"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def child(job: Callable[[], int]) -> int:
    """Start a job in a process of its own."""
    if pid := os.fork():
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    code = 97
    with contextlib.suppress(BaseException):
        code = job()
    os._exit(code)


def finish(job: Callable[[], int]) -> float:
    """Run a job to its end; seconds that it took."""
    begin = time.monotonic()
    _, status = os.waitpid(child(job), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.monotonic() - begin


def kill(job: Callable[[], int], after: float, number: int = signal.SIGKILL) -> int:
    """Start a job and send it a signal; its exit code."""
    pid = child(job)
    time.sleep(after)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(*words: str | Path) -> Callable[[], int]:
    return lambda: cli.main([str(word) for word in words])


def content(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a file."""
    if path.suffix == ".nc":
        return {str(k): v.values for k, v in read_netcdf(path).variables.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vfm = vi.load(path)
    assert vfm.card is not None
    numbers = {name: value.numpy() for name, value in vfm.state_dict().items()}
    return numbers | {"card": np.array([vfm.card.verdict, vfm.card.weights_sha256])}


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def same(one: Path, other: Path) -> bool:
    a, b = content(one), content(other)
    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, an observation, and what the commands make of them undisturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reference")
    finish(command("train", "linear-gaussian", "--out", folder / "run", *TRAIN))
    problem = problems.load("linear-gaussian")
    _, y, params = problem.simulate(3, split="test", seed=1)
    save_netcdf(observation_to_xarray(y, problem, params), folder / "obs.nc")
    return folder


def jobs(name: str, folder: Path) -> tuple[Callable[[], int], list[str]]:
    """A command in a folder, and the files that it makes."""
    run, observation = folder / "run", folder / "obs.nc"
    if name == "train":
        job = command("train", "linear-gaussian", "--out", run, *TRAIN)
        return job, ["run/model.safetensors", "run/calibration.nc"]
    if name == "calibrate":
        sizes = ["--num-simulations", "2000", "--num-draws", "200", "--json"]
        return command("calibrate", run, *sizes), ["run/model.safetensors", "run/calibration.nc"]
    sizes = ["-n", "100000" if name == "sample" else "1024", "--json"]
    out = folder / f"{name}.nc"
    return command(name, run, observation, *sizes, "--out", out), [f"{name}.nc"]


@pytest.mark.parametrize("name", ["train", "calibrate", "sample", "correct"])
def test_a_killed_command_is_given_again_and_loses_nothing(
    name: str, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "report_run", lambda *args, **kwargs: None)  # a page, no numbers
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(reference, whole)
    if name == "train":
        shutil.rmtree(whole / "run")
    shutil.copytree(whole, broken)
    job, files = jobs(name, whole)
    seconds = finish(job)
    again, _ = jobs(name, broken)
    moment = random.Random(0)
    for _ in range(KILLS):
        kill(again, moment.uniform(0.0, 1.1 * seconds))
        for path in broken.rglob("*.safetensors"):
            assert path.stat().st_size > 0
        if name != "train" or moment.random() < 0.3:
            # What was there before is whole at every moment.
            if (broken / "run" / "calibration.nc").exists():
                read_netcdf(broken / "run" / "calibration.nc")
    finish(again)
    for file in files:
        assert same(whole / file, broken / file), file
    hidden = [p for p in broken.rglob(".*") if p.is_file() and p.stat().st_size > 0]
    assert not hidden


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_goes_on_to_the_same_bits(
    number: int, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run is stopped, and stopped again where it goes on, until it gets through; then the
    next one begins. Checkpoints come by time alone, a minute being a fifth of a second here."""
    monkeypatch.setattr(runs, "report_run", lambda *args, **kwargs: None)
    monkeypatch.setattr(training, "SAVED_EVERY", 0.2)
    options = [*TRAIN, "--set=fit.checkpoint_every=100000"]
    run, files = tmp_path / "run", ("model.safetensors", "calibration.nc")
    again = command("train", "linear-gaussian", "--out", run, *options)
    seconds, moment = finish(again), random.Random(number)
    stops = ends = resumed = 0
    lost, code = 0.0, 0
    while stops < KILLS:
        if code == 0:
            ends += 1
            assert all(same(reference / "run" / file, run / file) for file in files)
            shutil.rmtree(run)
        code = kill(again, moment.uniform(0.0, seconds), number)
        if code == 0:
            continue
        stops += 1
        # A child is in nobody's hands until its command has begun.
        assert code in ((-number,) if number == signal.SIGKILL else (130, 97, -number))
        if (run / "training.safetensors").exists():
            header = storage.read(run / "training.safetensors", "training")[1]
            with open(run / "log.csv", newline="") as file:
                done = max(float(row["seconds"]) for row in csv.DictReader(file))
            resumed += header["step"] > 0
            lost = max(lost, done - header["seconds"])
    finish(again)
    assert all(same(reference / "run" / file, run / file) for file in files)
    assert not [p for p in run.rglob(".*") if p.is_file() and p.stat().st_size > 0]
    print(f"{stops} stops, {resumed} with a checkpoint, {ends} ends, {lost:.2f} s lost at most")
    assert resumed and lost < 60


FLIPPED = ("run/model.safetensors", "run/training.safetensors", "run/calibration.nc", "obs.nc")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FLIPPED)
def test_a_flipped_bit_is_noticed_or_harmless(file: str, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(reference, folder)
    path, pick = folder / file, random.Random(0)
    right = path.read_bytes()
    problem = problems.load("linear-gaussian")

    def use() -> object:
        """What the file gives when it is used."""
        if file.endswith("training.safetensors"):
            train = command("train", "linear-gaussian", "--out", folder / "run", *TRAIN)
            kept = (folder / "run" / "model.safetensors").read_bytes()
            code = train()
            model = content(folder / "run" / "model.safetensors")
            (folder / "run" / "model.safetensors").write_bytes(kept)
            if code:
                raise ValueError("refused")
            return model
        if file == "obs.nc":
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # says that it was edited
                return {"y": load_observation(path, problem)[0].numpy()}
        return content(path)

    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        expected = use()
        assert isinstance(expected, dict)
        noticed = 0
        for _ in range(FLIPS):
            bits = bytearray(right)
            at = pick.randrange(8 * len(bits))
            bits[at // 8] ^= 1 << (at % 8)
            path.write_bytes(bytes(bits))
            try:
                found = use()
            except (ValueError, TypeError, OSError, UserWarning):
                noticed += 1
                continue
            assert isinstance(found, dict) and found.keys() == expected.keys(), at
            assert all(equal(value, found[key]) for key, value in expected.items()), at
        path.write_bytes(right)
    assert noticed  # the others fell into the gaps of the format
