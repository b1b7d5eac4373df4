"""What came of a training, in words: each case on a problem that brings it about."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise

import vfm_inverse as vi
from vfm_inverse import calibration, problems
from vfm_inverse.calibration.certification import certify
from vfm_inverse.posterior.card import Card
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.report.page import write_report
from vfm_inverse.training.loop import fit
from vfm_inverse.training.summary import training_summary

QUICK: dict[str, Any] = {"batch_size": 32, "num_validation": 128, "progress": False}
QUICK |= {"device": "cpu", "log_every": 1000}
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "num_simulations": 500}


def trained(
    problem: InverseProblem, folder: Path, steps: int, model: dict[str, Any], **settings: Any
) -> tuple[vi.VariationalFlowMap, dict[str, Any]]:
    vfm = vi.VariationalFlowMap.for_problem(problem, **{**SMALL, **model})
    history = fit(vfm, problem, steps=steps, checkpoint_dir=folder, **{**QUICK, **settings})
    summary = training_summary(folder)
    assert summary is not None and vfm.training_note == summary["sentence"]
    scores = {row["step"]: row["validation"] for row in history if "validation" in row}
    assert scores[0] == pytest.approx(summary["start"])
    assert scores[summary["kept_step"]] == pytest.approx(summary["kept"])
    assert scores[steps] == pytest.approx(summary["last"])
    return vfm, summary


def test_a_start_that_is_exact_is_kept_and_headlines_card_and_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problem = problems.load("linear-gaussian", dim=2, obs_dim=1)
    with caplog.at_level(logging.WARNING):
        vfm, summary = trained(problem, tmp_path, 30, {}, learning_rate=1.0, average_decay=0.5)
    assert summary["outcome"] == "start kept" and summary["kept_step"] == 0
    assert "The start was kept, training gained nothing" in caplog.text
    assert "the start is the exact posterior. Nothing is left to try" in summary["sentence"]
    loaded = vi.load(tmp_path / "model.safetensors", warn=False)
    assert loaded.training_note == vfm.training_note
    checked = calibration.calibrate(loaded, problem, 40, 19, seed=0)
    card = certify(loaded, problem, checked)
    assert card.training == summary["sentence"]
    checked.attrs["calibration_card"] = card.to_json()
    page = write_report(tmp_path / "report.html", checked).read_text()
    headline = page.index("<strong>The start was kept, training gained nothing:</strong>")
    assert headline < page.index("What may be trusted")
    text = card.to_json()
    assert Card.from_json(text) == card
    older = text.replace(f', "training": "{card.training}"', "")
    assert older != text and Card.from_json(older).training == ""


def test_a_learning_rate_that_is_too_large_is_named(tmp_path: Path) -> None:
    problem = problems.load("lognormal-field")
    _, summary = trained(problem, tmp_path, 30, {}, learning_rate=1.0, average_decay=0.5)
    assert summary["outcome"] == "start kept" and not summary["overfitted"]
    assert "the learning rate is too large" in summary["sentence"]


def test_overfitting_is_named_with_the_number_of_samples(tmp_path: Path) -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    held_out = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    problem = InverseProblem(
        x, test_prior=held_out, physics=Denoising(GaussianNoise(0.5)), dims=("component",)
    )
    assert problem.num_prior_samples() == 40
    model = {"width": 64, "depth": 2}
    settings = {"learning_rate": 1e-2, "average_decay": 0.9, "num_validation": 256}
    vfm, summary = trained(problem, tmp_path, 150, model, **settings)
    assert summary["overfitted"] and summary["kept_step"] < 150
    assert "fits its 40 prior samples ever better and held-out ones worse" in summary["sentence"]


def test_a_training_cut_short_is_still_improving_by_what_it_gained(tmp_path: Path) -> None:
    problem = problems.load("linear-gaussian", dim=2, obs_dim=1)
    model = {"gaussian_start": False, "adapter": "diagonal"}
    _, summary = trained(problem, tmp_path, 60, model, learning_rate=1e-2, average_decay=0.9)
    assert summary["outcome"] == "still improving"
    assert summary["kept_step"] == 60 and summary["kept"] < summary["start"]
    rate = f"still improving by {100 * summary['gain_per_1000']:.2g} % per 1000 steps"
    assert rate in summary["sentence"] and summary["gain_per_1000"] > 0.1


def test_an_open_training_ends_by_itself_and_says_enough(tmp_path: Path) -> None:
    problem = problems.load("linear-gaussian", dim=2, obs_dim=1)
    vfm = vi.VariationalFlowMap.for_problem(problem, gaussian_start=False, **SMALL)
    settings = {**QUICK, "learning_rate": 1e-2, "average_decay": 0.95}
    history = fit(vfm, problem, steps="auto", checkpoint_dir=tmp_path, **settings)
    summary = training_summary(tmp_path)
    assert summary is not None and summary["outcome"] == "enough"
    assert history[-1]["step"] == summary["steps"] < 4000
    assert history[-1]["learning_rate"] < 2e-4
    assert summary["sentence"].startswith("Enough: over ")
    _, y, _ = problem.simulate(200, split="test", seed=5)
    exact, draws = problem.reference_posterior(y), vfm(y).sample((500,))
    assert exact is not None
    error = ((draws.mean(0) - exact.mean) / exact.variance.sqrt()).square().mean().sqrt()
    assert error < 0.25


def test_a_run_without_a_finished_training_has_no_summary(tmp_path: Path) -> None:
    assert training_summary(tmp_path) is None


def test_samples_of_a_prior_are_counted() -> None:
    physics = Denoising(GaussianNoise(0.5))
    problem = InverseProblem(torch.randn(50, 3), physics=physics, dims=("component",))
    assert problem.num_prior_samples() == 45
    assert problem.record(30).num_prior_samples() == 27
    assert problems.load("linear-gaussian").num_prior_samples() is None
