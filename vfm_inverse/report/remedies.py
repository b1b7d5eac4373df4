"""What a failed calibration shows, and what helps: correct, train, or take a richer family.

Three things can be done about draws that are wrong.  The *ladder* of
:mod:`vfm_inverse.correction` mends the draws of the observation at hand and leaves the map as it
is; its rungs are importance weights (``psis``), tempered particles (``smc``) and Markov chains
(``mcmc``), each dearer and surer than the one before.  *Training* mends the map, where its family
can hold the posterior.  A *richer family* is needed where it cannot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

__all__ = ["Remedy", "remedies"]


class Remedy(NamedTuple):
    """A fault and what helps.

    Attributes:
        fault: what is wrong, in a few words.
        evidence: the figures that show it.
        ladder, train, family: what each of the three ways does about it.
    """

    fault: str
    evidence: str
    ladder: str
    train: str
    family: str


WAYS = {
    "narrow": (
        "Draws too narrow",
        "Weights cannot reach what the draws leave out: start at 'smc', which widens them step by "
        "step. Without a likelihood, correction.temperature and correction.conformal widen them "
        "by what held-out simulations ask for.",
        "Give the term 'forward' weight: the reverse term alone seeks a mode. Train longer if the "
        "loss still falls.",
        "'full', 'mixture' or 'spline', and observation=\"both\" for a map that sees the data.",
    ),
    "wide": (
        "Draws too wide",
        "The easiest case for weights: 'psis' thins wide draws; go on to 'smc' where its k-hat is "
        "above 0.7.",
        "Train longer: width is what is learned last.",
        "A family too poor for the forward term covers the posterior and more: take 'full' or "
        "'spline', or observation=\"both\".",
    ),
    "place": (
        "Draws in the wrong place",
        "'psis' if they are off by less than about half a standard deviation, 'smc' or 'mcmc' "
        "beyond.",
        'Train longer, and compare split="train": if that passes, the prior samples are too '
        "few. Compare steps=2 and 4 of the map with 1.",
        "Not the family's fault as a rule.",
    ),
    "likelihood": (
        "Draws that do not fit the data",
        "'psis' uses exactly what is missing here, the likelihood; see its k-hat.",
        "See that sigma, mask and the other parameters reach the map and have the range of the "
        "simulations, then train longer.",
        'observation="both" lets the data into map and adapter.',
    ),
    "joint": (
        "Right one by one and wrong together",
        "'psis' weighs draws as a whole and mends what single intervals cannot show.",
        "Train longer; a correlation is learned after the widths.",
        "'diagonal' has no correlations in noise space: take 'full', 'low-rank' or 'spline'.",
    ),
    "local": (
        "Right on average and wrong for some observations",
        "Ask at the observation at hand (calibration of it, correction.ksd), and let "
        "correction.auto climb for it.",
        "More simulations like the observations that fail, or longer training.",
        'An encoder with more width; observation="both".',
    ),
    "shape": (
        "Right place and width, wrong shape",
        "'psis' mends a shape whose tails the draws reach; 'mcmc' finds modes' weights only where "
        "chains cross between them.",
        "More steps of the map (steps=2, 4) bend more.",
        "'mixture' for several modes, 'spline' for bent ones.",
    ),
}


def remedies(report: xr.Dataset) -> list[Remedy]:
    """What helps against the faults of a report, the most common fault first; none for a pass.

    Args:
        report: from ``calibration.calibrate`` or ``from_draws``.
    """
    if report.attrs["verdict"] != "fail":
        return []
    alpha, num = report.attrs["alpha"], report.attrs["num_simulations"]
    failing = report.p_adjusted <= alpha
    if "density_p_adjusted" in report:
        failing |= report.density_p_adjusted <= alpha
    bad = report.isel(quantity=np.flatnonzero(failing))
    plain = bad.isel(quantity=np.flatnonzero(bad.quantity != "log_likelihood"))
    count, log_width = report.sizes["quantity"], np.log(plain["width"].values)
    offset = plain["offset"].values
    far = np.abs(offset) > 3 / np.sqrt(num)
    found: list[tuple[float, str, str]] = []
    for name, which in {
        "narrow": log_width < -3 / np.sqrt(2 * num),
        "wide": log_width > 3 / np.sqrt(2 * num),
    }.items():
        if which.any():
            width = np.exp(np.median(log_width[which]))
            text = f"{which.sum()} of {count} quantities, {width:.2f} times the right width"
            found.append((which.sum(), name, text))
    if far.any():
        text = f"{far.sum()} of {count} quantities, off by up to "
        text += f"{np.abs(offset[far]).max():.2g} posterior standard deviations"
        found.append((far.sum(), "place", text))
    if bad.sizes["quantity"] > plain.sizes["quantity"]:
        found.append((1, "likelihood", "the rank of the log-likelihood"))
    # What single quantities show, the whole field shows too.
    tarp = report.get("tarp_p_adjusted")
    if not found and tarp is not None and float(tarp) <= alpha:
        found.append((1, "joint", f"TARP, p = {float(tarp):.2g}, while no quantity fails"))
    if "local_global_p_adjusted" in report and float(report.local_global_p_adjusted) <= alpha:
        text = f"local test, p = {float(report.local_global_p_adjusted):.2g}"
        found.append((0.4, "local", text))
    if not found:
        found.append((1, "shape", f"{bad.sizes['quantity']} of {count} quantities"))
    return [
        Remedy(WAYS[name][0], evidence, *WAYS[name][1:])
        for _, name, evidence in sorted(found, key=lambda one: -one[0])
    ]
