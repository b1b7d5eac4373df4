"""Calibration over simulated observations: resumable, and by parts that add up.

**Units.**  Simulations are taken in units, each with random numbers of its own.  How many
simulations a unit holds and how many draws one call of ``sample`` asks for follow from ``chunk``
alone, so that a seed and a ``chunk`` give the same report whatever the memory, after a kill, and
by however many processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from vfm_inverse.baselines import MEMBERS, Climatology
from vfm_inverse.calibration.labels import MapLabels
from vfm_inverse.calibration.parts import data_hash, read_part, write_part
from vfm_inverse.calibration.results import make_report
from vfm_inverse.quantities import Quantity, default_quantities
from vfm_inverse.randomness import seeded
from vfm_inverse.tally import Tally
from vfm_inverse.tarp import Tarp

if TYPE_CHECKING:
    from vfm_inverse.problem import InverseProblem

__all__ = ["calibrate", "check_counts", "merge", "new_tally"]

#: Numbers that one call of ``sample`` asks for unless told otherwise: 256 fields of 64 x 64.
CHUNK = 2**20

#: Seconds between two writings of what was counted so far.
SAVE_SECONDS = 30.0


def calibrate(
    posterior_fn: Callable[..., Any],
    problem: InverseProblem,
    num_simulations: int = 1000,
    num_draws: int = 1000,
    *,
    seed: int | None = 0,
    split: Literal["train", "test"] = "test",
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
        problem: Simulates truths and observations.
        num_simulations: Number of simulated observations ``N``; sets the power of the test.
        num_draws: Number of posterior draws ``L`` for each.
        seed: Fixes simulations, draws and ties; ``None`` takes a seed from torch's global
            generator. The seed used is in ``attrs["seed"]``.
        split: Prior samples to simulate from, ``"test"`` (held out) or ``"train"``.
        quantities: Test quantities by name instead of those of
            :func:`vfm_inverse.quantities.default_quantities`.
        alpha: Probability with which a calibrated posterior may fail.
        joint: Test the joint coverage (:mod:`vfm_inverse.tarp`).
        local: Train classifiers that tell draws from truths, and say where they can
            (:mod:`vfm_inverse.local_tests`): seconds to minutes.
        baseline: Another posterior function, such as ``problem.reference_posterior`` or a Gaussian
            one, whose scores the skill compares with; the prior, as given by the other truths,
            unless given.
        chunk: Numbers that one call of ``sample`` asks for; larger ones suit a GPU.
        memory: Rough limit in bytes for the working copies of a sort. One unit's draws,
            ``chunk`` numbers or one observation's ``num_draws`` fields, are always held at once.
        path: File that what was counted is written to, every half minute and at the end.
        resume: Go on from ``path`` where it exists; otherwise begin again.
        shard: ``(index, count)``, to work on each ``count``-th unit from ``index`` on; the report
            is of these alone. :func:`merge` makes one report of all parts' files.
        provenance: Attributes to add to the report.
        progress: Show a progress bar.

    Returns:
        Dataset over ``simulation``, ``quantity``, ``level``, ``position``, ``bin``, ``score``,
        ``tarp_set`` and the field's own dimensions (variables ending in ``_map``), with
        ``attrs["verdict"]``, ``"pass"`` or ``"fail"``, and ``attrs["reason"]``.

    Raises:
        ValueError: Too few simulations or draws, no posterior, draws of another shape, NaN, a file
            of other settings.
    """
    check_counts(num_simulations, num_draws, alpha)
    base = int(torch.randint(2**31, ())) if seed is None else seed
    x, y, params = problem.simulate(num_simulations, split=split, seed=base)
    if quantities is None:
        density = None if problem.likelihood is None else problem.log_likelihood
        quantities = default_quantities(x.shape[1:], density)
    run = Run(posterior_fn, x, y, params, base, num_draws, chunk, baseline, problem.log_prior)
    tally = new_tally(
        quantities,
        num_draws,
        x,
        y,
        seed=base,
        joint=joint,
        local=local,
        climate=baseline is None,
        memory=memory,
    )
    settings = {
        "seed": base,
        "num_simulations": num_simulations,
        "num_draws": num_draws,
        "chunk": chunk,
        "split": split,
        "quantities": list(quantities),
        "event": list(x.shape[1:]),
        "data": data_hash({"x": x, "y": y, **{f"param {k}": v for k, v in params.items()}}),
        "joint": joint,
        "local": local,
        "baseline": _name(baseline),
        "provenance": dict(provenance or {}),
    }
    run.count(tally, settings, shard=shard, path=path, resume=resume, progress=progress)
    labels = MapLabels.of(x.shape[1:], problem.dims, problem.coords, problem.units)
    return _finish(tally, labels, alpha, settings)


def merge(
    paths: Sequence[str | Path], problem: InverseProblem | None = None, *, alpha: float = 0.05
) -> xr.Dataset:
    """One report of the parts that :func:`calibrate` with ``shard`` wrote.

    Args:
        paths: Files of all parts, in any order.
        problem: gives the maps its labels; plain ones where missing.
        alpha: Probability with which a calibrated posterior may fail.

    Returns:
        The report of one run over all simulations of the parts, bit for bit.

    Raises:
        ValueError: No part, parts of different settings, a simulation in two parts.
    """
    if not paths:
        raise ValueError("'paths' must name at least one file")
    whole: Tally | None = None
    first: dict[str, Any] = {}
    for path in paths:
        arrays, settings = read_part(path)
        settings.pop("shard")
        first = first or settings
        _compare(path, settings, first)
        # Quantities are evaluated by then: their names are enough.
        absent: dict[str, Quantity] = dict.fromkeys(settings["quantities"], _absent)
        num, num_draws, seed = (settings[k] for k in ("num_simulations", "num_draws", "seed"))
        tarp = Tarp(num_draws, num, seed=seed) if settings["joint"] else None
        part = Tally(absent, num_draws, num, seed, joint=tarp, local=settings["local"])
        part.restore(arrays)
        if whole is None:
            whole = part
        else:
            whole.merge(part)
    assert whole is not None
    given = () if problem is None else (problem.dims, problem.coords, problem.units)
    return _finish(whole, MapLabels.of(first["event"], *given), alpha, first)


@dataclass(frozen=True)
class Run:
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

    def units(self) -> list[slice]:
        """Rows of all units."""
        size = max(1, self.chunk // (self.num_draws * self.x[0].numel()))
        return [slice(i, min(i + size, len(self.x))) for i in range(0, len(self.x), size)]

    def count(
        self,
        tally: Tally,
        settings: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
        path: str | Path | None = None,
        resume: bool = True,
        progress: bool = False,
    ) -> None:
        """Let ``tally`` count the units of a shard that it has not seen."""
        index, parts = shard
        if not 0 <= index < parts:
            raise ValueError(
                f"'shard' must be (index, count) with 0 <= index < count; got {shard}"
            )
        if self.chunk < 1:
            raise ValueError(f"'chunk' must be at least 1; got {self.chunk}")
        settings = {**settings, "shard": list(shard)}
        if path is not None and resume and Path(path).is_file():
            arrays, stored = read_part(path)
            _compare(path, stored, settings)
            tally.restore(arrays)
        units = self.units()
        seeds = np.random.SeedSequence([self.seed, 2]).generate_state(2 * len(units)).tolist()
        mine = [number for number in range(len(units)) if number % parts == index]
        total = sum(units[n].stop - units[n].start for n in mine)
        bar = tqdm(total=total, desc="calibrate", unit="obs", disable=not progress)
        saved = time.monotonic()
        with torch.no_grad(), bar:
            bar.update(tally.done)
            for number in mine:
                rows = units[number]
                if tally.seen[rows].all():
                    continue
                self._unit(tally, rows, seeds[2 * number : 2 * number + 2])
                bar.update(rows.stop - rows.start)
                if path is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    write_part(path, tally.state(), settings)
                    saved = time.monotonic()
        if path is not None:
            write_part(path, tally.state(), settings)

    def _unit(self, tally: Tally, rows: slice, seeds: Sequence[int]) -> None:
        seen = {name: value[rows] for name, value in self.params.items()}
        x, y = self.x[rows], self.y[rows]
        buffer = x.new_empty(1 + self.num_draws, *x.shape)
        buffer[0] = x
        with seeded(seeds[0]):
            posterior = _posterior(self.posterior_fn, "posterior_fn", y, seen)
            for part in buffer[1:].split(max(1, self.chunk // x.numel())):
                part.copy_(_draws(posterior, "posterior_fn", part.shape))
            log_score = _log_score(posterior, x)
        other, other_log = None, None
        if self.baseline is not None:
            with seeded(seeds[1]):
                reference = _posterior(self.baseline, "baseline", y, seen)
                shape = torch.Size([min(self.num_draws, MEMBERS), *x.shape])
                other = _draws(reference, "baseline", shape)
                other_log = _log_score(reference, x)
        elif self.log_prior is not None and log_score is not None:
            other_log = -self.log_prior(x)
        tally.add(
            rows.start,
            buffer,
            y,
            seen,
            log_score=log_score,
            baseline=other,
            baseline_log_score=other_log,
        )


def check_counts(num_simulations: int, num_draws: int, alpha: float) -> None:
    """Refuse numbers below their least values."""
    if num_simulations < 2:
        raise ValueError(f"'num_simulations' must be at least 2; got {num_simulations}")
    if num_draws < 2:
        raise ValueError(f"'num_draws' must be at least 2; got {num_draws}")
    if not 0 < alpha < 1:
        raise ValueError(f"'alpha' must lie between 0 and 1; got {alpha}")


def new_tally(
    quantities: Mapping[str, Quantity],
    num_draws: int,
    truth: Tensor,
    y: Tensor | None,
    *,
    seed: int,
    joint: bool = True,
    local: bool = False,
    climate: bool = True,
    memory: int = 2**30,
) -> Tally:
    """An empty tally for truths ``(num, *event)`` and their observations, with the other truths as
    baseline where ``climate``."""
    return Tally(
        quantities,
        num_draws,
        len(truth),
        seed,
        joint=Tarp(num_draws, len(truth), y=y, seed=seed) if joint else None,
        climatology=Climatology(truth) if climate else None,
        local=local,
        memory=memory,
    )


def _finish(
    tally: Tally, labels: MapLabels, alpha: float, settings: Mapping[str, Any]
) -> xr.Dataset:
    attrs = {name: settings[name] for name in ("split", "chunk", "baseline")}
    return make_report(tally, labels, alpha, {**attrs, **settings["provenance"]})


def _name(baseline: Callable[..., Any] | None) -> str:
    if baseline is None:
        return "the prior: truths of other simulations"
    return str(getattr(baseline, "__qualname__", type(baseline).__name__))


def _posterior(
    function: Callable[..., Any], name: str, y: Tensor, seen: Mapping[str, Tensor]
) -> Any:
    posterior = function(y, **seen)
    if posterior is None:
        raise ValueError(f"'{name}' must return a posterior; got None")
    return posterior


def _draws(posterior: Any, name: str, shape: torch.Size) -> Tensor:
    draws: Tensor = posterior.sample((shape[0],))
    if draws.shape != shape:
        raise ValueError(
            f"'{name}' must give draws of shape {tuple(shape)}; got {tuple(draws.shape)}"
        )
    return draws


def _log_score(posterior: Any, x: Tensor) -> Tensor | None:
    """Minus the log density of the truths; None where the posterior has none."""
    log_prob = getattr(posterior, "log_prob", None)
    if log_prob is None:
        return None
    try:
        value: Tensor = -log_prob(x)
    except NotImplementedError:
        return None
    return value if value.shape == x.shape[:1] else None


def _compare(path: str | Path, settings: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if settings.get(name) != value:
            raise ValueError(
                f"{path} holds a calibration with {name} = {settings.get(name)!r}; expected "
                f"{value!r} (resume=False begins again)"
            )


def _absent(x: Tensor, y: Tensor | None = None, **params: Tensor) -> Tensor:
    raise NotImplementedError("a merged tally knows the names of its quantities alone")
