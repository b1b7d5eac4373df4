"""The calibration card: what it says, when it holds, and who is warned."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import xarray as xr
from deepinv.physics import Denoising, GaussianNoise, Inpainting

import vfm_inverse as vi
from vfm_inverse import calibration, problems
from vfm_inverse.calibration import grades
from vfm_inverse.calibration.certification import certify
from vfm_inverse.labelled.write import save_netcdf
from vfm_inverse.posterior.card import Card
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import data_fingerprint, physics_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.warnings import CalibrationWarning

SMALL = {"width": 8, "depth": 1, "num_simulations": 500}


def checked(
    *, fail: bool = False, problem: InverseProblem | None = None
) -> tuple[VariationalFlowMap, InverseProblem, xr.Dataset]:
    """A map that is the exact posterior before it is trained, or one whose draws are shifted, with
    its calibration."""
    problem = problem or problems.load("linear-gaussian", sigma=[0.1, 0.5])
    vfm = vi.VariationalFlowMap.for_problem(problem, **SMALL)
    if fail:
        vfm.whitening.mean += 1.0
    report = calibration.calibrate(vfm, problem, 200, 99, seed=3)
    assert report.attrs["verdict"] == ("fail" if fail else "pass"), report.attrs["reason"]
    return vfm, problem, report


def test_the_card_says_what_was_checked_and_how() -> None:
    vfm, problem, report = checked()
    assert vfm.card is None and vfm.standing()[0] == "uncertified"
    card = certify(vfm, problem, report)
    assert vfm.card is card and vfm.standing() == ("pass", report.attrs["reason"])
    assert (card.verdict, card.num_simulations, card.num_draws) == ("pass", 200, 99)
    assert (card.seed, card.split, card.alpha) == (3, "test", 0.05)
    assert card.problem == "linear-gaussian" and card.physics == problem.describe_physics()
    assert card.version == vi.__version__
    assert card.figures["crps"] == pytest.approx(float(report.crps.mean()))
    assert card.figures["smallest_p"] == pytest.approx(float(report.p_adjusted.min()))
    assert card.figures["joint_p"] == pytest.approx(float(report.tarp_p_adjusted))
    assert card.figures["crps_skill"] == pytest.approx(float(report.skill.sel(score="crps")))
    assert [row[:2] for row in card.grades] == [[one.aspect, "pass"] for one in grades(report)]
    low, high = card.valid_range["sigma"]
    assert 0.1 <= low < 0.11 and 0.49 < high <= 0.5
    assert card.valid_range["y"][0] < -2 and card.valid_range["y"][1] > 2
    assert Card.from_json(card.to_json()) == card
    with pytest.raises(ValueError, match="'text' must be a calibration card in JSON"):
        Card.from_json('{"verdict": "pass"}')


def test_trained_on_after_its_calibration_a_map_is_uncertified(tmp_path: Path) -> None:
    vfm, problem, report = checked()
    certify(vfm, problem, report)
    with torch.no_grad():
        next(iter(vfm.networks.parameters())).add_(1e-3)
    assert vfm.standing() == (
        "uncertified",
        "its weights changed after its calibration was checked",
    )
    assert "calibration_card" not in vfm.provenance()
    vfm.save(tmp_path / "model.safetensors")
    with pytest.warns(CalibrationWarning, match="is uncertified: its weights changed"):
        vi.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="it is of one with other weights"):
        certify(vfm, problem, report.assign_attrs(weights_sha256="0" * 64))


def test_the_number_of_steps_is_part_of_the_weights() -> None:
    vfm, _, _ = checked()
    before = vfm.weights_fingerprint()
    vfm.steps = 4
    assert vfm.weights_fingerprint() != before


def test_loading_warns_of_what_is_not_certified(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    vfm, problem, report = checked()
    vfm.save(path)
    with pytest.warns(
        CalibrationWarning, match="never checked. Check it with .*calibrate"
    ) as seen:
        vi.load(path)
    assert [w.filename for w in seen] == [__file__]
    certify(vfm, problem, report)
    vfm.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = vi.load(path)
    assert loaded.card == vfm.card
    for name, value in vfm.range.state_dict().items():
        assert torch.equal(loaded.range.state_dict()[name], value), name

    failed, problem, report = checked(fail=True)
    certify(failed, problem, report)
    failed.save(path)
    with pytest.warns(CalibrationWarning, match="failed its calibration: .*correct its draws"):
        vi.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vi.load(path, warn=False).card == failed.card


def test_a_map_of_another_physics_is_not_certified(tmp_path: Path) -> None:
    def problem(gain: float) -> InverseProblem:
        mask = torch.full((1, 3, 4), gain)
        physics = Inpainting((1, 3, 4), mask=mask, noise_model=GaussianNoise(0.2))
        prior = torch.distributions.Independent(
            torch.distributions.Normal(torch.zeros(1, 3, 4), 1.0), 3
        )
        return InverseProblem(prior, physics=physics)

    vfm, own, report = checked(problem=problem(1.0))
    certify(vfm, own, report)
    vfm.save(tmp_path / "model.safetensors")
    assert vi.load(tmp_path / "model.safetensors", problem(1.0)).card == vfm.card
    with pytest.warns(CalibrationWarning, match="certified for another physics"):
        assert vi.load(tmp_path / "model.safetensors", problem(0.5)).card is None


def test_fingerprints_know_the_same_from_another() -> None:
    first, again = (problems.load("linear-gaussian", sigma=[0.1, 0.5]) for _ in range(2))
    other = problems.load("linear-gaussian", sigma=[0.1, 0.5], seed=1)
    assert physics_fingerprint(first) == physics_fingerprint(again) != physics_fingerprint(other)
    assert data_fingerprint(first) == data_fingerprint(again)
    samples = torch.randn(300, 1, 2, 3)
    noise = Denoising(noise_model=GaussianNoise(0.1))
    one = data_fingerprint(InverseProblem(samples, physics=noise))
    assert one == data_fingerprint(InverseProblem(samples.clone(), physics=noise))
    assert one != data_fingerprint(InverseProblem(samples + 1e-6, physics=noise))


def test_parameters_of_a_call_are_not_part_of_the_physics() -> None:
    physics = Inpainting((1, 3, 4), mask=torch.ones(1, 3, 4), noise_model=GaussianNoise(0.1))

    def masks(num: int) -> dict[str, torch.Tensor]:
        return {"mask": (torch.rand(num, 1, 3, 4) < 0.5).float()}

    problem = InverseProblem(torch.randn(30, 1, 3, 4), physics=physics, params=masks)
    before = physics_fingerprint(problem)
    physics(torch.randn(2, 1, 3, 4), mask=torch.zeros(2, 1, 3, 4))  # deepinv keeps the mask
    assert not torch.equal(physics.mask, torch.ones(1, 3, 4))
    assert physics_fingerprint(problem) == before


def test_files_of_draws_hold_the_card(tmp_path: Path) -> None:
    vfm, problem, report = checked()
    _, y, params = problem.simulate(2, seed=1)

    def attrs() -> dict[str, object]:
        draws = vfm(y, **params).sample((5,))
        made = vi.to_xarray(draws, problem, y, params=params, provenance=vfm.provenance())
        with xr.open_dataset(save_netcdf(made, tmp_path / "draws.nc")) as read:
            return dict(read.attrs)

    before = attrs()
    assert before["calibration_verdict"] == "uncertified" and "calibration_card" not in before
    certify(vfm, problem, report)
    after = attrs()
    assert after["calibration_verdict"] == "pass"
    assert after["calibration_reason"] == report.attrs["reason"]
    assert after["weights_sha256"] == vfm.weights_fingerprint()
    assert Card.from_json(str(after["calibration_card"])) == vfm.card
    assert json.loads(str(after["calibration_card"]))["num_simulations"] == 200


def test_a_report_of_draws_certifies_nothing() -> None:
    vfm, problem, _ = checked()
    block = torch.randn(21, 30, 4)
    with pytest.raises(ValueError, match="must come from calibration.calibrate; .*lack .'split'"):
        certify(vfm, problem, calibration.from_draws(block[1:], block[0]))


def test_an_observation_outside_the_certified_range_warns_once_with_the_distance() -> None:
    vfm, problem, report = checked()
    certify(vfm, problem, report)
    _, y, params = problem.simulate(50, split="test", seed=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vfm(y, **params)
    y[[3, 7]] += 40.0
    expected, _ = vfm.range.distance(y, params)
    with pytest.warns(CalibrationWarning) as seen:
        vfm(y, **params).sample((2,))
    assert len(seen) == 1 and seen[0].filename == __file__
    message = str(seen[0].message)
    assert "2 of 50 observations lie outside the range of the certified simulations" in message
    assert f"at {float(expected.max()):.3g} times its edge" in message
    with pytest.warns(CalibrationWarning, match=r"1 of 1 .* by 'sigma'\."):
        vfm(y[0], sigma=torch.tensor(2.0))


def test_a_card_of_an_older_version_has_no_grades_and_is_read() -> None:
    vfm, problem, report = checked()
    table = json.loads(certify(vfm, problem, report).to_json())
    assert Card.from_json(json.dumps(table)).grades == table.pop("grades")
    assert Card.from_json(json.dumps(table)).grades == []
    for wrong in ([["means", "pass"]], ["pass"], [["means", "pass", 1]], "pass"):
        with pytest.raises(ValueError, match="'grades' of a calibration card must"):
            Card.from_json(json.dumps(table | {"grades": wrong}))
