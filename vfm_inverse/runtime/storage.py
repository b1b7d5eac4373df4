"""Files of tensors in safetensors, everything else as JSON in their header. Nothing is ever
unpickled, and a sum over all of it shows a single flipped bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vfm_inverse.runtime.files import replacing
from vfm_inverse.runtime.fingerprints import fingerprint

__all__ = [
    "read",
    "write",
]


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
