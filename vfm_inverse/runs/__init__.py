"""A training run is a folder: what stands in it, and what can be done with it.

The names are imported when they are first used, so that ``inspect`` does not wait for torch.
"""

from typing import Any

from vfm_inverse.runtime.lazy import lookup

__all__ = [
    "CALIBRATION",
    "CORRECTED",
    "PRIOR",
    "REPORT",
    "calibrate_run",
    "check_output",
    "check_resume",
    "open_calibration",
    "open_run",
    "report_run",
    "size_of_check",
]


def __getattr__(name: str) -> Any:
    return lookup(__name__, dict.fromkeys(__all__, "vfm_inverse.runs.folder"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
