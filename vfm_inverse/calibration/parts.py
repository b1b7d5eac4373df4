"""Files of what was counted so far: for a run that was killed, and for parts of a run.

One ``.npz`` file of arrays and one JSON text, followed by the SHA-256 of all that, written under a
temporary name and renamed; nothing in it is ever unpickled, and nothing is read before the sum
agrees.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vfm_inverse.files import replacing

__all__ = ["data_hash", "read_part", "write_part"]

FORMAT = "vfm_inverse calibration 2"
MARK = b"\nsha256 "
"""Begins the last bytes of a file, before the 64 digits of the sum."""


def write_part(
    path: str | Path, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """Write arrays and settings; a process killed in the middle leaves an old file as it was.

    Raises:
        OSError: the file cannot be written.
    """
    header = json.dumps({"format": FORMAT, **settings})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, header=np.array(header), **arrays)
    content = buffer.getvalue()
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content + MARK + _sum(content))
    except OSError as error:
        raise OSError(f"cannot write the calibration '{path}': {_why(error)}") from error


def read_part(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and settings of a file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is no file of :func:`write_part`, or not as it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no calibration at {path}")
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the calibration '{path}': {_why(error)}") from error
    end = len(whole) - len(MARK) - 64
    content, mark, found = whole[: max(0, end)], whole[max(0, end) : end + len(MARK)], whole[-64:]
    if end < 0 or mark != MARK:
        raise ValueError(
            f"{path} is no readable calibration file of this version, or its end is missing"
        )
    if found != _sum(content):
        raise ValueError(f"{path} is no readable calibration file: its checksum does not agree")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        settings = json.loads(str(arrays.pop("header")))
        version = settings.pop("format")
    # Only a file that someone else signed comes here; what it raises depends on who meets it.
    except Exception as error:
        raise ValueError(f"{path} is no readable calibration file: {error}") from error
    if version != FORMAT:
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


def _sum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _why(error: OSError) -> str:
    return error.strerror or str(error)
