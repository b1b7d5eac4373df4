"""Files of the code as it was: a checkpoint, an interrupted training, runs, half a check."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import vfm_inverse as vi
from tests.benchmarks.behaviour_commands import files, inspected, run_of
from tests.benchmarks.behaviour_common import (
    FIELD,
    Case,
    Results,
    answers,
    built,
    prefixed,
    stir,
    trained,
    unheard,
    weights,
)
from vfm_inverse import calibration, problems, runs
from vfm_inverse.problem import InverseProblem

PARTS: dict[str, Any] = {"num_simulations": 24, "num_draws": 10, "chunk": 4000, "seed": 3}
RUNS = ("vectors", "maps")


def of_files(path: Path) -> dict[str, Case]:
    """The cases of a checkpoint, and of the folder beside it with an interrupted training, runs
    and an unfinished calibration; the first call writes them."""
    folder = path.with_suffix(".run")
    return {
        "checkpoint": partial(of_checkpoint, path),
        "checkpoint, training": partial(of_training, path, folder),
        **{f"checkpoint, {one}": partial(of_run, path, folder, one) for one in RUNS},
        "checkpoint, parts": partial(of_parts, path, folder),
    }


def stations_that_change() -> InverseProblem:
    """The problem of the checkpoint."""
    settings: dict[str, Any] = {"size": 9, "num_points": 6, "sigma": [0.1, 0.5]}
    return problems.load("gaussian-field", **settings, networks="changing")


class Stopped(Exception):
    """Raised by a callback."""


def write(path: Path, folder: Path) -> None:
    """Write what is not there yet."""
    problem = stations_that_change()

    def stop(row: dict[str, float]) -> None:
        if row["step"] >= 5:
            raise Stopped

    with unheard():
        files()
        if not path.exists():
            vfm = built(problem, FIELD, adapter="low-rank")
            trained(vfm, problem, steps=10)
            stir(vfm)
            vfm.save(path)
        if folder.exists():
            return
        folder.mkdir()
        early = built(problem, FIELD, adapter="low-rank")
        with suppress(Stopped):
            trained(early, problem, checkpoint_dir=folder / "early", callbacks=[stop])
        for name in RUNS:
            run_of(name)
            shutil.copytree(name, folder / name)
        part = folder / "part.npz"
        calibration.calibrate(vi.load(path), problem, **PARTS, shard=(0, 2), path=part)


def of_checkpoint(path: Path) -> Results:
    """A map from its file."""
    write(path, path.with_suffix(".run"))
    problem = stations_that_change()
    results: Results = {"inspected": inspected(path)[0][1][1:]}
    for name, given in {"alone": None, "with its problem": problem}.items():
        vfm = vi.load(path, given)
        results |= prefixed(name, answers(vfm, problem))
    return results


def of_training(path: Path, folder: Path) -> Results:
    """A training that ended early goes on."""
    write(path, folder)
    shutil.copytree(folder / "early", "earlier/early")
    problem = stations_that_change()
    vfm = built(problem, FIELD, adapter="low-rank")
    history = trained(vfm, problem, checkpoint_dir="earlier/early", resume=True)
    return {"history": history, "state": weights(vfm), "note": vfm.training_note}


def of_run(path: Path, folder: Path, name: str) -> Results:
    """A run is opened: its map, problem and card hold as they did."""
    write(path, folder)
    run = f"earlier/{name}"
    shutil.copytree(folder / name, run)
    vfm, problem = runs.open_run(run)
    return {
        # As bytes: these sums must stay what they are, for cards and settings to hold.
        "provenance": {k: str(v).encode() for k, v in vfm.provenance().items()},
        **answers(vfm, problem),
        "checked": runs.open_calibration(run),
        "inspected": inspected(run, f"{run}/calibration.nc"),
    }


def of_parts(path: Path, folder: Path) -> Results:
    """Half a check, which is gone on with."""
    write(path, folder)
    problem, vfm = stations_that_change(), vi.load(path)
    part, rest = str(folder / "part.npz"), "rest.npz"
    first = calibration.merge(part, problem, partial=True)
    calibration.calibrate(vfm, problem, **PARTS, shard=(1, 2), path=rest)
    return {"first": first, "whole": calibration.merge([part, rest], problem)}
