r"""Proper scores and distances as functions of samples.

``draws`` are ``(num_draws, batch, *event)`` and ``truth`` is ``(batch, *event)``, as everywhere in
this library; a set of samples without observations enters as ``samples[:, None]``.  For draws
:math:`x_1 \dots x_n` of a forecast and the truth :math:`y`

* CRPS, per element: :math:`\frac1n\sum_i |x_i-y| - \frac1{2N}\sum_{i,j}|x_i-x_j|`
* energy score: the same with Euclidean norms of whole fields
* variogram score: :math:`\sum_{a,b} w_{ab}\,(|y_a-y_b|^p - \frac1n\sum_i|x_{ia}-x_{ib}|^p)^2`

with :math:`N = n(n-1)` for the *fair* score, whose expectation does not depend on the number of
draws, and :math:`N = n^2` for the plain score of the empirical distribution.  Smaller is better;
CRPS and energy score carry the unit of the field.

References: Gneiting and Raftery (2007), JASA 102, 359 (CRPS eq. 21, energy score eq. 22); Ferro
(2014), QJRMS 140, 1917 (fair scores); Scheuerer and Hamill (2015), MWR 143, 1321 (variogram score,
eq. 8); Fortin et al. (2014), J. Hydrometeorol. 15, 1708 (spread and skill); Gretton et al. (2012),
JMLR 13, 723 (MMD, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.statistics.quantities import needs_double

__all__ = [
    "OF_FIELD",
    "SCORES",
    "columns",
    "crps",
    "energy_score",
    "field_scores",
    "mmd",
    "sliced_wasserstein",
    "spread_elements",
    "spread_skill",
    "variogram",
    "variogram_score",
]

SCORES: tuple[str, ...] = (
    "crps",
    "crps_plain",
    "energy",
    "energy_plain",
    "variogram",
    "log_score",
)
"""Columns of a table of scores of simulations; the log score, of posteriors with a density alone,
comes last, so that a table of draws alone is one without it."""

OF_FIELD: tuple[str, ...] = ("energy", "energy_plain", "variogram")
"""Columns of :func:`field_scores`."""

PAIRS = 2**24
"""Largest number of elements of a temporary table of pairs (128 MiB in float64)."""

PARTNERS = 8
"""Partners of each draw in the spread term of :func:`field_scores`."""

ELEMENTS = 16
"""Elements of a field whose variogram :func:`field_scores` compares."""


def columns(table: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a table ``(num, scores)`` by their names: views, to read and to write."""
    return dict(zip(SCORES, table.T, strict=False))


def crps(draws: Tensor, truth: Tensor, *, fair: bool = True) -> Tensor:
    r"""Continuous ranked probability score of every element, in the unit of the field.

    Sorting turns the double sum into :math:`\sum_{i,j}|x_i-x_j| = 2\sum_i (2i-n-1)\,x_{(i)}`, so
    the cost is :math:`O(n \log n)` and no table of pairs is built.

    Args:
        draws: ``(num_draws, batch, *event)``.
        truth: ``(batch, *event)``.
        fair: divide the spread term by ``n (n - 1)`` (unbiased, needs two draws) instead of
            ``n^2``.

    Returns:
        ``(batch, *event)``.
    """
    draws, truth, num = _check(draws, truth, least=2 if fair else 1)
    # The score does not change when draws and truth move together: centring keeps the sums small.
    # Draws go last because sorting along adjacent memory is twice as fast.
    centred = (draws - truth).movedim(0, -1).contiguous().sort(dim=-1).values
    weights = torch.arange(1 - num, num, 2, dtype=draws.dtype, device=draws.device)
    spread = centred @ weights / (num * (num - 1 if fair else num))
    return centred.abs().mean(-1) - spread


def energy_score(draws: Tensor, truth: Tensor, *, fair: bool = True) -> Tensor:
    """Energy score of whole fields, in the unit of the field.

    Args:
        draws: ``(num_draws, batch, *event)``.
        truth: ``(batch, *event)``.
        fair: as in :func:`crps`.

    Returns:
        ``(batch,)``.
    """
    draws, truth, num = _check(draws, truth, least=2 if fair else 1)
    centred = (draws - truth).flatten(2) if draws.ndim > 2 else (draws - truth)[..., None]
    pairs = _pair_sum(centred, centred, lambda distance: distance)
    accuracy = torch.linalg.vector_norm(centred, dim=-1).mean(0)
    return accuracy - 0.5 * pairs / (num * (num - 1 if fair else num))


def variogram_score(
    draws: Tensor, truth: Tensor, *, order: float = 0.5, weights: Tensor | None = None
) -> Tensor:
    """Variogram score: how well the dependence between elements is forecast.

    Args:
        draws: ``(num_draws, batch, *event)``.
        truth: ``(batch, *event)``.
        order: exponent ``p`` of the variogram.
        weights: ``(d, d)`` weights of the pairs of the ``d`` flattened elements; ones when
            missing.

    Returns:
        ``(batch,)``, summed over ordered pairs, in the unit of the field to the power ``2 p``.
    """
    if order <= 0:
        raise ValueError(f"'order' must be positive; got {order}")
    draws, truth, num = _check(draws, truth, least=1)
    draws, truth = draws.flatten(2), truth.flatten(1)
    batch, dim = truth.shape
    if weights is not None and weights.shape != (dim, dim):
        raise ValueError(f"'weights' must have shape {(dim, dim)}; got {tuple(weights.shape)}")
    score = torch.zeros(batch, dtype=draws.dtype, device=draws.device)
    rows = max(1, PAIRS // (num * batch * dim))
    for index in torch.arange(dim, device=draws.device).split(rows):
        forecast = (draws[..., index, None] - draws[..., None, :]).abs().pow(order).mean(0)
        seen = (truth[..., index, None] - truth[..., None, :]).abs().pow(order)
        error = (seen - forecast).square()
        score += (error if weights is None else error * weights[index]).sum((-1, -2))
    return score


def field_scores(draws: Tensor, truth: Tensor) -> Tensor:
    r"""Energy score, fair and plain, and variogram score at a cost linear in the draws.

    The spread term of the energy score takes :math:`|x_i - x_{i+s}|` at 8 lags s spread over half
    the draws (all lags where there are no more) instead of all pairs: unbiased, and the noise it
    adds is far below that of the truths.  The variogram score (order 1/2) compares 16 evenly
    spaced elements.

    Args:
        draws: ``(num_draws, batch, *event)``, at least two draws.
        truth: ``(batch, *event)``.

    Returns:
        ``(batch, 3)``, float64, with the columns :data:`OF_FIELD`.
    """
    draws, truth, num = _check(draws, truth, least=2)
    centred = (draws - truth).reshape(num, len(truth), -1)
    lags = np.unique(np.linspace(1, num // 2, min(PARTNERS, num // 2)).round().astype(int))
    apart = torch.zeros(len(truth), dtype=torch.float64, device=draws.device)
    weight = 0.0
    for lag in lags.tolist():
        # Lag n/2 pairs every two draws twice, the others once.
        share = 0.5 if 2 * lag == num else 1.0
        apart += share * _lag_distance(centred, lag).sum(0, dtype=torch.float64)
        weight += share * num
    gini = 0.5 * apart / weight  # half the mean distance of two draws
    accuracy = torch.linalg.vector_norm(centred, dim=-1).mean(0, dtype=torch.float64)
    chosen = spread_elements(centred.shape[-1])
    # Differences of elements need the fields themselves, not their errors.
    seen = variogram(truth.reshape(len(truth), -1)[:, chosen])
    forecast = variogram(draws.reshape(num, len(truth), -1)[..., chosen]).mean(0)
    pairs = 2 * (seen - forecast).square().sum(-1, dtype=torch.float64)
    plain = gini * (1 - 1 / num)
    return torch.stack([accuracy - gini, accuracy - plain, pairs], dim=-1)


def variogram(x: Tensor) -> Tensor:
    """Square roots of the differences of all unordered pairs: ``(*, d)`` to ``(*, d(d-1)/2)``."""
    gaps = range(1, x.shape[-1])
    found = [(x[..., gap:] - x[..., :-gap]).abs_().sqrt_() for gap in gaps]
    return torch.cat(found, dim=-1) if found else x[..., :0]


def spread_elements(dim: int) -> list[int]:
    """At most 16 evenly spaced of ``dim`` elements."""
    where: list[int] = np.unique(np.linspace(0, dim - 1, min(dim, ELEMENTS)).round()).tolist()
    return [int(i) for i in where]


def spread_skill(draws: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    r"""Spread of the draws and error of their mean, root-mean-square over the batch.

    The mean of ``n`` exchangeable draws misses the truth by :math:`\sigma^2 (1 + 1/n)` on average,
    so the spread is inflated by that factor: the two agree for a calibrated forecast at every
    ``n``.

    Args:
        draws: ``(num_draws, batch, *event)``, at least two draws.
        truth: ``(batch, *event)``.

    Returns:
        ``(spread, skill)``, each ``(*event)`` in the unit of the field.
    """
    draws, truth, num = _check(draws, truth, least=2)
    variance, mean = torch.var_mean(draws, dim=0)
    spread = (variance.mean(0) * (1 + 1 / num)).sqrt()
    return spread, (mean - truth).square().mean(0).sqrt()


def sliced_wasserstein(
    draws: Tensor,
    reference: Tensor,
    *,
    order: float = 2.0,
    num_projections: int = 128,
    seed: int | None = 0,
) -> Tensor:
    r"""Sliced Wasserstein distance between two sets of draws of each observation.

    :math:`\left(E_\omega W_p^p(\omega^T x, \omega^T x')\right)^{1/p}` over directions on the unit
    sphere; the sets may differ in size.

    Args:
        draws: ``(num_draws, batch, *event)``.
        reference: ``(num_reference, batch, *event)``.
        order: order ``p >= 1`` of the distance.
        num_projections: number of random directions.
        seed: fixes the directions; ``None`` takes them from torch's global generator.

    Returns:
        ``(batch,)`` in the unit of the field.
    """
    if order < 1:
        raise ValueError(f"'order' must be at least 1; got {order}")
    x, z = _two_sets(draws, reference)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    given = real_tensor(draws, "draws").dtype  # the same directions in every unit
    directions = torch.randn(x.shape[-1], num_projections, generator=generator, dtype=given)
    directions = torch.nn.functional.normalize(directions, dim=0).to(x)
    x, z = (x @ directions).sort(dim=0).values, (z @ directions).sort(dim=0).values
    n, m = len(x), len(z)
    if n == m:
        cost = (x - z).abs().pow(order).mean(0)
    else:
        # Both quantile functions are steps: integrate over the union of their jumps, on an integer
        # grid.
        edges = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique().to(x.device)
        widths = edges.diff().to(x.dtype) / (n * m)
        gap = (x[edges[:-1] // m] - z[edges[:-1] // n]).abs().pow(order)
        cost = torch.tensordot(widths, gap, dims=1)
    return cost.mean(-1).pow(1 / order)


def mmd(
    draws: Tensor, reference: Tensor, *, bandwidth: float | None = None, squared: bool = False
) -> Tensor:
    r"""Maximum mean discrepancy with the kernel :math:`\exp(-|x-x'|^2 / 2h^2)`.

    Args:
        draws: ``(num_draws, batch, *event)``, at least two.
        reference: ``(num_reference, batch, *event)``, at least two.
        bandwidth: ``h`` in the unit of the field; the median distance within ``reference`` (at
            most 512 of its draws, over the whole batch) when missing.
        squared: return the unbiased estimate of the square, which may be negative, instead of the
            root of its positive part.

    Returns:
        ``(batch,)``, without unit.
    """
    x, z = _two_sets(draws, reference)
    n, m = len(x), len(z)
    if min(n, m) < 2:
        raise ValueError(f"'draws' and 'reference' must hold at least 2 draws; got {n} and {m}")
    centre = z.mean(0)  # distances stay, rounding shrinks
    x, z = x - centre, z - centre
    if bandwidth is None:
        few = z[:512].transpose(0, 1)
        upper = torch.triu_indices(few.shape[1], few.shape[1], offset=1, device=few.device)
        bandwidth = float(torch.cdist(few, few)[:, upper[0], upper[1]].median())
    if not bandwidth > 0:
        raise ValueError(f"'bandwidth' must be positive; got {bandwidth}")
    scale = -0.5 / bandwidth**2

    def kernel(distance: Tensor) -> Tensor:
        return distance.square().mul(scale).exp()

    within_x = (_pair_sum(x, x, kernel) - n) / (n * (n - 1))  # the n pairs (i, i) have kernel one
    within_z = (_pair_sum(z, z, kernel) - m) / (m * (m - 1))
    value = within_x + within_z - 2 * _pair_sum(x, z, kernel) / (n * m)
    return value if squared else value.clamp(min=0).sqrt()


def _pair_sum(x: Tensor, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of ``function(|x_i - z_j|)``: ``(n, batch, d)``, ``(m, batch, d)`` to ``(batch,)``."""
    same = x is z
    x, z = x.transpose(0, 1), z.transpose(0, 1)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    start = 0
    for rows in x.split(max(1, PAIRS // (z.shape[0] * z.shape[1])), dim=1):
        distance = torch.cdist(rows, z)
        if same:  # cdist expands the square, which leaves rounding on the diagonal
            distance.diagonal(start, dim1=-2, dim2=-1)[..., : rows.shape[1]] = 0.0
        total += function(distance).sum((-1, -2), dtype=torch.float64)
        start += rows.shape[1]
    return total.to(x.dtype)


def _lag_distance(x: Tensor, lag: int) -> Tensor:
    """Norms of ``x_i - x_{i + lag}``, cyclic: ``(n, batch, d)`` to ``(n, batch)``."""
    found = []
    for one, other in ((x[lag:], x[:-lag]), (x[:lag], x[-lag:])):
        # Some draws at a time, so that differences stay in cache.
        size = max(1, (2**17 if x.device.type == "cpu" else PAIRS) // x[0].numel())
        for a, b in zip(one.split(size), other.split(size), strict=True):
            found.append(torch.linalg.vector_norm(a - b, dim=-1))
    return torch.cat(found)


def _two_sets(draws: Any, reference: Any) -> tuple[Tensor, Tensor]:
    draws, reference = real_tensor(draws, "draws"), real_tensor(reference, "reference")
    if draws.ndim < 2 or draws.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "'reference' must have the batch and event shape of 'draws' (num, batch, *event); "
            f"got {tuple(reference.shape)} for draws {tuple(draws.shape)}"
        )
    if draws.dtype != reference.dtype or needs_double(draws[:8]):
        draws, reference = draws.double(), reference.double()
    if draws.ndim == 2:
        return draws[..., None], reference[..., None]
    return draws.flatten(2), reference.flatten(2)


def _check(draws: Any, truth: Any, *, least: int) -> tuple[Tensor, Tensor, int]:
    """Both as tensors of one type, in double precision where single cannot hold their squares, and
    the number of draws."""
    draws, truth = real_tensor(draws, "draws"), real_tensor(truth, "truth")
    if draws.ndim < 2 or draws.shape[1:] != truth.shape:
        raise ValueError(
            "'truth' must have the shape of one draw; got "
            f"{tuple(truth.shape)} for draws {tuple(draws.shape)}"
        )
    if len(draws) < least:
        raise ValueError(f"'draws' must hold at least {least} draws; got {len(draws)}")
    if draws.dtype != truth.dtype or needs_double(draws[:8]) or needs_double(truth):
        draws, truth = draws.double(), truth.double()
    return draws, truth, len(draws)
