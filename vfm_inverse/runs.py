"""A training run is a folder, and this is what stands in it.

========================  =======================================================
``config.json``           the settings, see :mod:`vfm_inverse.config`
``model.safetensors``     the trained map with its calibration card
``training.safetensors``  what an interrupted training continues from
``log.csv``               loss terms and health figures by step
``calibration.nc``        ranks, coverage, scores and the verdict
``report.html``           one page with all of it
========================  =======================================================

``fit`` writes the map, the state and the log; the functions here add the rest and read it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr

from vfm_inverse import checkpoint, problems
from vfm_inverse.calibration import calibrate
from vfm_inverse.card import certify
from vfm_inverse.gallery import posterior_gallery, posterior_scatter
from vfm_inverse.labelled import save_netcdf
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.problem import InverseProblem
from vfm_inverse.randomness import seeded
from vfm_inverse.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CALIBRATION",
    "CONFIG",
    "LOG",
    "MODEL",
    "REPORT",
    "STATE",
    "calibrate_run",
    "open_calibration",
    "open_run",
    "report_run",
]

CONFIG, MODEL, STATE = "config.json", "model.safetensors", "training.safetensors"
LOG, CALIBRATION, REPORT = "log.csv", "calibration.nc", "report.html"


def open_run(
    folder: str | Path, device: str | torch.device = "cpu", *, warn: bool = True
) -> tuple[VariationalFlowMap, InverseProblem]:
    """The trained map of a run and its problem.

    Args:
        folder: of the run.
        device: where to put both.
        warn: whether to warn of a map that is uncertified or failed its calibration.

    Raises:
        FileNotFoundError: there is no trained map in the folder.
        ValueError: it cannot be read, or was trained on a problem that is not of the package.
    """
    path = Path(folder) / MODEL
    _, header = checkpoint.read(path, "model")
    stored = header["config"]["problem"]
    if stored["name"] is None:
        raise ValueError(
            f"'{path}' was trained on a problem of your own; only Python can rebuild that"
        )
    problem = problems.load(stored["name"], **stored["kwargs"])
    return checkpoint.load(path, problem, device, warn=warn), problem


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
    # An earlier card is not part of this map's provenance.
    provenance = {k: v for k, v in vfm.provenance().items() if not k.startswith("calibration_")}
    checked = calibrate(
        vfm, problem, seed=seed, provenance=provenance, progress=progress, **settings
    )
    checked.attrs["calibration_card"] = certify(vfm, problem, checked).to_json()
    save_netcdf(checked, Path(folder) / CALIBRATION)
    vfm.save(Path(folder) / MODEL)
    return checked


def open_calibration(folder: str | Path) -> xr.Dataset:
    """What :func:`calibrate_run` stored.

    Raises:
        FileNotFoundError: the run was not calibrated yet.
    """
    path = Path(folder) / CALIBRATION
    if not path.is_file():
        raise FileNotFoundError(f"there is no '{path}': run 'vfm-inverse calibrate' first")
    with xr.open_dataset(path, engine="netcdf4") as checked:
        return checked.load()


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
    log = folder / LOG
    return write_report(
        folder / REPORT,
        checked,
        history=log if log.is_file() else None,
        figures=_held_out(vfm, problem, seed) if figures is None else figures,
        provenance=vfm.provenance(),
        title=title or f"Calibration of {problem.name}",
    )


def _held_out(vfm: VariationalFlowMap, problem: InverseProblem, seed: int) -> dict[str, Figure]:
    """Draws for a few held-out observations, where they make a picture."""
    if problem.field_shape == (1,):
        return {}
    x, y, params = problem.simulate(4, split="test", seed=seed)
    with seeded(seed):
        draws = vfm(y, **params).sample((500,))
    if len(problem.field_shape) == 1:
        figure = posterior_scatter(draws, x, units=problem.units)
    else:
        figure = posterior_gallery(draws, x, y, units=problem.units)
    return {"Held-out observations": figure}
