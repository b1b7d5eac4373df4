"""Checkpoints: tensors in safetensors, everything else as JSON in its header. Nothing is ever
unpickled, a sum over all of it shows a single flipped bit, and a header is held against the
tensors before it makes anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vfm_inverse.allocation import bounded_allocation
from vfm_inverse.calls import checked
from vfm_inverse.card import Card, fingerprint, physics_fingerprint, warn_unless_certified
from vfm_inverse.checks import resolve_device
from vfm_inverse.files import replacing
from vfm_inverse.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from vfm_inverse.posterior import VariationalFlowMap
    from vfm_inverse.problem import InverseProblem
    from vfm_inverse.whitening import Whitening

__all__ = ["load", "open_map", "read", "save", "write"]

FORMAT = 3
"""Version of the layout: 1 has a verdict where 2 has the calibration card, 3 has a checksum. All
are read, others are refused."""


def write(
    path: str | Path, tensors: Mapping[str, Tensor], kind: str, header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON header; a process killed in the middle leaves an old file as it
    was.

    Args:
        path: file to write or to replace.
        tensors: name to tensor.
        kind: what the file is, ``"model"`` or ``"training"``; :func:`read` asks for it.
        header: anything that JSON can hold.

    Raises:
        OSError: the file cannot be written; one of that name that was there stays as it was.
    """
    metadata = {"format": f"vfm_inverse/{FORMAT}", "kind": kind, "header": json.dumps(header)}
    own = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    metadata["sha256"] = checksum(metadata, own)
    try:
        with replacing(path) as temporary:
            save_file(own, temporary, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write '{path}': {error}") from error


def read(
    path: str | Path, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises:
        OSError: no such file, or it cannot be opened.
        ValueError: not a checkpoint of this package, of another version or kind, truncated or
            damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            known, _, number = metadata.get("format", "").partition("/")
            if known != "vfm_inverse":
                raise ValueError(
                    f"{path} is a safetensors file, but not a checkpoint of vfm_inverse"
                )
            if number not in map(str, range(1, FORMAT + 1)):
                raise ValueError(
                    f"{path} has checkpoint format {number}; this version of vfm_inverse reads "
                    f"formats up to {FORMAT}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file (truncated, or another format such as a "
            "pickle, which is never "
            f"opened): {error}"
        ) from error
    stored = metadata.pop("sha256", None)
    # A format of 3 may be a damaged 2 and the other way round: what has a sum is held to it.
    if (stored is not None or number == "3") and stored != checksum(metadata, tensors):
        raise ValueError(f"{path} is damaged: its content does not have the checksum it states")
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} must hold a {kind!r} checkpoint; got {metadata.get('kind')!r}")
    try:
        header = json.loads(metadata["header"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no readable header") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} must have a table for a header; got {type(header).__name__}")
    return {name: value.to(device) for name, value in tensors.items()}, header


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of metadata and tensors."""
    return fingerprint(json.dumps(dict(sorted(metadata.items()))), tensors)


@checked(vfm="VariationalFlowMap", path="path")
def save(vfm: VariationalFlowMap, path: str | Path) -> None:
    """Write a map: weights, whitening, Gaussian start, features, how to rebuild its problem, what
    came of its training, and its calibration card."""
    card = None if vfm.card is None else asdict(vfm.card)
    header = {"config": vfm.config, "card": card, "training": vfm.training_note}
    write(path, vfm.state_dict(), "model", header)


@checked("load", path="path", problem="InverseProblem")
def load(
    path: str | Path,
    problem: InverseProblem | None = None,
    device: str | torch.device = "cpu",
    whitening: Whitening | None = None,
    *,
    warn: bool = True,
) -> VariationalFlowMap:
    """Read a map that :meth:`VariationalFlowMap.save` wrote.

    Args:
        path: a ``model.safetensors``, or the folder of a run. A folder is trusted as code is: its
            settings say how the problem is made, and a module of yours that they name is imported.
            A file by itself has nothing imported.
        problem: the problem the map was trained for; needed for a file unless it came from
            ``problems.load``, and for a folder where its settings do not say how to make it.
        device: where to put it.
        whitening: one of the kind it was built with, if that was a class of your own.
        warn: whether to warn of a map that is uncertified or failed its calibration.

    Raises:
        OSError: no such file, or it cannot be opened.
        ValueError: not a readable checkpoint, or it does not fit the problem; the message names
            the file.

    Warns:
        CalibrationWarning: the map failed its calibration, or was not checked with these weights
            and this physics.
    """
    # Between the warning and the caller's line are two calls and the check of the arguments.
    if Path(path).is_dir():
        from vfm_inverse.recipes import open_folder

        return open_folder(path, problem, device, whitening, warn=warn, stacklevel=4)[0]
    return open_map(path, problem, device, whitening, warn=warn, stacklevel=4)[0]


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
    from vfm_inverse.build import rebuild

    device = resolve_device(device)
    tensors, header = read(path, "model", device)
    with naming(path):
        config, card = check_config(header), check_card(header)
        numbers = tensors["whitening.mean"].numel() if "whitening.mean" in tensors else 1
        with bounded_allocation(numbers):
            if problem is None:
                problem = problem_of(config)
            vfm = rebuild(problem.to(device), config, whitening)
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
        warn_unless_certified(vfm, name, stacklevel=stacklevel)
    return vfm, problem


def problem_of(config: Mapping[str, Any]) -> InverseProblem:
    """The problem of the package that a map's configuration names: no other is made from what a
    file says."""
    from vfm_inverse import problems

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
    from vfm_inverse.adapter import FAMILIES
    from vfm_inverse.posterior import OBSERVATION_MODES, PRECISIONS

    config = header.get("config")
    if not isinstance(config, dict):
        raise ValueError("its header has no table 'config'")
    names = {
        "adapter": (None, "contraction", *FAMILIES),
        "observation": OBSERVATION_MODES,
        "precision": PRECISIONS,
        "network": ("mlp", "u-net"),
    }
    for name, known in names.items():
        if (value := config.get(name, "single" if name == "precision" else "")) not in known:
            raise ValueError(f"'{name}' in its header must be one of {known}; got {value!r:.40}")
    whole = {"rank": Setting(int, 0, 2**31), **SETTINGS["model"]}
    for name in ("gaussian_start", "steps", "width", "depth", "rank"):
        if name not in config:
            raise ValueError(f"its header has no '{name}'")
        whole[name].check(name, config[name])
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
