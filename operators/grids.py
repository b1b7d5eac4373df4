"""What the operators on regular grids share: checks of sizes, convolutions and cell centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor

__all__ = ["cell_centres", "check_spacing", "check_times", "convolve", "correlate"]


def check_spacing(spacing: float | Sequence[float], dims: int) -> tuple[float, ...]:
    """One positive cell size for each of the ``dims`` axes.

    Raises:
        ValueError: a size is not positive, or their number does not fit.
    """
    values = (
        (float(spacing),) * dims
        if isinstance(spacing, int | float)
        else tuple(map(float, spacing))
    )
    if len(values) != dims or not all(0 < value < float("inf") for value in values):
        raise ValueError(
            f"'spacing' must be a positive number or one for each of {dims} axes; got {spacing}"
        )
    return values


def check_times(times: Sequence[float]) -> tuple[float, ...]:
    """Observation times, increasing from 0 or later.

    Raises:
        ValueError: there are none, one is negative, or they do not increase.
    """
    values = tuple(map(float, times))
    increasing = all(a < b for a, b in zip(values, values[1:], strict=False))
    if not values or values[0] < 0 or not increasing:
        raise ValueError(f"'times' must increase from 0 or later; got {values}")
    return values


def cell_centres(size: int, spacing: float) -> Tensor:
    """Positions ``(size,)`` of the cell centres of an axis that begins at 0, in double
    precision."""
    return (torch.arange(size, dtype=torch.float64) + 0.5) * spacing


def convolve(x: Tensor, kernel: Tensor, dims: int) -> Tensor:
    r"""Linear convolution of the last ``dims`` axes, zeros outside, output as large as ``x``.

    .. math:: y_i = \sum_j k_{i - j + c}\, x_j, \qquad c = (K - 1) / 2.

    Args:
        x: ``(*, n_1, ..., n_dims)``.
        kernel: ``(*, K_1, ..., K_dims)`` with odd ``K``; leading dimensions broadcast to those of
            ``x``.
        dims: number of axes.

    Computed with zero-padded real FFTs.
    """
    axes = tuple(range(-dims, 0))
    centre = [(kernel.shape[axis] - 1) // 2 for axis in axes]
    # What wraps around must end beyond the samples that are kept.
    size = [int(next_fast_len(x.shape[axis] + kernel.shape[axis] - 1, real=True)) for axis in axes]
    spectrum = torch.fft.rfftn(x, s=size, dim=axes) * torch.fft.rfftn(kernel, s=size, dim=axes)
    full = torch.fft.irfftn(spectrum, s=size, dim=axes)
    for axis, start in zip(axes, centre, strict=True):
        full = full.narrow(axis, start, x.shape[axis])
    return full


def correlate(y: Tensor, kernel: Tensor, dims: int) -> Tensor:
    """Transpose of :func:`convolve`: ``x_j = sum_i k_{i - j + c} y_i``, shapes as there."""
    return convolve(y, kernel.flip(tuple(range(-dims, 0))), dims)
