"""What a run, a data file or a settings file is, in about ten lines; nothing is written.

Data files are read without torch. The folder of a run is trusted as code is: to tell its shapes
its problem is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from vfm_inverse.formats.surveys import (
    column_of,
    fields,
    is_store,
    is_table,
    labels,
    opened,
    plain,
    range_of,
    sample_dim,
    survey,
)
from vfm_inverse.formats.table_columns import is_place
from vfm_inverse.runs.run_inspection import (
    axis_labels,
    of_checkpoint,
    of_run,
    parameters,
    ranges,
)
from vfm_inverse.runtime.files import CONFIG, MODEL, STATE

__all__ = ["in_lines", "inspect_path"]

FEW = 8
"""Columns of a table, and variables of a file, that are told."""


def inspect_path(path: str | Path) -> dict[str, Any]:
    """What stands at a path.

    Args:
        path: folder of a run, netCDF file, zarr store, CSV table, checkpoint or settings file.

    Returns:
        ``what`` it is and further entries by subject, of types that JSON knows.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it cannot be read, is of none of these kinds, or a setting in it is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no '{path}'")
    if path.suffix.lower() == ".toml":
        return _of_settings(path)
    if path.suffix.lower() == ".safetensors":
        return of_checkpoint(path)
    if path.is_dir() and any((path / name).is_file() for name in (MODEL, STATE, CONFIG)):
        return of_run(path)
    if path.is_dir() and not is_store(path):
        raise ValueError(
            f"'{path}' is a folder that holds no run ({MODEL}, {STATE} or {CONFIG}) and is no "
            "zarr store"
        )
    with opened(path) as data:
        return _of_data(data)


def in_lines(path: str | Path, found: Mapping[str, Any]) -> list[str]:
    """The lines that tell people what :func:`inspect_path` found."""
    told = {key: words(value) for key, value in found.items() if key != "what"}
    told = {key: value for key, value in told.items() if value}
    width = max(map(len, told), default=0) + 2
    return [f"{path}: {found['what']}"] + [
        f"{key.replace('_', ' '):{width}}{value}" for key, value in told.items()
    ]


def words(value: Any) -> str:
    """A value of :func:`inspect_path` as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if "sizes" in value:
            return _labels_in_words(value)
        if value.keys() >= {"from", "to"}:
            unit = f" {value['units']}" if value.get("units") not in (None, "1") else ""
            return f"{words(value['from'])} to {words(value['to'])}{unit}"
        told = {key: words(item) for key, item in value.items()}
        return ", ".join(f"{key} {text}" for key, text in told.items() if text)
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    return str(value)


def _labels_in_words(value: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{dim} {size}" for dim, size in value["sizes"].items()) or "one number"
    parts = [value.get("name"), f"({sizes})", value.get("long_name"), _units(value)]
    text = " ".join(part for part in parts if part)
    if value.get("coords"):
        text += "; " + words(value["coords"])
    if value.get("std") is not None:
        low, high = words(value["minimum"]), words(value["maximum"])
        text += f"; values {low} to {high}, mean {words(value['mean'])}, std {words(value['std'])}"
    return text


def _units(value: Mapping[str, Any]) -> str:
    return f"[{value['units']}]" if value.get("units") else ""


# Data ---------------------------------------------------------------------------------------


def _of_data(data: xr.Dataset) -> dict[str, Any]:
    ours = "vfm_inverse_version" in data.attrs
    if {"ranks", "coverage_map"} <= set(map(str, data.variables)):
        return _of_calibration(data)
    if ours and ("draw" in data.dims or {"mean", "std", "quantiles"} <= set(data.data_vars)):
        return _of_posterior(data)
    if "observed" in data:
        return _of_observation(data)
    if is_table(data):
        return _of_table(data)
    return _of_fields(data)


def _of_calibration(data: xr.Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {"what": "calibration of a map"}
    found |= {key: plain(data.attrs[key]) for key in ("verdict", "reason") if key in data.attrs}
    given = {k: plain(data.attrs[k]) for k in ("num_simulations", "num_draws") if k in data.attrs}
    card = data.attrs.get("calibration_card")
    return {**found, "checked_with": given, **_card_text(card, "problem")}


def _of_posterior(data: xr.Dataset) -> dict[str, Any]:
    drawn = [n for n, v in data.data_vars.items() if "draw" in v.dims and n != "weight"]
    found: dict[str, Any] = {"what": "posterior " + ("draws" if drawn else "summary")}
    found["problem"] = data.attrs.get("problem")
    found["physics"] = data.attrs.get("physics")
    for name in (*drawn, *(n for n in ("mean", "std", "quantiles") if n in data)):
        about = labels(data[name])
        found[str(name)] = about if name in (*drawn, "mean") else about | {"coords": {}}
    if "quantile" in data:
        found["levels"] = [plain(level) for level in data["quantile"].values]
    if "num_draws" in data.attrs:
        found["draws"] = plain(data.attrs["num_draws"])
    if "note" in data:
        found["correction"] = sorted({str(note)[:80] for note in data["note"].values.flat})[:3]
    if "observed" in data:
        found["observed"] = labels(data["observed"])
    return {**found, **_provenance(data), **_card_text(data.attrs.get("calibration_card"))}


def _of_observation(data: xr.Dataset) -> dict[str, Any]:
    about = survey(data["observed"])
    found: dict[str, Any] = {"what": "observations", "observed": about}
    missing, size = about["missing"], data["observed"].size
    found["not_observed"] = f"{missing} of {size} data (NaN)" if missing else None
    params = [str(n) for n in data.variables if str(n).startswith("param_") or n == "error_std"]
    found |= {name: labels(data[name]) for name in params}
    return {**found, "problem": data.attrs.get("problem"), **_provenance(data)}


def _of_table(data: xr.Dataset) -> dict[str, Any]:
    (dim,) = data.dims
    value, error = column_of(data, "value"), column_of(data, "error")
    found: dict[str, Any] = {"what": f"table of {data.sizes[dim]} stations"}
    for name in list(map(str, data.variables))[:FEW]:
        column = data[name]
        if column.ndim == 0:
            continue
        low, high = range_of(column.values)
        missing = int(column.isnull().sum())
        role = {value: "the values", error: "standard deviation of the error"}.get(name)
        role = "place" if is_place(name) else role
        units = column.attrs.get("units")
        about = [f"{words(low)} to {words(high)}", units, role and f"({role})"]
        about.append(f"{missing} missing" if missing else None)
        found[f"column {name}"] = " ".join(text for text in about if text)
    if value is None:
        found["values"] = "no column is called 'value' or alone left: name the prior's variable"
    if error is None:
        found["errors"] = "no column is called 'sigma', 'std', 'error' or 'error_std'"
    return found


def _of_fields(data: xr.Dataset) -> dict[str, Any]:
    names = fields(data)
    if not names:
        kinds = {str(name): str(v.dtype) for name, v in list(data.variables.items())[:FEW]}
        return {"what": "data without fields of numbers", "variables": kinds}
    found: dict[str, Any] = {}
    dims = {name: sample_dim(data[name]) for name in names}
    counted = {dim for dim in dims.values() if dim is not None}
    if counted:
        found["what"] = "fields, which may be the samples of a prior"
    else:
        found["what"] = "fields, of which no dimension is known to count samples"
    for name in names[:FEW]:
        found[name] = survey(data[name], dims[name])
    first = names[0]
    sample = dims[first]
    if sample is None:
        found["samples"] = "name the dimension that counts them: sample = one of " + ", ".join(
            map(str, data[first].dims)
        )
        return found
    about, count = found[first], data[first].sizes[sample]
    numel = data[first].size // max(1, count)
    found["samples"] = f"{count} along '{sample}', each of {numel} numbers"
    if about["missing"]:
        read = "" if about["looked_at"] == count else f" of the {about['looked_at']} looked at"
        found["missing"] = (
            f"{about['missing']} numbers{read} are NaN; a prior has none: fill them, or leave out "
            "the places"
        )
    found["memory"] = f"{4 * data[first].size / 1e6:.4g} MB in single precision"
    return found


def _provenance(data: xr.Dataset) -> dict[str, Any]:
    said = data.attrs
    found: dict[str, Any] = {}
    if "vfm_inverse_version" in said:
        found["written_by"] = f"vfm_inverse {said['vfm_inverse_version']}"
    if "seed" in said:
        found["seed"] = plain(said["seed"])
    if "calibration_verdict" in said:
        reason = said.get("calibration_reason")
        found["calibration"] = ": ".join(filter(None, (said["calibration_verdict"], reason)))
    return found


def _card_text(card: Any, *further: str) -> dict[str, Any]:
    if not isinstance(card, str):
        return {}
    from vfm_inverse.posterior.card import Card

    known = Card.from_json(card)
    told = {name: getattr(known, name) for name in further}
    return {**told, "checked_range": ranges(known.valid_range)}


# Settings -----------------------------------------------------------------------------------


def _of_settings(path: Path) -> dict[str, Any]:
    from vfm_inverse.runs.config_checks import check_config
    from vfm_inverse.runs.recipes import make_problem
    from vfm_inverse.runtime.config import read_config, recipe_of

    config = read_config(path)
    check_config(config)
    problem = make_problem(recipe_of(str(path)))
    found: dict[str, Any] = {
        "what": "settings of a run",
        "problem": problem.name or "a problem of your own",
        "physics": problem.describe_physics(),
        "field": axis_labels(problem.field_labels),
        "observation": axis_labels(problem.observation_labels),
        "parameters": parameters(problem),
    }
    for section in ("model", "fit", "calibration"):
        found[section] = getattr(config, section)
    return found
