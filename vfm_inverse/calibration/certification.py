"""A map is given the card of its calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration.grading import grades
from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.posterior.card import Card
from vfm_inverse.posterior.validity import FALSE_ALARM
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import data_fingerprint, physics_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.version import __version__

__all__ = [
    "certify",
]


FRAMES, FRAME_DRAWS = 64, 64
"""Simulations, and draws for each, on which frames are looked at."""

SIMULATIONS = 1000
"""Fewest simulations that the edge of the range is fitted on."""


def certify(vfm: VariationalFlowMap, problem: InverseProblem, report: xr.Dataset) -> Card:
    """Give a map the card of its calibration, and the range that was checked.

    The observations of the check are simulated once more from its seed (or more of them, up to
    :data:`SIMULATIONS`, where it had fewer), for the edge of the range; no draws are made.

    Args:
        vfm: the map, with the weights that were checked; its ``card`` and ``range`` are set.
        problem: of the check.
        report: what :func:`vfm_inverse.calibration.calibrate` returned for the two.

    Raises:
        ValueError: ``report`` is no calibration by simulations, or of other weights.
    """
    attrs = report.attrs
    if missing := [name for name in ("verdict", "seed", "split") if name not in attrs]:
        raise ValueError(
            f"'report' must come from calibration.calibrate; its attributes lack {missing}"
        )
    weights = vfm.weights_fingerprint()
    if attrs.get("weights_sha256", weights) != weights:
        raise ValueError("'report' must be of this map; it is of one with other weights")
    num, seed, split = int(attrs["num_simulations"]), int(attrs["seed"]), attrs["split"]
    x, y, params = problem.simulate(max(num, SIMULATIONS), split=split, seed=seed)
    vfm.range.fit_edge(y, params)
    # Another check of the same weights leaves what is known of their corrected draws.
    earlier = vfm.card if vfm.card and vfm.card.weights_sha256 == weights else None
    vfm.card = Card(
        verdict=str(attrs["verdict"]),
        reason=str(attrs["reason"]),
        figures=main_figures(report) | frame_figures(vfm, x, y, params),
        num_simulations=num,
        num_draws=int(attrs["num_draws"]),
        alpha=float(attrs["alpha"]),
        seed=seed,
        split=str(split),
        problem=problem.name or "",
        physics=problem.describe_physics(),
        physics_sha256=physics_fingerprint(problem),
        data_sha256=data_fingerprint(problem),
        weights_sha256=weights,
        valid_range={
            name: [float(value.min()), float(value.max())]
            for name, value in {"y": y, **params}.items()
        },
        false_alarm=FALSE_ALARM,
        version=__version__,
        corrected=None if earlier is None else earlier.corrected,
        training=vfm.training_note or "",
        grades=[list(one) for one in grades(report)],
        draws=str(attrs.get("draws", "")),
    )
    return vfm.card


@torch.no_grad()
def frame_figures(
    vfm: VariationalFlowMap, x: Tensor, y: Tensor, params: Mapping[str, Tensor]
) -> dict[str, float]:
    """Of the frames with the physics in them, on the first of some simulations: the mean squared
    coordinate of the truths, 1 where the frames are right, and the share of draws that do not
    solve their equation; none for other maps."""
    if not isinstance(vfm.start, FrameStart):
        return {}
    rows = slice(FRAMES)
    q = vfm.start(y[rows], rows_of(params, rows))
    with seeded(0):
        zeta = q.standard().sample(torch.Size([FRAME_DRAWS]))
    health = q.standardize(vfm.whitening.whiten(x[rows])).square().mean()
    return {"frame_health": float(health), "unsolved_draws": float(q.unsolved(zeta).mean())}


def main_figures(report: xr.Dataset) -> dict[str, float]:
    """The figures of a calibration that a card keeps."""
    figures = {
        "smallest_p": report.p_adjusted.min(),
        "coverage_50": report.coverage_map.sel(level=0.5).mean(),
        "coverage_90": report.coverage_map.sel(level=0.9).mean(),
        "crps": report.crps.mean(),
        "energy_score": report.energy_score.mean(),
    }
    error = (report.skill_map**2).mean()
    if error > 0:  # else nothing varies
        figures["spread_over_error"] = ((report.spread_map**2).mean() / error) ** 0.5
    if "tarp_p_adjusted" in report:
        figures["joint_p"] = report.tarp_p_adjusted
    if "skill" in report and np.isfinite(report.skill.sel(score="crps")):
        figures["crps_skill"] = report.skill.sel(score="crps")
    return {name: float(value) for name, value in figures.items()}
