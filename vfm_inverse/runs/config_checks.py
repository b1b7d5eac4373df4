"""The settings of a run held against the functions that take them, before anything begins."""

from __future__ import annotations

from vfm_inverse.calibration import calibrate
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.config import RunConfig, check_keys
from vfm_inverse.runtime.settings import check_settings
from vfm_inverse.training.loop import fit
from vfm_inverse.training.objective import Objective

__all__ = ["check_config"]


def check_config(config: RunConfig) -> None:
    """Refuse settings that nothing would read, or that are out of range, before anything begins.

    Raises:
        ValueError: the message names section and key.
    """
    check_keys("model", config.model, VariationalFlowMap.for_problem, reserved=["problem"])
    ours = ["vfm", "problem", "checkpoint_dir", "resume", "progress", "callbacks"]
    check_keys("fit", config.fit, fit, reserved=ours)
    ours = ["posterior_fn", "problem", "quantities", "seed", "provenance", "progress"]
    check_keys("calibration", config.calibration, calibrate, reserved=ours)
    for section in ("model", "fit", "calibration"):
        check_settings(section, getattr(config, section), section)
    if isinstance(terms := config.fit.get("objective"), dict):
        check_keys("fit.objective", terms, Objective, reserved=["vfm"])
        check_settings("objective", terms, "fit.objective")
