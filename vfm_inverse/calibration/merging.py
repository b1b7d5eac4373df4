"""One report of the parts of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration.map_labels import MapLabels
from vfm_inverse.calibration.settings import check_flags, check_problem, level_of
from vfm_inverse.calibration.shards import compare, read_part
from vfm_inverse.calibration.simulations import report_of
from vfm_inverse.calibration.tally import Tally
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.statistics.joint_coverage import Tarp
from vfm_inverse.statistics.quantities import Quantity

__all__ = ["merge"]


def merge(
    paths: str | Path | Sequence[str | Path],
    problem: InverseProblem | None = None,
    *,
    alpha: float = 0.05,
    partial: bool = False,
) -> xr.Dataset:
    """One report of the parts that :func:`calibrate` with ``shard`` wrote.

    Args:
        paths: files of all parts, in any order.
        problem: gives the maps its labels; plain ones where missing.
        alpha: probability with which a calibrated posterior may fail.
        partial: report on what there is where parts are missing or unfinished.

    Returns:
        The report of one run over all simulations of the parts, bit for bit.

    Raises:
        FileNotFoundError: a part is missing where ``paths`` says.
        ValueError: no part, parts of different settings or posteriors, a simulation in two parts,
            or simulations in none without ``partial``.
    """
    alpha = level_of(alpha)
    check_flags(partial=partial)
    if isinstance(paths, str | Path):
        paths = [paths]
    given: Any = paths
    if not isinstance(given, Sequence) or not all(isinstance(p, str | Path) for p in given):
        raise TypeError(f"'paths' must be paths of files; got {type(given).__name__}")
    if problem is not None:
        check_problem(problem)
    if not paths:
        raise ValueError("'paths' must name at least one file")
    whole: Tally | None = None
    first: dict[str, Any] = {}
    done: dict[str, int] = {}
    for path in paths:
        arrays, settings = read_part(path)
        shard = settings.pop("shard", None)
        first = first or settings
        compare(path, settings, first, f"{paths[0]} holds another one")
        part = _restored(path, arrays, settings)
        done[f"'{path}' (shard {shard}, {part.done} simulations)"] = part.done
        if whole is None:
            whole = part
        else:
            whole.merge(part)
    assert whole is not None
    num = first["num_simulations"]
    if whole.done < num and not partial:
        raise ValueError(
            f"'paths' must hold all {num} simulations; got {whole.done} in {_listed(done)}: parts "
            "are missing or unfinished (calibrate goes on with one; partial=True reports on these)"
        )
    if whole.done < 2:
        raise ValueError(f"'paths' must hold at least 2 simulations; got {whole.done}")
    given = () if problem is None else (problem.dims, problem.coords, problem.units)
    return report_of(whole, MapLabels.of(first["event"], *given), alpha, first)


def _restored(
    path: str | Path, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> Tally:
    """The tally in a file. Quantities are evaluated by then: their names are enough."""
    try:
        absent: dict[str, Quantity] = dict.fromkeys(settings["quantities"], _absent)
        num, num_draws, seed = (settings[k] for k in ("num_simulations", "num_draws", "seed"))
        tarp = Tarp(num_draws, num, seed=seed) if settings["joint"] else None
        part = Tally(absent, num_draws, num, seed, joint=tarp, local=settings["local"])
        part.restore(arrays)
    except KeyError as error:
        raise ValueError(f"{path} is no readable calibration file: no {error}") from error
    return part


def _listed(done: Mapping[str, int]) -> str:
    names = list(done)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _absent(x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
    raise NotImplementedError("a merged tally knows the names of its quantities alone")
