"""Checkpoints: tensors in safetensors, everything else as JSON in its header. Nothing is ever
unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vfm_inverse.card import Card, physics_fingerprint, warn_unless_certified
from vfm_inverse.files import replacing

if TYPE_CHECKING:
    from vfm_inverse.posterior import VariationalFlowMap
    from vfm_inverse.problem import InverseProblem
    from vfm_inverse.whitening import Whitening

__all__ = ["load", "read", "save", "write"]

FORMAT = 2
"""Version of the layout: 1 has a verdict where 2 has the calibration card. Both are read, others
are refused."""


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
    """
    metadata = {"format": f"vfm_inverse/{FORMAT}", "kind": kind, "header": json.dumps(header)}
    with replacing(path) as temporary:
        save_file(
            {k: v.detach().contiguous().clone() for k, v in tensors.items()}, temporary, metadata
        )


def read(
    path: str | Path, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this package, of another version or kind, or truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
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
            if metadata["kind"] != kind:
                raise ValueError(
                    f"{path} must hold a {kind!r} checkpoint; got {metadata['kind']!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file (truncated, or another format such as a "
            "pickle, which is never "
            f"opened): {error}"
        ) from error
    return tensors, json.loads(metadata["header"])


def save(vfm: VariationalFlowMap, path: str | Path) -> None:
    """Write a map: weights, whitening, Gaussian start, features, how to rebuild its problem, and
    its calibration card."""
    card = None if vfm.card is None else asdict(vfm.card)
    write(path, vfm.state_dict(), "model", {"config": vfm.config, "card": card})


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
        path: a ``model.safetensors``.
        problem: the problem the map was trained for; needed unless it came from ``problems.load``,
            since physics of your own cannot be stored.
        device: where to put it.
        whitening: one of the kind it was built with, if that was a class of your own.
        warn: whether to warn of a map that is uncertified or failed its calibration.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable checkpoint, or it does not fit the problem.

    Warns:
        CalibrationWarning: the map failed its calibration, or was not checked with these weights
            and this physics.
    """
    from vfm_inverse.build import rebuild

    tensors, header = read(path, "model", device)
    config = header["config"]
    if problem is None:
        name, kwargs = config["problem"]["name"], config["problem"]["kwargs"]
        if name is None:
            raise ValueError(f"{path} was trained on a problem of your own; pass it as 'problem'")
        from vfm_inverse import problems

        problem = problems.load(name, **kwargs)
    vfm = rebuild(problem.to(device), config, whitening)
    try:
        vfm.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the problem: {error}") from error
    card = header.get("card")  # a verdict of format 1 does not say of which weights it is
    if card is not None and card["physics_sha256"] == physics_fingerprint(problem):
        vfm.card = Card(**card)
    if warn:
        other = card is not None and vfm.card is None
        warn_unless_certified(vfm, f"'{path}'" + " (certified for another physics)" * other)
    return vfm
