"""Draws that go to a file block by block."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.formats.netcdf_files import check_content
from vfm_inverse.labelled import blocks as streaming
from vfm_inverse.labelled.blocks import Plan, sample_to_netcdf
from vfm_inverse.labelled.write import save_netcdf, to_xarray
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.runtime.warnings import CalibrationWarning


@pytest.fixture(scope="module")
def made() -> tuple[vi.VariationalFlowMap, InverseProblem]:
    problem = problems.load("gaussian-field", size=8, num_points=5, sigma=[0.1, 0.5])
    options = {"num_simulations": 300, "width": 8, "depth": 1}
    return vi.VariationalFlowMap.for_problem(problem, **options), problem


def written(path: Path) -> xr.Dataset:
    check_content(path)
    return xr.load_dataset(path)


def test_one_block_holds_the_draws_of_the_map(
    made: tuple[vi.VariationalFlowMap, InverseProblem], tmp_path: Path
) -> None:
    vfm, problem = made
    _, y, params = problem.simulate(3, seed=1)
    sample_to_netcdf(vfm, problem, y, 7, tmp_path / "x.nc", params=params, seed=2)
    with seeded(2):
        draws = vfm(y, **params).sample((7,))
    provenance = {**vfm.provenance(), "seed": 2}
    expected = to_xarray(draws, problem, y, params=params, provenance=provenance)
    save_netcdf(expected, tmp_path / "expected.nc")
    read, expected = written(tmp_path / "x.nc"), written(tmp_path / "expected.nc")
    xr.testing.assert_equal(read, expected)
    same = read.attrs.keys() - {"history", "content_sha256"}
    assert {k: read.attrs[k] for k in same} == {k: expected.attrs[k] for k in same}


@pytest.mark.parametrize(("num", "batch"), [(50, 3), (3, 50), (1, 1), (17, 1)])
def test_many_blocks_hold_what_to_xarray_labels(
    num: int,
    batch: int,
    made: tuple[vi.VariationalFlowMap, InverseProblem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 600)
    monkeypatch.setattr(streaming, "CHUNK", 150)
    vfm, problem = made
    _, y, params = problem.simulate(batch, seed=1)
    for name in ("x.nc", "again.nc"):
        sample_to_netcdf(vfm, problem, y, num, tmp_path / name, params=params, seed=2)
    read = written(tmp_path / "x.nc")
    assert read.equals(written(tmp_path / "again.nc"))
    draws = torch.from_numpy(read["field"].values)[:, :, None]
    provenance = {**vfm.provenance(), "seed": 2}
    expected = to_xarray(draws, problem, y, params=params, provenance=provenance)
    save_netcdf(expected, tmp_path / "expected.nc")
    expected = written(tmp_path / "expected.nc")
    xr.testing.assert_equal(read, expected)
    assert read.field.attrs == expected.field.attrs
    assert read.attrs.keys() == expected.attrs.keys()
    # No draw is missing, repeated, or of another observation.
    assert bool(draws.isfinite().all())
    flat = draws.flatten(2).transpose(0, 1).flatten(0, 1)
    assert len(flat.unique(dim=0)) == num * batch
    if num >= 17:
        with seeded(0):
            reference = vfm(y, **params).sample((2000,))
        z = (draws.mean(0) - reference.mean(0)) / reference.std(0) * num**0.5
        assert z.abs().max() < 6


def test_blocks_of_a_request_cover_it_once() -> None:
    for size in ((1, 1, 1), (10**6, 1, 1024), (1000, 10**5, 4), (1, 10**7, 3), (5, 7, 2**25)):
        plan = Plan.of(*size)
        num, batch, numel = size
        assert plan.draws * plan.observations * numel <= max(streaming.BLOCK, numel)
        assert plan.chunk_draws <= plan.draws and plan.chunk_observations <= plan.observations
        if num * batch <= 10**6:
            seen = np.zeros((num, batch), int)
            for rows, blocks in plan.blocks():
                for block in blocks:
                    seen[block, rows] += 1
            assert (seen == 1).all()


def test_a_file_without_room_is_refused_before_a_draw_is_made(
    made: tuple[vi.VariationalFlowMap, InverseProblem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vfm, problem = made
    _, y, params = problem.simulate(1, seed=1)
    usage = namedtuple("usage", "total used free")(10**9, 0, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(vfm, "posterior", None)  # a call would fail
    with pytest.raises(OSError, match=r"No space left on device for .* GB .*x\.nc"):
        sample_to_netcdf(vfm, problem, y, 10**9, tmp_path / "x.nc", params=params)
    with pytest.raises(OSError, match="No such file"):
        sample_to_netcdf(vfm, problem, y, 10, tmp_path / "missing" / "x.nc", params=params)
    for wrong in (0, -1, 1.5, "3"):
        with pytest.raises(ValueError, match="'num_draws' must be an integer of at least 1"):
            sample_to_netcdf(vfm, problem, y, wrong, tmp_path / "x.nc", params=params)
    assert os.listdir(tmp_path) == []


def test_a_failure_in_a_later_block_leaves_the_old_file(
    made: tuple[vi.VariationalFlowMap, InverseProblem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 600)
    vfm, problem = made
    _, y, params = problem.simulate(3, seed=1)
    (tmp_path / "x.nc").write_text("old")
    laws = iter([vfm.posterior])

    def fails(*args: object) -> object:
        return next(laws)(*args)

    monkeypatch.setattr(vfm, "posterior", fails)
    with pytest.raises((RuntimeError, ValueError)):
        sample_to_netcdf(vfm, problem, y, 50, tmp_path / "x.nc", params=params)
    assert os.listdir(tmp_path) == ["x.nc"] and (tmp_path / "x.nc").read_text() == "old"


def test_an_observation_out_of_range_is_pointed_out_once(
    made: tuple[vi.VariationalFlowMap, InverseProblem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 600)
    vfm, problem = made
    _, y, params = problem.simulate(2, seed=1)
    with pytest.warns(CalibrationWarning, match="outside the range") as seen:
        sample_to_netcdf(vfm, problem, y + 1000, 50, tmp_path / "x.nc", params=params)
    assert len(seen) == 1


def test_draws_take_the_memory_of_the_result(
    made: tuple[vi.VariationalFlowMap, InverseProblem],
) -> None:
    """The same numbers as when noise and draws were held apart, without a second copy."""
    from vfm_inverse.gaussian.frames import standard_law, unstandardize

    vfm, problem = made
    _, y, params = problem.simulate(3, seed=1)
    law = vfm(y, **params)
    with seeded(5), torch.no_grad():
        zeta = standard_law(law.latent).sample((400,))
        parts = [law._decode(unstandardize(law.latent, part)) for part in zeta.split(341)]
    with seeded(5):
        draws = law.sample((20, 20))
    assert torch.equal(draws.flatten(0, 1), torch.cat(parts))
    with seeded(5):
        one = law.sample()
    with seeded(5):
        assert torch.equal(one, law.sample((1,))[0])
    assert law.sample((0,)).shape == (0, 3, 1, 8, 8)
    assert law.sample((2, 0)).shape == (2, 0, 3, 1, 8, 8)
