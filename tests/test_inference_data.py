"""Draws for ArviZ: chains, weights, labels, and what is installed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse import correction, problems
from vfm_inverse.labelled import arviz as inference_data
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.sampling.ensemble import Ensemble


@pytest.fixture
def problem() -> InverseProblem:
    return problems.load("linear-gaussian", dim=3, obs_dim=2)


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """ArviZ of version 1, of which nothing is imported."""
    monkeypatch.setattr(inference_data, "_installed", lambda: "1.3.0")


@pytest.mark.usefixtures("tree")
def test_independent_draws_are_one_chain_with_their_labels(problem: InverseProblem) -> None:
    draws, (_, y, _) = torch.randn(8, 2, 3), problem.simulate(2, seed=0)
    found = vi.to_arviz(draws, problem, y)
    name = problem.field_labels.name
    posterior = found["posterior"][name]
    assert posterior.dims == ("chain", "draw", "observation", *problem.field_labels.dims)
    np.testing.assert_array_equal(posterior.values[0], draws)
    np.testing.assert_array_equal(found["observed_data"]["observed"], y)
    labelled = vi.to_xarray(draws, problem, y)
    assert found.equals(vi.to_arviz(labelled))
    assert found["posterior"].attrs["problem"] == "linear-gaussian"


@pytest.mark.usefixtures("tree")
def test_markov_chains_stay_chains(problem: InverseProblem) -> None:
    options = {"num_simulations": 300, "width": 8, "depth": 1}
    vfm = vi.VariationalFlowMap.for_problem(problem, **options)
    _, y, _ = problem.simulate(2, seed=0)
    short = {
        "num_chains": 4,
        "warmup": 0,
        "thin": 1,
        "seed": 0,
    }  # the step stays at its first, 0.5
    ensemble = correction.mcmc(vfm, y, 160, method="pcn", **short)
    found = vi.to_arviz(ensemble, problem)["posterior"]
    assert (found.sizes["chain"], found.sizes["draw"]) == (4, 40)
    values = found[problem.field_labels.name].values
    # Draws of one chain are near one another at this thinning, those of two chains are not.
    np.testing.assert_array_equal(values[2, 7], ensemble.samples[7 * 4 + 2])
    within = np.abs(np.diff(values, axis=1)).mean()
    across = np.abs(np.diff(values, axis=0)).mean()
    assert within < 0.7 * across


@pytest.mark.usefixtures("tree")
def test_weights_become_repeated_draws(problem: InverseProblem) -> None:
    samples = torch.arange(400.0).reshape(400, 1, 1).expand(400, 2, 3)
    weights = torch.zeros(400, 2)
    weights[:100, 0], weights[300:, 1] = 0.01, 0.01
    values = vi.to_arviz(Ensemble(samples, weights), problem)["posterior"]
    first, second = values[problem.field_labels.name].values[0, :, :, 0].T
    assert first.max() < 100 and second.min() >= 300
    assert len(np.unique(first)) == 100


def test_what_is_missing_is_named(
    problem: InverseProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> str:
        raise inference_data.PackageNotFoundError(name)

    monkeypatch.setattr(inference_data, "version", nothing)
    with pytest.raises(ImportError, match=r"needs ArviZ.*pip install 'vfm-inverse\[arviz\]'"):
        vi.to_arviz(torch.zeros(5, 3), problem)
    monkeypatch.setattr(inference_data, "_installed", lambda: "1.0")
    with pytest.raises(ValueError, match="'problem' must be given"):
        vi.to_arviz(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="must not be given with labelled 'draws'"):
        vi.to_arviz(vi.to_xarray(torch.zeros(5, 3), problem), problem)
    with pytest.raises(ValueError, match="one variable with the dimension 'draw'"):
        vi.to_arviz(vi.summary(vi.to_xarray(torch.zeros(5, 3), problem)))


def summary_function() -> object:
    """The summary of the ArviZ that is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import arviz as library
        except ImportError:
            library = pytest.importorskip("arviz_stats")
    return library.summary


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_arviz_summarises_them(problem: InverseProblem) -> None:
    summary = summary_function()
    draws = 2 + torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    table = summary(vi.to_arviz(draws, problem))  # type: ignore[operator]
    means = np.asarray(table["mean"], dtype=float)
    np.testing.assert_allclose(means, draws.mean(0), atol=0.01)
    assert len(table) == 3


def test_units_reach_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_data, "_installed", lambda: "1.0")
    prior = xr.DataArray(np.ones((9, 4)), dims=("sample", "lat"), attrs={"units": "K"}, name="t")
    problem = InverseProblem(prior, simulator=lambda x: x + torch.randn_like(x))
    found = vi.to_arviz(torch.randn(5, 4), problem)
    assert found["posterior"]["t"].attrs["units"] == "K"
