"""Reproducible inverse problems, by name: ``load("linear-gaussian", dim=8)``."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import Any

from vfm_inverse.problem import InverseProblem

__all__ = ["available", "load"]

# name: (module, one line). A module is imported when its problem is loaded.
_PROBLEMS = {
    "linear-gaussian": (
        "linear_gaussian",
        "vectors with a correlated Gaussian prior, linear data; exact posterior",
    ),
    "rotated-gaussian": (
        "rotated_gaussian",
        "2-D, one datum at 36 degrees: the posterior is a thin diagonal ellipse; exact posterior",
    ),
    "gaussian-field": (
        "gaussian_field",
        "Matérn field on a grid, seen at random stations; exact posterior",
    ),
    "lognormal-field": (
        "lognormal_field",
        "exponential of a Matérn field, seen at random stations",
    ),
    "checkerboard": (
        "checkerboard",
        "2-D checkerboard, one noisy coordinate seen; exact multimodal posterior",
    ),
    "darcy": (
        "darcy",
        "log-permeability of steady Darcy flow, from the pressure at sensors",
    ),
    "darcy-64": (
        "darcy_64",
        "64 log-coefficients of an elliptic equation (Aristoff and Bangerth 2023)",
    ),
    "travel-time-eikonal": (
        "travel_time_eikonal",
        "log-velocity between two boreholes, from first-arrival times",
    ),
    "lorenz96-window": (
        "lorenz96_window",
        "state of the Lorenz 1996 system, from every other site over a window of time",
    ),
    "photo-deblur": (
        "photo_deblur",
        "patches of photographs, Gaussian blur, noise of varying strength",
    ),
    "photo-inpaint": (
        "photo_inpaint",
        "patches of photographs, missing pixels and boxes, noise of varying strength",
    ),
}


def available() -> dict[str, str]:
    """Names of the problems, each with a one-line description."""
    return {name: description for name, (_, description) in _PROBLEMS.items()}


def load(name: str, **kwargs: Any) -> InverseProblem:
    """Build a problem by name.

    Args:
        name: one of ``available()``.
        kwargs: settings of the problem; see the ``make`` function of its module.

    Raises:
        ValueError: unknown name (the nearest is suggested) or unknown setting.
    """
    if name not in _PROBLEMS:
        near = difflib.get_close_matches(name, _PROBLEMS, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown problem '{name}'{hint} Available: {', '.join(_PROBLEMS)}")
    module = import_module(f"{__name__}.{_PROBLEMS[name][0]}")
    settings = list(inspect.signature(module.make).parameters)
    unknown = sorted(kwargs.keys() - settings)
    if unknown:
        raise ValueError(f"unknown setting {unknown} of problem '{name}'; it takes {settings}")
    problem: InverseProblem = module.make(**kwargs)
    problem.name, problem.kwargs = name, dict(kwargs)
    return problem
