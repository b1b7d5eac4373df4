"""What single arguments may be: numbers, shapes, devices, functions; and how a message shows
them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from vfm_inverse.runtime.settings import Setting, brief

__all__ = [
    "check_callable",
    "check_integer",
    "check_setting",
    "check_shape",
    "check_type",
    "inner",
    "resolve_device",
    "shorten",
    "shown",
]


def check_integer(value: Any, name: str, least: int | None = None) -> int:
    """An integer; also a number of another type that is one.

    Raises:
        ValueError: it is no integer, or below ``least``.
    """
    return int(Setting(int, least).check(name, value))


def check_setting(value: Any, name: str, kind: Any) -> Any:
    """A setting that is annotated as ``kind``: integers, numbers, booleans and text are checked,
    and all else handed on.

    Raises:
        TypeError: it is no text.
        ValueError: it is not finite, no integer, or no boolean.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (int, float, bool):
        return Setting(kind).check(name, value)
    if kind is str and not isinstance(value, str):
        raise TypeError(f"'{name}' must be text; got {shown(value)}")
    return value


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is a GPU where there is one.

    Raises:
        ValueError: the device is unknown or not there.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"'device' must be 'auto' or a device of this machine; got {shown(device)}"
        ) from error


def check_type(dtype: Any) -> None:
    """Refuse what is no type of a problem; ``None`` passes.

    Raises:
        ValueError: it is neither single nor double precision.
    """
    known = isinstance(dtype, torch.dtype) and dtype in (torch.float32, torch.float64)
    if dtype is not None and not known:
        raise ValueError(f"'dtype' must be torch.float32 or torch.float64; got {shown(dtype)}")


def check_callable(**given: Any) -> None:
    """Refuse arguments that can not be called; ``None`` passes.

    Raises:
        TypeError: one is no function.
    """
    for name, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(f"'{name}' must be callable; got {shown(value)}")


def check_shape(shape: Any, name: str) -> torch.Size:
    """A shape of draws: an integer, or several of at least 0.

    Raises:
        ValueError: it is no shape.
    """
    if isinstance(shape, Integral) and not isinstance(shape, bool):
        shape = (shape,)
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        raise ValueError(f"'{name}' must be a tuple of integers; got {shown(shape)}")
    return torch.Size([check_integer(size, name, 0) for size in shape])


def shorten(text: str, length: int = 160) -> str:
    """A message of somebody else's on one line, without its arrays."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def inner(shape: Sequence[int]) -> str:
    """The sizes of a shape, without brackets."""
    return ", ".join(str(size) for size in shape)


def shown(value: Any) -> str:
    """A value in a few words."""
    plain = isinstance(value, str | int | float)
    return brief(value) if plain else f"{type(value).__name__} {brief(value)}"
