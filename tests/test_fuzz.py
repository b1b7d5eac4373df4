"""Thousands of senseless inputs to the public calls: each is served, or refused in our own words.

One argument of a call that works is replaced by a value from a heap of everyday accidents. The
error that comes must be a ValueError, TypeError or OSError that was raised inside this package,
in a message that fits on a few lines.
"""

from __future__ import annotations

import datetime
import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch.distributions import Independent, MultivariateNormal, Normal

import vfm_inverse as vi
from vfm_inverse import calibration, correction, operators, problems
from vfm_inverse.labelled import write as labelled

INPUTS = int(os.environ.get("FUZZ_INPUTS", "5000"))
SECONDS = 30
"""Most seconds that one input may take."""

LONGEST = 700
"""Most characters of a message."""


def heap() -> list[Any]:
    """Values that fit almost nowhere."""
    tensor = torch.randn(6, 3)
    array = np.random.default_rng(0).normal(size=(6, 3))
    return [
        None, True, False, 0, 1, -1, 2, 7, 10**30, -(10**30), 0.0, 0.5, -0.5, 1.5, 1e300, 1e-300,
        float("nan"), float("inf"), -float("inf"), 1j, "", "a", "nan", "1", b"a", "/", "\x1b[2J",
        [], [1], [1.0, 2.0], [[1.0], [1.0, 2.0]], ["a"], [None], (), (1, 2), (0,), (-1,), {}, {"a": 1},
        {"sigma": 0.1}, {"sigma": None}, {1: 2}, set(), object(), int, len, lambda *a, **k: None,
        lambda *a, **k: 1 / 0, range(3), slice(1), Path("nowhere"), Path(), Exception("e"),
        tensor, tensor[:0], tensor[0], tensor[:, :0], tensor.double(), tensor.half(), tensor.bfloat16(),
        tensor.long(), tensor > 0, tensor * 1j, tensor.to_sparse(), tensor.to("meta"), tensor * torch.nan,
        tensor * torch.inf, tensor.clone().requires_grad_(), torch.tensor(1.0), torch.tensor(0),
        tensor.T, tensor[None], tensor[None, None, None], torch.empty(0), torch.empty(0, 0, 3),
        1e30 * tensor, 1e-30 * tensor, torch.zeros(6, 3), torch.ones(6, 3), tensor.expand(4, 6, 3),
        array, array.astype(">f4"), array[::-1], array.T, array.astype("f2"), array.astype(np.longdouble),
        array.astype(complex), array.astype("U8"), array.astype(object), array > 0, array[:0],
        np.ma.masked_array(array, array > 1), array.astype("M8[ns]"), array.astype("m8[s]"),
        np.float64(0.5), np.int64(3), np.bool_(True), np.str_("a"), np.datetime64("2020-01-01"),
        np.zeros(3, dtype=[("a", "f4")]), np.array(None), np.full((6, 3), 1e300), np.array("a"),
        xr.DataArray(array), xr.DataArray(array, dims=("sample", "x")), xr.Dataset(),
        xr.Dataset({"observed": (("observation", "component"), array)}),
        xr.Dataset({"observed": ((), 1.0)}), xr.DataArray(array, dims=("draw", "observation")),
        xr.DataArray(1.0), pd.DataFrame(array), pd.DataFrame({"a": ["x"]}), pd.Series([1.0]),
        pd.Timestamp("2020-01-01"), datetime.timedelta(1), torch.float16, torch.float64, torch.device("cpu"),
        "cuda:99", torch.nn.Linear(3, 3), torch.Generator(), np.random.default_rng(0),
        Normal(0.0, 1.0), Independent(Normal(torch.zeros(3), 1.0), 1), dinv.physics.GaussianNoise(0.1),
        dinv.physics.Denoising(dinv.physics.GaussianNoise(0.0)), dinv.physics.Denoising(),
        torch.distributions.ExpTransform(), torch.distributions.Poisson(torch.ones(3)),
    ]  # fmt: skip


def calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Functions with arguments that work, any of which may be replaced."""
    noise = dinv.physics.GaussianNoise(0.1)
    law = MultivariateNormal(torch.zeros(3), torch.eye(3))
    made = {
        "prior": law,
        "physics": dinv.physics.Denoising(noise),
        "params": lambda num: {"sigma": torch.rand(num) + 0.1},
        "dims": ("component",),
    }
    small = {"num_simulations": 100, "width": 4, "depth": 1}
    problem = vi.InverseProblem(**made)
    likely = vi.InverseProblem(law, likelihood=lambda x: Independent(Normal(x, 0.1), 1))
    vfm = vi.VariationalFlowMap.for_problem(problem, **small)
    plain = vi.VariationalFlowMap.for_problem(likely, **small)
    x, y, params = problem.simulate(6, seed=0)
    draws = vfm(y, **params).sample((30,))
    saved = folder / "model.safetensors"
    vfm.save(saved)
    file = folder / "observation.nc"
    labelled.save_netcdf(labelled.observation_to_xarray(y, problem, params), file)
    part = folder / "part.npz"
    checked = {"posterior_fn": plain, "problem": likely, "num_simulations": 20, "num_draws": 10}
    calibration.calibrate(**checked, path=part)
    field = problems.load("gaussian-field", size=8)
    x_field = field.sample_prior(2)

    def sample(y: Any, sigma: Any, shape: Any) -> Any:
        return vfm(y, sigma=sigma).sample(shape)

    def train(**settings: Any) -> Any:
        fresh = vi.VariationalFlowMap.for_problem(likely, **small)
        return vi.fit(fresh, progress=False, **settings)

    fit = {
        "problem": likely, "steps": 2, "batch_size": 4, "objective": "default", "learning_rate": 1e-3,
        "weight_decay": 0.0, "clip": 1.0, "average_decay": 0.9, "seed": 0, "device": "cpu",
        "checkpoint_dir": None, "resume": False, "checkpoint_every": 1, "log_every": 1,
        "validations": 1, "num_validation": 4, "minutes": None, "callbacks": (),
    }  # fmt: skip
    model = {
        "problem": likely, "adapter": None, "observation": "both", "gaussian_start": True,
        "whitening": "auto", "steps": 1, "precision": "single", "network": "auto", "max_rank": 3,
        "seed": 0, **small,
    }  # fmt: skip
    labels = {
        "coords": {"component": [1, 2, 3]}, "units": "K", "long_name": "state", "obs_dims": ("datum",),
        "obs_coords": {"datum": [1, 2, 3]}, "obs_units": "K", "test_prior": law, "name": "mine",
        "kwargs": {}, "dtype": torch.float32, "reference": lambda y, sigma: law, "transform": None,
    }  # fmt: skip
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "InverseProblem": (vi.InverseProblem, {**made, **labels}),
        "InverseProblem, likelihood": (
            vi.InverseProblem,
            {"prior": law.sample((40,)), "likelihood": lambda x: Independent(Normal(x, 0.1), 1)},
        ),
        "InverseProblem, simulator": (
            vi.InverseProblem,
            {"prior": law.sample((40,)), "simulator": lambda x: x + torch.randn_like(x)},
        ),
        "simulate": (problem.simulate, {"num": 3, "split": "test", "seed": 0}),
        "sample_prior": (problem.sample_prior, {"num": 3, "split": "test", "seed": 0}),
        "sample_params": (problem.sample_params, {"num": 3, "seed": 0}),
        "record": (problem.record, {"num": 30, "seed": 0}),
        "observe": (problem.observe, {"x": x, "seed": 0, "sigma": 0.1}),
        "log_likelihood": (problem.log_likelihood, {"x": x, "y": y, "sigma": params["sigma"]}),
        "check_observation": (problem.check_observation, {"y": y, "params": params}),
        "for_problem": (vi.VariationalFlowMap.for_problem, model),
        "fit": (train, fit),
        "sample": (sample, {"y": y, "sigma": params["sigma"], "shape": (3,)}),
        "save": (lambda path: vfm.save(path), {"path": saved}),
        "load": (vi.load, {"path": saved, "problem": problem, "device": "cpu", "warn": False}),
        "to_xarray": (
            labelled.to_xarray,
            {"draws": draws, "problem": problem, "y": y, "params": params, "provenance": {"a": 1}},
        ),
        "load_observation": (labelled.load_observation, {"source": file, "problem": problem}),
        "observation_to_xarray": (
            labelled.observation_to_xarray,
            {"y": y, "problem": problem, "params": params},
        ),
        "calibrate": (
            calibration.calibrate,
            {
                **checked, "seed": 0, "split": "test", "quantities": None, "alpha": 0.05,
                "joint": True, "local": False, "baseline": None, "chunk": 2**20, "memory": 2**30,
                "path": None, "resume": True, "shard": (0, 1), "provenance": {},
            },
        ),
        "from_draws": (
            calibration.from_draws,
            {
                "draws": draws, "truth": x, "variable": None, "y": y, "params": params, "seed": 0,
                "quantities": None, "alpha": 0.05, "joint": True, "local": False, "baseline": None,
                "memory": 2**30,
            },
        ),
        "merge": (calibration.merge, {"paths": [part], "problem": likely, "alpha": 0.05}),
        "psis": (correction.psis, {"vfm": plain, "y": y, "num_samples": 64, "seed": 0}),
        "smc": (
            correction.smc,
            {
                "vfm": plain, "y": y, "num_samples": 64, "ess": 0.5, "moves": 2, "max_stages": 3,
                "seed": 0,
            },
        ),
        "mcmc": (
            correction.mcmc,
            {
                "vfm": plain, "y": y, "num_samples": 16, "method": "hmc", "num_chains": 4,
                "warmup": 2, "thin": 1, "seed": 0,
            },
        ),
        "auto": (correction.auto, {"vfm": plain, "y": y, "num_samples": 128, "seed": 0}),
        "conformal": (
            correction.conformal,
            {"vfm": plain, "problem": likely, "level": 0.8, "num_simulations": 20, "num_draws": 20},
        ),
        "Likelihood": (vi.Likelihood, {"physics": dinv.physics.Denoising(noise), "event_dim": 1}),
        "verify": (operators.verify, {"physics": field.physics, "x": x_field}),
    }  # fmt: skip
    small_problems: dict[str, dict[str, Any]] = {
        "linear-gaussian": {"dim": 4, "obs_dim": 2, "seed": 0, "condition": 10.0},
        "gaussian-field": {"size": 8, "num_points": 5, "sigma": 0.1, "seed": 0},
        "heat": {"size": 8},
        "darcy": {"size": 8},
        "lorenz96-window": {"sites": 8, "num_times": 2, "every": 1, "observed": 2, "forcing": 8.0},
        "checkerboard": {"sigma": 0.1},
    }
    for name, settings in small_problems.items():
        found[f"problems.load({name})"] = (problems.load, {"name": name, **settings})
    return found


def complaint(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What is wrong with how a call ends, if anything is."""

    def too_long(*unused: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        function(**arguments)
    except TimeoutError as error:
        return f"took {error}"
    except FloatingPointError:  # a training that diverged, as documented
        return None
    except (ValueError, TypeError, OSError) as error:
        trace, text = error.__traceback__, str(error)
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        home = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
        if not home.startswith("vfm_inverse"):
            return f"foreign words from {home}: {type(error).__name__}: {text[:90]}"
        return f"{len(text)} characters: {text[:90]}" if not 0 < len(text) <= LONGEST else None
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:90]}"
    finally:
        signal.alarm(0)
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_senseless_inputs_are_refused_in_our_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some paths of the heap are relative
    pick = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functions, values = calls(tmp_path), heap()
        for name, (function, arguments) in functions.items():
            assert complaint(function, dict(arguments)) is None, name
        wrong: dict[str, str] = {}
        for _ in range(INPUTS):
            name = pick.choice(list(functions))
            function, arguments = functions[name]
            argument = pick.choice(list(arguments))
            at = pick.randrange(len(values))
            given = values[at]
            if said := complaint(function, {**arguments, argument: given}):
                shown = " ".join(repr(given).split())[:60]
                wrong[f"{name}({argument}={shown})"] = said
    assert not wrong, f"{len(wrong)} kinds:\n" + "\n".join(f"{k}: {v}" for k, v in wrong.items())
