r"""TARP: joint coverage of whole fields, by distances to reference points.

For a reference point :math:`z` that may depend on :math:`y` but not on the truth, the rank of
:math:`|x - z|` among the :math:`|x_l - z|` of the draws is uniform when the draws come from the
posterior; the share of simulations with rank below :math:`\gamma (L + 1)` is the expected coverage
at credibility :math:`\gamma` (Lemos et al. 2023, arXiv 2302.03026), and right coverage for
every :math:`z(y)` makes a posterior exact (their main theorem).  One choice of :math:`z` can be
blind, so several sets are used and how much they differ is reported:

* ``fixed``: one point :math:`u` (below) for all simulations; sees offsets, widths, correlations.
* ``random``: a new :math:`u` for every simulation, the authors' choice; offsets cancel.
* ``data``: :math:`u` on a line, at a random linear function of ``y``; can see a posterior that
  ignores the data.  In many dimensions a random line says little: hand over ``references``
  instead, such as an adjoint or a simple estimate applied to ``y``.

**Distances** are Euclidean in :math:`u = (x - m) / s`, where :math:`m` and :math:`s` are, element
by element, mean and standard deviation of the truth and the draws of one simulation together:
free of units, and symmetric in truth and draws, which is all that uniform ranks need.

**Test.**  The statistic is the largest Kolmogorov distance :math:`\sup_\gamma |ECP(\gamma) -
\gamma|` over the sets.  For an exact posterior the truth is one of :math:`L + 1` exchangeable
points, whichever sets and distances: taking another of them for the truth in each simulation,
``num_null`` times, gives the law of the statistic with all dependence between the sets, and a
p-value :math:`(1 + \#\{T_b \ge T\}) / (1 + B)` whose level is exact.  Equal distances, frequent
when simulations are few, are put in order by the mean square distance from the diagonal.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.statistics import ranks
from vfm_inverse.statistics.meanings import with_long_names
from vfm_inverse.statistics.quantities import needs_double

__all__ = ["Tarp", "tarp"]

DIFFERENCES = defaultdict(lambda: 2**26, cpu=2**17)
"""Differences of draws and reference points that are held at once."""

LONG_NAMES = {
    "expected_coverage": "share of truths inside the credible region around the reference points",
    "mean_coverage": "expected coverage, mean over the sets of reference points",
    "band_lower": "lower edge of the pointwise 95 % bootstrap band of the mean coverage",
    "band_upper": "upper edge of the pointwise 95 % bootstrap band of the mean coverage",
    "sensitivity": "standard deviation of the expected coverage over the sets of reference points",
    "distance": "Kolmogorov distance of each set from the diagonal",
    "set_p_value": "exact p-value of the simultaneous ECDF test of each set by itself",
}


def tarp(
    draws: Tensor,
    truth: Tensor,
    *,
    y: Tensor | None = None,
    references: Tensor | None = None,
    num_references: int = 4,
    num_null: int = 999,
    num_bootstrap: int = 200,
    seed: int = 0,
    alpha: float = 0.05,
    memory: int = 2**30,
) -> xr.Dataset:
    """Test the joint coverage of posterior draws.

    Args:
        draws: ``(num_draws, num_simulations, *event)``.
        truth: ``(num_simulations, *event)``.
        y: observations ``(num_simulations, *observation)``; adds the ``data`` sets.
        references: ``(num_sets, num_simulations, *event)`` in the unit of the field, functions of
            ``y`` alone; in place of all other sets.
        num_references: number of sets of each kind.
        num_null: number of exchanged truths behind the p-value, whose least value is
            ``1 / (num_null + 1)``.
        num_bootstrap: number of resamplings of the simulations behind the band.
        seed: fixes reference points, exchanges, ties and resamplings.
        alpha: probability with which an exact posterior fails.
        memory: rough limit in bytes for the working copies of one block.

    Returns:
        Dataset over ``credibility``, ``set`` (with its ``kind``): ``expected_coverage``, its mean
        with band, ``sensitivity``, ``distance``, ``set_p_value``; ``attrs`` hold ``verdict``
        (``"pass"`` or ``"fail"``), ``reason`` and ``p_value``.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, too few draws.
    """
    draws, truth = real_tensor(draws, "draws").detach(), real_tensor(truth, "truth").detach()
    y = None if y is None else real_tensor(y, "y")
    references = None if references is None else real_tensor(references, "references").detach()
    if draws.ndim < 2 or draws.shape[1:] != truth.shape:
        raise ValueError(
            "'truth' must be (num_simulations, *event) and 'draws' (num_draws, num_simulations, "
            f"*event); got {tuple(truth.shape)} and {tuple(draws.shape)}"
        )
    if references is not None and references.shape[1:] != truth.shape:
        raise ValueError(
            f"'references' must be (num_sets, {', '.join(map(str, truth.shape))}); "
            f"got {tuple(references.shape)}"
        )
    if needs_double(truth):
        draws, truth = draws.double(), truth.double()
    num_draws, num_simulations = draws.shape[:2]
    tally = Tarp(
        num_draws,
        num_simulations,
        y=y,
        num_references=num_references if references is None else len(references),
        num_null=num_null,
        seed=seed,
    )
    size = 4 * (num_draws + 1) * math.prod(truth.shape[1:]) * draws.element_size()
    for start in range(0, num_simulations, block := max(1, memory // size)):
        rows = slice(start, start + block)
        given = None if references is None else references[:, rows]
        tally.add(draws[:, rows], truth[rows], given)
    return tally.result(alpha=alpha, num_bootstrap=num_bootstrap)


class Tarp:
    """Distance ranks of truths and of exchanged truths, block by block; no draw is kept.

    Args:
        num_draws: number of draws of each simulation.
        num_simulations: number of simulations to come.
        y: observations ``(num_simulations, *observation)`` of all of them; adds ``data`` sets.
        num_references: number of sets of each kind.
        num_null: number of exchanged truths.
        seed: fixes everything random, whatever the blocks.

    Raises:
        ValueError: a number below its least value, or ``y`` of another length.
    """

    def __init__(
        self,
        num_draws: int,
        num_simulations: int,
        *,
        y: Tensor | None = None,
        num_references: int = 4,
        num_null: int = 999,
        seed: int = 0,
    ) -> None:
        least = {"num_draws": 2, "num_simulations": 2, "num_references": 1, "num_null": 1}
        given = (num_draws, num_simulations, num_references, num_null)
        for (name, low), value in zip(least.items(), given, strict=True):
            if value < low:
                raise ValueError(f"'{name}' must be at least {low}; got {value}")
        if y is not None and len(y) != num_simulations:
            raise ValueError(f"'y' must hold {num_simulations} observations; got {len(y)}")
        if y is not None and not bool(y.isfinite().all()):
            raise ValueError(f"'y' must be finite; got {int((~y.isfinite()).sum())} values not so")
        self.num_draws, self.num_null, self.seed = num_draws, num_null, seed
        self.num_simulations, self.num_references = num_simulations, num_references
        # A stream for every simulation: blocks of any size use the same random numbers.
        self.streams = np.random.SeedSequence([seed, 3]).generate_state(num_simulations).tolist()
        self.positions, _ = ranks.ecdf_counts(np.zeros((1, 1)), num_draws)
        self.along = None if y is None else self._lines(y)
        self.kinds: list[str] = []
        self.seen = np.zeros(num_simulations, dtype=bool)
        self.ranks: np.ndarray | None = None  # (num_simulations, sets)
        self.null: np.ndarray | None = None  # (sets, 1 + num_null, cells), counts

    @property
    def done(self) -> int:
        """Number of simulations that have come."""
        return int(self.seen.sum())

    def add(
        self,
        draws: Tensor,
        truth: Tensor,
        references: Tensor | None = None,
        *,
        start: int | None = None,
    ) -> None:
        """Take a block: ``(num_draws, block, *event)``, ``(block, *event)``.

        ``start`` is the number of its first simulation, the next one unless given.

        ``references`` ``(num_sets, block, *event)``, in every block or in none, replace the
        built-in sets.
        """
        if len(draws) != self.num_draws or draws.shape[1:] != truth.shape:
            raise ValueError(
                f"'draws' must have shape {(self.num_draws, *truth.shape)}; "
                f"got {tuple(draws.shape)}"
            )
        start = self.done if start is None else start
        rows = slice(start, start + len(truth))
        if rows.stop > self.num_simulations:
            raise ValueError(
                f"'truth' must not exceed {self.num_simulations} simulations; got {rows.stop}"
            )
        points = torch.cat([truth[None], draws]).reshape(self.num_draws + 1, len(truth), -1)
        # The norm passes through memory once; an overflow is looked at again.
        if not (torch.linalg.vector_norm(points).isfinite() or points.isfinite().all()):
            raise ValueError("'draws' and 'truth' must be finite")
        streams = [torch.Generator().manual_seed(s) for s in self.streams[rows]]
        order = torch.stack([torch.randperm(len(points), generator=s) for s in streams], dim=1)
        size, at = (self.num_null,), torch.arange(len(truth))
        chosen = torch.stack(
            [torch.randint(len(points), size, generator=s) for s in streams], dim=1
        )
        centre = points.mean(0)
        points = points - centre
        scale = torch.linalg.vector_norm(points, dim=0) / math.sqrt(len(points) - 1)
        scale = torch.where(scale > 0, scale, 1)
        points = points / scale
        if references is None:
            sets = self._references(streams, rows, points.shape[-1]).to(points)
        else:
            sets = (references.reshape(len(references), *centre.shape) - centre) / scale
            self.kinds = ["given"] * len(references)
        # Ties end up in the order of a random permutation.
        order = order.to(points.device)
        place = order.argmin(0)  # of the truth in the permutation
        counts = []
        # Some draws at a time, so that differences stay in cache.
        parts = points.split(max(1, DIFFERENCES[points.device.type] // points[0].numel()))
        for reference in sets:
            norms = [torch.linalg.vector_norm(part - reference, dim=-1) for part in parts]
            distance = torch.cat(norms).gather(0, order)
            rank = _places(distance)
            counts.append(torch.cat([rank.gather(0, place[None]).cpu(), rank.cpu()[chosen, at]]))
        found = torch.stack(counts).numpy()  # (sets, 1 + num_null, block)
        cells = len(self.positions) + 1
        if self.ranks is None or self.null is None:
            self.ranks = np.full((self.num_simulations, len(found)), -1, dtype=np.int32)
            self.null = np.zeros((*found.shape[:2], cells), dtype=np.int32)
        self.ranks[rows] = found[:, 0].T
        cell = np.searchsorted(self._cuts(), np.arange(self.num_draws + 1), side="right")
        flat = cell[found] + cells * np.arange(found[..., 0].size).reshape(*found.shape[:2], 1)
        counted = np.bincount(flat.reshape(-1), minlength=self.null.size)
        self.null += counted.reshape(self.null.shape).astype(np.int32)
        self.seen[rows] = True

    def merge(self, other: Tarp) -> None:
        """Take over the simulations that came to another one of the same settings."""
        if other.ranks is None or other.null is None:
            return
        if self.ranks is None or self.null is None:
            self.ranks, self.null = np.full_like(other.ranks, -1), np.zeros_like(other.null)
            self.kinds = other.kinds
        self.ranks[other.seen] = other.ranks[other.seen]
        self.null += other.null
        self.seen |= other.seen

    def state(self) -> dict[str, np.ndarray]:
        """All that was counted, as arrays that :meth:`restore` takes."""
        if self.ranks is None or self.null is None:
            return {}
        kinds = np.array(self.kinds)
        return {"ranks": self.ranks, "null": self.null, "seen": self.seen, "kinds": kinds}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from a :meth:`state` with the same settings."""
        if arrays:
            self.ranks, self.null = arrays["ranks"].copy(), arrays["null"].copy()
            self.seen, self.kinds = arrays["seen"].copy(), arrays["kinds"].tolist()

    def result(self, *, alpha: float = 0.05, num_bootstrap: int = 200) -> xr.Dataset:
        """Curves, band, sensitivity, p-values and verdict, as :func:`tarp`.

        Raises:
            ValueError: ``alpha`` outside (0, 1), or fewer than two simulations so far.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"'alpha' must lie between 0 and 1; got {alpha}")
        if self.null is None or self.ranks is None or self.done < 2:
            raise ValueError(f"'add' must see at least 2 simulations; got {self.done}")
        rank, num, positions = self.ranks[self.seen], self.done, self.positions
        curves = self.null.cumsum(-1)[..., :-1] / num  # (sets, 1 + num_null, positions)
        error = curves - positions
        distance = np.abs(error).max(-1)
        statistic, square = distance.max(0), np.square(error).mean((0, -1))
        # Equal counts differ by rounding at most; distances take few values when simulations do.
        above = statistic[1:] > statistic[0] + 1e-9
        level = np.abs(statistic[1:] - statistic[0]) <= 1e-9
        larger = int((above | level & (square[1:] >= square[0] - 1e-12)).sum())
        p_value = (1 + larger) / (1 + self.num_null)
        coverage = curves[:, 0]
        inside = np.stack([(rank < cut).mean(1) for cut in self._cuts()], axis=1)
        generator = np.random.default_rng([self.seed, 4])
        weights = generator.multinomial(num, np.full(num, 1 / num), size=max(2, num_bootstrap))
        lower, upper = np.quantile(weights @ inside / num, [0.025, 0.975], axis=0)
        counts = np.round(coverage.T * num).astype(int)
        set_p = ranks.ecdf_p_value(counts, positions, num)
        worst = int(distance[:, 0].argmax())
        at = int(np.abs(coverage[worst] - positions).argmax())
        failed = p_value <= alpha
        reason = (
            f"joint coverage of {len(self.kinds)} sets of reference points "
            f"{'differs from' if failed else 'agrees with'} the nominal one (p = {p_value:.2g}); "
            f"farthest is {self.kinds[worst]} set {worst}: {coverage[worst, at]:.3f} at "
            f"credibility {positions[at]:.3f}"
        )
        report = xr.Dataset(
            {
                "expected_coverage": (("set", "credibility"), coverage),
                "mean_coverage": ("credibility", coverage.mean(0)),
                "band_lower": ("credibility", lower),
                "band_upper": ("credibility", upper),
                "sensitivity": ("credibility", coverage.std(0)),
                "distance": ("set", distance[:, 0]),
                "set_p_value": ("set", set_p),
            },
            coords={
                "credibility": positions,
                "set": np.arange(len(self.kinds)),
                "kind": ("set", self.kinds),
            },
            attrs={
                "verdict": "fail" if failed else "pass",
                "reason": reason,
                "p_value": p_value,
                "statistic": float(statistic[0]),
                "alpha": alpha,
                "seed": self.seed,
                "num_simulations": num,
                "num_draws": self.num_draws,
            },
        )
        return with_long_names(report, LONG_NAMES)

    def _cuts(self) -> np.ndarray:
        return np.round(self.positions * (self.num_draws + 1)).astype(int)

    def _lines(self, y: Tensor) -> Tensor:
        """Standardised random linear functions of ``y``: ``(num_references, num_simulations)``."""
        flat = y.detach().reshape(len(y), -1).double().cpu()
        # A constant says nothing; what rounding leaves of it must not either.
        flat = flat[:, flat.amax(0) > flat.amin(0)]
        if not flat.numel():
            return flat.new_zeros(self.num_references, len(flat))
        flat = flat - flat.mean(0)
        flat = flat / flat.std(0)
        stream = torch.Generator().manual_seed(self._seed(5))
        shape = (self.num_references, flat.shape[1])
        along = torch.randn(shape, generator=stream, dtype=torch.float64) @ flat.T
        size = along.square().mean(1, keepdim=True).sqrt()
        return along / torch.where(size > 0, size, 1.0)

    def _references(self, streams: list[torch.Generator], rows: slice, dim: int) -> Tensor:
        """Built-in sets in standardised coordinates: ``(sets, block, dim)``."""
        num, block = self.num_references, rows.stop - rows.start
        stream = torch.Generator().manual_seed(self._seed(6))
        fixed, line = torch.randn(2, num, 1, dim, generator=stream, dtype=torch.float64)
        drawn = torch.stack([torch.randn(num, dim, generator=s) for s in streams], dim=1)
        sets = [fixed.expand(num, block, dim), drawn.double()]
        self.kinds = ["fixed"] * num + ["random"] * num
        if self.along is not None:
            sets.append(line * self.along[:, rows, None])
            self.kinds += ["data"] * num
        return torch.cat(sets)

    def _seed(self, stream: int) -> int:
        return int(np.random.SeedSequence([self.seed, stream]).generate_state(1)[0])


def _places(values: Tensor) -> Tensor:
    """Place of every value among those of its column; NumPy sorts four times faster on a CPU."""
    if values.device.type == "cpu":
        rows = values.numpy().T
        places = np.empty(rows.shape, dtype=np.int64)
        order = np.argsort(rows, axis=1)
        np.put_along_axis(places, order, np.arange(rows.shape[1])[None], axis=1)
        return torch.from_numpy(places).T
    return values.argsort(dim=0, stable=True).argsort(dim=0)
