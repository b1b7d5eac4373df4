"""Mean, standard deviation and quantiles instead of draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.cli.program import main
from vfm_inverse.formats.netcdf_files import check_content
from vfm_inverse.labelled import blocks as streaming
from vfm_inverse.labelled import write as labelled
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.statistics import summaries


@pytest.fixture(scope="module")
def made() -> tuple[vi.VariationalFlowMap, InverseProblem]:
    problem = problems.load("gaussian-field", size=8, num_points=5, sigma=[0.1, 0.5])
    options = {"num_simulations": 300, "width": 8, "depth": 1}
    return vi.VariationalFlowMap.for_problem(problem, **options), problem


def test_equal_weights_give_the_figures_of_the_draws() -> None:
    draws = np.random.default_rng(0).normal(size=(50, 2, 3)).astype(np.float32)
    for weights in (None, np.full((50, 2), 0.02)):
        found = summaries.statistics(draws, (0.1, 0.5), weights)
        np.testing.assert_allclose(found["mean"], draws.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["std"], draws.std(0), rtol=1e-5)
        np.testing.assert_allclose(
            found["quantiles"], np.quantile(draws, (0.1, 0.5), axis=0), rtol=1e-5, atol=1e-6
        )


def test_weights_count_as_repeated_draws_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole weights, one set an observation, against draws written out as often."""
    rng = np.random.default_rng(1)
    draws, times = rng.normal(size=(20, 3, 4)), rng.integers(0, 5, (20, 3))
    monkeypatch.setattr(summaries, "SLICE", 60)  # slices of three elements cross observations
    found = summaries.statistics(draws, (0.05, 0.5, 0.9), times / times.sum(0))
    for i in range(3):
        long = np.repeat(draws[:, i], times[:, i], axis=0)
        np.testing.assert_allclose(found["mean"][i], long.mean(0))
        np.testing.assert_allclose(found["std"][i], long.std(0))
        expected = np.quantile(long, (0.05, 0.5, 0.9), axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found["quantiles"][:, i], expected)


def test_a_summary_keeps_labels_units_and_the_observation() -> None:
    prior = xr.DataArray(
        np.random.default_rng(0).normal(size=(30, 3, 4)),
        dims=("sample", "lat", "lon"),
        coords={"lat": [60.0, 55.0, 50.0], "lon": [0.0, 1.0, 2.0, 3.0]},
        attrs={"units": "degC", "long_name": "sea surface temperature"},
        name="sst",
    )
    problem = InverseProblem(prior, simulator=lambda x: x + torch.randn_like(x))
    _, y, _ = problem.simulate(2, seed=0)
    dates = xr.Dataset(coords={"std": ("observation", ["a", "b"])})
    weights = torch.rand(9, 2).softmax(0)
    ensemble = Ensemble(torch.randn(9, 2, 1, 3, 4), weights, {"ess": torch.ones(2)}, ("x", "y"))
    draws = vi.to_xarray(ensemble, problem, y, observation=dates)
    found = vi.summary(draws, (0.25, 0.75))
    assert found["mean"].dims == found["std"].dims == ("observation", "lat", "lon")
    assert found["quantiles"].dims == ("quantile", "observation", "lat", "lon")
    assert found["quantile"].values.tolist() == [0.25, 0.75]
    assert found["mean"].attrs == {
        "units": "degC",
        "long_name": "posterior mean of sea surface temperature",
    }
    np.testing.assert_allclose(found["mean"].values, ensemble.mean[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["std"].values, ensemble.variance[:, 0].sqrt(), rtol=1e-4)
    assert "draw" not in found.dims and not {"sst", "weight"} & set(found.variables)
    assert found["station_std"].values.tolist() == ["a", "b"]
    assert found.attrs["num_draws"] == 9
    xr.testing.assert_equal(
        found["observed"].drop_vars("station_std"), draws.observed.drop_vars("std")
    )
    both = vi.summary(draws, (0.25, 0.75), keep_draws=True)
    assert both["sst"].equals(draws["sst"].rename(std="station_std"))


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.9, 0.1), (0, 0.5), (0.5, 1), 0.5, ("a",)])
def test_levels_that_are_none_are_refused(levels: object) -> None:
    with pytest.raises(ValueError, match="'quantiles' must be increasing numbers above 0 and"):
        summaries.levels(levels)


def test_a_dataset_without_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="one variable with the dimension 'draw'; got"):
        vi.summary(xr.Dataset({"a": ("x", [1.0])}))


@pytest.mark.parametrize("keep_draws", [False, True])
@pytest.mark.parametrize("block", [600, 2**24])
def test_a_file_of_a_summary_is_the_summary_of_the_file_of_draws(
    block: int,
    keep_draws: bool,
    made: tuple[vi.VariationalFlowMap, InverseProblem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", block)
    monkeypatch.setattr(streaming, "CHUNK", 150)
    monkeypatch.setattr(summaries, "IN_MEMORY", 1000)  # what is more goes to the disk
    vfm, problem = made
    _, y, params = problem.simulate(3, seed=1)
    options = {"params": params, "seed": 2}
    streaming.sample_to_netcdf(vfm, problem, y, 50, tmp_path / "draws.nc", **options)
    path = tmp_path / "summary.nc"
    streaming.sample_to_netcdf(
        vfm, problem, y, 50, path, **options, quantiles=(0.1, 0.5), keep_draws=keep_draws
    )
    check_content(path)
    assert [
        file.name for file in tmp_path.iterdir() if file.name not in ("draws.nc", path.name)
    ] == []
    draws, found = xr.load_dataset(tmp_path / "draws.nc"), xr.load_dataset(path)
    expected = labelled.summary(draws, (0.1, 0.5), keep_draws=keep_draws)
    xr.testing.assert_equal(found, expected)
    assert found.attrs["num_draws"] == 50
    assert found["mean"].attrs == expected["mean"].attrs


def test_the_command_line_writes_summaries(
    made: tuple[vi.VariationalFlowMap, InverseProblem],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vfm, problem = made
    _, y, params = problem.simulate(2, seed=1)
    vfm.save(tmp_path / "model.safetensors")
    observation = tmp_path / "y.nc"
    labelled.save_netcdf(labelled.observation_to_xarray(y, problem, params), observation)
    out = tmp_path / "post.nc"
    command = ["sample", str(tmp_path), str(observation), "-n", "20", "--out", str(out)]
    assert main([*command, "--summary", "--quantiles", "0.25,0.75"]) == 0
    assert "20 draws, summarised, for 2 observation(s)" in capsys.readouterr().out
    found = xr.load_dataset(out)
    assert found["quantile"].values.tolist() == [0.25, 0.75]
    assert "draw" not in found.dims
    assert main([*command, "--summary", "--draws"]) == 0
    assert {"field", "mean", "std", "quantiles"} <= set(xr.load_dataset(out).variables)
    capsys.readouterr()
    assert main([*command, "--draws"]) == 2
    assert "go with '--summary'; it is missing" in capsys.readouterr().err
    assert main([*command, "--summary", "--quantiles", "2"]) == 2
    assert "'quantiles' must be increasing numbers" in capsys.readouterr().err
