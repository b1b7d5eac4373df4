"""Labelled data in and out: what is written, what is read back, and what is refused."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from deepinv.physics import Denoising, GaussianNoise, Inpainting
from torch import Tensor

from vfm_inverse import problems
from vfm_inverse.labelled.write import (
    load_observation,
    observation_to_xarray,
    save_netcdf,
    to_xarray,
)
from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def ocean(**kwargs: Any) -> InverseProblem:
    """Temperatures on a small map, seen in place through a mask, with an error of their own."""
    lat = xr.Variable("lat", [60.0, 55.0, 50.0], {"units": "degrees_north"})
    prior = xr.DataArray(
        10 + np.random.default_rng(0).normal(size=(30, 3, 4)),
        dims=("sample", "lat", "lon"),
        coords={
            "lat": lat,
            "lon": [0.0, 1.0, 2.0, 3.0],
            "time": np.datetime64("2020-01-01", "ns"),
        },
        attrs={"units": "degC", "long_name": "sea surface temperature"},
        name="sst",
    )

    def params(num: int) -> dict[str, Tensor]:
        mask = (torch.rand(num, 1, 3, 4) < 0.7).float()
        mask[:, :, 0, 0] = 1
        return {"mask": mask, "sigma": torch.rand(num) + 0.1}

    physics = Inpainting((1, 3, 4), mask=torch.ones(1, 3, 4), noise_model=GaussianNoise(0.1))
    return InverseProblem(prior, physics=physics, **({"params": params} | kwargs))


def winds() -> InverseProblem:
    """Two channels at stations, whose mask is shared by the channels."""
    physics = PointObservations((2, 5, 6), torch.rand(7, 2), GaussianNoise(0.1))

    def params(num: int) -> dict[str, Tensor]:
        mask = (torch.rand(num, 1, 7) < 0.6).float()
        mask[:, :, 0] = 1
        return {"mask": mask, "sigma": torch.rand(num, 2, 7) + 0.1}

    return InverseProblem(torch.randn(30, 2, 5, 6), physics=physics, params=params)


def gains() -> InverseProblem:
    """A parameter that is neither mask nor sigma."""
    return InverseProblem(
        torch.randn(30, 4),
        simulator=lambda x, gain: torch.einsum("bij,bj->bi", gain, x),
        params=lambda num: {"gain": torch.randn(num, 2, 4)},
    )


PROBLEMS: dict[str, Callable[[], InverseProblem]] = {
    "ocean": ocean,
    "winds": winds,
    "gains": gains,
    "no parameters": lambda: problems.load("linear-gaussian"),
    "stations": lambda: problems.load("gaussian-field", size=6, num_points=5, sigma=(0.1, 1)),
    "profile": lambda: InverseProblem(
        torch.randn(30, 2, 9), physics=Denoising(noise_model=GaussianNoise(0.1))
    ),
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> InverseProblem:
    return PROBLEMS[request.param]()


def test_a_written_observation_reads_back_identically(
    problem: InverseProblem, tmp_path: Path
) -> None:
    _, y, params = problem.simulate(5, seed=1)
    path = save_netcdf(observation_to_xarray(y, problem, params), tmp_path / "y.nc")
    read, read_params = load_observation(path, problem)
    assert torch.equal(read, y) and read.dtype == y.dtype
    assert read_params.keys() == params.keys()
    seen = y != 0 if "mask" in params else torch.ones_like(y, dtype=torch.bool)
    for name, value in params.items():
        if name == "sigma" and value.shape == y.shape:  # errors of data that are not seen are lost
            assert torch.equal(read_params[name][seen], value[seen])
        else:
            assert torch.equal(read_params[name], value)


def test_draws_carry_labels_and_provenance(problem: InverseProblem, tmp_path: Path) -> None:
    x, y, params = problem.simulate(2, seed=0)
    draws = x.expand(3, *x.shape)
    provenance = {"seed": 7, "calibrated": True, "adapter": "full", "steps": [1, 2], "none": None}
    written = to_xarray(draws, problem, y, params=params, provenance=provenance)
    read = xr.load_dataset(save_netcdf(written, tmp_path / "draws.nc"))
    field = read[problem.field_labels.name]
    assert field.dims == ("draw", "observation", *problem.dims)
    np.testing.assert_array_equal(field.values.reshape(draws.shape), draws.numpy())
    for name, coord in problem.coords.items():
        assert read[name].dims == coord.dims and read[name].attrs == coord.attrs
        np.testing.assert_array_equal(read[name].values, coord.values)
    assert read.attrs["Conventions"].startswith("CF-")
    assert read.attrs["vfm_inverse_version"] and read.attrs["physics"]
    assert (read.attrs["seed"], read.attrs["adapter"]) == (7, "full")
    assert read.attrs["calibrated"] == "true" and read.attrs["steps"] == "[1, 2]"
    again, _ = load_observation(read, problem)  # a file of draws holds its observation too
    assert torch.equal(again, y)


def test_units_names_and_coordinates_survive() -> None:
    problem = ocean()
    ds = to_xarray(problem.sample_prior(4).unsqueeze(1), problem)
    assert ds["sst"].attrs == {"units": "degC", "long_name": "sea surface temperature"}
    assert ds["lat"].attrs == {"units": "degrees_north"}
    assert ds["lat"].values.tolist() == [60.0, 55.0, 50.0]
    assert ds["time"].values == np.datetime64("2020-01-01")
    one = to_xarray(problem.sample_prior(4), problem)
    assert one["sst"].dims == ("draw", "lat", "lon")
    named = problems.load("photo-deblur", size=16, sigma=0.05)
    attrs = to_xarray(named.sample_prior(2), named).attrs
    assert attrs["problem"] == "photo-deblur"
    assert attrs["problem_kwargs"] == '{"size": 16, "sigma": 0.05}'
    assert attrs["physics"] == "Blur with GaussianNoise(sigma=0.05)"


def observed(problem: InverseProblem, **changes: Any) -> xr.Dataset:
    values = np.arange(12.0).reshape(3, 4)
    ds = xr.Dataset(
        {"observed": (("lat", "lon"), values, {"units": "degC"}), "error_std": 0.5},
        coords={"lat": [60.0, 55.0, 50.0], "lon": [0.0, 1.0, 2.0, 3.0]},
    )
    return ds.assign(**changes)


def test_nan_means_not_observed() -> None:
    problem = ocean()
    ds = observed(problem)
    ds["observed"][1, 2] = np.nan
    y, params = load_observation(ds, problem)
    mask = torch.ones(1, 1, 3, 4)
    mask[0, 0, 1, 2] = 0
    assert torch.equal(params["mask"], mask)
    assert float(y[0, 0, 1, 2]) == 0 and float(y[0, 0, 2, 3]) == 11
    assert params["sigma"].tolist() == [0.5]


def test_dimensions_are_matched_by_name_and_coordinates_up_to_order() -> None:
    problem = ocean()
    ds = observed(problem)
    expected, _ = load_observation(ds, problem)
    for other in (
        ds.transpose("lon", "lat"),
        ds.isel(lat=slice(None, None, -1)),
        ds.isel(lon=[2, 0, 3, 1]),
        ds.rename(lat="y", lon="x").drop_vars(["x", "y"]),
        ds.rename(observed="sst"),
        ds.assign_coords(lat=ds.lat.astype("f4")),
        ds.drop_vars(["lat", "lon", "error_std"]).assign(sigma=0.5),
        ds.expand_dims("observation", axis=-1),
    ):
        y, params = load_observation(other, problem)
        assert torch.equal(y, expected) and params["sigma"].tolist() == [0.5]
    ds["observed"].attrs["error_std"] = 0.25
    assert load_observation(ds["observed"], problem)[1]["sigma"].tolist() == [0.25]


def test_a_fill_value_in_a_file_is_missing_too(tmp_path: Path) -> None:
    problem, path = ocean(), tmp_path / "y.nc"
    ds = observed(problem)
    ds["observed"][0, 1] = np.nan
    packed = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -999}
    ds.to_netcdf(path, encoding={"observed": packed})
    y, params = load_observation(path, problem)
    assert params["mask"].sum() == 11 and float(y[0, 0, 2, 3]) == 11


def test_missing_data_without_a_mask_are_an_error_unless_hidden_anyway() -> None:
    ds = observed(ocean())
    ds["observed"][0, 1] = np.nan
    no_mask = ocean(params=lambda num: {"sigma": torch.ones(num)})
    with pytest.raises(ValueError, match=r"1 of 12 data are missing \(NaN\).*no parameter 'mask'"):
        load_observation(ds, no_mask)
    fixed = torch.ones(1, 3, 4)
    fixed[0, 0, 1] = 0
    physics = Inpainting((1, 3, 4), mask=fixed, noise_model=GaussianNoise(0.5))
    hidden = InverseProblem(torch.randn(9, 1, 3, 4), physics=physics)
    y, params = load_observation(ds, hidden)
    assert params == {} and float(y[0, 0, 0, 1]) == 0


def test_a_mask_shared_by_channels_needs_places_missing_in_all() -> None:
    problem = winds()
    _, y, params = problem.simulate(1, seed=0)
    ds = observation_to_xarray(y, problem, params)
    ds["observed"][0, 1, 0] = np.nan
    with pytest.raises(ValueError, match="missing in all channels or in none"):
        load_observation(ds, problem)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("error_std"), "lacks the parameter 'sigma'.*'error_std'"),
        (lambda ds: ds.assign(error_std=-1.0), "'error_std' must be positive"),
        (lambda ds: ds.assign(error_std=("lat", [1.0, 1.0, 2.0])), "the dimensions"),
        (
            lambda ds: ds.assign(error_std=ds["observed"] + 1),
            "the error differs between the data of an observation",
        ),
        (
            lambda ds: ds.assign(error_std=((), 0.1, {"units": "m"})),
            "'error_std' is in 'm', the problem in 'degC'",
        ),
        (lambda ds: ds.isel(lat=slice(2)), r"dimensions .*'lat': 2.* problem expects"),
        (
            lambda ds: ds.assign_coords(lat=[60.0, 56.0, 50.0]),
            "coordinate 'lat' of the observation",
        ),
        (
            lambda ds: ds.assign(observed=ds["observed"].assign_attrs(units="m")),
            "the observation is in 'm', the problem in 'degC'",
        ),
        (
            lambda ds: ds.rename(observed="a").assign(b=2 * ds["observed"]),
            r"cannot tell which variable.*got \['a', 'b', 'error_std'\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[xr.Dataset], xr.Dataset], message: str
) -> None:
    problem = ocean()
    with pytest.raises(ValueError, match=message):
        load_observation(change(observed(problem)), problem)


def test_a_stated_error_must_agree_with_fixed_noise() -> None:
    problem = problems.load("linear-gaussian", sigma=0.3)
    ds = xr.Dataset({"observed": ("datum", [1.0, 2.0])})
    assert load_observation(ds, problem)[1] == {}
    assert load_observation(ds.assign(sigma=0.3), problem)[1] == {}
    with pytest.raises(
        ValueError, match="error is 0.4 to 0.4; the problem's noise is fixed at 0.3"
    ):
        load_observation(ds.assign(sigma=0.4), problem)
    simulated = gains()
    with pytest.raises(ValueError, match="states an error, and the problem has no 'sigma'"):
        load_observation(ds.assign(sigma=0.4), simulated)


def test_files_that_are_no_netcdf_are_refused(tmp_path: Path) -> None:
    problem = ocean()
    whole = save_netcdf(observed(problem), tmp_path / "whole.nc")
    broken = tmp_path / "broken.nc"
    for content in (b"", b"PK\x03\x04 a zip", whole.read_bytes()[:3000]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="broken.nc' is not a readable netCDF file"):
            load_observation(broken, problem)
    with pytest.raises(FileNotFoundError, match="there is no observation file"):
        load_observation(tmp_path / "absent.nc", problem)


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_netcdf(xr.Dataset({"a": 1}), tmp_path / "a.nc")
    assert path.stat().st_mode & stat.S_IRUSR

    def killed(self: xr.Dataset, target: Path, **kwargs: Any) -> None:
        Path(target).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", killed)
    with pytest.raises(ValueError, match="cannot write '.*a.nc': No space left on device"):
        save_netcdf(xr.Dataset({"a": 2}), path)
    assert int(xr.load_dataset(path)["a"]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]
    with pytest.raises(ValueError, match="cannot write"):
        save_netcdf(xr.Dataset({"a": 2}), tmp_path / "no" / "folder" / "a.nc")


def test_shapes_that_do_not_fit_are_refused() -> None:
    problem = ocean()
    _, y, params = problem.simulate(2, seed=0)
    with pytest.raises(ValueError, match=r"'draws' must have shape \(num_draws, batch, "):
        to_xarray(torch.zeros(5, 2, 3, 4), problem, y)
    with pytest.raises(ValueError, match=r"'y' must have shape \(\d+, "):
        to_xarray(torch.zeros(5, 3, 1, 3, 4), problem, y)
    with pytest.raises(ValueError, match=r"missing \['mask', 'sigma'\]"):
        observation_to_xarray(y, problem)
