"""Corrections of draws and checks of their calibration."""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer import Trace_ELBO
from torch import Tensor

from tests.benchmarks.behaviour_common import (
    VECTOR,
    Case,
    Results,
    built,
    by_samples,
    drawn,
    field_map,
    held_out,
    linear,
    linear_map,
    of_ensemble,
    prefixed,
    weights,
)
from vfm_inverse import calibration, correction, problems
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.problem import InverseProblem

Mapped = tuple[InverseProblem, VariationalFlowMap]

FULL: dict[str, Any] = {"adapter": "full"}
PRIOR: dict[str, Any] = {"adapter": "full", "observation": "adapter"}
SIZES: dict[str, Any] = {"num_simulations": 40, "num_draws": 20, "seed": 3}


# Corrections -------------------------------------------------------------------------------------


def worsened(much: float = 1.0, **options: Any) -> Mapped:
    """A map that is wrong about its posteriors, so that its correction has work to do."""
    problem = linear(dim=3, obs_dim=2)
    vfm = built(problem, VECTOR, **options)
    assert vfm.adapter is not None
    with torch.no_grad():
        bias = vfm.adapter.head.bias[:6]
        bias += much * torch.tensor([0.6, -0.4, 0.3, 0.1, -0.1, -0.6])[: len(bias)]
    return problem, vfm


def corrections(**options: Any) -> Results:
    """Every method on a map that is wrong."""
    problem, vfm = worsened(**options)
    _, y, params = held_out(problem)
    one = {name: value[0] for name, value in params.items()}
    given: dict[str, Any] = {"seed": 4, **params}
    short: dict[str, Any] = {"num_chains": 8, "warmup": 20}
    results: Results = {
        **prefixed("psis", of_ensemble(correction.psis(vfm, y, 200, **given))),
        **prefixed("smc", of_ensemble(correction.smc(vfm, y, 64, **given))),
        **prefixed("auto", of_ensemble(correction.auto(vfm, y, 128, **given))),
        **prefixed("auto, one", of_ensemble(correction.auto(vfm, y[0], 128, seed=4, **one))),
    }
    for method in ("hmc", "pcn", "mala"):
        chains = correction.mcmc(vfm, y, 64, method=method, **short, **given)
        results |= prefixed(method, of_ensemble(chains))
    few: dict[str, Any] = {"num_chains": 1, "warmup": 5, "seed": 4}
    chains = correction.mcmc(vfm, y[0], 6, method="nuts", **few, **one)
    results |= prefixed("nuts", of_ensemble(chains))
    results["ksd"] = correction.ksd(vfm, y, 60, num_bootstrap=50, **given)
    refined = correction.refine(vfm, y, 20, num_draws=4, **given)
    results["refined"] = [drawn(refined), refined.latent.log_prob(drawn(refined.latent))]
    return results


def climbed(**options: Any) -> Results:
    """Maps that are so wrong that the ladder is climbed to its end."""
    results: Results = {}
    for much in (3.0, 5.0):
        problem, vfm = worsened(much, **options)
        _, y, params = held_out(problem)
        found = correction.auto(vfm, y, 128, seed=4, **params)
        results |= prefixed(f"{much:g}", of_ensemble(found))
    return results


def large_correction() -> Results:
    """Of more dimensions than a determinant is taken in: chains are the first rung."""
    problem, vfm = field_map()
    _, y, params = held_out(problem, 1)
    chains = correction.mcmc(vfm, y, 32, num_chains=8, warmup=8, seed=4, **params)
    return of_ensemble(chains)


def moons_correction() -> Results:
    """Two modes, a bounded prior, an adapter without a Gaussian law."""
    problem = problems.load("two-moons")
    vfm = built(problem, VECTOR, adapter="mixture", observation="adapter")
    _, y, params = held_out(problem)
    return of_ensemble(correction.smc(vfm, y, 64, seed=4, **params))


def with_prior_map() -> Results:
    """A prior that is known by samples: a map of it, its check, and a correction with it."""
    problem = by_samples("linear-gaussian", dim=3, obs_dim=2, sigma=[0.2, 1.0])
    vfm = built(problem, VECTOR, adapter="full")
    options: dict[str, Any] = {"steps": 20, "batch_size": 16, "num_simulations": 40}
    prior = correction.fit_prior(problem, **options, seed=2, device="cpu", progress=False)
    _, y, params = held_out(problem)
    corrected = correction.auto(vfm, y, 128, prior_map=prior, seed=4, **params)
    return {
        "state": weights(prior),
        "prior": prior.config["prior"],
        "check": correction.check_prior(prior, problem, 40, 20, seed=1),
        **prefixed("auto", of_ensemble(corrected)),
    }


def corrected_check() -> Results:
    """The calibration of corrected draws, and how they were corrected."""
    problem, vfm = worsened(**PRIOR)
    posterior = correction.corrected(vfm, 128)
    report = calibration.calibrate(posterior, problem, 12, 16, seed=3)
    return {"report": report, "method": posterior.method()}


def recalibrated() -> Results:
    """Conformal intervals and a factor on the width of the noise."""
    problem, vfm = worsened(**FULL)
    _, y, params = held_out(problem, 3)
    tempered = correction.temperature(vfm, problem, num_simulations=60, num_draws=16, seed=1)
    results: Results = {
        "factor": tempered.factor,
        "tempered": drawn(tempered(y, **params)),
    }
    posteriors: dict[str, Any] = {"map": vfm, "tempered": tempered}
    for name, one in posteriors.items():
        intervals = correction.conformal(one, problem, num_simulations=60, num_draws=30, seed=1)
        results |= {
            f"margin, {name}": intervals.margin,
            f"intervals, {name}": list(intervals(y, **params)),
            f"coverage, {name}": intervals.coverage(problem, 50),
        }
    return results


def in_pyro(**options: Any) -> Results:
    """Model and guide: sites, densities, and the bound that Pyro makes of them."""
    pyro.clear_param_store()
    problem, vfm = worsened(**options)
    _, y, params = held_out(problem, 3)
    torch.manual_seed(1)
    guide = pyro.poutine.trace(correction.guide).get_trace(vfm, y, **params)
    model = pyro.poutine.trace(pyro.poutine.replay(correction.model, guide)).get_trace(
        vfm, y, **params
    )
    torch.manual_seed(1)
    bound = Trace_ELBO().differentiable_loss(correction.model, correction.guide, vfm, y, **params)
    assert vfm.adapter is not None
    (gradient,) = torch.autograd.grad(bound, [vfm.adapter.head.bias], allow_unused=True)
    model.compute_log_prob()
    guide.compute_log_prob()
    densities = {
        f"{part} {name}": site["log_prob"]
        for part, trace in (("model", model), ("guide", guide))
        for name, site in trace.nodes.items()
        if "log_prob" in site
    }
    sites = [(name, site["type"]) for name, site in model.nodes.items()]
    x = model.nodes["x"]["value"]
    return {"sites": sites, "x": x, **densities, "bound": [bound, gradient]}


# Calibration -------------------------------------------------------------------------------------


@cache
def exact() -> InverseProblem:
    """A problem whose posterior is known."""
    return linear(dim=3, obs_dim=2)


def shifted(y: Tensor, **params: Tensor) -> Any:
    """A posterior that is too high and too narrow."""
    law: Any = exact().reference_posterior(y, **params)
    move = 0.6 * law.stddev

    def sample(shape: Any = torch.Size()) -> Tensor:
        return law.mean + move + 0.5 * (law.sample(shape) - law.mean)

    return SimpleNamespace(sample=sample, event_shape=law.event_shape)


def judged(report: xr.Dataset) -> Results:
    """A report, its verdict and its grades."""
    return {
        "report": report,
        "verdict": [report.attrs["verdict"], report.attrs["reason"]],
        "grades": [list(one) for one in calibration.grades(report)],
    }


def calibrated(which: str) -> Results:
    """The check of a trained map, of the exact posterior and of one that is wrong."""
    if which == "field":
        problem, vfm = field_map()
        return judged(calibration.calibrate(vfm, problem, **SIZES))
    if which == "map":
        problem, vfm = linear_map(**FULL)
        return judged(calibration.calibrate(vfm, problem, **SIZES, chunk=600, split="train"))
    posterior = shifted if which == "wrong" else exact().reference_posterior
    options: dict[str, Any] = {**SIZES, "num_simulations": 120, "alpha": 0.1}
    baseline = exact().reference_posterior if which == "wrong" else None
    return judged(calibration.calibrate(posterior, exact(), **options, baseline=baseline))


def local() -> Results:
    """Classifiers that tell draws from truths."""
    sizes = {**SIZES, "num_simulations": 60}
    return judged(calibration.calibrate(shifted, exact(), **sizes, local=True, joint=False))


def in_parts() -> Results:
    """Parts that are merged, one of them interrupted and gone on with, and the whole."""
    problem, vfm = linear_map(**FULL)
    options: dict[str, Any] = {**SIZES, "chunk": 600}
    paths = [f"part-{index}.npz" for index in range(2)]
    for index, path in enumerate(paths):
        for _ in range(2):  # the second finds the first one's work done
            part = calibration.calibrate(
                vfm, problem, **options, shard=(index, 2), path=path, provenance={"by": "me"}
            )
    merged = calibration.merge(paths, problem)
    whole = calibration.calibrate(vfm, problem, **options, provenance={"by": "me"})
    plain = calibration.merge(paths[0], partial=True)
    same = bool(merged.drop_attrs().equals(whole.drop_attrs()))
    return {"part": part, "merged": merged, "plain": plain, "same": same}


def own_quantity(x: Tensor, y: Tensor, **params: Tensor) -> Tensor:
    """The largest number over the smallest datum."""
    return x.flatten(-3).amax(-1) - y.amin(-1)


def from_draws(kind: str) -> Results:
    """Draws of another program, in what it keeps them in."""
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(30, 40, 5, 4))
    truth, y = 1.3 * generator.normal(size=(40, 5, 4)), generator.normal(size=(40, 2))
    if kind == "numpy":
        found = calibration.from_draws(draws[:, :, None], truth[:, None], y=y, seed=2)
    elif kind == "own quantities":
        options: dict[str, Any] = {"y": y, "quantities": {"range": own_quantity}}
        options["baseline"] = 2 * draws[:10, :, None]
        found = calibration.from_draws(draws[:, :, None], truth[:, None], **options)
    else:
        dims = ("draw", "simulation", "lat", "lon")
        about = {"units": "K"}
        coords = {"lat": np.arange(5.0), "lon": np.arange(4.0)}
        array = xr.DataArray(draws, dims=dims, name="t", attrs=about, coords=coords)
        truths = xr.DataArray(truth, dims=dims[1:], name="t", attrs=about, coords=coords)
        given: Any = array.transpose("lat", "simulation", "draw", "lon")
        if kind == "ArviZ":
            chains = array.values.reshape(3, 10, *array.shape[1:])
            named = xr.DataArray(chains, dims=("chain", *dims), attrs=about, coords=coords)
            given = xr.DataTree.from_dict({"/posterior": xr.Dataset({"t": named})})
        found = calibration.from_draws(given, truths.transpose("lon", "simulation", "lat"))
    return judged(found)


def nearly() -> Results:
    """Draws that many simulations tell from the truth, and that are hardly wrong."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(41, 3000, 2, generator=generator)
    found = calibration.from_draws(samples[1:] + 0.08, samples[0], joint=False)
    return judged(found)


def at_one_observation(which: str) -> Results:
    """The check at one observation: of a posterior, and with one that is given both."""
    y, sigma = torch.tensor([[1.5, 0.3]]), {"sigma": torch.tensor([0.4])}
    posterior = exact().reference_posterior if which == "exact" else shifted

    def both(y: Tensor, new: Tensor, **params: Tensor) -> Any:
        return posterior((y + new) / 2, sigma=params["sigma"] / 2**0.5)

    given: dict[str, Any] = {"both": both} if which == "both" else {}
    report = calibration.posterior_sbc(posterior, exact(), y, sigma, 60, 30, seed=2, **given)
    return judged(report)


CASES: dict[str, Case] = {
    "correction, map of the prior": partial(corrections, **PRIOR),
    "correction, conditional": partial(corrections, **FULL),
    "correction, contraction": partial(corrections, adapter="contraction", observation="adapter"),
    "correction, ladder, map of the prior": partial(climbed, **PRIOR),
    "correction, ladder, conditional": partial(climbed, **FULL),
    "correction, large": large_correction,
    "correction, moons": moons_correction,
    "correction, prior by samples": with_prior_map,
    "correction, checked": corrected_check,
    "recalibration": recalibrated,
    "pyro, map of the prior": partial(in_pyro, **PRIOR),
    "pyro, conditional": partial(in_pyro, **FULL),
    **{
        f"calibration, {one}": partial(calibrated, one)
        for one in ("map", "field", "exact", "wrong")
    },
    "calibration, local": local,
    "calibration, in parts": in_parts,
    **{
        f"from draws, {one}": partial(from_draws, one)
        for one in ("numpy", "own quantities", "xarray", "ArviZ")
    },
    "from draws, hardly wrong": nearly,
    **{
        f"at one observation, {one}": partial(at_one_observation, one)
        for one in ("exact", "wrong", "both")
    },
}
