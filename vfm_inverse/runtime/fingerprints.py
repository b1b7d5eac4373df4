"""SHA-256 sums of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "fingerprint",
]


def fingerprint(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors by name: names, shapes, types and bytes."""
    total = sha256(text.encode())
    for name, value in sorted(tensors.items()):
        total.update(f"|{name} {tuple(value.shape)} {value.dtype}|".encode())
        flat: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total.update(flat.data)
    return total.hexdigest()
