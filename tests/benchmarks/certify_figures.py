"""The figures of a certificate: what the checks of a trained map say, in numbers.

*Misfit* is the mean squared difference of data and what a draw predicts, in standard deviations
of the noise; that of the truths stands beside it. *Times* are those of one thread on the
machine that made the certificate: a new observation with one draw, and each further draw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.scores import energy_score

__all__ = ["checked", "exact_score", "misfits", "times"]

MISFIT = (32, 16)
"""Observations and draws of each that the misfit is a mean over."""

FURTHER, FEWEST, NUMBERS = 1024, 16, 2**17
"""Draws that the time of one is a mean over: at most, at least, and numbers in them."""


def checked(report: xr.Dataset) -> dict[str, Any]:
    """Verdict, what fails and by how much, coverage and scores of one calibration."""
    alpha, attrs = report.attrs["alpha"], report.attrs
    failing = []
    order = report.p_adjusted.values.argsort(kind="stable")
    for one in (report.isel(quantity=int(index)) for index in order):
        if float(one.p_adjusted) <= alpha:
            failing.append(
                {
                    "quantity": str(one.quantity.item()),
                    "offset": float(one["offset"]),
                    "width": float(one["width"]),
                    "chi2_per_dof": float(one.chi2_per_dof),
                    "p": float(one.p_adjusted),
                }
            )
    found = {
        "verdict": attrs["verdict"],
        "reason": attrs["reason"],
        "failing": failing,
        "quantities": report.sizes["quantity"],
        "simulations": int(attrs["num_simulations"]),
        "draws": int(attrs["num_draws"]),
        "seed": int(attrs["seed"]),
        "coverage_90": float(report.coverage_map.sel(level=0.9).mean()),
        "energy_score": float(report.energy_score.mean()),
    }
    if "density_p_adjusted" in report:
        found["failing_density"] = int((report.density_p_adjusted <= alpha).sum())
    if "tarp_p_adjusted" in report:
        found["joint_p"] = float(report.tarp_p_adjusted)
    for name, against in (("untrained_skill", "start"), ("skill", "prior")):
        if name in report and math.isfinite(skill := float(report[name].sel(score="energy"))):
            found[f"over_{against}"] = 1 - skill
    if "correction" in attrs:
        found["method"] = attrs["correction"]
    return found


def misfits(
    vfm: VariationalFlowMap, problem: InverseProblem, seed: int = 0
) -> tuple[float, float] | None:
    """Misfit per datum of draws and of truths; None where the likelihood has no mean and
    variance."""
    if problem.likelihood is None:
        return None
    num, draws = MISFIT
    x, y, params = problem.simulate(num, split="test", seed=seed)
    with seeded(seed), torch.no_grad():
        samples = vfm(y, **params).sample(torch.Size([draws]))
    try:
        found = [residual(problem, field, y, params) for field in samples]
        truth = residual(problem, x, y, params)
    except (AttributeError, NotImplementedError):
        return None
    return sum(found) / draws, truth


def residual(problem: InverseProblem, x: Tensor, y: Tensor, params: dict[str, Tensor]) -> float:
    """Mean squared residual of fields ``(n, *event)`` in standard deviations."""
    assert problem.likelihood is not None
    with torch.no_grad():
        law = problem.likelihood(x, **params)
        return float(((y - law.mean).square() / law.variance).mean())


def times(vfm: VariationalFlowMap, problem: InverseProblem) -> tuple[float, float]:
    """Milliseconds of an observation with its first draw, and of each further draw; the least of
    three, of observations one at a time."""
    _, y, params = problem.simulate(3, split="test", seed=1)
    further = max(FEWEST, min(FURTHER, NUMBERS // problem.field_shape.numel()))
    first, both = [], []
    for row in range(len(y)):
        one = rows_of(params, slice(row, row + 1))
        for num, taken in ((1, first), (1 + further, both)):
            begin = time.perf_counter()
            with seeded(row), torch.no_grad():
                vfm(y[row : row + 1], **one).sample(torch.Size([num]))
            taken.append(1000 * (time.perf_counter() - begin))
    return min(first), max(0.0, min(both) - min(first)) / further


def exact_score(problem: InverseProblem, report: xr.Dataset) -> float | None:
    """Mean energy score of the exact posterior on the simulations of a report, where there is
    one."""
    _, y, params = problem.simulate(1, seed=0)
    if problem.reference_posterior(y, **params) is None:
        return None

    def exact(num: int, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        reference = problem.reference_posterior(y, **params)
        assert reference is not None
        return reference.sample(torch.Size([num]))

    return mean_score(exact, problem, report)


def mean_score(
    sample: Callable[[int, Tensor, dict[str, Tensor]], Tensor],
    problem: InverseProblem,
    report: xr.Dataset,
) -> float:
    """Mean energy score of other draws, on the simulations of the report."""
    num, draws, seed = (int(report.attrs[k]) for k in ("num_simulations", "num_draws", "seed"))
    x, y, params = problem.simulate(num, split="test", seed=seed)
    values = []
    for rows in torch.arange(num).split(50):
        with seeded(int(rows[0])):
            values.append(energy_score(sample(draws, y[rows], rows_of(params, rows)), x[rows]))
    return float(torch.cat(values).mean())
