"""Corrections in the folder of a run: the map of the prior that they may need, and their check."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from vfm_inverse.calibration import calibrate
from vfm_inverse.correction import corrected, fit_prior
from vfm_inverse.correction.prior_map import needs_prior_map
from vfm_inverse.labelled.write import save_netcdf
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import problem_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs import checkpoint
from vfm_inverse.runs.folder import CORRECTED, MODEL, PRIOR
from vfm_inverse.runtime.files import locked
from vfm_inverse.runtime.interruption import Interrupted
from vfm_inverse.runtime.settings import check_settings

__all__ = ["UNIT", "calibrate_corrected_run", "prior_map_of_run"]

UNIT = 16
"""Observations that are corrected together in a calibration, between two ticks of its bar."""


def prior_map_of_run(
    folder: str | Path, vfm: VariationalFlowMap, problem: InverseProblem, *, progress: bool = False
) -> VariationalFlowMap | None:
    """The map of the prior with which draws of a run are corrected; trained and stored if there is
    none yet of this problem.

    An interrupted training goes on with the next call.

    Args:
        folder: of the run.
        vfm, problem: map and problem of the run.
        progress: show a progress bar of the training.

    Returns:
        The map; ``None`` where corrections need none, or can have none without a likelihood.

    Raises:
        OSError: the folder is in use, or cannot be written.
        ValueError: the stored map is damaged.
    """
    folder = Path(folder)
    if not needs_prior_map(vfm):
        return None
    device, mark = vfm.whitening.mean.device, problem_fingerprint(problem)
    if (folder / PRIOR).exists():
        prior_map, _ = checkpoint.open_map(folder / PRIOR, problem, device, warn=False)
        if prior_map.config.get("prior", {}).get("problem_sha256") == mark:
            return prior_map
    with locked(folder):
        # By the problem: what is left of another one is not gone on with.
        unfinished = folder / f"{Path(PRIOR).stem}-{mark[:12]}"
        unfinished.mkdir(exist_ok=True)
        options: dict[str, Any] = {"checkpoint_dir": unfinished, "progress": progress}
        try:
            prior_map = fit_prior(problem, device=device, **options)
        except Interrupted as stop:
            where = f"{stop.where}; the same command goes on"
            raise Interrupted(where, "the same call goes on") from stop
        prior_map.config["prior"]["problem_sha256"] = mark
        prior_map.save(folder / PRIOR)
        shutil.rmtree(unfinished)
    return prior_map


def calibrate_corrected_run(
    folder: str | Path,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    num_simulations: int = 200,
    num_draws: int = 128,
    *,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Check the corrected draws of a run; its card then has both verdicts.

    Args:
        folder: of the run.
        vfm, problem: map and problem of the run.
        num_simulations, num_draws: as of :func:`vfm_inverse.calibration.calibrate`.
        seed: of simulations and draws.
        progress: show progress bars.

    Raises:
        ValueError: the draws cannot be corrected, or the map itself was not checked yet.
    """
    sizes = {"num_simulations": num_simulations, "num_draws": num_draws}
    num_simulations, num_draws = check_settings("calibration", sizes).values()
    folder = Path(folder)
    with locked(folder):
        if vfm.card is None or vfm.standing()[0] == "uncertified":
            raise ValueError(
                f"the draws of '{folder}' must be checked before their correction: run "
                "'vfm-inverse calibrate' without --corrected first"
            )
        posterior = corrected(
            vfm, prior_map=prior_map_of_run(folder, vfm, problem, progress=progress)
        )
        unit = UNIT * num_draws * problem.field_shape.numel()
        checked = calibrate(
            posterior,
            problem,
            num_simulations,
            num_draws,
            seed=seed,
            chunk=unit,
            progress=progress,
        )
        checked.attrs["correction"] = posterior.method()
        vfm.card = replace(
            vfm.card,
            corrected={
                "verdict": checked.attrs["verdict"],
                "reason": checked.attrs["reason"],
                "num_simulations": num_simulations,
                "num_draws": num_draws,
                "method": posterior.method(),
            },
        )
        checked.attrs["calibration_card"] = vfm.card.to_json()
        save_netcdf(checked, folder / CORRECTED)
        vfm.save(folder / MODEL)
    return checked
