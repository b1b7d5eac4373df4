"""A trained map out of a checkpoint or the folder of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs.checkpoint import open_map
from vfm_inverse.runs.recipes import open_folder
from vfm_inverse.runs.zoo import PREFIX, open_shipped
from vfm_inverse.runtime.calls import checked

__all__ = [
    "load",
]


@checked("load", path="path", problem="InverseProblem")
def load(
    path: str | Path,
    problem: InverseProblem | None = None,
    device: str | torch.device = "cpu",
    whitening: Whitening | None = None,
    *,
    warn: bool = True,
) -> VariationalFlowMap:
    """Read a map that :meth:`VariationalFlowMap.save` wrote.

    Args:
        path: a ``model.safetensors``, the folder of a run, or ``"zoo:NAME"``, a certified map that
            comes with the package (:mod:`vfm_inverse.runs.zoo`). A folder is trusted as code is:
            its settings say how the problem is made, and a module of yours that they name is
            imported. A file by itself has nothing imported.
        problem: the problem the map was trained for; needed for a file unless it came from
            ``problems.load``, and for a folder where its settings do not say how to make it.
        device: where to put it.
        whitening: one of the kind it was built with, if that was a class of your own.
        warn: whether to warn of a map that is uncertified or failed its calibration.

    Raises:
        OSError: no such file, or it cannot be opened.
        ValueError: not a readable checkpoint, or it does not fit the problem; the message names
            the file. Or there is no certified map of that name; the message lists those there are.

    Warns:
        CalibrationWarning: the map failed its calibration, or was not checked with these weights
            and this physics.
    """
    # Between the warning and the caller's line are two calls and the check of the arguments.
    if isinstance(path, str) and path.startswith(PREFIX):
        return open_shipped(path, problem, device, warn=warn, stacklevel=4)[0]
    if Path(path).is_dir():
        return open_folder(path, problem, device, whitening, warn=warn, stacklevel=4)[0]
    return open_map(path, problem, device, whitening, warn=warn, stacklevel=4)[0]
