"""Pictures of what a map answers: held-out observations, with the labels of their problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from torch import Tensor

from vfm_inverse.formats.places import meaning
from vfm_inverse.labelled.write import to_xarray
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.report.gallery import posterior_gallery, posterior_scatter
from vfm_inverse.runtime.randomness import seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["held_out", "station_places"]


def held_out(
    vfm: VariationalFlowMap, problem: InverseProblem, *, seed: int = 0, num: int = 4
) -> dict[str, Figure]:
    """Draws for held-out observations, by caption, where they make a picture.

    Args:
        vfm, problem: map and problem.
        seed: of observations and draws.
        num: observations shown.
    """
    if problem.field_shape == (1,):
        return {}
    x, y, params = problem.simulate(num, split="test", seed=seed)
    with seeded(seed):
        draws = vfm(y, **params).sample((500,))
    if len(problem.field_shape) == 1:
        figure = posterior_scatter(draws, x, units=problem.units)
    else:
        data = to_xarray(draws, problem, y, params=params)
        name = problem.field_labels.name
        seen = data["observed"]
        places = station_places(problem, seen, params)
        figure = posterior_gallery(data[name], x, seen, places=places)
    return {"Held-out observations": figure}


def station_places(
    problem: InverseProblem, seen: xr.DataArray, params: Mapping[str, Tensor]
) -> np.ndarray | None:
    """Places ``(n, m, k)`` of observations that are tables ``(n, m)``, in the coordinates of the
    field's k axes; NaN where a row is no station; ``None`` where they are not known.

    They are the parameter ``coords`` of a network that changes, or coordinates of the observation
    that are called as the field's axes are, ``station_`` before or not, or that are latitude and
    longitude as well.
    """
    if seen.ndim != 2:
        return None
    dims = problem.dims[-(len(problem.field_shape) - 1) :]
    axes = {
        dim: problem.coords.get(dim, xr.Variable(dim, np.arange(size)))
        for dim, size in zip(dims, problem.field_shape[1:], strict=True)
    }
    if "coords" in params and params["coords"].shape[1:] == (*seen.shape[1:], len(dims)):
        unit = params["coords"].cpu().numpy()
        found = [
            np.interp(unit[..., i], np.linspace(0, 1, axis.size), axis.values)
            for i, axis in enumerate(axes.values())
        ]
        where = np.stack(found, -1)
        mask = params.get("mask")
        return (
            where if mask is None else np.where(mask.cpu().numpy()[..., None] > 0, where, np.nan)
        )
    columns = []
    for dim, axis in axes.items():
        kind = meaning(dim, axis.attrs)
        names = [
            name
            for name, value in seen.coords.items()
            if value.dims[-1:] == seen.dims[-1:]
            and value.dtype.kind in "fiu"
            and (
                str(name).removeprefix("station_") == dim
                or (kind is not None and meaning(name, value.attrs) == kind)
            )
        ]
        if len(names) != 1:
            return None
        columns.append(np.broadcast_to(seen[names[0]].values, seen.shape))
    return np.stack(columns, -1)
