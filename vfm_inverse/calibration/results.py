r"""From what was counted to a labelled report.

**Size of a misfit.**  With :math:`\zeta = \Phi^{-1}((r + 1/2)/(L + 1))`, standard normal for
uniform ranks, ``offset`` is :math:`-\bar\zeta` and ``width`` is :math:`1 / \mathrm{std}(\zeta)`:
for a Gaussian posterior, how many of its standard deviations the draws sit too high, and their
standard deviation over the right one.

**Skill** is :math:`1 - \bar s / \bar b` of score over baseline, whose standard error comes from
the residuals :math:`s_i - (\bar s / \bar b)\, b_i` of the same simulations; for the log score,
which has no zero, the gain :math:`\bar b - \bar s` in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from vfm_inverse.calibration.grading import grades
from vfm_inverse.calibration.local_map import local_map
from vfm_inverse.calibration.map_labels import MapLabels
from vfm_inverse.calibration.tally import LEVELS, OF_QUANTITIES, Tally
from vfm_inverse.calibration.verdict import state_verdict
from vfm_inverse.statistics import ranks, scores
from vfm_inverse.statistics.joint_coverage import Tarp
from vfm_inverse.statistics.meanings import with_long_names

__all__ = ["make_report"]

LONG_NAMES = {
    "ranks": "rank of the truth among the draws",
    "p_value": "exact p-value of the simultaneous ECDF test",
    "p_adjusted": "p-value after Bonferroni's correction over quantities and families of tests",
    "density_ranks": "rank of the truth's density among those of truth and draws; 0 is outermost",
    "density_p_value": "exact p-value of the simultaneous ECDF test of the density ranks",
    "density_p_adjusted": "p-value after correction over quantities and families of tests",
    "chi2_per_dof": "chi-square of binned ranks over its degrees of freedom",
    "chi2_p_value": "p-value of the chi-square test",
    "offset": "how many posterior standard deviations the draws sit too high",
    "width": "posterior standard deviation over the one the truth needs; NaN if out of sight",
    "ecdf_difference": "empirical minus uniform distribution of ranks",
    "ecdf_lower": "lower edge of the simultaneous band over positions and quantities",
    "ecdf_upper": "upper edge of the simultaneous band over positions and quantities",
    "histogram": "simulations with a rank in each bin",
    "coverage": "share of truths inside the central interval",
    "held": "share of truths inside the central intervals of all elements of the field",
    "held_error": "standard error of held, from the simulations",
    "hpd_coverage": "share of truths inside the highest-density region",
    "quantity_crps": "mean CRPS of each quantity",
    "quantity_truth": "mean of each quantity of the truths, in its own unit",
    "quantity_mean": "mean of each quantity of the draws, in its own unit",
    "quantity_std": "mean posterior standard deviation of each quantity, in its own unit",
    "grade": "whether an aspect of the posterior may be trusted: pass, borderline or fail",
    "grade_size": "how large the difference of draws and truths is",
    "crps": "CRPS, mean over the field",
    "energy_score": "energy score of the field",
    "score_value": "mean score",
    "score_error": "standard error of the mean score",
    "baseline_score": "mean score of the baseline on the same simulations",
    "skill": "one minus score over baseline; for the log score the gain in nats",
    "skill_error": "standard error of the skill from paired simulations",
    "untrained_score": "mean score of the map before its training, on the same simulations",
    "untrained_skill": "one minus score over that of the map before its training",
    "untrained_skill_error": "standard error of that skill from paired simulations",
    "spread_skill": "spread of the draws over the error of their mean; 1 when calibrated",
    "spread_skill_error": "standard error of the spread-skill ratio",
    "chi2_per_dof_map": "chi-square of binned ranks over its degrees of freedom",
    "coverage_map": "share of truths inside the central interval",
    "hpd_coverage_map": "share of truths inside the highest-density region",
    "crps_map": "mean CRPS",
    "bias_map": "mean of posterior mean minus truth",
    "skill_map": "root-mean-square error of the posterior mean",
    "spread_map": "root-mean-square posterior standard deviation, times sqrt(1 + 1/num_draws)",
    "spread_skill_map": "spread over error of the posterior mean; 1 when calibrated",
    "tarp_coverage": "TARP expected coverage at each credibility, mean over the reference sets",
    "tarp_lower": "lower edge of the pointwise 95 % bootstrap band of the TARP coverage",
    "tarp_upper": "upper edge of the pointwise 95 % bootstrap band of the TARP coverage",
    "tarp_sensitivity": "standard deviation of the TARP coverage over the reference sets",
    "tarp_set_coverage": "TARP expected coverage of each set of reference points",
    "tarp_set_p_value": "exact p-value of the simultaneous ECDF test of each set by itself",
    "tarp_p_value": "exact p-value of the joint coverage over all sets",
    "tarp_p_adjusted": "p-value of the joint coverage after correction over families of tests",
}


def make_report(
    tally: Tally,
    labels: MapLabels,
    alpha: float,
    attrs: Mapping[str, str | float | int],
) -> xr.Dataset:
    """Test what was kept, label it, and state the verdict.

    Args:
        tally: of at least two simulations.
        labels: of the field.
        alpha: probability with which a calibrated posterior may fail.
        attrs: attributes to add.
    """
    single = {name: value[tally.seen] for name, value in tally.single.items()}
    further = local_map(tally) if tally.local else None
    families = ["ranks", "density"]
    families += ["joint"] if tally.joint is not None else []
    families += ["local"] if further is not None else []
    parts = [
        _rank_tests(tally, single, alpha, len(families)),
        _quantities(tally, single),
        _each_simulation(single, labels),
        _maps(tally, labels),
        _spread_skill(single["spread"], single["skill"]),
        _scores(single),
    ]
    if tally.joint is not None:
        parts.append(_joint_coverage(tally.joint, alpha, len(families)))
    data: dict[str, Any] = {}
    coords: dict[str, Any] = dict(labels.coords)
    for part in parts:
        data |= part.data
        coords |= part.coords
    report = xr.Dataset(data, coords=coords)
    if further is not None:
        report = report.merge(further)
        adjusted = float(min(1.0, further["local_global_p_value"].item() * len(families)))
        report["local_global_p_adjusted"] = ((), adjusted)
    report.attrs = {
        "num_simulations": tally.done,
        "num_draws": tally.num_draws,
        "num_bins": tally.num_bins,
        "num_tests": len(tally.quantities) * 2 + len(families) - 2,
        "families": ", ".join(families),
        "alpha": alpha,
        "seed": tally.seed,
        **attrs,
    }
    report.attrs["verdict"], report.attrs["reason"] = state_verdict(report, alpha)
    aspects, marks, sizes = zip(*grades(report), strict=True)
    report = report.assign_coords(aspect=list(aspects))
    report["grade"], report["grade_size"] = ("aspect", list(marks)), ("aspect", list(sizes))
    return with_long_names(report, LONG_NAMES)


class _Part(NamedTuple):
    """Some variables of a report, and the coordinates that they bring."""

    data: Mapping[str, Any]
    coords: Mapping[str, Any] = {}


def _rank_tests(
    tally: Tally, single: Mapping[str, np.ndarray], alpha: float, families: int
) -> _Part:
    """Are the ranks of each quantity uniform, and if not, how do they lie?"""
    num, num_draws, tests = tally.done, tally.num_draws, len(tally.quantities) * families
    rank, density = single["ranks"], single["density_ranks"]
    positions, counts = ranks.ecdf_counts(rank, num_draws)
    p_value = ranks.ecdf_p_value(counts, positions, num)
    density_p = ranks.ecdf_p_value(ranks.ecdf_counts(density, num_draws)[1], positions, num)
    lower, upper = ranks.ecdf_band(positions, num, alpha / tests)
    bins = rank.astype(np.int64) * tally.num_bins // (num_draws + 1)
    histogram = np.stack([(bins == b).sum(0) for b in range(tally.num_bins)])
    chi2, chi2_p_value = ranks.chi2_test(histogram, num_draws)
    offset, width = _offset_and_width(rank, num_draws)
    data = {
        "ranks": (("simulation", "quantity"), rank),
        "p_value": ("quantity", p_value),
        "p_adjusted": ("quantity", np.minimum(p_value * tests, 1.0)),
        "density_ranks": (("simulation", "quantity"), density),
        "density_p_value": ("quantity", density_p),
        "density_p_adjusted": ("quantity", np.minimum(density_p * tests, 1.0)),
        "chi2_per_dof": ("quantity", chi2),
        "chi2_p_value": ("quantity", chi2_p_value),
        "offset": ("quantity", offset),
        "width": ("quantity", width),
        "ecdf_difference": (("quantity", "position"), (counts / num - positions[:, None]).T),
        "ecdf_lower": ("position", lower / num - positions),
        "ecdf_upper": ("position", upper / num - positions),
        "histogram": (("quantity", "bin"), histogram.T),
    }
    coords = {"quantity": list(tally.quantities), "level": list(LEVELS), "position": positions}
    return _Part(data, coords)


def _offset_and_width(rank: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Size of the misfit of ranks ``(num, quantities)``, as at the head of this module."""
    zeta = stats.norm.ppf((rank + 0.5) / (num_draws + 1))
    scale = stats.norm.ppf((np.arange(num_draws + 1) + 0.5) / (num_draws + 1)).std()
    # With most truths outside all draws the ranks tell the side and a bound, but no width.
    saturated = ((rank == 0) | (rank == num_draws)).mean(0) > 0.5
    width = np.where(saturated, np.nan, scale / zeta.std(0).clip(min=1e-3))
    return -zeta.mean(0) / scale, width


def _quantities(tally: Tally, single: Mapping[str, np.ndarray]) -> _Part:
    """How often regions hold the truth, and the means of each quantity in its own unit."""
    held = single["held"]
    return _Part(
        {
            "coverage": (
                ("quantity", "level"),
                tally.inside[:, single["ranks"]].mean(1).T,
            ),
            "held": ("level", held.mean(0)),
            "held_error": ("level", held.std(0, ddof=1) / np.sqrt(len(held))),
            "hpd_coverage": (
                ("quantity", "level"),
                tally.denser[:, single["density_ranks"]].mean(1).T,
            ),
            **{name: ("quantity", _mean(single[name])) for name in OF_QUANTITIES},
        }
    )


def _each_simulation(single: Mapping[str, np.ndarray], labels: MapLabels) -> _Part:
    score = scores.columns(single["scores"])
    return _Part(
        {
            "crps": ("simulation", score["crps"], labels.attrs),
            "energy_score": ("simulation", score["energy"], labels.attrs),
        }
    )


def _maps(tally: Tally, labels: MapLabels) -> _Part:
    """What each element of the field has to say; no verdict."""
    num, where, unit, shaped = tally.done, labels.dims, labels.attrs, labels.reshape
    sums = {name: total.value for name, total in tally.sums.items()}
    chi2, _ = ranks.chi2_test(sums["bins"], tally.num_draws)
    spread, skill = np.sqrt(sums["spread"] / num), np.sqrt(sums["skill"] / num)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(skill > 0, spread / skill, np.nan)
    return _Part(
        {
            "chi2_per_dof_map": (where, shaped(chi2)),
            "coverage_map": (("level", *where), shaped(sums["coverage"] / num)),
            "hpd_coverage_map": (("level", *where), shaped(sums["hpd_coverage"] / num)),
            "crps_map": (where, shaped(sums["crps"] / num), unit),
            "bias_map": (where, shaped(sums["bias"] / num), unit),
            "skill_map": (where, shaped(skill), unit),
            "spread_map": (where, shaped(spread), unit),
            "spread_skill_map": (where, shaped(ratio)),
        }
    )


def _scores(single: Mapping[str, np.ndarray]) -> _Part:
    """Scores that the posterior has, and skill against baseline and map before its training."""
    values = single["scores"]
    kept = ~np.isnan(values).any(0)
    names, values = np.array(scores.SCORES)[kept], values[:, kept]
    data = _score_table(values, single["baseline"][:, kept], names)
    start = single["untrained"][:, kept]
    if not np.isnan(start).all():
        table = _score_table(values, start, names)
        data["untrained_score"] = table["baseline_score"]
        data |= {f"untrained_{name}": table[name] for name in ("skill", "skill_error")}
    return _Part(data, {"score": names})


def _joint_coverage(joint: Tarp, alpha: float, families: int) -> _Part:
    found = joint.result(alpha=alpha)
    p_value = found.attrs["p_value"]
    data = {
        "tarp_coverage": ("position", found.mean_coverage.values),
        "tarp_lower": ("position", found.band_lower.values),
        "tarp_upper": ("position", found.band_upper.values),
        "tarp_sensitivity": ("position", found.sensitivity.values),
        "tarp_set_coverage": (("tarp_set", "position"), found.expected_coverage.values),
        "tarp_set_p_value": ("tarp_set", found.set_p_value.values),
        "tarp_p_value": ((), p_value),
        "tarp_p_adjusted": ((), min(1.0, p_value * families)),
    }
    return _Part(data, {"tarp_kind": ("tarp_set", found.kind.values.astype(str))})


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over simulations; NaN where infinities of both signs meet."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values.mean(0))


def _score_table(values: np.ndarray, baseline: np.ndarray, names: np.ndarray) -> dict[str, Any]:
    """Means, standard errors and skill of ``(num, scores)``."""
    root = np.sqrt(len(values))
    mean, other = values.mean(0), baseline.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = mean / other
        residual = (values - ratio * baseline).std(0, ddof=1) / root / np.abs(other)
    gain, gain_error = other - mean, (baseline - values).std(0, ddof=1) / root
    log = names == "log_score"
    return {
        "score_value": ("score", mean),
        "score_error": ("score", values.std(0, ddof=1) / root),
        "baseline_score": ("score", other),
        "skill": ("score", np.where(log, gain, 1 - ratio)),
        "skill_error": ("score", np.where(log, gain_error, residual)),
    }


def _spread_skill(spread: np.ndarray, skill: np.ndarray) -> _Part:
    """Root of mean variance over mean squared error, and its standard error (delta method)."""
    if not 0 < skill.mean() < np.inf:
        return _Part({"spread_skill": ((), np.nan), "spread_skill_error": ((), np.nan)})
    square = spread.mean() / skill.mean()
    error = (spread - square * skill).std(ddof=1) / np.sqrt(len(skill)) / skill.mean()
    error = error / (2 * np.sqrt(square)) if square > 0 else np.nan
    return _Part({"spread_skill": ((), np.sqrt(square)), "spread_skill_error": ((), error)})
