"""What the cases of :mod:`tests.benchmarks.behaviour` share: problems, maps, draws as results."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.correction import Ensemble, Target
from vfm_inverse.posterior import VariationalFlowMap
from vfm_inverse.problem import InverseProblem
from vfm_inverse.training import fit

Results = dict[str, Any]
Case = Callable[[], Mapping[str, Any]]

VECTOR: dict[str, Any] = {"width": 16, "depth": 1, "num_simulations": 300, "progress": False}
FIELD: dict[str, Any] = {"width": 4, "depth": 1, "num_simulations": 200, "progress": False}
SHORT: dict[str, Any] = {"steps": 30, "batch_size": 16, "num_validation": 32, "log_every": 5}
QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}


def linear(**settings: Any) -> InverseProblem:
    """Vectors of six numbers, four linear data, noise that varies."""
    given = {"dim": 6, "obs_dim": 4, "sigma": [0.1, 1.0], **settings}
    return problems.load("linear-gaussian", **given)


def by_samples(name: str, num: int = 400, **settings: Any) -> InverseProblem:
    """A problem of the package with samples where its prior was."""
    known: Any = problems.load(name, **settings)
    return InverseProblem(
        known.sample_prior(num, seed=1),
        test_prior=known.sample_prior(num, split="test", seed=2),
        physics=known.physics,
        params=known.sample_params if known.param_shapes else None,
        reference=known.reference_posterior,
        units="K",
    )


def normal(x: Tensor) -> Distribution:
    """Every number of vectors ``(*, d)`` with noise of 0.5."""
    return Independent(Normal(x, 0.5), 1)


def built(problem: InverseProblem, sizes: Mapping[str, Any], **options: Any) -> VariationalFlowMap:
    """An untrained map."""
    return vi.VariationalFlowMap.for_problem(problem, **{**sizes, "seed": 3, **options})


def trained(
    vfm: VariationalFlowMap, problem: InverseProblem, **settings: Any
) -> list[dict[str, float]]:
    """Train a map shortly; the log without its times."""
    return timeless(fit(vfm, problem, **{**SHORT, **QUIET, "seed": 5, **settings}))


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A log without its times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def untimed(path: Path) -> list[list[str]]:
    """A log without its times."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    at = lines[0].index("seconds")
    return [line[:at] + line[at + 1 :] for line in lines]


@contextmanager
def unheard() -> Iterator[None]:
    """Keep from a case what is said while something is made that others use too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@cache
def linear_map(**options: Any) -> tuple[InverseProblem, VariationalFlowMap]:
    """A problem of vectors and a shortly trained map, which no case may change."""
    problem = linear()
    vfm = built(problem, VECTOR, **options)
    with unheard():
        trained(vfm, problem)
    return problem, vfm


@cache
def field_map() -> tuple[InverseProblem, VariationalFlowMap]:
    """A Gaussian field at stations and a shortly trained map, which no case may change."""
    problem = problems.load("gaussian-field", size=9, num_points=6, sigma=[0.1, 0.5])
    vfm = built(problem, FIELD)
    with unheard():
        trained(vfm, problem, steps=10)
    return problem, vfm


def held_out(problem: InverseProblem, num: int = 2) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Truths, observations and parameters that no training sees."""
    x, y, params = problem.simulate(num, split="test", seed=1)
    return x, y, dict(params)


def weights(vfm: VariationalFlowMap) -> dict[str, Tensor]:
    """All numbers of a map as they are now: training changes them in place."""
    return {name: value.clone() for name, value in vfm.state_dict().items()}


@torch.no_grad()
def stir(vfm: VariationalFlowMap) -> None:
    """Move all weights at random: a map that kept its start answers without its networks."""
    torch.manual_seed(6)
    for weight in vfm.networks.parameters():
        weight.add_(0.05 * torch.randn_like(weight))


def drawn(posterior: Any, num: int = 5) -> Tensor:
    """Draws with a seed of their own."""
    torch.manual_seed(1)
    return posterior.sample((num,))


def answers(vfm: VariationalFlowMap, problem: InverseProblem, num: int = 3) -> Results:
    """Weights, draws and densities of a map at a few held-out observations."""
    _, y, params = held_out(problem, num)
    posterior = vfm(y, **params)
    z, draws = drawn(posterior.latent), drawn(posterior)
    alone = vfm(y[0], **{name: value[0] for name, value in params.items()})
    results: Results = {
        "state": weights(vfm),
        "draws": draws,
        "draws of one": drawn(alone, 2),
        "latent density": [z, posterior.latent.log_prob(z)],
    }
    if posterior.latent.has_rsample:
        torch.manual_seed(2)
        results["reparametrised"] = posterior.rsample((2,))
    if problem.likelihood is not None:
        results["log-likelihood"] = problem.log_likelihood(draws, y, **params)
    if problem.log_prior is not None:
        results["log-prior"] = problem.log_prior(draws)
    if problem.likelihood is not None and (
        vfm.observation == "adapter" or vfm.log_prior is not None
    ):
        results["target"] = of_target(Target(vfm, y, params))
    return results


def of_target(target: Target) -> Results:
    """The posterior's density at the map's draws, its gradient, and that of the draws."""
    torch.manual_seed(3)
    u = target.sample(4)
    results = {"u": u, "field": target.field(u), "log_prob": target.log_prob(u)}
    results["score"] = target.score(u)[1]
    if not target.direct:
        results["log_reference"] = target.log_reference(u)
        results["folds"] = target.log_prob_and_folds(u)[1]
    return results


def of_ensemble(ensemble: Ensemble) -> Results:
    """Draws, weights, figures and notes of a correction."""
    return {
        "samples": ensemble.samples,
        "weights": ensemble.weights,
        "moments": [ensemble.mean, ensemble.variance],
        "resampled": drawn(ensemble, 7),
        "diagnostics": dict(ensemble.diagnostics),
        "notes": list(ensemble.notes),
        "chains": ensemble.chains,
    }


def prefixed(prefix: str, results: Mapping[str, Any]) -> Results:
    """Results by names with a prefix."""
    return {f"{prefix}, {name}": value for name, value in results.items()}
