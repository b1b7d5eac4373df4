"""Calibration over simulated observations: resumable, and by parts that add up.

**Units.**  Simulations are taken in units, each with random numbers of its own.  How many
simulations a unit holds and how many draws one call of ``sample`` asks for follow from ``chunk``
alone, so that a seed and a ``chunk`` give the same report whatever the memory, after a kill, and
by however many processes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from vfm_inverse.calibration.answers import VARIES, ask, draws_of, fingerprint, log_score, sampled
from vfm_inverse.calibration.map_labels import MapLabels
from vfm_inverse.calibration.results import make_report
from vfm_inverse.calibration.settings import (
    check_counts,
    check_flags,
    check_functions,
    check_optional,
    check_problem,
    check_quantities,
    seed_of,
    shard_of,
    whole,
)
from vfm_inverse.calibration.shards import compare, data_hash, read_part, write_part
from vfm_inverse.calibration.tally import Tally
from vfm_inverse.posterior.untrained import before_training
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.splits import Split
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.climatology import MEMBERS, Climatology
from vfm_inverse.statistics.joint_coverage import Tarp
from vfm_inverse.statistics.meanings import about
from vfm_inverse.statistics.quantities import (
    Quantity,
    channel_units,
    default_quantities,
    evaluate,
    needs_double,
)

__all__ = ["CHUNK", "Counting", "baseline_name", "calibrate", "new_tally", "report_of"]

CHUNK = 2**20
"""Numbers that one call of ``sample`` asks for unless told otherwise: 256 fields of 64 x 64."""

SAVE_SECONDS = 30.0
"""Seconds between two writings of what was counted so far."""


def calibrate(
    posterior_fn: Callable[..., Any],
    problem: InverseProblem,
    num_simulations: int = 1000,
    num_draws: int = 1000,
    *,
    seed: int | None = 0,
    split: Split = "test",
    quantities: Mapping[str, Quantity] | None = None,
    alpha: float = 0.05,
    joint: bool = True,
    local: bool = False,
    baseline: Callable[..., Any] | None = None,
    chunk: int = CHUNK,
    memory: int = 2**30,
    path: str | Path | None = None,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    provenance: Mapping[str, str | float | int] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Check the posteriors of simulated observations against the truths behind them.

    Draws are made, ranked, scored and dropped unit by unit. A seed and a ``chunk`` give the same
    report, bit for bit on a CPU, whatever ``memory``, ``shard`` and interruptions.

    Args:
        posterior_fn: ``(y, **params) -> posterior`` with ``posterior.sample((n,))`` of shape
            ``(n, batch, *event)``: a trained map, or ``problem.reference_posterior``.
        problem: simulates truths and observations.
        num_simulations: number of simulated observations ``N``; sets the power of the test.
        num_draws: number of posterior draws ``L`` for each.
        seed: fixes simulations, draws and ties; ``None`` takes a seed from torch's global
            generator. The seed used is in ``attrs["seed"]``.
        split: prior samples to simulate from, ``"test"`` (held out) or ``"train"``.
        quantities: test quantities by name instead of those of
            :func:`vfm_inverse.statistics.quantities.default_quantities`.
        alpha: probability with which a calibrated posterior may fail.
        joint: test the joint coverage (:mod:`vfm_inverse.statistics.joint_coverage`).
        local: train classifiers that tell draws from truths, and say where they can
            (:mod:`vfm_inverse.statistics.local_c2st`): seconds to minutes.
        baseline: another posterior function, such as ``problem.reference_posterior`` or a Gaussian
            one, whose scores the skill compares with; the prior, as given by the other truths,
            unless given. A map with a Gaussian start is compared with itself before its training
            besides (:mod:`vfm_inverse.posterior.untrained`).
        chunk: numbers that one call of ``sample`` asks for; larger ones suit a GPU.
        memory: rough limit in bytes for the working copies of a sort. One unit's draws,
            ``chunk`` numbers or one observation's ``num_draws`` fields, are always held at once.
        path: file that what was counted is written to, every half minute and at the end. It
            knows its settings, simulations, quantities and posterior by fingerprint.
        resume: go on from ``path`` where it exists; otherwise begin again. A finished file gives
            its report at the cost of a few draws, which tell whether it is of this posterior.
        shard: ``(index, count)``, to work on each ``count``-th unit from ``index`` on; the report
            is of these alone. :func:`merge` makes one report of all parts' files.
        provenance: attributes to add to the report.
        progress: show a progress bar.

    Returns:
        Dataset over ``simulation``, ``quantity``, ``level``, ``position``, ``bin``, ``score``,
        ``tarp_set`` and the field's own dimensions (variables ending in ``_map``), with
        ``attrs["verdict"]``, ``"pass"`` or ``"fail"``, and ``attrs["reason"]``.

    Raises:
        TypeError: a setting, or what ``posterior_fn`` returns, is of another kind.
        ValueError: too few simulations or draws, no posterior, draws of another shape, NaN, a file
            of other settings or of another posterior.
        OSError: ``path`` cannot be written.
    """
    num_simulations, num_draws, alpha = check_counts(num_simulations, num_draws, alpha)
    chunk, memory = whole(chunk, "chunk", 1), whole(memory, "memory", 1)
    shard = shard_of(shard)
    check_flags(joint=joint, local=local, resume=resume, progress=progress)
    check_quantities(quantities)
    check_functions(posterior_fn=posterior_fn)
    check_problem(problem)
    check_optional(provenance, baseline, path)
    held = read_part(path) if path is not None and resume and Path(path).exists() else None
    if seed is None:
        base = int(torch.randint(2**31, ())) if held is None else held[1]["seed"]
    else:
        base = seed_of(seed)
    x, y, params = problem.simulate(num_simulations, split=split, seed=base)
    data = (x, y, params, base, num_draws, chunk, baseline)
    run = Counting(posterior_fn, *data, problem.log_prior, before_training(posterior_fn))
    run.check_shard(shard)
    tally = new_tally(
        quantities,
        num_draws,
        x,
        y,
        density=None if problem.likelihood is None else problem.log_likelihood,
        seed=base,
        joint=joint,
        local=local,
        climate=baseline is None,
        memory=memory,
    )
    settings = run.settings(tally, split, {**sampled(posterior_fn), **(provenance or {})})
    if path is not None:
        settings |= run.identity(tally.quantities)
    if held is not None:
        _explain(held[1], settings, problem, x)
    run.count(tally, settings, shard=shard, path=path, held=held, progress=progress)
    labels = MapLabels.of(x.shape[1:], problem.dims, problem.coords, problem.units)
    return report_of(tally, labels, alpha, settings)


@dataclass(frozen=True)
class Counting:
    """Draws for simulated observations, unit by unit."""

    posterior_fn: Callable[..., Any]
    x: Tensor
    y: Tensor
    params: Mapping[str, Tensor]
    seed: int
    num_draws: int
    chunk: int
    baseline: Callable[..., Any] | None
    log_prior: Callable[[Tensor], Tensor] | None
    start: Callable[..., Any] | None = None
    """The map before its training, if it is one with a Gaussian start."""

    def units(self) -> list[slice]:
        """Rows of all units."""
        size = max(1, self.chunk // (self.num_draws * self.x[0].numel()))
        return [slice(i, min(i + size, len(self.x))) for i in range(0, len(self.x), size)]

    def check_shard(self, shard: tuple[int, int]) -> None:
        """Refuse a part without two simulations, of which a report needs as many."""
        index, parts = shard
        mine = self.units()[index::parts]
        if (num := sum(rows.stop - rows.start for rows in mine)) < 2:
            raise ValueError(
                f"'shard' {shard} would hold {num} of {len(self.x)} simulations, and a report "
                f"needs 2: take fewer parts than the {len(self.units())} units, or a smaller "
                "'chunk'"
            )

    def settings(
        self, tally: Tally, split: str, provenance: Mapping[str, str | float | int]
    ) -> dict[str, Any]:
        """What a file of this run is known by, and what its report says of it."""
        params = {f"param {name}": value for name, value in self.params.items()}
        return {
            "seed": self.seed,
            "num_simulations": len(self.x),
            "num_draws": self.num_draws,
            "chunk": self.chunk,
            "split": split,
            "quantities": list(tally.quantities),
            "event": list(self.x.shape[1:]),
            "data": data_hash({"x": self.x, "y": self.y, **params}),
            "joint": tally.joint is not None,
            "local": bool(tally.local),
            "baseline": baseline_name(self.baseline),
            "about": about(tally.quantities, self.x),
            "provenance": dict(provenance),
        }

    def identity(self, quantities: Mapping[str, Quantity]) -> dict[str, str]:
        """Fingerprints of posterior, baseline and quantities."""
        seed = int(np.random.SeedSequence([self.seed, 8]).generate_state(1)[0])
        found = {}
        for name, function in (("posterior_fn", self.posterior_fn), ("baseline", self.baseline)):
            if function is not None:
                data = (self.x, self.y, self.params)
                mark = fingerprint(function, name, *data, seed=seed, chunk=self.chunk)
                found[f"{name}_sha256"] = mark
                if mark == VARIES:
                    warnings.warn(
                        f"draws of '{name}' do not follow the seed (equal seeds give others): a "
                        "file cannot tell this posterior from another one, and the report cannot "
                        "be had again; torch's and NumPy's global generators do follow it",
                        stacklevel=3,
                    )
        # Values of a few truths, as if they were draws of one another.
        few = torch.stack([self.x[:4], self.x[:4].flip(0)])
        params = rows_of(self.params, slice(4))
        with torch.no_grad(), seeded(seed):
            values = evaluate(quantities, few, self.y[:4], params)
        return {**found, "quantities_sha256": data_hash({"values": values})}

    def count(
        self,
        tally: Tally,
        settings: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
        path: str | Path | None = None,
        held: tuple[Mapping[str, np.ndarray], Mapping[str, Any]] | None = None,
        progress: bool = False,
    ) -> None:
        """Let ``tally`` count the units of a shard that it has not seen.

        Args:
            tally: of all simulations.
            settings: what a file must have been made with to be gone on with.
            shard: index and number of parts.
            path: file to keep what was counted in.
            held: arrays and settings of the file that is there, to go on from.
            progress: show a progress bar.
        """
        index, parts = shard
        settings = {**settings, "shard": list(shard)}
        if held is not None and path is not None:
            arrays, stored = held
            compare(path, stored, settings, "resume=False begins again")
            tally.restore(arrays)
        elif path is not None:
            # Before the work: a place that cannot be written to is known now, not at its end.
            write_part(path, tally.state(), settings)
        units = self.units()
        seeds = np.random.SeedSequence([self.seed, 2]).generate_state(2 * len(units)).tolist()
        further = np.random.SeedSequence([self.seed, 9]).generate_state(len(units)).tolist()
        mine = range(index, len(units), parts)
        left = [number for number in mine if not tally.seen[units[number]].all()]
        total = sum(units[n].stop - units[n].start for n in mine)
        bar = tqdm(total=total, desc="calibrate", unit="obs", disable=not progress)
        saved = time.monotonic()
        with torch.no_grad(), bar:
            bar.update(tally.done)
            for number in left:
                rows = units[number]
                self._unit(tally, rows, [*seeds[2 * number :][:2], further[number]])
                bar.update(rows.stop - rows.start)
                if path is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    write_part(path, tally.state(), settings)
                    saved = time.monotonic()
        if path is not None and left:
            write_part(path, tally.state(), settings)

    def _unit(self, tally: Tally, rows: slice, seeds: Sequence[int]) -> None:
        seen = rows_of(self.params, rows)
        x, y = self.x[rows], self.y[rows]
        buffer = x.new_empty(1 + self.num_draws, *x.shape)
        buffer[0] = x
        with seeded(seeds[0]):
            posterior = ask(self.posterior_fn, "posterior_fn", y, seen)
            for part in buffer[1:].split(max(1, self.chunk // x.numel())):
                part.copy_(draws_of(posterior, "posterior_fn", part.shape, x))
            log_density = log_score(posterior, x)
        other, other_log, start = None, None, None
        shape = torch.Size([min(self.num_draws, MEMBERS), *x.shape])
        if self.baseline is not None:
            with seeded(seeds[1]):
                reference = ask(self.baseline, "baseline", y, seen)
                other = draws_of(reference, "baseline", shape, x)
                other_log = log_score(reference, x)
        elif self.log_prior is not None and log_density is not None:
            other_log = -self.log_prior(x)
        if self.start is not None:
            with seeded(seeds[2]):
                start = draws_of(self.start(y, **seen), "untrained", shape, x)
        tally.add(
            rows.start,
            buffer,
            y,
            seen,
            log_score=log_density,
            baseline=other,
            baseline_log_score=other_log,
            untrained=start,
        )


def new_tally(
    quantities: Mapping[str, Quantity] | None,
    num_draws: int,
    truth: Tensor,
    y: Tensor | None,
    *,
    density: Quantity | None = None,
    seed: int,
    joint: bool = True,
    local: bool = False,
    climate: bool = True,
    memory: int = 2**30,
) -> Tally:
    """An empty tally for truths ``(num, *event)`` and their observations: of the default
    quantities, with ``density`` for the log-likelihood, unless others are given; with the other
    truths as baseline where ``climate`` and where two others are left."""
    if quantities is None:
        quantities = default_quantities(truth.shape[1:], density, units=channel_units(truth))
    # Of the truths alone: the same in every part of a run.
    wide = needs_double(truth)
    climate = climate and len(truth) > 2
    return Tally(
        quantities,
        num_draws,
        len(truth),
        seed,
        joint=Tarp(num_draws, len(truth), y=y, seed=seed) if joint else None,
        climatology=Climatology(truth.double() if wide else truth) if climate else None,
        local=local,
        memory=memory,
        wide=wide,
        wide_y=local and y is not None and needs_double(y),
    )


def report_of(
    tally: Tally, labels: MapLabels, alpha: float, settings: Mapping[str, Any]
) -> xr.Dataset:
    """The report of what was counted with these settings."""
    attrs = {name: settings[name] for name in ("split", "chunk", "baseline")}
    return make_report(
        tally, labels, alpha, {**attrs, **settings["about"], **settings["provenance"]}
    )


def baseline_name(baseline: Callable[..., Any] | None) -> str:
    """What a baseline is called in reports."""
    if baseline is None:
        return "the prior: truths of other simulations"
    return str(getattr(baseline, "__qualname__", type(baseline).__name__))


def _explain(
    stored: Mapping[str, Any], settings: Mapping[str, Any], problem: InverseProblem, x: Tensor
) -> None:
    """Say so where a file has other simulations because the simulator does not follow the seed."""
    same = all(stored.get(k) == settings[k] for k in ("seed", "split", "num_simulations"))
    if not same or stored.get("data") == settings["data"]:
        return
    few = {"num": len(x), "split": settings["split"], "seed": settings["seed"]}
    again = [problem.simulate(**few) for _ in range(2)]
    if len({data_hash({"x": x, "y": y, **params}) for x, y, params in again}) > 1:
        raise ValueError(
            "the calibration cannot go on: the simulator does not follow the seed (equal seeds "
            "give other observations). Draw its noise from torch's or NumPy's global generator, "
            "or record the problem (resume=False begins again)"
        )
