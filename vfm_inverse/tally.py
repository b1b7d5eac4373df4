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

from vfm_inverse import ranks, scores
from vfm_inverse.baselines import Climatology
from vfm_inverse.marginals import Marginals, marginals
from vfm_inverse.quantities import Quantity, evaluate, observation_features
from vfm_inverse.tarp import Tarp

__all__ = ["LEVELS", "SCORES", "ExactSum", "Tally"]

#: Nominal probabilities of the central intervals and of the highest-density regions.
LEVELS: tuple[float, ...] = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99)

#: Scores of whole simulations; the log score only where the posterior has a density.
SCORES: tuple[str, ...] = (
    "crps",
    "crps_plain",
    "energy",
    "energy_plain",
    "variogram",
    "log_score",
)

#: What is kept of each quantity of each simulation beside its ranks, in the quantity's own unit:
#: CRPS, value of the truth, mean and standard deviation of the draws.
OF_QUANTITIES = ("quantity_crps", "quantity_truth", "quantity_mean", "quantity_std")

#: Numbers sorted at once: what a processor's cache holds, and what fills a GPU.
SORTED = {"cpu": 2**16, "cuda": 2**24}


#: Draws of each simulation whose quantities are kept for the local tests.
LOCAL_DRAWS = 65


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
        quantities: Test quantities by name.
        num_draws: Number of draws ``L`` of each simulation.
        num_simulations: Number of simulations ``N``, of which some may come elsewhere.
        seed: Fixes how ties are broken.
        joint: Joint coverage of the same simulations, to be counted along.
        climatology: Baseline of the scores, unless :meth:`add` is given one.
        local: Keep the quantities of some draws of every simulation, for the local tests.
        memory: Rough limit in bytes for the working copies of a sort.
        wide, wide_y: Compute in double precision, for fields and for observations whose squares
            leave single precision.

    Attributes:
        single: What each simulation left, ``(N, ...)`` by name; NaN or -1 where it has not come.
        seen: ``(N,)``, which simulations have come.
        sums: Sums over simulations of each element, ``(..., *event)``.
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
            start: Number of the first simulation.
            buffer: ``(1 + num_draws, block, *event)``, truth, then draws. One tensor, because a
                quantity must round truth and draws alike for their ties to be ties.
            y: Observations ``(block, *observation)``, for quantities that use them.
            params: Their parameters ``(block, ...)``.
            log_score: ``(block,)``, minus the log density of the truths.
            baseline: ``(num_baseline, block, *event)``, draws of the posterior to compare with.
            baseline_log_score: ``(block,)``.
            untrained: ``(num_untrained, block, *event)``, draws of the map before its training.

        Raises:
            ValueError: A value that is not finite.
        """
        block, event = buffer.shape[1], buffer.shape[2:]
        rows, count, size = slice(start, start + block), len(self.quantities), event.numel()
        streams = map(torch.Generator().manual_seed, self.tie_seeds[rows])
        # Rows are (quantity or element, rank or density rank).
        uniforms = torch.stack([torch.rand(2, count + size, generator=s) for s in streams], dim=1)
        uniforms = uniforms.to(buffer.device)
        _check_finite(buffer, start)
        values = evaluate(self.quantities, buffer, y, params)
        if self.wide:
            buffer = buffer.double()
            baseline = None if baseline is None else baseline.double()
            untrained = None if untrained is None else untrained.double()
        truth, draws = buffer[0], buffer[1:]

        element = self._marginals(buffer.flatten(1).T, uniforms[:, :, count:].flatten(1))
        scalar = self._marginals(values.flatten(1).T, uniforms[:, :, :count].flatten(1))
        std, mean = torch.std_mean(values[1:].double(), dim=0)
        single = {
            "ranks": scalar.rank,
            "density_ranks": scalar.density_rank,
            "quantity_crps": scalar.crps,
            "quantity_truth": values[0],
            "quantity_mean": mean,
            "quantity_std": std,
        }
        for name, value in single.items():
            self.single[name][rows] = value.reshape(block, count).cpu().numpy()

        if self.local and y is not None:
            kept = values[: 1 + LOCAL_DRAWS].movedim(0, 1)
            self._keep("values", rows, kept.cpu().numpy())
            self._keep(
                "features",
                rows,
                observation_features(y.double() if self.wide_y else y).cpu().numpy(),
            )

        field = Marginals(*(value.reshape(block, *event) for value in element))
        spread = field.variance.double() * (1 + 1 / self.num_draws)
        error = field.error.double()
        self.single["spread"][rows] = spread.flatten(1).mean(1).cpu().numpy()
        self.single["skill"][rows] = error.square().flatten(1).mean(1).cpu().numpy()
        found = self.single["scores"][rows]
        found[:, 0] = field.crps.double().flatten(1).mean(1).cpu().numpy()
        found[:, 1] = field.crps_plain.double().flatten(1).mean(1).cpu().numpy()
        found[:, 2:5] = scores.field_scores(draws, truth).cpu().numpy()
        if log_score is not None:
            found[:, 5] = log_score.double().cpu().numpy()
        other = self.single["baseline"][rows]
        if baseline is not None:
            other[:, :5] = _scores(baseline, truth)
        elif self.climatology is not None:
            other[:, :5] = self.climatology.scores(truth, start)
        if baseline_log_score is not None:
            other[:, 5] = baseline_log_score.double().cpu().numpy()
        if untrained is not None:
            self.single["untrained"][rows, :5] = _scores(untrained, truth)

        bins = field.rank * self.num_bins // (self.num_draws + 1)
        binned = torch.nn.functional.one_hot(bins, self.num_bins).sum(0).movedim(-1, 0)
        self._sum("bins", binned.double())
        for name, table, rank in (
            ("coverage", self.inside, field.rank),
            ("hpd_coverage", self.denser, field.density_rank),
        ):
            weight = torch.from_numpy(table).to(rank.device)[:, rank]
            self._sum(name, weight.sum(1))
            if name == "coverage":
                self.single["held"][rows] = weight.flatten(2).mean(2).T.cpu().numpy()
        self._sum("crps", field.crps.double().sum(0))
        self._sum("bias", error.sum(0))
        self._sum("skill", error.square().sum(0))
        self._sum("spread", spread.sum(0))
        if self.joint is not None:
            self.joint.add(draws, truth, start=start)
        self.seen[rows] = True

    def merge(self, other: Tally) -> None:
        """Take over the simulations that came to another tally of the same settings.

        Raises:
            ValueError: A simulation has come to both.
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
            ValueError: It is of another number of simulations or quantities.
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


def _scores(draws: Tensor, truth: Tensor) -> np.ndarray:
    """Scores of other draws ``(num, block, *event)`` in the order of :data:`SCORES`, without the
    last: ``(block, 5)``."""
    found = [scores.crps(draws, truth, fair=fair).double() for fair in (True, False)]
    columns = [one.flatten(1).mean(1)[:, None] for one in found]
    table: np.ndarray = torch.cat([*columns, scores.field_scores(draws, truth)], 1).cpu().numpy()
    return table


def _check_finite(buffer: Tensor, start: int) -> None:
    # The norm passes through memory once; what it makes of an overflow is looked at closely.
    if bool(torch.linalg.vector_norm(buffer).isfinite()):
        return
    finite = buffer.isfinite().flatten(2).all(-1)
    if not finite.all():
        what = "truth" if not finite[0].all() else "draws"
        where = start + int((~finite).any(0).nonzero()[0])
        raise ValueError(f"'{what}' of simulation {where} must be finite")
