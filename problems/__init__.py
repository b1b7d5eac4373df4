"""Reproducible inverse problems, by name: ``load("linear-gaussian", dim=8)``."""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from importlib import import_module
from typing import Any, get_type_hints

import numpy as np
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.calls import raised_here
from vfm_inverse.runtime.values import check_setting, shorten

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
    "heat": (
        "heat",
        "temperature of a plate some time ago, from thermometers; exact posterior",
    ),
    "advection-diffusion": (
        "advection_diffusion",
        "tracer stirred by a gyre, from gauges hours later; exact posterior",
    ),
    "travel-time": (
        "travel_time",
        "slowness between two boreholes, from straight rays; exact posterior",
    ),
    "gravity": (
        "gravity",
        "density of a buried layer, from its gravity anomaly; exact posterior",
    ),
    "seismic-deconvolution": (
        "seismic_deconvolution",
        "reflectivity from a seismic trace; exact posterior under the Gaussian prior",
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
    "fwi-small": (
        "fwi_small",
        "log-velocity between two boreholes, from whole seismograms",
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
    "ct": (
        "ct",
        "slice of a body, from its X-ray shadows at few angles",
    ),
    "mri": (
        "mri",
        "complex picture from a few lines of k-space, other ones in every scan",
    ),
    "two-moons": (
        "two_moons",
        "2-D, uniform prior: two thin crescents; exact posterior",
    ),
    "slcp": (
        "slcp",
        "5-D, uniform prior, mean and covariance of four points: four symmetric modes",
    ),
    "gaussian-mixture": (
        "gaussian_mixture",
        "2-D, uniform prior, noise of two widths; exact posterior",
    ),
    "gaussian-linear-uniform": (
        "gaussian_linear_uniform",
        "10-D, uniform prior, Gaussian noise: cut at the box; exact posterior",
    ),
    "bernoulli-glm": (
        "bernoulli_glm",
        "10-D, filter of a neuron from its spikes: log-concave",
    ),
    "mixture-linear": (
        "mixture_linear",
        "Gaussian-mixture prior, linear data, several modes; exact posterior",
    ),
    "student-t": (
        "student_t",
        "heavy-tailed prior in a rotated frame, linear data",
    ),
    "increments": (
        "increments",
        "signals with Laplace, Student or Cauchy increments, denoised or deconvolved",
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
    if not isinstance(name, str):
        raise TypeError(f"'name' must be the name of a problem; got {type(name).__name__}")
    if name not in _PROBLEMS:
        near = difflib.get_close_matches(name, _PROBLEMS, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"unknown problem '{name}'{hint} Available: {', '.join(_PROBLEMS)}")
    module = import_module(f"{__name__}.{_PROBLEMS[name][0]}")
    settings = list(inspect.signature(module.make).parameters)
    unknown = sorted(kwargs.keys() - settings)
    if unknown:
        raise ValueError(f"unknown setting {unknown} of problem '{name}'; it takes {settings}")
    # As a file can hold them: NumPy's numbers and arrays as Python's.
    plain = (np.generic, np.ndarray, Tensor)
    kwargs = {k: v.tolist() if isinstance(v, plain) else v for k, v in kwargs.items()}
    kinds = get_type_hints(module.make)
    checked = {key: check_setting(value, key, kinds[key]) for key, value in kwargs.items()}
    try:
        problem: InverseProblem = module.make(**checked)
    except (ImportError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, ValueError | TypeError | OSError) and raised_here(error):
            raise
        raise ValueError(
            f"problem '{name}' cannot be made with these settings: {type(error).__name__}: "
            f"{shorten(str(error))}"
        ) from error
    problem.name, problem.kwargs = name, checked
    problem.rebuild = partial(load, name, **checked)
    return problem
