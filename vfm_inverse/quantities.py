"""Scalar test quantities ``(x, y, **params) -> value`` whose ranks carry the verdict.

Ranks of a few functionals of a field say more than those of every pixel: a posterior with the
right pixels and the wrong correlations is caught by its block means and its gradients, one with
the wrong tails by its maximum, and one that ignores the data by the log-likelihood (Modrák et al.
2023, arXiv 2211.02383).

A quantity has the signature of ``InverseProblem.log_likelihood``: ``x`` is ``(num, batch,
*event)``, ``y`` is ``(batch, *observation)`` or ``None``, ``params`` are ``(batch, ...)``, and the
values are ``(num, batch)``. A user's own is one line: ``{"total": lambda x, y, **params:
x.sum((-1, -2, -3))}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

__all__ = ["Quantity", "default_quantities", "evaluate", "observation_features"]

Quantity = Callable[..., Tensor]


def default_quantities(
    event_shape: Sequence[int], log_likelihood: Quantity | None = None, *, limit: int = 32
) -> dict[str, Quantity]:
    """Scalar test quantities that carry the verdict.

    A vector ``(d,)`` gives its coordinates (``limit`` of them, evenly spaced, when there are more)
    and its norm; a field ``(C, *space)`` its mean, maximum, minimum, block means (halves of every
    axis, quarters in one dimension), mean squared gradient, power in up to four octaves of the
    wave number, and a probe pixel in each block.  Both give ``distance``, the Euclidean distance
    from the mean of truth and draws together: the part of the energy score that one of them
    carries.  The log-likelihood comes last.

    Args:
        event_shape: ``(d,)``, ``(C, L)`` or ``(C, H, W)``.
        log_likelihood: ``(x, y, **params) -> (*batch,)``, such as
            ``InverseProblem.log_likelihood``.
        limit: Largest number of coordinates of a vector.
    """
    chosen: dict[str, Quantity] = {}
    ndim = len(event_shape)
    if ndim == 1:
        dim = event_shape[0]
        for i in np.unique(np.linspace(0, dim - 1, min(dim, limit)).round().astype(int)).tolist():
            chosen[f"x[{i}]"] = lambda x, y=None, i=i, **params: x[..., i]
        if dim > 1:
            chosen["norm"] = lambda x, y=None, **params: torch.linalg.vector_norm(x, dim=-1)
            chosen["distance"] = _distance
    else:
        event = tuple(range(-ndim, 0))
        chosen["mean"] = lambda x, y=None, **params: x.mean(event)
        chosen["max"] = lambda x, y=None, **params: x.amax(event)
        chosen["min"] = lambda x, y=None, **params: x.amin(event)
        chosen["distance"] = _distance
        chosen["gradient_energy"] = lambda x, y=None, **params: sum(
            torch.linalg.vector_norm(d, dim=event).square() / math.prod(d.shape[2:])
            for d in (x.diff(dim=axis) for axis in event[1:] if x.shape[axis] > 1)
        )
        bands = min(4, int(math.log2(max(event_shape[1:]))) - 1)
        for band in range(bands):
            chosen[f"band_power[{band}]"] = _BandPower(event_shape, band, last=band == bands - 1)
        parts = 4 if ndim == 2 else 2
        cuts = [np.linspace(0, n, min(parts, n) + 1).astype(int).tolist() for n in event_shape[1:]]
        for number, block in enumerate(product(*(range(len(cut) - 1) for cut in cuts))):
            spans = [(cut[b], cut[b + 1]) for cut, b in zip(cuts, block, strict=True)]
            inside = (..., slice(None), *(slice(*span) for span in spans))
            name = ",".join(map(str, block))
            chosen[f"block_mean[{name}]"] = lambda x, y=None, s=inside, **params: x[s].mean(event)
            at = (number % event_shape[0], *((low + high) // 2 for low, high in spans))
            name = ",".join(map(str, at if event_shape[0] > 1 else at[1:]))
            chosen[f"pixel[{name}]"] = lambda x, y=None, s=(..., *at), **params: x[s]
    if log_likelihood is not None:
        chosen["log_likelihood"] = log_likelihood
    return chosen


def _distance(x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
    # Of the mean of truth and draws: it treats them alike, as ranks need.
    centred = x - x.mean(0)
    return torch.linalg.vector_norm(centred.flatten(2), dim=-1)


class _BandPower:
    """Mean power of a field in an octave of the wave number, in cycles per field.

    Band ``b`` holds wave numbers from ``2**b`` to below ``2**(b+1)``, the last band all above.
    """

    def __init__(self, event_shape: Sequence[int], band: int, *, last: bool) -> None:
        space = event_shape[1:]
        axes = [np.fft.fftfreq(n, 1 / n) for n in space[:-1]] + [
            np.fft.rfftfreq(space[-1], 1 / space[-1])
        ]
        radius = np.sqrt(sum(np.square(k) for k in np.meshgrid(*axes, indexing="ij")))
        inside = (radius >= 2**band) & (last | (radius < 2 ** (band + 1)))
        # A real field's transform stores half of its modes; the others are their conjugates.
        twice = np.full(radius.shape, 2.0)
        twice[..., 0] = 1.0
        if space[-1] % 2 == 0:
            twice[..., -1] = 1.0
        self.dims = tuple(range(-len(space), 0))
        self.weight = torch.from_numpy(inside * twice / (math.prod(space) ** 2 * event_shape[0]))

    def __call__(self, x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
        weight = self.weight.to(x).sqrt()
        modes = torch.view_as_real(torch.fft.rfftn(x, dim=self.dims) * weight)
        return torch.linalg.vector_norm(modes.flatten(2), dim=-1).square()


def evaluate(
    quantities: Mapping[str, Quantity], x: Tensor, y: Tensor | None, params: Mapping[str, Tensor]
) -> Tensor:
    """Values of all quantities: ``(num, batch, len(quantities))``.

    Raises:
        ValueError: A quantity returns another shape than ``(num, batch)``, or a NaN.
    """
    values = []
    for name, quantity in quantities.items():
        value = quantity(x, y, **params)
        if value.shape != x.shape[:2]:
            raise ValueError(
                f"quantity '{name}' must return shape {tuple(x.shape[:2])}; "
                f"got {tuple(value.shape)}"
            )
        if value.isnan().any():
            raise ValueError(f"quantity '{name}' must not be NaN")
        values.append(value)
    return torch.stack(values, dim=-1)


def observation_features(y: Tensor) -> Tensor:
    """A few numbers of each observation ``(batch, *observation)``: ``(batch, features)``.

    All of its numbers where there are at most 32, otherwise its default quantities.
    """
    if y[0].numel() <= 32:
        return y.reshape(len(y), -1)
    event = y.shape[1:] if y.ndim <= 4 else torch.Size([y[0].numel()])
    return evaluate(default_quantities(event), y.reshape(1, len(y), *event), None, {})[0]
