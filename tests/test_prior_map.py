"""Corrections with a map of the prior, interrupted ones, and the check of corrected draws."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import xarray as xr

import vfm_inverse as vi
from vfm_inverse import calibration, correction, problems
from vfm_inverse.calibration.certification import certify
from vfm_inverse.cli.program import main
from vfm_inverse.correction import ladder
from vfm_inverse.correction.prior_map import needs_prior_map
from vfm_inverse.labelled.write import observation_to_xarray, save_netcdf
from vfm_inverse.posterior.card import Card
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs import corrected as corrected_runs

SIZES = {"width": 16, "depth": 1, "num_simulations": 2000}


def by_samples(name: str, num: int = 4000, **settings: object) -> InverseProblem:
    """A problem of the package with samples where its prior was."""
    known = problems.load(name, **settings)
    return InverseProblem(
        known.sample_prior(num, seed=1),
        test_prior=known.sample_prior(num, split="test", seed=2),
        physics=known.physics,
        params=known.sample_params if known.param_shapes else None,
        reference=known.reference_posterior,
    )


@pytest.fixture(scope="module")
def wrong() -> tuple[InverseProblem, VariationalFlowMap, VariationalFlowMap]:
    """A problem whose prior is known by samples, a map that is wrong about its posteriors, and a
    map of its prior."""
    problem = by_samples("linear-gaussian", dim=3, obs_dim=2, sigma=[0.2, 1.0])
    vfm = vi.VariationalFlowMap.for_problem(problem, **SIZES)
    with torch.no_grad():
        vfm.adapter.head.bias.add_(torch.tensor([0.6, -0.4, 0.3, 0.4]))
    prior_map = correction.fit_prior(problem, steps=20, num_simulations=200, progress=False)
    with torch.no_grad():
        prior_map.adapter.head.bias.add_(torch.tensor([0.2, -0.1, 0.1, 0.1]))
    return problem, vfm, prior_map


@pytest.mark.parametrize("rung", ["psis", "mcmc"])
def test_a_map_of_the_prior_stands_in_for_its_density(
    wrong: tuple[InverseProblem, VariationalFlowMap, VariationalFlowMap],
    rung: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One observation at a time, each with its own noise level, against the exact posterior."""
    problem, vfm, prior_map = wrong
    _, y, params = problem.simulate(3, split="test", seed=0)
    monkeypatch.setattr(ladder, "AT_ONCE", 1)
    if rung == "mcmc":
        monkeypatch.setattr(ladder, "GOOD_SHARE", 2.0)
        monkeypatch.setattr(ladder, "MOST_STAGES", -1.0)
    assert needs_prior_map(vfm) and not needs_prior_map(prior_map)
    with pytest.raises(ValueError, match=r"prior_map=correction\.fit_prior\(problem\)"):
        correction.auto(vfm, y, 1024, **params)
    ensemble = correction.auto(vfm, y, 2048, prior_map=prior_map, seed=0, **params)
    assert ensemble.diagnostics["rung"].eq(ladder.RUNGS.index(rung)).all()
    assert ensemble.diagnostics["satisfied"].eq(1).all()
    assert "for the prior as a map learned it (pass)" in ensemble.notes[0]
    exact = problem.reference_posterior(y, **params)
    shift = (ensemble.mean - exact.mean).abs() / exact.variance.sqrt()
    ratio = ensemble.variance / exact.variance
    raw = vfm(y, **params).sample((2048,)).mean(0)
    assert ((raw - exact.mean).abs() / exact.variance.sqrt()).max() > 0.4
    assert shift.max() < 0.15 and 0.8 < ratio.min() < ratio.max() < 1.2


def test_the_chains_start_at_the_draws_of_the_map_that_saw_the_observation(
    wrong: tuple[InverseProblem, VariationalFlowMap, VariationalFlowMap],
) -> None:
    problem, vfm, prior_map = wrong
    _, y, params = problem.simulate(2, split="test", seed=0)
    target = correction.Target(prior_map, y, params)
    draws = vfm(y, **params).sample((50,))
    found = target.field(target.locate(draws))
    assert (found - draws).abs().max() < 0.1 * draws.std()


def test_a_map_of_the_prior_is_checked_and_learns(
    wrong: tuple[InverseProblem, VariationalFlowMap, VariationalFlowMap],
) -> None:
    """A Gaussian prior is right from the start, one of several modes is not; a planted shift is
    found."""
    problem, _, prior_map = wrong
    assert prior_map.config["prior"]["verdict"] == "pass", prior_map.config["prior"]
    prior_map.whitening.mean += 0.5
    shifted = correction.check_prior(prior_map, problem, 200, 99)
    prior_map.whitening.mean -= 0.5
    assert shifted.attrs["verdict"] == "fail"

    modes = by_samples("mixture-linear", dim=2, obs_dim=1, components=3)
    start = vi.VariationalFlowMap.for_problem(modes, observation="adapter", **SIZES)
    learned = correction.fit_prior(modes, steps=150, num_simulations=300, progress=False)
    checks = [correction.check_prior(one, modes, 300, 99) for one in (start, learned)]
    scores = [float(check.energy_score.mean()) for check in checks]
    assert checks[0].attrs["verdict"] == "fail"
    assert scores[1] < 0.99 * scores[0], scores


def test_what_is_no_map_of_this_prior_is_refused(
    wrong: tuple[InverseProblem, VariationalFlowMap, VariationalFlowMap],
) -> None:
    problem, vfm, prior_map = wrong
    _, y, params = problem.simulate(1, seed=0)
    with pytest.raises(ValueError, match="must be a map of the prior"):
        correction.auto(vfm, y, 128, prior_map=vfm, **params)
    with pytest.raises(TypeError, match="'prior_map' must be a VariationalFlowMap"):
        correction.auto(vfm, y, 128, prior_map=problem, **params)
    other = problems.load("linear-gaussian", dim=2, obs_dim=2)
    small = vi.VariationalFlowMap.for_problem(other, observation="adapter", **SIZES)
    with pytest.raises(ValueError, match=r"with event_shape torch.Size\(\[3\]\)"):
        correction.auto(vfm, y, 128, prior_map=small, **params)
    blind = InverseProblem(torch.randn(50, 2), simulator=lambda x: x + torch.randn_like(x))
    with pytest.raises(ValueError, match="'problem' must have a likelihood"):
        correction.fit_prior(blind, steps=1)


def test_an_interrupted_correction_leaves_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2)
    vfm = vi.VariationalFlowMap.for_problem(problem, observation="adapter", **SIZES)
    with torch.no_grad():
        vfm.adapter.head.bias.add_(torch.tensor([0.6, -0.4, 0.3, 0.4]))
    _, y, _ = problem.simulate(3, seed=0)
    ask, asked = ladder.climb_with, []

    def stop(*args: object) -> None:
        ask(*args)
        asked.append(args)
        if len(asked) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "AT_ONCE", 1)
    whole = correction.auto(vfm, y, 512, seed=0)
    monkeypatch.setattr(ladder, "climb_with", stop)
    ended = correction.auto(vfm, y, 512, seed=0)
    assert ended.interrupted and not whole.interrupted
    assert torch.equal(ended.samples[:, 0], whole.samples[:, 0])
    done = ended.diagnostics["satisfied"]
    assert done[0] == 1 and done[2] == 0 and ended.samples.isfinite().all()
    assert ended.notes[2].startswith("interrupted: draws of the map, not corrected")
    # The map's own draws, which are shifted, with equal weights.
    raw = vfm(y).sample((4096,))
    assert ((ended.samples[:, 2].mean(0) - raw[:, 2].mean(0)) / raw[:, 2].std(0)).abs().max() < 0.2
    assert ended.weights[:, 2].allclose(torch.tensor(1 / 512))
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        correction.corrected(vfm, 512)(y)


def test_corrected_draws_are_calibrated_where_those_of_the_map_are_not() -> None:
    problem = problems.load("linear-gaussian", dim=3, obs_dim=2)
    vfm = vi.VariationalFlowMap.for_problem(problem, observation="adapter", **SIZES)
    with torch.no_grad():
        vfm.adapter.head.bias.add_(torch.tensor([0.6, -0.4, 0.3, 0.4]))
    raw = calibration.calibrate(vfm, problem, 150, 99, seed=1)
    posterior = correction.corrected(vfm)
    better = calibration.calibrate(posterior, problem, 150, 99, seed=1)
    assert (raw.attrs["verdict"], better.attrs["verdict"]) == ("fail", "pass")
    assert sum(posterior.counts[name] for name in ladder.RUNGS) == 150
    assert posterior.method().endswith("of 150; diagnostics satisfied in 150")


def test_a_card_has_both_verdicts() -> None:
    problem = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(problem, **SIZES)
    report = calibration.calibrate(vfm, problem, 100, 50, seed=3)
    card = certify(vfm, problem, report)
    fields = json.loads(card.to_json())
    old = {name: value for name, value in fields.items() if name != "corrected"}
    assert Card.from_json(json.dumps(old)).corrected is None
    both = Card.from_json(json.dumps(fields | {"corrected": {"verdict": "pass"}}))
    for bad in ({"verdict": "good"}, {}, "pass"):
        with pytest.raises(ValueError, match="of a calibration card must be"):
            Card.from_json(json.dumps(fields | {"corrected": bad}))
    vfm.card = both
    assert certify(vfm, problem, report).corrected == {"verdict": "pass"}
    vfm.whitening.mean += 1.0
    moved = calibration.calibrate(vfm, problem, 100, 50, seed=3)
    assert certify(vfm, problem, moved).corrected is None


def test_a_run_keeps_its_map_of_the_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained by the first correction, read by the next, and the check of corrected draws."""
    trained = []

    def brief(problem: InverseProblem, **options: object) -> VariationalFlowMap:
        trained.append(problem.name)
        return correction.fit_prior(problem, steps=3, num_simulations=40, **options)

    monkeypatch.setattr(corrected_runs, "fit_prior", brief)
    monkeypatch.setattr(ladder, "WARMUP", 4)
    monkeypatch.setattr(ladder, "THINNING", (1,))
    run, out = tmp_path / "run", tmp_path / "post.nc"
    settings = [
        "problem.size=8",
        "problem.blur=1.0",
        "model.num_simulations=300",
        "calibration.num_simulations=20",
    ]
    settings += ["calibration.num_draws=20", "model.width=8"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = ["train", "photo-deblur", "--out", str(run), "--steps", "2", "--json", *options]
    assert main(command) == 0
    problem = problems.load("photo-deblur", size=8, blur=1.0)
    _, y, params = problem.simulate(1, split="test", seed=0)
    save_netcdf(observation_to_xarray(y, problem, params), tmp_path / "obs.nc")
    correct = ["correct", str(run), str(tmp_path / "obs.nc"), "--out", str(out), "-n", "128"]
    assert main(correct) == 0
    assert "calibration after correction: not checked" in capsys.readouterr().out
    assert main(["calibrate", str(run), "--corrected", "--num-simulations", "16"]) == 0
    assert trained == ["photo-deblur"]
    assert (run / "prior.safetensors").is_file() and not list(run.glob("prior-*"))
    with xr.open_dataset(out) as draws:
        assert draws.attrs["prior_map_verdict"] in ("pass", "fail")
        assert "for the prior as a map learned it" in str(draws["note"].values[0])
    assert (run / "calibration_corrected.nc").is_file()
    vfm = vi.load(run / "model.safetensors", warn=False)
    assert vfm.standing()[0] != "uncertified" and vfm.card.corrected["num_simulations"] == 16
    capsys.readouterr()
    assert main([*correct, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict_corrected"] == vfm.card.corrected["verdict"]

    # Interrupted: the file is there all the same.
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "climb", stop)
    out.unlink()
    assert main([*correct, "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["interrupted"] is True
    with xr.open_dataset(out) as draws:
        assert "interrupted" in str(draws["note"].values[0]) and (draws["satisfied"] == 0).all()


def test_a_calibration_of_corrected_draws_needs_one_of_the_map(tmp_path: Path) -> None:
    problem = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(problem, **SIZES)
    check = partial(corrected_runs.calibrate_corrected_run, tmp_path, vfm, problem)
    with pytest.raises(ValueError, match="must be checked before their correction"):
        check()
    assert corrected_runs.prior_map_of_run(tmp_path, vfm, problem) is None
