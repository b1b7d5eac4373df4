"""Training: it learns, repeats, resumes to the same bits, stops on nonsense and never ends worse
than it began."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.training.loop import fit, resolve_device, warn_of_collapse
from vfm_inverse.training.state import TrainingState


def problem() -> InverseProblem:
    return problems.load("linear-gaussian", dim=2, obs_dim=1)


def build(
    observation: str = "both", gaussian_start: bool = False, **options: object
) -> vi.VariationalFlowMap:
    return vi.VariationalFlowMap.for_problem(
        problem(),
        observation=observation,
        gaussian_start=gaussian_start,
        width=32,
        depth=1,
        num_simulations=2000,
        **options,
    )


QUICK = {
    "batch_size": 64,
    "progress": False,
    "num_validation": 64,
    "log_every": 10,
    "device": "cpu",
}


def figures(run: Path) -> list[dict[str, str]]:
    """The log of a run but for the time that it took."""
    with open(run / "log.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def weights(vfm: vi.VariationalFlowMap) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(vfm.networks.parameters()).detach()


@pytest.mark.parametrize(("mode", "steps"), [("adapter", 700), ("both", 300)])
def test_training_finds_the_posterior_without_a_start(mode: str, steps: int) -> None:
    vfm, ours = build(mode), problem()
    _, y, _ = ours.simulate(200, split="test", seed=5)
    exact = ours.reference_posterior(y)

    def errors() -> tuple[float, float]:
        torch.manual_seed(0)
        draws = vfm(y).sample((2000,))
        mean = ((draws.mean(0) - exact.mean) / exact.variance.sqrt()).square().mean().sqrt()
        spread = (draws.var(0).mean(0) / exact.variance[0] - 1).abs().max()
        return float(mean), float(spread)

    before = errors()
    history = fit(
        vfm,
        ours,
        steps=steps,
        batch_size=128,
        learning_rate=1e-2,
        average_decay=0.95,
        progress=False,
        device="cpu",
    )
    after = errors()
    assert before[0] > 0.5
    assert after[0] < 0.2
    assert after[1] < 0.25
    assert history[-1]["step"] == steps


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    results = []
    for seed in (0, 0, 1):
        vfm = build()
        fit(vfm, problem(), steps=20, seed=seed, **QUICK)
        results.append(weights(vfm))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("mode", ["adapter", "both"])
def test_a_killed_run_resumes_to_the_same_bits(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(mode)
    settings = {**QUICK, "steps": 30, "checkpoint_every": 10}
    fit(whole, problem(), checkpoint_dir=tmp_path / "whole", **settings)

    advance, calls = TrainingState.advance, iter(range(1000))

    def killed(self: TrainingState, *args: object) -> object:
        if next(calls) == 24:
            raise KeyboardInterrupt
        return advance(self, *args)

    monkeypatch.setattr(TrainingState, "advance", killed)
    first = build(mode)
    with pytest.raises(KeyboardInterrupt):
        fit(first, problem(), checkpoint_dir=tmp_path / "cut", **settings)
    monkeypatch.undo()
    torch.manual_seed(123)  # another process would have another ambient stream
    second = build(mode)
    history = fit(second, problem(), checkpoint_dir=tmp_path / "cut", resume=True, **settings)
    assert torch.equal(weights(second), weights(whole))
    assert [row["step"] for row in history] == [0, 8, 10, 15, 20, 22, 30]
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut")
    # A finished run resumes to itself.
    third = build(mode)
    fit(third, problem(), checkpoint_dir=tmp_path / "cut", resume=True, **settings)
    assert torch.equal(weights(third), weights(whole))


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    fit(build(), problem(), steps=10, checkpoint_dir=tmp_path, **QUICK)
    with pytest.raises(ValueError, match=r"'resume' needs the settings .*'steps': \(10, 20\)"):
        fit(build(), problem(), steps=20, checkpoint_dir=tmp_path, resume=True, **QUICK)


def test_never_ends_worse_than_its_start(caplog: pytest.LogCaptureFixture) -> None:
    """From the exact answer, a wild learning rate can only spoil: the start must be kept, and
    said."""
    vfm = build("both", gaussian_start=True)
    before = weights(vfm).clone()
    with caplog.at_level(logging.WARNING):
        fit(vfm, problem(), steps=30, learning_rate=1.0, average_decay=0.5, **QUICK)
    assert torch.equal(weights(vfm), before)
    assert "The start was kept" in caplog.text


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfm, ours = build(), problem()
    simulate, calls = ours.simulate, iter(range(1000))

    def poisoned(num: int, **kwargs: object):
        x, y, params = simulate(num, **kwargs)
        training = kwargs.get("split") != "test"
        return (x * torch.nan if training and next(calls) == 24 else x), y, params

    monkeypatch.setattr(ours, "simulate", poisoned)
    with pytest.raises(
        FloatingPointError, match="'diagonal' and 'lagrangian' is not finite at step 25"
    ):
        fit(vfm, ours, steps=40, checkpoint_dir=tmp_path, checkpoint_every=10, **QUICK)
    resumed = build()
    history = fit(
        resumed,
        problem(),
        steps=40,
        checkpoint_dir=tmp_path,
        checkpoint_every=10,
        resume=True,
        **QUICK,
    )
    assert history[-1]["step"] == 40
    assert torch.isfinite(weights(resumed)).all()


def test_collapse_is_reported_early(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_collapse({"step": 500, "dispersion": 1.1}, 1000)
        warn_of_collapse({"step": 50, "dispersion": 40.0}, 1000)
        assert not caplog.text
        warn_of_collapse({"step": 500, "dispersion": 12.0}, 1000)
    assert "collapsing at step 500" in caplog.text


def test_the_paper_preset_collapses_on_the_rotated_gaussian_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The failure that METHODS tells to look for: mean right, null direction far too narrow."""
    ours = problems.load("rotated-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(
        ours, observation="adapter", adapter="diagonal", gaussian_start=False, width=32, depth=1
    )
    with caplog.at_level(logging.WARNING):
        fit(
            vfm,
            ours,
            steps=150,
            batch_size=128,
            objective="vfm",
            learning_rate=1e-2,
            average_decay=0.95,
            validations=1,
            log_every=50,
            progress=False,
            device="cpu",
        )
    assert "collapsing" in caplog.text


def test_arguments_and_devices_are_checked() -> None:
    vfm = build()
    for arguments, text in [
        ({"steps": 0}, "'steps' must be an integer of at least 1 or 'auto'; got 0"),
        ({"batch_size": -1}, "'batch_size' must be an integer of at least 2; got -1"),
        ({"objective": "elbo"}, "'objective' must be one of"),
        ({"device": "tpu"}, "'device' must be 'auto' or a device"),
    ]:
        with pytest.raises(ValueError, match=text):
            fit(vfm, problem(), **({**QUICK, "steps": 5} | arguments))
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_training_sampling_and_calibration_meet_the_same_figures() -> None:
    ours = problem()
    vfm = build("both")
    fit(
        vfm,
        ours,
        steps=800,
        batch_size=256,
        learning_rate=4e-3,
        average_decay=0.98,
        progress=False,
        device="cuda",
    )
    report = vi.calibration.calibrate(vfm, ours, 1000, 100)
    _, y, _ = ours.simulate(200, split="test", seed=5)
    exact, draws = ours.reference_posterior(y), vfm(y).sample((2000,))
    assert draws.device.type == "cuda"
    mean = ((draws.mean(0) - exact.mean) / exact.variance.sqrt()).square().mean().sqrt()
    assert mean < 0.2
    assert (draws.var(0).mean(0) / exact.variance[0] - 1).abs().max() < 0.25
    assert float(report.chi2_per_dof_map.max()) < 5
