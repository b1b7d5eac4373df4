"""Pass or fail, and a sentence a person can act on."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy import stats

__all__ = ["state_skill", "state_verdict"]


def state_verdict(report: xr.Dataset, alpha: float) -> tuple[str, str]:
    """``"pass"`` or ``"fail"``, and why: which tests, how strongly, in what way.

    Args:
        report: with p-values adjusted for all its tests, and ``num_simulations``, ``num_tests``
            and ``families`` in its attributes.
        alpha: level of all tests together.
    """
    reasons = [
        sentence
        for sentence in (_ranks(report, alpha), _density(report, alpha), _joint(report, alpha))
        if sentence is not None
    ]
    local = report.get("local_global_p_adjusted")
    if local is not None and local.item() <= alpha:
        worst = int(report.local_statistic.values.argmax())
        reasons.append(
            f"a classifier tells draws from truths better than chance ({_p(local.item())}), most "
            f"at simulation {worst}"
        )
    if reasons:
        return "fail", "; ".join(reasons)
    num, tests = report.attrs["num_simulations"], report.attrs["num_tests"]
    worst_rank = report.isel(quantity=int(report.p_adjusted.values.argmin()))
    count, factor = report.sizes["quantity"], len(report.attrs["families"].split(", "))
    # Tests of the mean and of the log standard deviation of zeta, normal, with power 0.8.
    unseen = (stats.norm.isf(alpha / (2 * count * factor)) + 0.84) / math.sqrt(num)
    return "pass", (
        f"the ranks of all {count} quantities are consistent with uniform (smallest "
        f"{_p(worst_rank.p_adjusted.item())} after correction for {tests} tests, "
        f"'{worst_rank.quantity.item()}'); {num} simulations may miss a shift below about "
        f"{unseen:.2g} posterior standard deviations or a width wrong by "
        f"{100 * unseen / math.sqrt(2):.2g} %"
    )


def state_skill(report: xr.Dataset) -> str:
    """``"10.2 % below the untrained map's, 45.1 % below the prior's"``: the CRPS of a report
    against those that it is compared with, or ``""``."""
    prior = str(report.attrs.get("baseline", "")).startswith("the prior")
    other = "the prior" if prior else "the baseline"
    against = {"untrained_skill": "the untrained map", "skill": other}
    phrases = []
    for name, other in against.items():
        if name in report and np.isfinite(gain := float(report[name].sel(score="crps"))):
            side = "below" if gain > 0 else "above"
            phrases.append(f"{100 * abs(gain):.1f} % {side} {other}'s")
    return ", ".join(phrases)


def _ranks(report: xr.Dataset, alpha: float) -> str | None:
    """What the quantities that fail have in common with their worst."""
    failed = int((report.p_adjusted <= alpha).sum())
    if failed == 0:
        return None
    num = report.attrs["num_simulations"]
    worst = report.isel(quantity=np.lexsort((-report.chi2_per_dof, report.p_adjusted))[0])
    offset, width = worst["offset"].item(), worst["width"].item()
    faults = []
    if abs(offset) > 3 / math.sqrt(num):
        side = "high" if offset > 0 else "low"
        faults.append(f"too {side} by {abs(offset):.2g} posterior standard deviations")
    if abs(math.log(width)) > 3 / math.sqrt(2 * num):  # False for NaN
        side = "narrow" if width < 1 else "wide"
        faults.append(f"too {side}, {width:.2f} times the width that the truth needs")
    return (
        f"{failed} of {report.sizes['quantity']} quantities fail, '{worst.quantity.item()}' most "
        f"strongly ({_p(worst.p_adjusted.item())} after correction for "
        f"{report.attrs['num_tests']} tests, chi2/dof {worst.chi2_per_dof.item():.3g}): its draws "
        f"are {' and '.join(faults) or 'of the right place and width but the wrong shape'}"
    )


def _density(report: xr.Dataset, alpha: float) -> str | None:
    failed = report.density_p_adjusted <= alpha
    # The ranks have said the same of a quantity that they fail too.
    if not bool((failed & (report.p_adjusted > alpha)).any()):
        return None
    worst = report.isel(quantity=int(report.density_p_adjusted.values.argmin()))
    covered = worst.hpd_coverage.sel(level=0.9).item()
    return (
        f"the highest-density regions of {int(failed.sum())} of {report.sizes['quantity']} "
        f"quantities fail, '{worst.quantity.item()}' most strongly "
        f"({_p(worst.density_p_adjusted.item())}): those of 90 % hold {100 * covered:.3g} % of "
        "the truths"
    )


def _joint(report: xr.Dataset, alpha: float) -> str | None:
    if "tarp_p_adjusted" not in report or report.tarp_p_adjusted.item() > alpha:
        return None
    off = np.abs(report.tarp_set_coverage.values - report.position.values)
    where, at = np.unravel_index(int(off.argmax()), off.shape)
    found = report.tarp_set_coverage.values[where, at]
    return (
        f"the joint coverage (TARP) fails ({_p(report.tarp_p_adjusted.item())}): around "
        f"{report.tarp_kind.values[where]} reference points {found:.3f} instead of "
        f"{report.position.values[at]:.3f} of the truths lie inside"
    )


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value > 1e-99 else "p < 1e-99"
