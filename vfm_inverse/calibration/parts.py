"""Files of what was counted so far: for a run that was killed, and for parts of a run.

One ``.npz`` file of arrays and one JSON text, written under a temporary name and renamed; nothing
in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vfm_inverse.files import replacing

__all__ = ["data_hash", "read_part", "write_part"]

FORMAT = "vfm_inverse calibration 1"


def write_part(
    path: str | Path, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """Write arrays and settings; a process killed in the middle leaves an old file as it was."""
    header = json.dumps({"format": FORMAT, **settings})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, header=np.array(header), **arrays)


def read_part(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and settings of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of :func:`write_part`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no calibration at {path}")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        settings = json.loads(str(arrays.pop("header")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable calibration file: {error}") from error
    if settings.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no calibration file of this version")
    return arrays, settings


def data_hash(values: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, 16 digits: other simulations have another one."""
    digest = hashlib.sha256()
    for name in sorted(values):
        array = np.ascontiguousarray(values[name].detach().cpu().numpy())
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
