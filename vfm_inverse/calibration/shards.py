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

from vfm_inverse.runtime.files import replacing

__all__ = ["compare", "data_hash", "read_part", "write_part"]

FORMAT = "vfm_inverse calibration 3"
FINGERPRINTS = {
    "posterior_fn_sha256": "another posterior: weights or draws at the same seed are others",
    "baseline_sha256": "another baseline: its draws at the same seed are others",
    "quantities_sha256": "other quantities: those of these names have other values",
}
"""Settings that say nothing to a reader, and what it means that they differ."""

MARK = b"\nsha256 "
"""Begins the last bytes of a file, before the 64 digits of the sum."""


def write_part(
    path: str | Path, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """Write arrays and settings; a process killed in the middle leaves an old file as it was.

    Raises:
        OSError: the file cannot be written.
    """
    header = _text({"format": FORMAT, **settings})
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
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or is a folder or a device.
        ValueError: it is no file of :func:`write_part`, or not as it was written.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no calibration at {path}")
    if not path.is_file():
        raise OSError(f"cannot read the calibration '{path}': it is no file")
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


def compare(
    path: str | Path, settings: Mapping[str, Any], expected: Mapping[str, Any], hint: str
) -> None:
    """Refuse a file of other settings than the expected ones.

    Args:
        path: of the file.
        settings: in it.
        expected: every one that must be equal.
        hint: what to do, for the message.

    Raises:
        ValueError: one of them differs.
    """
    for name, value in expected.items():
        found = settings.get(name)
        if _text(found) == _text(value):
            continue
        if what := FINGERPRINTS.get(name):
            raise ValueError(f"{path} holds a calibration of {what} ({hint})")
        raise ValueError(
            f"{path} holds a calibration with {name} = {_short(found)}; expected {_short(value)} "
            f"({hint})"
        )


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


def _text(value: Any) -> str:
    """JSON, in which a tuple is a list and NaN equals itself."""
    return json.dumps(value, default=_number)


def _number(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", 1) == 0 else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
