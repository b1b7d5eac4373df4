"""The map of a checkpoint (:mod:`vfm_inverse.runtime.storage`), whose header is held against the
tensors before it makes anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vfm_inverse import problems
from vfm_inverse.flow.adapter import FAMILIES
from vfm_inverse.gaussian.choose_start import STARTS
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.posterior.answer import OBSERVATION_MODES, PRECISIONS
from vfm_inverse.posterior.card import Card
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import physics_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.allocation import bounded_allocation
from vfm_inverse.runtime.settings import SETTINGS, Setting
from vfm_inverse.runtime.storage import read
from vfm_inverse.runtime.values import resolve_device

__all__ = ["open_map"]


def open_map(
    path: str | Path,
    problem: InverseProblem | None = None,
    device: str | torch.device = "cpu",
    whitening: Whitening | None = None,
    *,
    warn: bool = True,
    stacklevel: int = 2,
) -> tuple[VariationalFlowMap, InverseProblem]:
    """The map as :func:`load` gives it, and its problem; ``stacklevel`` says whose line a warning
    names, as in :func:`warnings.warn`."""
    device = resolve_device(device)
    tensors, header = read(path, "model", device)
    with naming(path):
        config, card = check_config(header), check_card(header)
        numbers = tensors["whitening.mean"].numel() if "whitening.mean" in tensors else 1
        with bounded_allocation(numbers):
            if problem is None:
                problem = problem_of(config)
            vfm = VariationalFlowMap.from_config(problem.to(device), config, whitening)
        try:
            vfm.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"it does not fit the problem: {error}") from error
    vfm.training_note = note if isinstance(note := header.get("training"), str) else None
    # A verdict of format 1 does not say of which weights it is.
    if card is not None and card.physics_sha256 == physics_fingerprint(problem):
        vfm.card = card
    if warn:
        other = card is not None and vfm.card is None
        name = f"'{path}'" + " (certified for another physics)" * other
        vfm.warn_unless_certified(name, stacklevel=stacklevel)
    return vfm, problem


def problem_of(config: Mapping[str, Any]) -> InverseProblem:
    """The problem of the package that a map's configuration names: no other is made from what a
    file says."""
    name, own = config["problem"]["name"], "recipe" in config["problem"]
    if own or name not in problems.available():
        called = "" if name is None else f" ({name})"
        raise ValueError(
            f"it was trained on a problem of your own{called}; pass it as 'problem' ('--problem "
            "module:object'), or load the folder of its run, if you trust it as you trust code"
        )
    problem: InverseProblem = problems.load(name, **config["problem"]["kwargs"])
    return problem


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Whatever a header that fits nothing makes of the block is an error with the file's name."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"'{path}' cannot be loaded: {text[:400]}") from error


def check_config(header: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a map: every entry of its kind, in its range.

    Raises:
        ValueError: an entry is missing or is none.
    """
    config = header.get("config")
    if not isinstance(config, dict):
        raise ValueError("its header has no table 'config'")
    names = {
        "adapter": (None, *FAMILIES),
        "observation": OBSERVATION_MODES,
        "precision": PRECISIONS,
        "network": ("mlp", "u-net"),
        "exact": (False, "auto"),
    }
    earlier = {"precision": "single", "exact": False}
    for name, known in names.items():
        if (value := config.get(name, earlier.get(name, ""))) not in known:
            raise ValueError(f"'{name}' in its header must be one of {known}; got {value!r:.40}")
    if (start := config.get("start")) not in (None, *STARTS):
        known = (None, *STARTS)
        raise ValueError(f"'start' in its header must be one of {known}; got {start!r:.40}")
    whole = {"rank": Setting(int, 0, 2**31), **SETTINGS["model"]}
    for name in ("gaussian_start", "steps", "width", "depth", "rank"):
        if name not in config:
            raise ValueError(f"its header has no '{name}'")
        whole[name].check(name, config[name])
    if not isinstance(sweeps := config.get("sweeps", 0), int) or not 0 <= sweeps < 2**31:
        raise ValueError(f"'sweeps' in its header must be a number of sweeps; got {sweeps!r:.40}")
    if not isinstance(config.get("whitening"), str | None):
        raise ValueError("'whitening' in its header must be a name or null")
    problem = config.get("problem")
    if not isinstance(problem, dict) or not isinstance(problem.get("name", 0), str | None):
        raise ValueError("'problem' in its header must be a table with a 'name'")
    if not isinstance(problem.get("kwargs"), dict):
        raise ValueError("'kwargs' of the problem in its header must be a table")
    return config


def check_card(header: Mapping[str, Any]) -> Card | None:
    """The card of a map, or None where there is none."""
    card = header.get("card")
    return None if card is None else Card.from_json(json.dumps(card))
