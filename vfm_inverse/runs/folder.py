"""A training run is a folder, and this is what stands in it.

========================  =======================================================
``config.json``           the settings, see :mod:`vfm_inverse.training.run_settings`
``model.safetensors``     the trained map with its calibration card
``training.safetensors``  what an interrupted training continues from
``log.csv``               loss terms and health figures by step
``calibration.nc``        ranks, coverage, scores and the verdict
``prior.safetensors``     a map of the prior, where corrections need one
``report.html``           one page with all of it
``.lock``                 held by the process that trains or calibrates here
========================  =======================================================

``calibration_corrected.nc`` is the check of corrected draws, and ``prior-...`` the folder of
a training of the map of the prior that is not finished (:mod:`vfm_inverse.runs.corrected`).

``fit`` writes the settings, the map, the state and the log; the functions here add the rest and
read it again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr

from vfm_inverse.calibration import calibrate
from vfm_inverse.calibration.certification import certify
from vfm_inverse.formats.netcdf_files import read_netcdf
from vfm_inverse.labelled.write import save_netcdf
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.report.page import write_report
from vfm_inverse.report.pictures import held_out
from vfm_inverse.runs.recipes import open_folder
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.config import RunConfig
from vfm_inverse.runtime.files import (
    CONFIG,
    LOCK,
    LOG,
    MODEL,
    STATE,
    check_writable,
    locked,
    same_file,
)
from vfm_inverse.runtime.settings import check_settings
from vfm_inverse.training.files import log_text
from vfm_inverse.training.run_settings import read_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CALIBRATION",
    "CORRECTED",
    "LOG",
    "MODEL",
    "PRIOR",
    "REPORT",
    "STATE",
    "calibrate_run",
    "check_output",
    "check_resume",
    "open_calibration",
    "open_run",
    "report_run",
    "size_of_check",
]

CALIBRATION, REPORT = "calibration.nc", "report.html"
PRIOR, CORRECTED = "prior.safetensors", "calibration_corrected.nc"


CHECKS = ((1000, 1000), (500, 500), (400, 250), (300, 200), (200, 100), (100, 50))
CHECKED_NUMBERS = 2**28
"""Simulations and draws of a check, and most numbers of its draws where they cost convolutions."""

EXACT_DRAWS = 100
"""Draws of a check of exact ones: the power is in the simulations."""


def open_run(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    problem: InverseProblem | None = None,
    warn: bool = True,
) -> tuple[VariationalFlowMap, InverseProblem]:
    """The trained map of a run and its problem.

    Args:
        folder: of the run.
        device: where to put both.
        problem: instead of the one that the settings of the run name, a module of the user's
            among them (:mod:`vfm_inverse.runs.recipes`).
        warn: whether to warn of a map that is uncertified or failed its calibration.

    Raises:
        FileNotFoundError: there is no trained map in the folder.
        ValueError: it cannot be read, or its problem cannot be made.
    """
    return open_folder(folder, problem, device, warn=warn, stacklevel=3)


def check_resume(folder: str | Path, config: RunConfig) -> None:
    """Refuse to go on with a run as one of other settings; ``fit`` compares its own and the
    problem.

    Raises:
        ValueError: problem or model have other settings, or there is only a finished map.
    """
    folder = Path(folder)
    if (folder / MODEL).exists() and not (folder / STATE).exists():
        raise ValueError(
            f"'{folder}' holds a trained map and no '{STATE}' to go on from; choose another --out"
        )
    if not (folder / CONFIG).is_file():
        return
    stored, given = read_settings(folder), json.loads(json.dumps(asdict(config)))
    differ: dict[str, Any] = {}
    for section in ("problem", "model"):
        there, here = stored.get(section) or {}, given[section]
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                differ[f"{section}.{name}"] = (there.get(name), here.get(name))
    if differ:
        raise ValueError(
            f"'--resume' needs the settings of the run in {folder}; these differ (there, here): "
            f"{differ}"
        )


def check_output(path: str | Path, folder: str | Path, *inputs: str | Path) -> None:
    """Refuse to write over a file of the run or over what was read, before anything is computed.

    Args:
        path: file to write.
        folder: of the run.
        inputs: files that were read.

    Raises:
        OSError: ``path`` cannot be written.
        ValueError: it is one of them, by whatever name or link.
    """
    for given in inputs:
        if same_file(path, [given]):
            raise ValueError(f"'--out' must not be the input '{given}'; got '{path}'")
    names = (CONFIG, MODEL, STATE, LOG, CALIBRATION, REPORT, PRIOR, CORRECTED, LOCK)
    own = [Path(folder) / name for name in names]
    if same_file(path, own):
        raise ValueError(f"'--out' must not be a file of the run '{folder}'; got '{path}'")
    check_writable(path)


def size_of_check(vfm: VariationalFlowMap) -> dict[str, int]:
    """Simulations and draws of the check at the end of a training: the first of :data:`CHECKS`
    that convolutions on the map's fields make in minutes, the first of all without any, with fewer
    draws where each of them is made exact."""
    if vfm.resamples:
        return {"num_simulations": CHECKS[0][0], "num_draws": EXACT_DRAWS}
    for num_simulations, num_draws in CHECKS:
        numbers = num_simulations * num_draws * vfm.whitening.dim
        if vfm.config.get("network") != "u-net" or numbers <= CHECKED_NUMBERS:
            break
    return {"num_simulations": num_simulations, "num_draws": num_draws}


def calibrate_run(
    folder: str | Path,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    *,
    seed: int = 0,
    progress: bool = False,
    **settings: Any,
) -> xr.Dataset:
    """Check a map on held-out simulations; its card goes into checkpoint and calibration.

    Args:
        folder: of the run.
        vfm, problem: map and problem of the run.
        seed: of simulations and draws.
        progress: show a progress bar.
        settings: further arguments of :func:`vfm_inverse.calibration.calibrate`.
    """
    settings = check_settings("calibration", settings)
    with locked(folder):
        return _calibrate(Path(folder), vfm, problem, seed, progress, settings)


def _calibrate(
    folder: Path,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    seed: int,
    progress: bool,
    settings: dict[str, Any],
) -> xr.Dataset:
    # An earlier card is not part of this map's provenance.
    provenance = {k: v for k, v in vfm.provenance().items() if not k.startswith("calibration_")}
    checked = calibrate(
        vfm, problem, seed=seed, provenance=provenance, progress=progress, **settings
    )
    if (fields := problem.num_prior_samples("test")) is not None:
        checked.attrs["num_held_out_fields"] = fields
    checked.attrs["calibration_card"] = certify(vfm, problem, checked).to_json()
    save_netcdf(checked, folder / CALIBRATION)
    vfm.save(folder / MODEL)
    return checked


def open_calibration(folder: str | Path) -> xr.Dataset:
    """What :func:`calibrate_run` stored.

    Raises:
        FileNotFoundError: the run was not calibrated yet.
        ValueError: the file is damaged.
    """
    path = Path(folder) / CALIBRATION
    if not path.is_file():
        raise FileNotFoundError(f"there is no '{path}': run 'vfm-inverse calibrate' first")
    return read_netcdf(path)


def report_run(
    folder: str | Path,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    checked: xr.Dataset,
    *,
    seed: int = 0,
    figures: Mapping[str, Figure] | None = None,
    title: str | None = None,
) -> Path:
    """Write the report page of a run.

    Args:
        folder: of the run.
        vfm, problem: map and problem of the run.
        checked: its calibration.
        seed: of the observations and draws that are pictured.
        figures: pictures by caption that come first, instead of draws for held-out observations.
        title: heading of the page.

    Returns:
        The page.
    """
    folder = Path(folder)
    log = checked_log(folder)
    return write_report(
        folder / REPORT,
        checked,
        history=log,
        figures=held_out(vfm, problem, seed=seed) if figures is None else figures,
        provenance=vfm.provenance(),
        title=title or f"Calibration of {problem.name}",
    )


def checked_log(folder: Path) -> Path | None:
    """The log of a run, if any, and a warning where it is not what the training wrote."""
    log, state = folder / LOG, folder / STATE
    if not log.is_file():
        return None
    if state.is_file():
        history = storage.read(state, "training")[1].get("history", [])
        written = log.read_bytes().decode(errors="replace")
        names = written.split("\r\n", 1)[0].split(",")
        known = {"step", *(name for row in history for name in row)}
        if not known <= {*names} or log_text(names, history) != written:
            warnings.warn(
                f"'{log}' is not what the training wrote: it is damaged, was edited, or the "
                "training is not finished",
                UserWarning,
                stacklevel=3,
            )
    return log
