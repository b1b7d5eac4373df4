"""Operators, problems, laws of noise, and labelled data in and out of Python."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from deepinv import physics as deepinv_physics
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics

import vfm_inverse as vi
from tests.benchmarks.behaviour_common import (
    Case,
    Results,
    by_samples,
    drawn,
    field_map,
    held_out,
    linear_map,
)
from vfm_inverse import correction, operators, problems
from vfm_inverse.labelled import (
    load_observation,
    observation_to_xarray,
    save_netcdf,
    summary,
    to_xarray,
)
from vfm_inverse.problem import InverseProblem

# Settings other than the problems' own; a line each.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "vectors, noise varies": ("linear-gaussian", {"dim": 6, "sigma": [0.1, 1.0]}),
    "field, noise varies": ("gaussian-field", {"size": 5, "num_points": 4, "sigma": [0.05, 0.5]}),
    "field, networks change": (
        "gaussian-field",
        {"size": 5, "num_points": 4, "sigma": [0.1, 0.5], "networks": "changing"},
    ),
    "heat, one time": ("heat", {"size": 5, "num_points": 4, "times": [60.0], "sigma": [2.0, 9.0]}),
    "sparse spikes": ("seismic-deconvolution", {"length": 12, "prior": "sparse"}),
    "darcy, expansion": (
        "darcy",
        {"size": 6, "num_points": 12, "prior": "expansion", "num_modes": 10},
    ),
    "darcy, channels": ("darcy", {"size": 8, "num_points": 12, "prior": "channels"}),
    "ct of photographs": (
        "ct",
        {"size": 12, "num_angles": 5, "arc": 90.0, "sigma": [0.02, 0.2], "prior": "photographs"},
    ),
    "mri of photographs": ("mri", {"size": 12, "sigma": [0.02, 0.2], "prior": "photographs"}),
    "mixture, noise varies": ("mixture-linear", {"components": 3, "sigma": [0.1, 1.0]}),
}

NOISES: dict[str, dict[str, float]] = {
    "GaussianNoise": {"sigma": 0.3},
    "LaplaceNoise": {"b": 0.3},
    "UniformNoise": {"a": 0.3},
    "GammaNoise": {"l": 4.0},
    "FisherTippettNoise": {"l": 4.0},
    "PoissonNoise": {"gain": 0.1},
    "LogPoissonNoise": {"N0": 64.0, "mu": 0.1},
    "PoissonGaussianNoise": {"gain": 0.1, "sigma": 0.2},
}


# Operators and problems --------------------------------------------------------------------------


def every_operator() -> Results:
    """What every operator makes of its example, and its transpose where it is linear."""
    results: Results = {}
    for name, physics, x in operators.examples():
        y = physics.A(x)
        results[name] = y
        if isinstance(physics, LinearPhysics):
            results[f"{name}, transposed"] = physics.A_adjoint(y)
        else:
            results[f"{name}, transposed"] = torch.func.vjp(physics.A, x)[1](y)[0]
    return results


def certified() -> Results:
    """The tables that certify operators, every fourth of them."""
    return {
        name: str(operators.verify(physics, x, name=name, seed=1))
        for name, physics, x in list(operators.examples())[::4]
    }


def of_problem(name: str, settings: dict[str, Any]) -> Results:
    """Simulations, labels, densities and the exact posterior of a problem."""
    try:
        problem = problems.load(name, **settings)
    except ImportError as error:
        return {"missing": str(error)}
    results: Results = {"text": [repr(problem), problem.describe_physics()]}
    for split in ("train", "test"):
        simulated = problem.simulate(4, split=split, seed=1)
        results |= {f"{split}, {n}": v for n, v in zip("xyp", simulated, strict=True)}
    x, y, params = held_out(problem, 4)
    results["again"] = problem.observe(x, seed=2, **params)
    results["prior and params"] = [problem.sample_prior(3, seed=2), problem.sample_params(3)]
    results["log-likelihood"] = problem.log_likelihood(x, y, **params)
    if problem.log_prior is not None:
        results["log-prior"] = problem.log_prior(x)
    if (moments := problem.prior_moments()) is not None:
        results["moments"] = list(moments)
    if (exact := problem.reference_posterior(y, **params)) is not None:
        draws = drawn(exact, 3)
        results["posterior"] = [draws, exact.log_prob(draws)]
    results["labels"] = to_xarray(x[None], problem, y, params=params)
    copy = pickle.loads(pickle.dumps(problem))
    results["pickled"] = list(copy.simulate(2, seed=1)[:2])
    return results


def gaussian_prior() -> Results:
    """The classical answer for photographs, by which maps are judged."""
    from vfm_inverse.problems.photo_deblur import gaussian_prior_posterior

    problem = problems.load("photo-deblur", size=12)
    _, y, params = held_out(problem)
    law = gaussian_prior_posterior(problem, y, **params)
    return {"draws": drawn(law), "mean": law.mean}


def of_noises() -> Results:
    """Draws and log densities under every law of noise."""
    results: Results = {}
    fields = torch.rand(50, 1, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    for name, given in NOISES.items():
        noise = getattr(deepinv_physics, name)(**given)
        problem = InverseProblem(fields, physics=Denoising(noise))
        x, y, _ = held_out(problem, 4)
        assert isinstance(problem.likelihood, vi.Likelihood)
        scale = problem.likelihood.noise_scale()
        results[name] = [y, problem.log_likelihood(x, y), scale, problem.describe_physics()]
    return results


# Out of Python -----------------------------------------------------------------------------------


def labelled(which: str) -> Results:
    """Draws with their labels, in memory, in a file, summarised, for ArviZ."""
    problem, vfm = field_map() if which == "field" else linear_map(adapter="full")
    _, y, params = held_out(problem)
    draws = drawn(vfm(y, **params), 20)
    made = to_xarray(draws, problem, y, params=params, provenance={"seed": 1, **vfm.provenance()})
    one = to_xarray(draws[:, 0], problem)
    save_netcdf(made, f"{which}.nc")
    tree = arviz(draws, problem, y, params=params)
    return {
        "draws": made,
        "one": one,
        "file": xr.load_dataset(f"{which}.nc"),
        "summary": summary(made),
        "levels": summary(made, (0.1, 0.9), keep_draws=True),
        "ArviZ": tree,
        "labelled to ArviZ": arviz(made),
    }


def arviz(*args: Any, **kwargs: Any) -> Results:
    """The groups of draws for ArviZ."""
    tree = vi.to_arviz(*args, **kwargs)
    found = {name: tree[name] for name in ("posterior", "observed_data") if name in tree}
    return {
        name: group.to_dataset() if isinstance(group, xr.DataTree) else group
        for name, group in found.items()
    }


def corrected() -> Results:
    """Weighted draws and chains with their labels."""
    problem, vfm = linear_map(adapter="full")
    _, y, params = held_out(problem)
    results: Results = {}
    for name, ensemble in {
        "weights": correction.psis(vfm, y, 100, seed=1, **params),
        "chains": correction.mcmc(vfm, y, 32, num_chains=4, warmup=4, seed=1, **params),
    }.items():
        made = to_xarray(ensemble, problem, y, params=params)
        results |= {name: made, f"{name}, summary": summary(made)}
        results[f"{name}, ArviZ"] = arviz(ensemble, problem, y, params=params)
    return results


# Into Python -------------------------------------------------------------------------------------


def grid() -> InverseProblem:
    """Temperatures on latitudes and longitudes, some of which are hidden."""
    coords = {
        "lat": ("lat", [40.0, 45.0, 50.0, 55.0], {"units": "degrees_north"}),
        "lon": ("lon", [0.0, 90.0, 180.0, 270.0], {"units": "degrees_east"}),
    }
    fields = 280 + torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return InverseProblem(
        fields,
        physics=Inpainting((1, 4, 4), mask=0.5, noise_model=GaussianNoise(0.1)),
        params=lambda num: {
            "mask": (torch.rand(num, 1, 4, 4) > 0.5).float(),
            "sigma": 0.1 + torch.rand(num),
        },
        dims=("lat", "lon"),
        coords=coords,
        units="K",
        long_name="temperature",
    )


def network() -> InverseProblem:
    """Up to four stations on latitudes and longitudes, each with its error."""
    shape = (1, 4, 5)
    coords = {
        "lat": ("lat", np.linspace(40, 55, 4), {"units": "degrees_north"}),
        "lon": ("lon", np.linspace(-10, 30, 5), {"units": "degrees_east"}),
    }
    return InverseProblem(
        280 + torch.randn(60, *shape, generator=torch.Generator().manual_seed(0)),
        physics=operators.PointObservations(shape, noise_model=GaussianNoise(0.1)),
        params=lambda num: {
            "coords": torch.rand(num, 4, 2),
            "mask": (torch.rand(num, 4) > 0.3).float(),
            "sigma": 0.1 + torch.rand(num, 4),
        },
        dims=("lat", "lon"),
        coords=coords,
        units="K",
        obs_units="K",
    )


def observations() -> Results:
    """Observations that are written and read, turned, in other units, with gaps."""
    problem = grid()
    _, y, params = held_out(problem)
    made = observation_to_xarray(y, problem, params)
    save_netcdf(made, "observation.nc")
    data = made["observed"].isel(observation=0, drop=True)
    celsius = (data - 273.15).assign_attrs(data.attrs | {"units": "degC"})
    turned = data.roll(lon=2, roll_coords=True).transpose("lon", "lat")
    days = xr.Dataset({"observed": data.expand_dims(time=np.array(["2020-01-01"], "M8[ns]"))})
    error = {"error_std": ((), 0.5)}
    sources: dict[str, Any] = {
        "file": "observation.nc",
        "dataset": made,
        "celsius": celsius.to_dataset(name="observed").assign(error),
        "turned": turned.to_dataset(name="observed").assign(error),
        "reversed": data.isel(lat=slice(None, None, -1)).to_dataset(name="t2m").assign(error),
        "dated": days.assign(error),
    }
    read = {name: list(load_observation(one, problem)) for name, one in sources.items()}
    return {"written": made, **read}


def station_tables() -> Results:
    """Tables of stations: frames, CSV, netCDF; columns of many names, places of many kinds."""
    problem = network()
    frame = pd.DataFrame(
        {
            "name": ["A", "B", "C"],
            "Latitude": [41.0, 52.5, 47.0],
            "lng": [355.0, 12.0, -4.5],
            "t2m": [281.0, np.nan, 279.5],
            "sigma": [0.5, 0.4, 0.3],
        }
    )
    frame.to_csv("rows.csv", index=False)
    rows = frame.rename(columns={"t2m": "value"}).to_xarray()
    rows.to_netcdf("rows.nc")
    rows["value"] = (rows["value"] - 273.15).assign_attrs(units="degC")
    sources: dict[str, Any] = {
        "frame": frame,
        "indexed": frame.set_index("name"),
        "CSV": "rows.csv",
        "netCDF": "rows.nc",
        "celsius": rows,
        "one row": frame.iloc[:1],
    }
    read = {name: list(load_observation(one, problem)) for name, one in sources.items()}
    y, params = load_observation(frame, problem)
    return {**read, "written": observation_to_xarray(y, problem, params)}


def refusals() -> Results:
    """What is said of input that makes no sense."""
    problem, vfm = linear_map(adapter="full")
    field, _ = field_map()
    _, y, params = held_out(problem)
    asked: dict[str, Callable[[], Any]] = {
        "shape of y": lambda: vfm(y[:, :1], **params),
        "not finite": lambda: vfm(y * torch.nan, **params),
        "no sigma": lambda: vfm(y),
        "another parameter": lambda: vfm(y, **params, gain=1.0),
        "text": lambda: vfm("y"),
        "problem": lambda: problems.load("gausian-field"),
        "setting": lambda: problems.load("gaussian-field", sise=3),
        "empty prior": lambda: InverseProblem(torch.zeros(0, 2), likelihood=lambda x: x),
        "nothing observed": lambda: InverseProblem(torch.zeros(9, 2)),
        "adapter": lambda: vi.VariationalFlowMap.for_problem(problem, adapter="ful"),
        "mode": lambda: vi.VariationalFlowMap.for_problem(problem, observation="none"),
        "steps": lambda: vi.fit(vfm, problem, steps=0),
        "objective": lambda: vi.fit(vfm, problem, steps=2, objective={"tua": 1.0}),
        "file": lambda: vi.load("nothing.safetensors"),
        "draws": lambda: vi.to_xarray(torch.zeros(3, 2, 2), problem),
        "observation": lambda: load_observation(xr.DataArray(np.zeros(3)), field),
        "density": lambda: correction.psis(vfm, y, 3, **params),
        "prior map": lambda: correction.auto(vfm, y, 128, prior_map=vfm, **params),
        "units": lambda: by_samples("linear-gaussian").observe(torch.zeros(3)),
    }
    results: Results = {}
    for name, ask in asked.items():
        try:
            ask()
        except Exception as error:
            results[name] = [type(error).__name__, str(error)]
    return results


CASES: dict[str, Case] = {
    "operators": every_operator,
    "operators, certified": certified,
    **{f"problem {name}": partial(of_problem, name, {}) for name in problems.available()},
    **{f"problem, {name}": partial(of_problem, *one) for name, one in SETTINGS.items()},
    "photographs, Gaussian prior": gaussian_prior,
    "noises": of_noises,
    "labelled vectors": partial(labelled, "vectors"),
    "labelled field": partial(labelled, "field"),
    "labelled corrections": corrected,
    "observations": observations,
    "station tables": station_tables,
    "refusals": refusals,
}
