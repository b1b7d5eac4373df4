r"""Draws that go to a file block by block, so that their number is bounded by the disk alone.

Blocks follow from the sizes of the problem and the request only, and each has random numbers of
its own, so that a seed gives the same file whatever the memory. A request of a single block holds
the numbers of ``vfm(y).sample((num_draws,))``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import netCDF4
import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from vfm_inverse.formats.netcdf_files import seal, writing
from vfm_inverse.labelled.write import save_netcdf, summary, to_xarray
from vfm_inverse.problem.labels import BATCH, DRAW
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.files import check_space, check_writable, replacing
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import figures
from vfm_inverse.sampling.exact import joined, worst
from vfm_inverse.statistics.summaries import levels, scratch, statistics

if TYPE_CHECKING:
    from vfm_inverse.posterior.push_forward import PushForward
    from vfm_inverse.posterior.variational import VariationalFlowMap
    from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["sample_to_netcdf"]

BLOCK = 2**24
"""Numbers drawn at once: 64 MiB in single precision."""

CHUNK = 2**18
"""Numbers of a chunk of the file."""


@checked(
    "sample",
    vfm="VariationalFlowMap",
    problem="InverseProblem",
    path="path",
    params="mapping",
    provenance="mapping",
)
def sample_to_netcdf(
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    y: Tensor,
    num_draws: int,
    path: str | os.PathLike[str],
    *,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
    quantiles: Sequence[float] | None = None,
    keep_draws: bool = False,
    raw: bool = False,
    **labels: Any,
) -> Path:
    """Write posterior draws as :func:`vfm_inverse.labelled.write.to_xarray` labels them, or their
    :func:`vfm_inverse.labelled.write.summary`, in memory that depends on the observations and not
    on the number of draws.

    Args:
        vfm: the map.
        problem: whose labels are used.
        y: observations ``(batch, *observation)``.
        num_draws: draws for each.
        path: netCDF file to write or to replace.
        params: parameters of the observations.
        seed: fixes the draws.
        provenance: further attributes; ``vfm.provenance()`` and the seed unless given.
        progress: show a progress bar.
        quantiles: levels of a summary, which is written instead of the draws.
        keep_draws: write the draws beside the summary.
        raw: write draws of the map alone where others would be made exact.
        labels: further arguments of :func:`vfm_inverse.labelled.write.to_xarray`.

    Returns:
        The file.

    Raises:
        OSError: there is no room for the file, or it cannot be written.
        ValueError: the observations do not fit the map, or a number is out of range.

    Warns:
        CalibrationWarning: as calling the map does, once.
    """
    params = dict(params or {})
    y, params, _ = vfm.batch(y, params)
    if provenance is None:
        provenance = {**vfm.provenance(), "seed": seed}
        if raw and vfm.resamples:
            provenance["draws"] = "of the map alone"
    options = {"params": params, "provenance": provenance, **labels}
    size = y.new_empty((), dtype=vfm.whitening.mean.dtype).element_size()
    points = None if quantiles is None else levels(quantiles)
    layers = (num_draws if points is None or keep_draws else 0) + 2 + len(points or ())
    check_writable(path)
    check_space(path, layers * len(y) * vfm.event_shape.numel() * size)
    plan = Plan.of(num_draws, len(y), vfm.event_shape.numel())
    if plan.single:
        law = posterior_of(vfm, y, params, raw)
        with seeded(seed):
            draws = law.sample((num_draws,))
        made = to_xarray(draws, problem, y, diagnostics=law.diagnostics, **options)
        if points is not None:
            made = summary(made, points, keep_draws=keep_draws)
        return save_netcdf(made, path)
    empty = torch.zeros(0, len(y), *vfm.event_shape, dtype=vfm.whitening.mean.dtype)
    layout = to_xarray(empty, problem, y, **options)
    if points is not None:
        layout = summary(layout, points, keep_draws=keep_draws).assign_attrs(num_draws=num_draws)
    with replacing(path) as temporary, writing(path):
        write_layout(layout, temporary, plan)
        with netCDF4.Dataset(temporary, "a") as file:
            write_blocks(vfm, y, params, file, plan, seed, progress, raw)
        seal(temporary)
    return Path(path)


class Plan(NamedTuple):
    """How a request is cut.

    Attributes:
        num_draws, num_observations: of the request.
        draws, observations: of a block.
        chunk_draws, chunk_observations: of a chunk of the file.
    """

    num_draws: int
    num_observations: int
    draws: int
    observations: int
    chunk_draws: int
    chunk_observations: int

    @classmethod
    def of(cls, num_draws: int, num_observations: int, numel: int) -> Plan:
        """Blocks and chunks for fields of ``numel`` numbers."""
        several = min(num_draws, 64)  # draws of one observation share its networks' context
        observations = max(1, min(num_observations, BLOCK // (numel * several)))
        chunk_observations = min(observations, max(1, CHUNK // (numel * several)))
        observations -= observations % chunk_observations
        draws = max(1, min(num_draws, BLOCK // (numel * observations)))
        chunk_draws = min(draws, max(1, CHUNK // (numel * chunk_observations)))
        draws -= draws % chunk_draws
        return cls(
            num_draws, num_observations, draws, observations, chunk_draws, chunk_observations
        )

    @property
    def single(self) -> bool:
        """Whether one block is all."""
        return self.num_draws * self.num_observations <= self.draws * self.observations

    def blocks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Observations of each row of blocks, and the draws of the blocks in it."""
        for first in range(0, self.num_observations, self.observations):
            rows = slice(first, min(first + self.observations, self.num_observations))
            begins = range(0, self.num_draws, self.draws)
            yield rows, [slice(k, min(k + self.draws, self.num_draws)) for k in begins]


def write_layout(layout: xr.Dataset, path: Path, plan: Plan) -> None:
    """A file with everything but the draws, to which they can be added."""
    drawn = [DRAW] if DRAW in layout.dims else []
    encoding: dict[str, Any] = {
        name: {"chunksizes": (min(plan.num_draws, CHUNK),)} for name in drawn
    }
    for name, variable in layout.data_vars.items():
        if DRAW in variable.dims:
            sizes = (plan.chunk_draws, plan.chunk_observations, *variable.shape[2:])
            encoding[str(name)] = {"chunksizes": sizes, "fletcher32": True}
    layout.to_netcdf(
        path, engine="netcdf4", format="NETCDF4", unlimited_dims=drawn, encoding=encoding
    )


def write_blocks(
    vfm: VariationalFlowMap,
    y: Tensor,
    params: Mapping[str, Tensor],
    file: netCDF4.Dataset,
    plan: Plan,
    seed: int,
    progress: bool,
    raw: bool,
) -> None:
    """Draw all blocks, and write what the file has a place for: draws and their summary."""
    drawn = [v for v in file.variables.values() if DRAW in v.dimensions and v.ndim > 1]
    summed = "quantiles" in file.variables
    for variable in file.variables.values():
        variable.set_auto_maskandscale(False)
    if drawn:
        file[DRAW][:] = np.arange(plan.num_draws)
    shape = (drawn[0] if drawn else file["quantiles"]).shape[2:]
    kind = vfm.whitening.mean.new_empty(0).numpy(force=True).dtype
    count = sum(len(blocks) for _, blocks in plan.blocks())
    seeds = [seed, *np.random.SeedSequence([seed, 3]).generate_state(count - 1, np.uint64)]
    bar = tqdm(total=plan.num_draws * plan.num_observations, disable=not progress, desc="sample")
    told: list[Mapping[str, Tensor]] = []
    with bar, torch.no_grad():
        for rows, blocks in plan.blocks():
            seen = rows_of(params, rows)
            law, found = posterior_of(vfm, y[rows], seen, raw), []
            size = (plan.num_draws if summed else 0, rows.stop - rows.start, *shape)
            with scratch(size, kind, Path(file.filepath()).parent) as held:
                for block in blocks:
                    with seeded(int(seeds.pop(0)) % 2**63):
                        draws = law.sample((block.stop - block.start,))
                    found.append(law.diagnostics)
                    values = draws.cpu().reshape(*draws.shape[:2], *shape).numpy()
                    for variable in drawn:
                        variable[block, rows] = values
                    if summed:
                        held[block] = values
                    bar.update(draws.shape[0] * draws.shape[1])
                if summed:
                    levels_of = statistics(held, file["quantile"][:])
                    file["mean"][rows], file["std"][rows] = levels_of["mean"], levels_of["std"]
                    file["quantiles"][:, rows] = levels_of["quantiles"]
            if found[0]:
                told.append(joined(found))
    if told:
        write_diagnostics(file, told)


def write_diagnostics(file: netCDF4.Dataset, told: Sequence[Mapping[str, Tensor]]) -> None:
    """What is known of exact draws, of one row of blocks after the other."""
    whole = {name: torch.cat([one[name] for one in told]) for name in told[0]}
    for name, (dims, values, attrs) in figures(whole, BATCH).items():
        variable = file.createVariable(name, values.dtype, dims, fill_value=np.nan)
        variable.setncatts(attrs)
        variable[:] = values
    file.setncatts(worst(whole))


def posterior_of(
    vfm: VariationalFlowMap, y: Tensor, params: Mapping[str, Tensor], raw: bool
) -> PushForward:
    """The posterior of observations, exact as sampled or that of the map alone."""
    law = vfm.posterior(y, params)
    return law.raw if raw else law
