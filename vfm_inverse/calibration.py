r"""Simulation-based calibration: are posterior draws and truths exchangeable?

Simulate :math:`x \sim p(x)`, :math:`y \sim p(y|x)` and draw :math:`x_1 \dots x_L \sim q(x|y)`.  If
:math:`q` is the posterior, the rank of :math:`g(x, y)` among the :math:`g(x_l, y)` is uniform for
every test quantity :math:`g` (Talts et al. 2018, arXiv 1804.06788).  A quantity that uses
:math:`y`, above all the log-likelihood, sees faults that the coordinates cannot, such as the prior
returned for the posterior (Modrák et al. 2023, arXiv 2211.02383).

**Verdict.**  With ``Q`` quantities, ``fail`` when the smallest exact p-value of the ECDF test
(:mod:`vfm_inverse.ranks`) is at most ``alpha / Q`` (Bonferroni, as the quantities are dependent);
a calibrated posterior fails with probability at most ``alpha``.  The bands of the report are at
the same level: a curve leaves its band exactly when its quantity fails.  The maps over the field's
own elements say where and how; thousands of dependent elements carry no verdict of their own.

**Size of a misfit.**  With :math:`\zeta = \Phi^{-1}((r + 1/2)/(L + 1))`, standard normal for
uniform ranks, ``offset`` is :math:`-\bar\zeta` and ``width`` is :math:`1 / \mathrm{std}(\zeta)`:
for a Gaussian posterior, how many of its standard deviations the draws sit too high, and their
standard deviation over the right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from vfm_inverse import ranks
from vfm_inverse.quantities import Quantity, default_quantities
from vfm_inverse.randomness import seeded
from vfm_inverse.tally import LEVELS, Tally

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["LEVELS", "calibrate", "from_draws"]

#: Copies of a field that one draw may need while a network computes it and the scores sort it.
WORKING_COPIES = 256

#: Axes of a field without labels.
AXES = ("channel", "row", "column")

LONG_NAMES = {
    "ranks": "rank of the truth among the draws",
    "p_value": "exact p-value of the simultaneous ECDF test",
    "p_adjusted": "p-value after Bonferroni's correction over the quantities",
    "chi2_per_dof": "chi-square of binned ranks over its degrees of freedom",
    "chi2_p_value": "p-value of the chi-square test",
    "offset": "how many posterior standard deviations the draws sit too high",
    "width": "posterior standard deviation over the one the truth needs; NaN if out of sight",
    "ecdf_difference": "empirical minus uniform distribution of ranks",
    "ecdf_lower": "lower edge of the simultaneous band over positions and quantities",
    "ecdf_upper": "upper edge of the simultaneous band over positions and quantities",
    "histogram": "simulations with a rank in each bin",
    "coverage": "share of truths inside the central interval",
    "quantity_crps": "mean CRPS of each quantity",
    "crps": "CRPS, mean over the field",
    "energy_score": "energy score of the field",
    "chi2_per_dof_map": "chi-square of binned ranks over its degrees of freedom",
    "coverage_map": "share of truths inside the central interval",
    "crps_map": "mean CRPS",
    "bias_map": "mean of posterior mean minus truth",
    "skill_map": "root-mean-square error of the posterior mean",
    "spread_map": "root-mean-square posterior standard deviation, times sqrt(1 + 1/num_draws)",
}


def calibrate(
    posterior_fn: Callable[..., Any],
    problem: InverseProblem,
    num_simulations: int = 1000,
    num_draws: int = 1000,
    *,
    seed: int | None = 0,
    split: Literal["train", "test"] = "test",
    quantities: Mapping[str, Quantity] | None = None,
    alpha: float = 0.05,
    memory: int = 2**30,
    provenance: Mapping[str, str | float | int] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Check the posteriors of simulated observations against the truths behind them.

    Draws are made, ranked, scored and dropped block by block. A seed gives the same report on
    every run; another ``memory`` cuts other blocks and so takes other random draws, which changes
    nothing else.

    Args:
        posterior_fn: ``(y, **params) -> posterior`` with ``posterior.sample((n,))`` of shape
            ``(n, batch, *event)``: a trained map, or ``problem.reference_posterior``.
        problem: Simulates truths and observations.
        num_simulations: Number of simulated observations ``N``; sets the power of the test.
        num_draws: Number of posterior draws ``L`` for each.
        seed: Fixes simulations, draws and ties; ``None`` takes a seed from torch's global
            generator. The seed used is in ``attrs["seed"]``.
        split: Prior samples to simulate from, ``"test"`` (held out) or ``"train"``.
        quantities: Test quantities by name instead of those of
            :func:`vfm_inverse.quantities.default_quantities`.
        alpha: Probability with which a calibrated posterior may fail.
        memory: Rough limit in bytes for the draws of one block and the network that makes them;
            one observation's draws (``num_draws`` fields) are always held at once.
        provenance: Attributes to add to the report.
        progress: Show a progress bar.

    Returns:
        Dataset over ``simulation``, ``quantity``, ``level``, ``position``, ``bin`` and the field's
        own dimensions (variables ending in ``_map``), with ``attrs["verdict"]``, ``"pass"`` or
        ``"fail"``, and ``attrs["reason"]``.

    Raises:
        ValueError: Too few simulations or draws, no posterior, draws of another shape, NaN.
    """
    _check_counts(num_simulations, num_draws, alpha)
    base = int(torch.randint(2**31, ())) if seed is None else seed
    x, y, params = problem.simulate(num_simulations, split=split, seed=base)
    event = x.shape[1:]
    if quantities is None:
        density = None if problem.likelihood is None else problem.log_likelihood
        quantities = default_quantities(event, density)
    fields = max(1, memory // (WORKING_COPIES * event.numel() * x.element_size()))
    block = min(max(1, fields // num_draws), num_simulations)
    piece = min(max(1, fields // block), num_draws)
    starts = range(0, num_simulations, block)
    seeds = np.random.SeedSequence([base, 2]).generate_state(len(starts)).tolist()
    tally = Tally(quantities, num_draws, num_simulations, base)
    bar = tqdm(total=num_simulations, desc="calibrate", unit="obs", disable=not progress)
    with torch.no_grad(), bar:
        for start, block_seed in zip(starts, seeds, strict=True):
            rows = slice(start, start + block)
            seen = {name: value[rows] for name, value in params.items()}
            buffer = x.new_empty(1 + num_draws, *x[rows].shape)
            buffer[0] = x[rows]
            with seeded(block_seed):
                posterior = posterior_fn(y[rows], **seen)
                if posterior is None:
                    raise ValueError("'posterior_fn' must return a posterior; got None")
                for part in buffer[1:].split(piece):
                    draws = posterior.sample((len(part),))
                    if draws.shape != part.shape:
                        raise ValueError(
                            f"'posterior_fn' must give draws of shape {tuple(part.shape)}; "
                            f"got {tuple(draws.shape)}"
                        )
                    part.copy_(draws)
            tally.add(buffer, y[rows], seen)
            bar.update(len(x[rows]))
    labels = _labels(event, problem.dims, problem.coords, problem.units)
    attrs = {"split": split, **(provenance or {})}
    return _report(tally, labels, alpha, attrs)


def from_draws(
    draws: Any,
    truth: Any,
    *,
    y: Tensor | None = None,
    params: Mapping[str, Tensor] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    seed: int = 0,
    alpha: float = 0.05,
    memory: int = 2**30,
) -> xr.Dataset:
    """Check anyone's posterior draws against the truths they are meant to cover.

    Args:
        draws: ``(num_draws, num_simulations, *event)``, numpy, torch or ``xarray.DataArray``. A
            labelled array is put in this order where its dimensions are called ``draw`` and
            ``simulation``; its other dimensions are the field's.
        truth: ``(num_simulations, *event)``, of any of these types.
        y: Observations ``(num_simulations, *observation)`` for quantities that use them.
        params: Parameters ``(num_simulations, ...)`` of the observations.
        quantities: Test quantities by name instead of the default ones (without log-likelihood).
        seed: Fixes how ties are broken.
        alpha: Probability with which a calibrated posterior may fail.
        memory: Rough limit in bytes for the working copies of one block.

    Returns:
        As :func:`calibrate`.
    """
    dims: tuple[str, ...] | None = None
    coords: Mapping[str, Any] | None = None
    units: str | None = None
    if isinstance(draws, xr.DataArray):
        first = [dim for dim in ("draw", "simulation") if dim in draws.dims]
        draws = draws.transpose(*first, ...) if len(first) == 2 else draws
        if isinstance(truth, xr.DataArray):
            truth = truth.transpose(*draws.dims[1:])
        dims, units = tuple(map(str, draws.dims[2:])), draws.attrs.get("units")
        coords = {str(name): draws.coords[name] for name in draws.dims[2:] if name in draws.coords}
    draws, truth = _tensor(draws, "draws"), _tensor(truth, "truth")
    if draws.ndim < 2 or draws.shape[1:] != truth.shape:
        raise ValueError(
            "'truth' must be (num_simulations, *event) and 'draws' (num_draws, num_simulations, "
            f"*event); got {tuple(truth.shape)} and {tuple(draws.shape)}"
        )
    if draws.ndim == 2 or (dims is not None and len(dims) == 2):  # a scalar; a labelled plane
        draws, truth = draws.unsqueeze(2), truth.unsqueeze(1)
    num_draws, num_simulations, *event = draws.shape
    _check_counts(num_simulations, num_draws, alpha)
    tally = Tally(quantities or default_quantities(event), num_draws, num_simulations, seed)
    size = 8 * (num_draws + 1) * math.prod(event) * draws.element_size()
    block = max(1, memory // size)
    for start in range(0, num_simulations, block):
        rows = slice(start, start + block)
        seen = {name: value[rows] for name, value in (params or {}).items()}
        buffer = torch.cat([truth[None, rows], draws[:, rows]])
        tally.add(buffer, None if y is None else y[rows], seen)
    return _report(tally, _labels(event, dims, coords, units), alpha, {})


def _report(
    tally: Tally, labels: _Labels, alpha: float, attrs: Mapping[str, str | float | int]
) -> xr.Dataset:
    """Test what was kept, label it, and state the verdict."""
    num, num_draws, names = tally.done, tally.num_draws, list(tally.quantities)
    rank = np.concatenate(tally.ranks)
    positions, counts = ranks.ecdf_counts(rank, num_draws)
    p_value = ranks.ecdf_p_value(counts, positions, num)
    lower, upper = ranks.ecdf_band(positions, num, alpha / len(names))
    bins = rank * tally.num_bins // (num_draws + 1)
    histogram = np.stack([(bins == b).sum(0) for b in range(tally.num_bins)])
    chi2, chi2_p_value = ranks.chi2_test(histogram, num_draws)
    zeta = stats.norm.ppf((rank + 0.5) / (num_draws + 1))
    scale = stats.norm.ppf((np.arange(num_draws + 1) + 0.5) / (num_draws + 1)).std()
    # With most truths outside all draws the ranks tell the side and a bound, but no width.
    saturated = ((rank == 0) | (rank == num_draws)).mean(0) > 0.5
    coverage = np.stack(
        [
            ranks.coverage_weight(torch.from_numpy(rank), num_draws, level).double().mean(0)
            for level in LEVELS
        ],
        axis=1,
    )
    sums = {name: value.cpu().numpy() for name, value in tally.sums.items()}
    where, unit = labels.dims, labels.attrs
    element_chi2, _ = ranks.chi2_test(sums["bins"], num_draws)
    shaped = labels.reshape
    data: dict[str, Any] = {
        "ranks": (("simulation", "quantity"), rank.astype(np.int32)),
        "p_value": ("quantity", p_value),
        "p_adjusted": ("quantity", np.minimum(p_value * len(names), 1.0)),
        "chi2_per_dof": ("quantity", chi2),
        "chi2_p_value": ("quantity", chi2_p_value),
        "offset": ("quantity", -zeta.mean(0) / scale),
        "width": ("quantity", np.where(saturated, np.nan, scale / zeta.std(0).clip(min=1e-3))),
        "ecdf_difference": (("quantity", "position"), (counts / num - positions[:, None]).T),
        "ecdf_lower": ("position", lower / num - positions),
        "ecdf_upper": ("position", upper / num - positions),
        "histogram": (("quantity", "bin"), histogram.T),
        "coverage": (("quantity", "level"), coverage),
        "quantity_crps": ("quantity", np.concatenate(tally.quantity_crps).mean(0)),
        "crps": ("simulation", np.concatenate(tally.crps), unit),
        "energy_score": ("simulation", np.concatenate(tally.energy_score), unit),
        "chi2_per_dof_map": (where, shaped(element_chi2)),
        "coverage_map": (("level", *where), shaped(sums["coverage"] / num)),
        "crps_map": (where, shaped(sums["crps"] / num), unit),
        "bias_map": (where, shaped(sums["bias"] / num), unit),
        "skill_map": (where, shaped(np.sqrt(sums["skill"] / num)), unit),
        "spread_map": (where, shaped(np.sqrt(sums["spread"] / num)), unit),
    }
    coords = {**labels.coords, "quantity": names, "level": list(LEVELS), "position": positions}
    report = xr.Dataset(data, coords=coords)
    for name, text in LONG_NAMES.items():
        report[name].attrs["long_name"] = text
    report.attrs = {
        "num_simulations": num,
        "num_draws": num_draws,
        "num_bins": tally.num_bins,
        "alpha": alpha,
        "seed": tally.seed,
        **attrs,
    }
    report.attrs["verdict"], report.attrs["reason"] = _verdict(report, alpha)
    return report


def _verdict(report: xr.Dataset, alpha: float) -> tuple[str, str]:
    """``pass`` or ``fail``, and a sentence: which quantity, how strongly, in what way."""
    num, count = report.attrs["num_simulations"], report.sizes["quantity"]
    worst = report.isel(quantity=np.lexsort((-report.chi2_per_dof, report.p_adjusted))[0])
    name, failed = worst.quantity.item(), int((report.p_adjusted <= alpha).sum())
    p_value = worst.p_adjusted.item()
    what = f"p = {p_value:.2g}" if p_value > 1e-99 else "p < 1e-99"
    what += f" after correction for {count} quantities"
    if failed == 0:
        # Tests of the mean and of the log standard deviation of zeta, normal, with power 0.8.
        unseen = (stats.norm.isf(alpha / (2 * count)) + 0.84) / math.sqrt(num)
        return "pass", (
            f"the ranks of all {count} quantities are consistent with uniform (smallest {what}, "
            f"'{name}'); {num} simulations may miss a shift below about {unseen:.2g} posterior "
            f"standard deviations or a width wrong by {100 * unseen / math.sqrt(2):.2g} %"
        )
    offset, width = worst["offset"].item(), worst["width"].item()
    faults = []
    if abs(offset) > 3 / math.sqrt(num):
        side = "high" if offset > 0 else "low"
        faults.append(f"too {side} by {abs(offset):.2g} posterior standard deviations")
    if abs(math.log(width)) > 3 / math.sqrt(2 * num):  # False for NaN
        side = "narrow" if width < 1 else "wide"
        faults.append(f"too {side}, {width:.2f} times the width that the truth needs")
    return "fail", (
        f"{failed} of {count} quantities fail, '{name}' most strongly ({what}, chi2/dof "
        f"{worst.chi2_per_dof.item():.3g}): its draws are "
        f"{' and '.join(faults) or 'of the right place and width but the wrong shape'}"
    )


@dataclass(frozen=True)
class _Labels:
    """How element arrays ``(..., *event)`` become labelled maps."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    event: tuple[int, ...]
    coords: dict[str, Any]
    attrs: dict[str, str]

    def reshape(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(*value.shape[: value.ndim - len(self.event)], *self.shape)


def _labels(
    event: Sequence[int],
    dims: Sequence[str] | None,
    coords: Mapping[str, Any] | None,
    units: str | None,
) -> _Labels:
    """Labels of the maps: one channel is dropped, names that the report uses are prefixed."""
    shape = tuple(event)
    if len(event) > 1 and event[0] == 1 and (dims is None or len(dims) == len(event) - 1):
        shape = shape[1:]
    plain = ("component",) if len(event) == 1 else (AXES[0], *AXES[4 - len(event) :])
    names = tuple(dims or plain[-len(shape) :])
    if len(names) != len(shape):
        raise ValueError(f"'dims' must name the axes {shape} of the field; got {names}")
    own = {"simulation", "quantity", "level", "position", "bin"}
    new = {name: f"field_{name}" if name in own else name for name in names}
    kept = {}
    for name, value in (coords or {}).items():
        variable = xr.Dataset(coords={name: value})[name]
        if all(dim in new for dim in variable.dims):
            where = tuple(new[str(dim)] for dim in variable.dims)
            label = f"field_{name}" if name in own else name
            kept[label] = (where, variable.values, variable.attrs)
    attrs = {} if units is None else {"units": units}
    return _Labels(tuple(new.values()), shape, tuple(event), kept, attrs)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, xr.DataArray):
        value = value.values
    if not isinstance(value, np.ndarray | Tensor):
        raise TypeError(
            f"'{name}' must be a Tensor, numpy array or DataArray; got {type(value).__name__}"
        )
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.double()


def _check_counts(num_simulations: int, num_draws: int, alpha: float) -> None:
    if num_simulations < 2:
        raise ValueError(f"'num_simulations' must be at least 2; got {num_simulations}")
    if num_draws < 2:
        raise ValueError(f"'num_draws' must be at least 2; got {num_draws}")
    if not 0 < alpha < 1:
        raise ValueError(f"'alpha' must lie between 0 and 1; got {alpha}")
