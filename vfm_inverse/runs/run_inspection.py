"""What a checkpoint and the folder of a run are, from their headers.

Torch is needed for what only the problem and the map can tell: shapes, standing and speed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfm_inverse.formats.surveys import plain
from vfm_inverse.runtime.files import MODEL, STATE

__all__ = [
    "axis_labels",
    "of_checkpoint",
    "of_run",
    "parameters",
    "ranges",
]


def _header(path: Path) -> tuple[str, dict[str, Any], dict[str, list[int]]]:
    """Kind, header and shapes of a checkpoint; its numbers are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            names = list(file.keys())
            shapes = {name: list(file.get_slice(name).get_shape()) for name in names}
        if not said.get("format", "").startswith("vfm_inverse/"):
            raise ValueError(f"'{path}' is no checkpoint of vfm_inverse")
        header = json.loads(said["header"])
        return said["kind"], dict(header), shapes
    except SafetensorError as error:
        raise ValueError(f"'{path}' is not a readable safetensors file: {error}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path}' has no readable header") from error


def of_checkpoint(path: Path) -> dict[str, Any]:
    """What a trained map or the state of a training is.

    Raises:
        ValueError: it is no readable checkpoint of this package.
    """
    kind, header, shapes = _header(path)
    if kind == "training":
        return {"what": "state of a training", **_training(header, finished=None)}
    return {"what": "trained map", **_map(header, shapes), **_card(header)}


def of_run(folder: Path) -> dict[str, Any]:
    """What the folder of a run holds: problem, labels, map, training, card, cost and files.

    Raises:
        ValueError: a checkpoint in it cannot be read.
    """
    model, state = folder / MODEL, folder / STATE
    finished = model.is_file()
    what = "a trained run" if finished else "a run whose training is not finished"
    found: dict[str, Any] = {"what": what}
    if finished:
        _, header, shapes = _header(model)
        about = {**_map(header, shapes)}
        found["problem"] = about.pop("problem")
        measured, standing = _opened(folder)
        found |= {**measured, **about}
    if state.is_file():
        found |= _training(_header(state)[1], finished)
    elif not finished:
        found["training"] = "nothing was saved yet: with --resume it begins at step 0"
    if finished:
        found |= {**_card(header), **standing}
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    found["files"] = {file.name: f"{file.stat().st_size / 1e6:.3g} MB" for file in files}
    return found


def _opened(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Labels and speed of a run, and the standing of its map; why not, where it cannot be made."""
    from vfm_inverse.runs.folder import open_run
    from vfm_inverse.training.cost import cost_of_answers

    try:
        vfm, problem = open_run(folder, warn=False)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return {"cannot_be_opened": " ".join(str(error).split())[:300]}, {}
    found = {
        "physics": problem.describe_physics(),
        "field": axis_labels(problem.field_labels),
        "observation": axis_labels(problem.observation_labels),
        "parameters": parameters(problem),
    }
    _, y, params = problem.simulate(1, split="test", seed=0)
    first, draw = cost_of_answers(vfm, y, params)
    verdict, reason = vfm.standing()
    cost = f"an observation takes {1e3 * first:.2g} ms here, 1000 draws of it {1e3 * draw:.2g} s"
    return found, {"calibration": f"{verdict}: {reason}", "cost": cost}


def parameters(problem: Any) -> dict[str, str]:
    """Names and shapes of the parameters of a problem's observations."""
    shapes = problem.param_shapes.items()
    return {name: str(tuple(shape)) if shape else "(a number)" for name, shape in shapes}


def axis_labels(axes: Any) -> dict[str, Any]:
    """The labels of a field or of observations, an ``AxisLabels``."""
    from vfm_inverse.problem.labels import squeezed

    sizes = dict(zip(axes.dims, squeezed(axes.shape), strict=True))
    coords = {
        name: {
            "from": plain(variable.values.flat[0]),
            "to": plain(variable.values.flat[-1]),
            "units": variable.attrs.get("units"),
        }
        for name, variable in axes.coords.items()
        if variable.dims == (name,) and variable.size
    }
    about = {"sizes": sizes, "units": axes.units, "long_name": axes.long_name, "coords": coords}
    return {"name": axes.name, "shape": list(axes.shape), **about}


def _map(header: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    from vfm_inverse.posterior.card import told_of_prior

    config = header.get("config", {})
    problem = config.get("problem") or {}
    kwargs = ", ".join(f"{k}={v!r:.40}" for k, v in (problem.get("kwargs") or {}).items())
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kinds = ("network", "adapter", "observation", "whitening", "start", "steps", "exact")
    return {
        "problem": f"{problem.get('name') or 'of your own'}({kwargs})",
        "map": {
            "weights": sum(sizes.values()),
            **{key: config[key] for key in kinds if config.get(key) is not None},
            **({"prior": told} if (told := told_of_prior(config)) else {}),
        },
    }


def _training(header: Mapping[str, Any], finished: bool | None) -> dict[str, Any]:
    settings = header.get("settings") or {}
    step, steps = header.get("step"), settings.get("steps")
    told = f"{step} of {steps} steps" if isinstance(steps, int) else f"{step} steps"
    if finished or (finished is None and step == steps):
        kept = header.get("kept_step")
        told += f", the weights of step {kept} kept"
        if kept == 0:
            told += ": training gained nothing on the start"
    else:
        told += ": go on with the same 'vfm-inverse train' command and --resume"
    batch = settings.get("batch_size")
    note = header.get("summary")
    found = {"training": told + (f"; batches of {batch}" if batch else "")}
    if isinstance(note, Mapping) and isinstance(note.get("sentence"), str):
        found["training_says"] = note["sentence"]
    return found


def _card(header: Mapping[str, Any]) -> dict[str, Any]:
    card = header.get("card")
    if card is None:
        return {"calibration": "uncertified: its calibration was never checked"}
    from vfm_inverse.posterior.card import Card

    known = Card.from_json(json.dumps(card))
    figures = {
        k: v for k, v in known.figures.items() if k in ("coverage_90", "crps", "crps_skill")
    }
    return {
        "calibration": f"{known.verdict}: {known.reason}",
        "figures": figures | {"simulations": known.num_simulations, "draws": known.num_draws},
        "checked_range": ranges(known.valid_range),
    }


def ranges(valid: Mapping[str, Any]) -> dict[str, Any]:
    """The checked range of a card, by name."""
    return {name: {"from": low, "to": high} for name, (low, high) in valid.items()}
