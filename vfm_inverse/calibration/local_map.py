"""Where a posterior fails: L-C2ST at every simulated observation.

The classifier sees the test quantities of a truth or a draw and a few features of its
observation: what it needs for a field, at a size that a thousand simulations can teach.  Truth and
first draw of every simulation are the pairs it learns from; the next 64 draws are those it is
asked about.

The p-value over all simulations is that of the mean statistic, exact as each of its terms
(:mod:`vfm_inverse.statistics.local_c2st`); the p-values of single simulations are for a picture
and carry no correction for their number.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from vfm_inverse.calibration.tally import Tally
from vfm_inverse.statistics.local_c2st import Training, null_statistics
from vfm_inverse.statistics.meanings import with_long_names
from vfm_inverse.statistics.quantities import needs_double

__all__ = ["local_map"]

LONG_NAMES = {
    "local_p_value": "L-C2ST p-value at each simulation, not corrected for their number",
    "local_statistic": "mean square of classifier probability minus one half",
    "local_probability": "mean probability that a draw is a truth; below 1/2 with too many draws",
    "local_observation": "principal coordinates of the observations' features",
    "local_global_p_value": "p-value of the mean statistic over all simulations",
}


def local_map(tally: Tally, num_null: int = 99) -> xr.Dataset:
    """Train the classifiers on what a tally with ``local=True`` kept.

    Args:
        tally: of all simulations.
        num_null: number of classifiers trained on swapped pairs.

    Returns:
        Dataset over ``simulation`` and ``local_axis``.

    Raises:
        ValueError: a quantity is not a number, or too few draws.
    """
    values = torch.from_numpy(tally.single["values"][tally.seen])  # (num, draws, quantities)
    features = torch.from_numpy(tally.single["features"][tally.seen])
    if values.shape[1] < 3:
        raise ValueError(f"'num_draws' must be at least 2 for local tests; got {tally.num_draws}")
    if values.isnan().any():
        raise ValueError("local tests need quantities that are numbers; got NaN")
    values, features = _single(_finite(values), (0, 1)), _single(features, (0,))
    statistic, probability = null_statistics(
        values[:, 1],
        values[:, 0],
        features,
        values[:, 2:].movedim(1, 0),
        features,
        training=Training(num_null=num_null, seed=tally.seed),
    )
    found, null = statistic[0], statistic[1:]
    mean = statistic.mean(1)
    centred = features - features.mean(0)
    scale = torch.where(features.amax(0) > features.amin(0), centred.std(0), 0.0)
    scaled = torch.where(scale > 0, centred / torch.where(scale > 0, scale, 1.0), 0.0)
    axes = np.linalg.svd(scaled.double().numpy(), full_matrices=False)[2][:2]
    place = np.zeros((len(values), 2))
    place[:, : len(axes)] = scaled.double().numpy() @ axes.T
    data = {
        "local_p_value": ("simulation", (1 + (null >= found).sum(0)) / (1 + num_null)),
        "local_statistic": ("simulation", found),
        "local_probability": ("simulation", probability.mean(0)),
        "local_observation": (("simulation", "local_axis"), place),
        "local_global_p_value": ((), float((1 + (mean[1:] >= mean[0]).sum()) / (1 + num_null))),
    }
    return with_long_names(xr.Dataset(data), LONG_NAMES)


def _finite(values: torch.Tensor) -> torch.Tensor:
    """Quantities ``(num, draws, quantities)`` with infinities, such as the log-likelihood of an
    impossible draw, one range beyond the finite values."""
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin((0, 1))
    high = torch.where(finite, values, -torch.inf).amax((0, 1))
    reach = (high - low).nan_to_num(0.0, 0.0, 0.0) + 1
    low, high = (bound.nan_to_num(0.0, 0.0, 0.0) for bound in (low, high))
    return torch.minimum(torch.maximum(values, low - reach), high + reach)


def _single(values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Values in single precision for the networks, standardised over ``dims`` in double precision
    where they come in that, or where their squares would leave single precision."""
    if values.dtype == torch.float32 and not needs_double(values.flatten(0, len(dims) - 1)):
        return values
    scale, centre = torch.std_mean(values.double(), dim=dims)
    varies = values.amax(dims) > values.amin(dims)
    scale = torch.where(varies & (scale > 0), scale, 1.0)
    return ((values.double() - centre) / scale).float()
