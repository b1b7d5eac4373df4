"""What each test quantity and each variable of a report is, in a sentence and in its unit.

The names are those of :func:`vfm_inverse.statistics.quantities.default_quantities`. A quantity
that a user gave is known by the first line of its docstring, whatever it is called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr
from torch import Tensor

from vfm_inverse.statistics.quantities import Quantity, channel_units

__all__ = ["about", "describe", "family", "is_own", "unit_of", "with_long_names"]

MEANINGS = {
    "x": "one number of the vector, by its index",
    "pixel": "one element of the field, by its index",
    "mean": "mean over the whole field",
    "block_mean": "mean over one block of the field (halves of every axis, quarters of a line)",
    "max": "largest value of the field",
    "min": "smallest value of the field",
    "gradient_energy": "mean squared difference of neighbours: how rough the field is",
    "band_power": (
        "mean power of the field at wave numbers from 2^b to below 2^(b+1) cycles per field; the "
        "last band b holds all smaller scales"
    ),
    "norm": "Euclidean length of the whole vector",
    "distance": "Euclidean distance of the whole field from the mean of truth and draws",
    "log_likelihood": "log-likelihood of the observation: how well the field fits the data",
}

POWERS = {"gradient_energy": 2, "band_power": 2}
"""Powers of the field's unit."""


def family(name: str) -> str:
    """``"pixel"`` of ``"pixel[3,5]"``."""
    return name.partition("[")[0]


def about(quantities: Mapping[str, Quantity], truth: Tensor) -> dict[str, str]:
    """Attributes that tell a report what its quantities are.

    Args:
        quantities: by name.
        truth: ``(num, *event)``, whose channels have scales of their own or not.

    Returns:
        ``own_quantities``, the first lines of the docstrings of those that are not of this
        package, by name, in JSON; ``channels_scaled`` where default quantities of several
        channels have no unit in common. Each only where there is something to say.
    """
    own = {}
    for name, quantity in quantities.items():
        given: Any = quantity
        ours = str(getattr(given, "__module__", "")).startswith("vfm_inverse.")
        if not ours and name != "log_likelihood":
            words = (getattr(given, "__doc__", None) or "").strip().splitlines()
            own[name] = words[0].rstrip(".") if words else "given by the user"
    units = channel_units(truth)
    scaled = units is not None and bool((units.scale != 1).any())
    found = {"own_quantities": json.dumps(own)} if own else {}
    return found | ({"channels_scaled": "each by its own spread"} if scaled else {})


def is_own(report: xr.Dataset, name: str) -> bool:
    """Whether a quantity of a report was given by the user."""
    return name in json.loads(report.attrs.get("own_quantities", "{}"))


def describe(report: xr.Dataset, name: str) -> str:
    """What a quantity of a report is, in a phrase."""
    own: dict[str, str] = json.loads(report.attrs.get("own_quantities", "{}"))
    return own.get(name) or MEANINGS.get(family(name), "given by the user")


def unit_of(report: xr.Dataset, name: str) -> str:
    """Unit of a quantity of a report, ``""`` where it has none or it is not known."""
    kind, unit = family(name), str(report.crps.attrs.get("units", "1"))
    if is_own(report, name) or kind not in MEANINGS:
        return ""
    if kind == "log_likelihood":
        return "nat"
    # Where channels have scales of their own, what joins them has no unit.
    if unit == "1" or ("channels_scaled" in report.attrs and kind not in ("x", "pixel")):
        return ""
    if (power := POWERS.get(kind, 1)) == 1:
        return unit
    return f"({unit})^{power}" if " " in unit else f"{unit}^{power}"


def with_long_names(report: xr.Dataset, names: Mapping[str, str]) -> xr.Dataset:
    """The report itself, whose variables say what they are."""
    for name, text in names.items():
        if name in report:
            report[name].attrs["long_name"] = text
    return report
