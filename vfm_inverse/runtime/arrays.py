"""The border that all numbers pass once: whatever holds them, as real numbers of one type.

Tensors, NumPy and xarray arrays, pandas columns, Python numbers and lists of them; any byte order,
stride, integer or floating-point type. What has no meaning as a real number (dates, text, complex
values, masked entries) is refused with its name, never converted on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.runtime.settings import brief

__all__ = ["floating_type", "real_array", "real_tensor", "rows_of"]

MEANINGLESS = {
    "c": "complex numbers; give real and imaginary part as two channels (numpy.stack, "
    "torch.view_as_real)",
    "M": "dates; give numbers, such as seconds since a date",
    "m": "durations; divide by a unit, as in values / numpy.timedelta64(1, 's')",
    "S": "text",
    "U": "text",
    "T": "text",
    "O": "Python objects",
    "V": "records of several fields",
}
"""Kinds of NumPy arrays that are no real numbers, and what to say of them."""


def real_array(value: Any, name: str) -> np.ndarray:
    """Real numbers as an array of NumPy's own byte order: floating-point, integer or boolean.

    Args:
        value: array, tensor, labelled array, number, or anything that NumPy makes an array of.
        name: of the argument, for the message.

    Raises:
        TypeError: it holds no real numbers.
        ValueError: entries are masked, or lists are ragged.
    """
    if isinstance(value, Tensor):
        value = _strided(value, name).detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).resolve_neg().numpy()
    if isinstance(value, xr.DataArray | xr.Variable):
        value = value.data if isinstance(value.data, np.ndarray) else value.values
    if isinstance(value, xr.Dataset):
        raise TypeError(f"'{name}' must be one array; got a Dataset of {list(value.data_vars)}")
    if isinstance(value, np.ma.MaskedArray):
        if (hidden := int(np.ma.count_masked(value))) > 0:
            raise ValueError(
                f"'{name}' must have no masked entries; got {hidden} of {value.size}. In labelled "
                "observations NaN means not observed"
            )
        value = value.data
    if value is None or isinstance(value, str | bytes | dict | set):
        raise TypeError(
            f"'{name}' must hold real numbers; got {type(value).__name__} {brief(value)}"
        )
    try:
        array = np.asarray(value)
    except Exception as error:
        what = type(value).__name__
        raise ValueError(
            f"'{name}' must be an array of real numbers; got {what}: {error}"
        ) from error
    if array.dtype.kind == "O" and array.ndim == 0:
        raise TypeError(f"'{name}' must hold real numbers; got {type(value).__name__}")
    if array.dtype.kind not in "fiub":
        told = MEANINGLESS.get(array.dtype.kind, f"the type {array.dtype}")
        raise TypeError(f"'{name}' must hold real numbers; got {told}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def real_tensor(
    value: Any,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Real numbers as a floating-point tensor; a tensor keeps its graph.

    Args:
        value: as :func:`real_array` takes it.
        name: of the argument, for the message.
        dtype: of the result; by default as :func:`floating_type` says.
        device: of the result; by default where a tensor is, the CPU for all else.

    Raises:
        TypeError: it holds no real numbers.
        ValueError: entries are masked, lists are ragged, or a finite number is too large for
            ``dtype``.
    """
    if isinstance(value, Tensor):
        tensor = _strided(value, name)
    else:
        array = real_array(value, name)
        # Also a copy of what is not writable, or runs backwards: torch has no such tensors.
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        tensor = torch.from_numpy(np.asarray(array))
    wanted = floating_type(tensor.dtype) if dtype is None else dtype
    if tensor.dtype == wanted:
        return tensor if device is None else tensor.to(device)
    cast = tensor.to(device=device, dtype=wanted)
    if torch.finfo(wanted).bits < 64 and tensor.dtype == torch.float64:
        lost = cast.isinf() & tensor.to(cast.device).isfinite()
        if bool(lost.any()):
            largest = float(tensor[lost.to(tensor.device)].abs().max())
            raise ValueError(
                f"'{name}' holds {largest:.3g}, beyond the range of {wanted}; make the problem "
                "with dtype=torch.float64, or choose another unit"
            )
    return cast


def rows_of(tensors: Mapping[str, Tensor], rows: slice | Tensor) -> dict[str, Tensor]:
    """Some rows of each of several tensors by name: parameters of some observations, say."""
    return {name: value[rows] for name, value in tensors.items()}


def floating_type(dtype: torch.dtype) -> torch.dtype:
    """Single and double precision as they are, half precision as single, and integers and booleans
    as torch's default type."""
    if dtype in (torch.float32, torch.float64):
        return dtype
    return torch.float32 if dtype.is_floating_point else torch.get_default_dtype()


def _strided(value: Tensor, name: str) -> Tensor:
    """A tensor of real numbers in memory."""
    if value.is_complex():
        raise TypeError(f"'{name}' must hold real numbers; got {MEANINGLESS['c']}")
    if value.is_quantized:
        raise TypeError(f"'{name}' must hold real numbers; got {value.dtype}: dequantize() it")
    if value.device.type == "meta":
        raise ValueError(f"'{name}' must hold numbers; got a tensor of the device 'meta'")
    return value if value.layout == torch.strided else value.to_dense()
