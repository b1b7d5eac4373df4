"""Posterior draws for ArviZ: a group ``posterior`` with the dimensions ``chain`` and ``draw``.

ArviZ below 1 takes its own ``InferenceData``, from 1 on xarray's ``DataTree``, as ``arviz_stats``
does in every version; which of them comes follows from what is installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.labelled.write import draws_of, to_xarray
from vfm_inverse.problem.labels import BATCH, CHAINS, DRAW, OBSERVED, WEIGHT
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import Ensemble

if TYPE_CHECKING:
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["to_arviz"]

CHAIN = "chain"


@checked(problem="InverseProblem", params="mapping")
def to_arviz(
    draws: Tensor | Ensemble | xr.Dataset,
    problem: InverseProblem | None = None,
    y: Tensor | None = None,
    *,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Any:
    """Draws as ArviZ takes them: ``arviz.summary(to_arviz(draws, problem))``.

    The chains of :func:`vfm_inverse.correction.mcmc` stay chains. All other draws are one chain,
    whose R-hat and effective size say little: they are independent, or weighed and tempered.
    ArviZ knows no weights: draws with weights are drawn anew by them, and some come twice.

    Args:
        draws: ``(num_draws, batch, *field)``, an ensemble, or what
            :func:`vfm_inverse.labelled.write.to_xarray` gives or its file read again.
        problem: whose labels are used; needed unless ``draws`` are labelled.
        y: the observations, for the group ``observed_data``.
        params: their parameters.
        seed: of drawing anew.

    Returns:
        ``arviz.InferenceData`` or ``xarray.DataTree``.

    Raises:
        ImportError: ArviZ is not installed.
        TypeError: ``draws`` are neither a tensor, an array, an ensemble nor a dataset.
        ValueError: ``problem`` is missing, or shapes do not fit it.
    """
    installed = _installed()
    if not isinstance(draws, xr.Dataset):
        if problem is None:
            raise ValueError("'problem' must be given, for the labels of 'draws' that have none")
        draws = to_xarray(draws, problem, y, params=params)
    elif problem is not None or y is not None or params is not None:
        raise ValueError("'problem', 'y' and 'params' must not be given with labelled 'draws'")
    field = _equal_weights(draws, seed)
    groups: dict[str, Any] = {"posterior": _chains(field, int(draws.attrs.get(CHAINS, 1)))}
    if OBSERVED in draws:
        kept = [name for name in draws.coords if DRAW not in draws[name].dims]
        groups["observed_data"] = draws[[OBSERVED]].assign_coords(draws[kept].coords)
    groups = {name: group.assign_attrs(draws.attrs) for name, group in groups.items()}
    if int(installed.partition(".")[0]) >= 1:
        return xr.DataTree.from_dict(groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that ArviZ will change
        import arviz
    return arviz.InferenceData(**groups)


def _installed() -> str:
    """Version of ArviZ; 1 where there is only its part that computes."""
    for name in ("arviz", "arviz-stats"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found if name == "arviz" else "1"
    raise ImportError("'to_arviz' needs ArviZ, which is missing: pip install 'vfm-inverse[arviz]'")


def _equal_weights(draws: xr.Dataset, seed: int) -> xr.DataArray:
    """The draws, drawn anew where their weights differ."""
    field = draws_of(draws)
    if WEIGHT not in draws:
        return field
    lead = [dim for dim in (DRAW, BATCH) if dim in field.dims]
    weights = draws[WEIGHT].transpose(*lead).values
    if np.ptp(weights, axis=0).max() <= 1e-6 / len(weights):
        return field
    ensemble = Ensemble(torch.from_numpy(field.values), torch.from_numpy(weights))
    with seeded(seed):
        return field.copy(data=ensemble.sample((len(weights),)).numpy())


def _chains(field: xr.DataArray, num: int) -> xr.Dataset:
    """With the dimensions ``chain`` and ``draw`` first; the draws of all chains take turns."""
    length = field.sizes[DRAW] // num
    values = field.values.reshape(length, num, *field.shape[1:]).swapaxes(0, 1)
    name = "field" if field.name is None else field.name
    kept = {key: value for key, value in field.coords.items() if DRAW not in value.dims}
    coords = {**kept, CHAIN: np.arange(num), DRAW: np.arange(length)}
    dims = (CHAIN, DRAW, *field.dims[1:])
    return xr.Dataset({name: (dims, values, field.attrs)}, coords=coords)
