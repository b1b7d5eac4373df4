"""The border guard of problems and maps: observations, parameters and fields that come in.

All are brought to the problem's device and type here, once; what is behind it may rely on that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vfm_inverse.runtime.arrays import real_array, real_tensor
from vfm_inverse.runtime.values import inner, shown

__all__ = [
    "check_data",
    "check_axes",
    "check_batch",
    "check_drawn",
    "check_fields",
    "check_params",
]

RESERVED = frozenset(
    ("self", "vfm", "x", "y", "seed", "split", "steps", "num_samples", "num_draws", "method")
    + ("ess", "moves", "max_stages", "num_chains", "warmup", "thin", "num_bootstrap")
    + ("learning_rate",)
)
"""Arguments that calls with parameters by name have for their own."""

CHANNELS = (1, 3, 4)
"""Numbers of channels that images have."""


def check_batch(
    y: Any,
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    single: bool = True,
) -> tuple[Tensor, bool]:
    """Observations ``(n, *shape)``, and whether they came as a batch.

    Args:
        y: ``(n, *shape)`` or, where ``single`` allows it, ``(*shape)``; of observations that are
            one number also ``(n,)``.
        shape: of one observation.
        dtype, device: of the result.
        single: whether one observation without a batch dimension is served.

    Raises:
        TypeError: ``y`` holds no real numbers.
        ValueError: wrong shape, no observation at all, or a value that is not finite.
    """
    tensor, size = real_tensor(y, "y", dtype=dtype, device=device), torch.Size(shape)
    batched = tensor.dim() > len(size)
    if size == (1,) and tensor.dim() <= 1 and tensor.shape != size:
        batched = tensor.dim() == 1
        tensor = tensor.reshape(-1, 1)
    elif tensor.shape == size and single:
        tensor = tensor.unsqueeze(0)
    if tensor.dim() != 1 + len(size) or tensor.shape[1:] != size:
        lead = "(*batch, " if single else "(batch, "
        hint = "; add a batch dimension" if tensor.shape == size else ""
        raise ValueError(
            f"'y' must have shape {lead}{inner(size)}); got {tuple(tensor.shape)}{hint}"
        )
    if not len(tensor):
        raise ValueError(f"'y' must hold at least one observation; got {tuple(tensor.shape)}")
    missing = tensor.numel() - int(torch.isfinite(tensor).sum())
    if missing:
        raise ValueError(
            f"'y' must be finite; {missing} of {tensor.numel()} values are not. NaN means 'not "
            "observed' in labelled data only: see vfm_inverse.labelled.load_observation"
        )
    return tensor, batched


def check_data(
    y: Any,
    shape: Sequence[int],
    batch: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Data that broadcast against ``(*batch, *shape)``.

    Raises:
        TypeError: ``y`` holds no real numbers.
        ValueError: wrong shape.
    """
    tensor, whole = real_tensor(y, "y", dtype=dtype, device=device), (*batch, *shape)
    try:
        fits = torch.broadcast_shapes(tensor.shape, whole) == whole
    except RuntimeError:
        fits = False
    if not fits or tensor.shape[tensor.dim() - len(shape) :] != torch.Size(shape):
        raise ValueError(
            f"'y' must have a shape that fits ({inner(whole)}); got {tuple(tensor.shape)}"
        )
    return tensor


def check_params(
    params: Mapping[str, Any] | None,
    shapes: Mapping[str, Sequence[int]],
    num: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    batched: bool = True,
    types: Mapping[str, torch.dtype] | None = None,
) -> dict[str, Tensor]:
    """Parameters of ``num`` observations, each ``(num, *shape)``.

    Args:
        params: by name; a number holds for all observations.
        shapes: of each parameter that there must be, without its batch dimension.
        num: observations.
        dtype, device: of the result.
        batched: whether the observations came as a batch; if not, a parameter may lack its batch
            dimension too.
        types: of parameters that are integers or booleans.

    Raises:
        TypeError: ``params`` is no mapping, or a parameter holds no real numbers.
        ValueError: missing or unknown names, wrong shape, a value that is not finite.
    """
    params = {} if params is None else params
    if not isinstance(params, Mapping):
        raise TypeError(f"'params' must be a mapping of names to values; got {shown(params)}")
    unknown, missing = sorted(params.keys() - shapes.keys()), sorted(shapes.keys() - params.keys())
    if unknown or missing:
        raise ValueError(
            f"this problem takes the parameters {sorted(shapes)}"
            + (f"; unknown {unknown}" if unknown else "")
            + (f"; missing {missing}" if missing else "")
        )
    checked = {}
    for name, shape in shapes.items():
        value = real_tensor(params[name], name, dtype=dtype, device=device)
        expected = torch.Size([num, *shape])
        if value.dim() == 0:
            value = value.expand(expected)
        elif not batched and value.shape == expected[1:]:
            value = value.unsqueeze(0)
        if value.shape != expected:
            raise ValueError(
                f"'{name}' must have shape ({inner(expected)}); got {tuple(value.shape)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' must be finite")
        checked[name] = value.to((types or {}).get(name, dtype))
    return checked


def check_drawn(
    drawn: Any, num: int, *, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Parameters that the user's function drew for ``num`` simulations; integers and booleans
    stay what they are.

    Raises:
        TypeError: it returned no mapping, or a parameter holds no real numbers.
        ValueError: a parameter is not one of each simulation, or not finite.
    """
    if not isinstance(drawn, Mapping):
        raise TypeError(f"'params' must return a dict of parameters; got {shown(drawn)}")
    params = {}
    for name, value in drawn.items():
        if not isinstance(name, str) or name in RESERVED or "/" in name:
            raise ValueError(
                f"'params' must not call a parameter {name!r:.40}: calls have arguments of that "
                "name, or no file can hold it; choose another"
            )
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(real_array(value, name))
        if tensor.is_floating_point() or tensor.is_complex():
            tensor = real_tensor(tensor, name, dtype=dtype)
        if tensor.dim() == 0 or tensor.shape[0] != num:
            raise ValueError(
                f"'params' must return tensors with leading dimension {num}; "
                f"'{name}' has shape {tuple(tensor.shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"'params' must be finite; '{name}' is not")
        params[name] = tensor.to(device)
    return params


def check_fields(
    x: Any,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str,
) -> tuple[Tensor, torch.Size]:
    """Fields ``(*batch, *shape)`` in the type given or their own, and their batch shape.

    Raises:
        TypeError: ``x`` holds no real numbers.
        ValueError: wrong shape, or no batch dimension.
    """
    tensor = real_tensor(x, "x", dtype=dtype, device=device)
    lead = tensor.dim() - len(shape)
    if lead < 1 or tensor.shape[lead:] != torch.Size(shape):
        raise ValueError(
            f"'x' must have shape (*batch, {inner(shape)}); got {tuple(tensor.shape)}"
        )
    return tensor, tensor.shape[:lead]


def check_axes(shape: torch.Size) -> None:
    """Refuse fields whose axes are probably others than they would be taken for.

    Raises:
        ValueError: images with channels last or without channels, or too many axes.
    """
    if len(shape) > 4:
        raise ValueError(
            "fields are (d,), (C, L), (C, H, W) or (C, D, H, W); 'prior' has fields of shape "
            f"{tuple(shape)}"
        )
    if len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS:
        if min(shape[:2]) >= 8:
            raise ValueError(
                "'prior' must hold images as (n, channels, height, width); fields of shape "
                f"{tuple(shape)} have their channels last: prior.movedim(-1, 1), or state "
                "'dims' where the axes are meant so"
            )
    if len(shape) == 2 and min(shape) >= 8:
        raise ValueError(
            "'prior' must hold images as (n, channels, height, width): prior.unsqueeze(1). Fields "
            f"of shape {tuple(shape)} would be {shape[0]} channels of length {shape[1]}; state "
            "'dims' where that is meant"
        )
