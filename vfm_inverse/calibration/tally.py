"""What a calibration keeps of the draws: ranks and scores, never the draws themselves.

A thousand observations with a thousand draws of a 128 x 128 field would be 65 GB.  Each simulation
leaves the ranks of every scalar quantity and its scores; each element of the field leaves a
histogram of its ranks, its coverage and a few sums.

Nothing depends on the order in which simulations come nor on how they are grouped: a simulation
has a random stream of its own, and sums carry a second number with what rounding lost, so that
parts counted elsewhere add up to the same bits (:meth:`Tally.merge`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vfm_inverse.statistics import ranks, scores
from vfm_inverse.statistics.climatology import Climatology
from vfm_inverse.statistics.joint_coverage import Tarp
from vfm_inverse.statistics.marginals import Marginals, marginals
from vfm_inverse.statistics.quantities import Quantity, evaluate, observation_features
from vfm_inverse.statistics.scores import SCORES

__all__ = ["LEVELS", "SCORES", "ExactSum", "Tally"]

LEVELS: tuple[float, ...] = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99)
"""Nominal probabilities of the central intervals and of the highest-density regions."""

OF_QUANTITIES = ("quantity_crps", "quantity_truth", "quantity_mean", "quantity_std")
"""What is kept of each quantity of each simulation beside its ranks, in the quantity's own unit:
CRPS, value of the truth, mean and standard deviation of the draws."""

SORTED = {"cpu": 2**16, "cuda": 2**24}
"""Numbers sorted at once: what a processor's cache holds, and what fills a GPU."""

LOCAL_DRAWS = 65
"""Draws of each simulation whose quantities are kept for the local tests."""


class ExactSum:
    """A sum of float64 arrays with the rounding error of every addition kept beside it.

    ``high + low`` has twice the digits of float64 (Knuth, The Art of Computer Programming 2,
    4.2.2, theorem B), so :attr:`value` is the same in whichever order the terms came.
    """

    def __init__(self, high: np.ndarray, low: np.ndarray | None = None) -> None:
        self.high = np.array(high, dtype=np.float64)
        self.low = np.zeros_like(self.high) if low is None else np.array(low, dtype=np.float64)

    def add(self, value: np.ndarray, low: np.ndarray | float = 0.0) -> None:
        """Add ``value + low``."""
        total = self.high + value
        other = total - self.high
        self.low = self.low + ((self.high - (total - other)) + (value - other)) + low
        self.high = total

    @property
    def value(self) -> np.ndarray:
        """The sum, rounded once."""
        return self.high + self.low


class Tally:
    """Ranks and scores of each simulation, histograms and sums of each element.

    Args:
        quantities: test quantities by name.
        num_draws: number of draws ``L`` of each simulation.
        num_simulations: number of simulations ``N``, of which some may come elsewhere.
        seed: fixes how ties are broken.
        joint: joint coverage of the same simulations, to be counted along.
        climatology: baseline of the scores, unless :meth:`add` is given one.
        local: keep the quantities of some draws of every simulation, for the local tests.
        memory: rough limit in bytes for the working copies of a sort.
        wide, wide_y: compute in double precision, for fields and for observations whose squares
            leave single precision.

    Attributes:
        single: what each simulation left, ``(N, ...)`` by name; NaN or -1 where it has not come.
        seen: ``(N,)``, which simulations have come.
        sums: sums over simulations of each element, ``(..., *event)``.
        inside, denser: ``(levels, L + 1)``, share of each rank's cell inside the central interval
            and of each density rank's inside the highest-density region.
    """

    def __init__(
        self,
        quantities: Mapping[str, Quantity],
        num_draws: int,
        num_simulations: int,
        seed: int,
        *,
        joint: Tarp | None = None,
        climatology: Climatology | None = None,
        local: bool = False,
        memory: int = 2**30,
        wide: bool = False,
        wide_y: bool = False,
    ) -> None:
        self.quantities, self.num_draws, self.seed = dict(quantities), num_draws, seed
        self.joint, self.climatology, self.local = joint, climatology, local
        self.memory, self.wide, self.wide_y = memory, wide, wide_y
        # At least ten simulations a bin keep the chi-square approximation good.
        self.num_bins = max(2, min(20, num_simulations // 10, num_draws + 1))
        # A stream of ties for every simulation: blocks of any size break them alike.
        self.tie_seeds = np.random.SeedSequence([seed, 1]).generate_state(num_simulations).tolist()
        self.seen = np.zeros(num_simulations, dtype=bool)
        count = len(self.quantities)
        self.single = {
            "ranks": np.full((num_simulations, count), -1, dtype=np.int32),
            "density_ranks": np.full((num_simulations, count), -1, dtype=np.int32),
            "held": np.full((num_simulations, len(LEVELS)), np.nan),
            **{name: np.full((num_simulations, count), np.nan) for name in OF_QUANTITIES},
            "scores": np.full((num_simulations, len(SCORES)), np.nan),
            "baseline": np.full((num_simulations, len(SCORES)), np.nan),
            "untrained": np.full((num_simulations, len(SCORES)), np.nan),
            "spread": np.full(num_simulations, np.nan),
            "skill": np.full(num_simulations, np.nan),
        }
        self.sums: dict[str, ExactSum] = {}
        every = torch.arange(num_draws + 1)
        inside = [ranks.coverage_weight(every, num_draws, level) for level in LEVELS]
        denser = [ranks.density_weight(every, num_draws, level) for level in LEVELS]
        self.inside = torch.stack(inside).double().numpy()
        self.denser = torch.stack(denser).double().numpy()

    @property
    def done(self) -> int:
        """Number of simulations that have come."""
        return int(self.seen.sum())

    def add(
        self,
        start: int,
        buffer: Tensor,
        y: Tensor | None,
        params: Mapping[str, Tensor],
        *,
        log_score: Tensor | None = None,
        baseline: Tensor | None = None,
        baseline_log_score: Tensor | None = None,
        untrained: Tensor | None = None,
    ) -> None:
        """Take a block of simulations, of which the first has number ``start``.

        Args:
            start: number of the first simulation.
            buffer: ``(1 + num_draws, block, *event)``, truth, then draws. One tensor, because a
                quantity must round truth and draws alike for their ties to be ties.
            y: observations ``(block, *observation)``, for quantities that use them.
            params: their parameters ``(block, ...)``.
            log_score: ``(block,)``, minus the log density of the truths.
            baseline: ``(num_baseline, block, *event)``, draws of the posterior to compare with.
            baseline_log_score: ``(block,)``.
            untrained: ``(num_untrained, block, *event)``, draws of the map before its training.

        Raises:
            ValueError: a value that is not finite.
        """
        block, event = buffer.shape[1], buffer.shape[2:]
        rows = slice(start, start + block)
        of_quantities, of_elements = self._uniforms(rows, event.numel(), buffer.device)
        _check_finite(buffer, start)
        values = evaluate(self.quantities, buffer, y, params)
        if self.wide:
            buffer = buffer.double()
            baseline = None if baseline is None else baseline.double()
            untrained = None if untrained is None else untrained.double()
        truth, draws = buffer[0], buffer[1:]
        element = self._marginals(buffer.flatten(1).T, of_elements)
        field = Marginals(*(value.reshape(block, *event) for value in element))

        self._keep_quantities(rows, values, of_quantities)
        if self.local and y is not None:
            self._keep_for_local_tests(rows, values, y)
        found = _scores(field.crps, field.crps_plain, draws, truth)
        self._keep_scores("scores", rows, found, log_score)
        other: Mapping[str, np.ndarray] = {}
        if baseline is not None:
            other = _forecast_scores(baseline, truth)
        elif self.climatology is not None:
            other = scores.columns(self.climatology.scores(truth, start))
        self._keep_scores("baseline", rows, other, baseline_log_score)
        if untrained is not None:
            self._keep_scores("untrained", rows, _forecast_scores(untrained, truth))
        self._count_elements(rows, field)
        if self.joint is not None:
            self.joint.add(draws, truth, start=start)
        self.seen[rows] = True

    def merge(self, other: Tally) -> None:
        """Take over the simulations that came to another tally of the same settings.

        Raises:
            ValueError: a simulation has come to both.
        """
        twice = np.flatnonzero(self.seen & other.seen)
        if len(twice):
            raise ValueError(f"simulation {twice[0]} is in two of the parts to merge")
        for name, value in other.single.items():
            self._keep(name, other.seen, value[other.seen])
        for name, total in other.sums.items():
            if name in self.sums:
                self.sums[name].add(total.high, total.low)
            else:
                self.sums[name] = ExactSum(total.high, total.low)
        if self.joint is not None and other.joint is not None:
            self.joint.merge(other.joint)
        self.seen |= other.seen

    def state(self) -> dict[str, np.ndarray]:
        """All that was counted, as arrays that :meth:`restore` takes."""
        arrays = {f"single.{name}": value for name, value in self.single.items()}
        arrays["seen"] = self.seen
        for name, total in self.sums.items():
            arrays[f"sums.{name}"] = np.stack([total.high, total.low])
        if self.joint is not None:
            arrays |= {f"joint.{name}": value for name, value in self.joint.state().items()}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from a :meth:`state` of a tally with the same settings.

        Raises:
            ValueError: it is of another number of simulations or quantities.
        """
        for name, shape in {
            "seen": self.seen.shape,
            "single.ranks": self.single["ranks"].shape,
        }.items():
            if arrays[name].shape != shape:
                raise ValueError(f"'{name}' must have shape {shape}; got {arrays[name].shape}")
        self.seen = arrays["seen"].copy()
        for name in (k[len("single.") :] for k in arrays if k.startswith("single.")):
            self.single[name] = arrays[f"single.{name}"].copy()
        kept = (name for name in arrays if name.startswith("sums."))
        self.sums = {name[len("sums.") :]: ExactSum(*arrays[name]) for name in kept}
        if self.joint is not None:
            prefix = "joint."
            self.joint.restore(
                {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
            )

    def _uniforms(self, rows: slice, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Uniform numbers that break ties of quantities and of a field's ``size`` elements: each
        ``(2, block * count)``, of ranks and density ranks, from each simulation's own stream."""
        count = len(self.quantities)
        streams = map(torch.Generator().manual_seed, self.tie_seeds[rows])
        both = torch.stack([torch.rand(2, count + size, generator=s) for s in streams], dim=1)
        both = both.to(device)
        return both[:, :, :count].flatten(1), both[:, :, count:].flatten(1)

    def _keep_quantities(self, rows: slice, values: Tensor, uniforms: Tensor) -> None:
        """Ranks, CRPS and moments of the quantities ``(1 + num_draws, block, quantities)``."""
        scalar = self._marginals(values.flatten(1).T, uniforms)
        std, mean = torch.std_mean(values[1:].double(), dim=0)
        found = {
            "ranks": scalar.rank,
            "density_ranks": scalar.density_rank,
            "quantity_crps": scalar.crps,
            "quantity_truth": values[0],
            "quantity_mean": mean,
            "quantity_std": std,
        }
        for name, value in found.items():
            self.single[name][rows] = value.reshape(values.shape[1:]).cpu().numpy()

    def _keep_for_local_tests(self, rows: slice, values: Tensor, y: Tensor) -> None:
        kept = values[: 1 + LOCAL_DRAWS].movedim(0, 1)
        features = observation_features(y.double() if self.wide_y else y)
        self._keep("values", rows, kept.cpu().numpy())
        self._keep("features", rows, features.cpu().numpy())

    def _keep_scores(
        self,
        table: str,
        rows: slice,
        found: Mapping[str, np.ndarray],
        log_score: Tensor | None = None,
    ) -> None:
        """Write scores ``(block,)`` of some simulations into the columns of their names."""
        if log_score is not None:
            found = {**found, "log_score": log_score.double().cpu().numpy()}
        columns = scores.columns(self.single[table][rows])
        for name, value in found.items():
            columns[name][:] = value

    def _count_elements(self, rows: slice, field: Marginals) -> None:
        """Add a block to the histograms and sums of each element, and keep its means over them."""
        bins = field.rank * self.num_bins // (self.num_draws + 1)
        binned = torch.nn.functional.one_hot(bins, self.num_bins).sum(0).movedim(-1, 0)
        self._sum("bins", binned.double())
        inside = torch.from_numpy(self.inside).to(field.rank.device)[:, field.rank]
        self._sum("coverage", inside.sum(1))
        self.single["held"][rows] = inside.flatten(2).mean(2).T.cpu().numpy()
        denser = torch.from_numpy(self.denser).to(field.rank.device)[:, field.density_rank]
        self._sum("hpd_coverage", denser.sum(1))
        error, square = field.error.double(), field.error.double().square()
        spread = field.variance.double() * (1 + 1 / self.num_draws)
        self.single["spread"][rows] = _field_mean(spread)
        self.single["skill"][rows] = _field_mean(square)
        self._sum("crps", field.crps.double().sum(0))
        self._sum("bias", error.sum(0))
        self._sum("skill", square.sum(0))
        self._sum("spread", spread.sum(0))

    def _keep(self, name: str, rows: slice | np.ndarray, value: np.ndarray) -> None:
        """Keep ``value`` of some simulations, in its own type."""
        if name not in self.single:
            shape = (len(self.seen), *value.shape[1:])
            self.single[name] = np.full(shape, np.nan, value.dtype)
        self.single[name][rows] = value

    def _marginals(self, pool: Tensor, uniforms: Tensor) -> Marginals:
        """Statistics of every row of ``(num, 1 + num_draws)``, some rows at a time."""
        pool = pool.contiguous()
        limit = min(SORTED.get(pool.device.type, SORTED["cuda"]), self.memory // 64)
        size = max(1, limit // pool.shape[1])
        parts = zip(pool.split(size), uniforms.split(size, dim=1), strict=True)
        found = [marginals(part, uniform) for part, uniform in parts]
        return Marginals(*(torch.cat(values) for values in zip(*found, strict=True)))

    def _sum(self, name: str, value: Tensor) -> None:
        array = value.cpu().numpy()
        if name in self.sums:
            self.sums[name].add(array)
        else:
            self.sums[name] = ExactSum(array)


def _field_mean(value: Tensor) -> np.ndarray:
    """``(block, *event)`` to ``(block,)``."""
    mean: np.ndarray = value.double().flatten(1).mean(1).cpu().numpy()
    return mean


def _scores(
    crps: Tensor, crps_plain: Tensor, draws: Tensor, truth: Tensor
) -> dict[str, np.ndarray]:
    """Scores ``(block,)`` by name, with the CRPS of each element ``(block, *event)``."""
    of_field = scores.field_scores(draws, truth).cpu().numpy()
    return {
        "crps": _field_mean(crps),
        "crps_plain": _field_mean(crps_plain),
        **dict(zip(scores.OF_FIELD, of_field.T, strict=True)),
    }


def _forecast_scores(draws: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
    """Scores ``(block,)`` of other draws ``(num, block, *event)``, by name."""
    fair, plain = (scores.crps(draws, truth, fair=fair) for fair in (True, False))
    return _scores(fair, plain, draws, truth)


def _check_finite(buffer: Tensor, start: int) -> None:
    # The norm passes through memory once; what it makes of an overflow is looked at closely.
    if bool(torch.linalg.vector_norm(buffer).isfinite()):
        return
    finite = buffer.isfinite().flatten(2).all(-1)
    if not finite.all():
        what = "truth" if not finite[0].all() else "draws"
        where = start + int((~finite).any(0).nonzero()[0])
        raise ValueError(f"'{what}' of simulation {where} must be finite")
