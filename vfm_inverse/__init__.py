"""Calibrated posterior draws for inverse problems with variational flow maps.

The public names below are imported when they are first used (PEP 562), so that ``import
vfm_inverse`` and the command line's ``--help`` do not wait for torch and deepinv.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vfm_inverse.runtime.lazy import lookup
from vfm_inverse.runtime.version import __version__

if TYPE_CHECKING:
    from vfm_inverse import calibration, correction, operators, problems
    from vfm_inverse.flow.adapter import NoiseAdapter
    from vfm_inverse.flow.flow_map import FlowMap
    from vfm_inverse.labelled.arviz import to_arviz
    from vfm_inverse.labelled.write import summary, to_xarray
    from vfm_inverse.posterior.variational import VariationalFlowMap
    from vfm_inverse.problem.inverse_problem import InverseProblem
    from vfm_inverse.problem.likelihood import Likelihood
    from vfm_inverse.runs.loading import load
    from vfm_inverse.training.loop import fit

__all__ = [
    "FlowMap",
    "InverseProblem",
    "Likelihood",
    "NoiseAdapter",
    "VariationalFlowMap",
    "__version__",
    "calibration",
    "correction",
    "fit",
    "load",
    "operators",
    "problems",
    "summary",
    "to_arviz",
    "to_xarray",
]

_SUBMODULES = ("calibration", "correction", "operators", "problems")
_HOMES = {
    "FlowMap": "vfm_inverse.flow.flow_map",
    "InverseProblem": "vfm_inverse.problem",
    "Likelihood": "vfm_inverse.problem.likelihood",
    "NoiseAdapter": "vfm_inverse.flow.adapter",
    "VariationalFlowMap": "vfm_inverse.posterior.variational",
    "fit": "vfm_inverse.training",
    "load": "vfm_inverse.runs.loading",
    "summary": "vfm_inverse.labelled",
    "to_arviz": "vfm_inverse.labelled.arviz",
    "to_xarray": "vfm_inverse.labelled",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"vfm_inverse.{name}")
    globals()[name] = value = lookup(__name__, _HOMES, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
