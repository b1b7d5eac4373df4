"""Calibrated posterior draws for inverse problems with variational flow maps.

The public names below are imported when they are first used (PEP 562), so that ``import
vfm_inverse`` and the command line's ``--help`` do not wait for torch and deepinv.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm_inverse import calibration, correction, operators, problems
    from vfm_inverse.adapter import NoiseAdapter
    from vfm_inverse.checkpoint import load
    from vfm_inverse.flow_map import FlowMap
    from vfm_inverse.inference_data import to_arviz
    from vfm_inverse.labelled import summary, to_xarray
    from vfm_inverse.likelihood import Likelihood
    from vfm_inverse.posterior import VariationalFlowMap
    from vfm_inverse.problem import InverseProblem
    from vfm_inverse.training import fit

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

try:
    __version__ = version("vfm-inverse")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "FlowMap": "flow_map",
    "InverseProblem": "problem",
    "Likelihood": "likelihood",
    "NoiseAdapter": "adapter",
    "VariationalFlowMap": "posterior",
    "fit": "training",
    "load": "checkpoint",
    "summary": "labelled",
    "to_arviz": "inference_data",
    "to_xarray": "labelled",
}
_SUBMODULES = frozenset({"calibration", "correction", "operators", "problems"})


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"vfm_inverse.{name}")
    if name in _HOME:
        value = getattr(import_module(f"vfm_inverse.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vfm_inverse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
