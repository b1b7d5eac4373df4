"""Grades: exact draws pass, and each planted fault is seen in the aspects that it spoils."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration import from_draws, grades
from vfm_inverse.calibration.grading import SHARE
from vfm_inverse.statistics.meanings import MEANINGS, describe, family, unit_of
from vfm_inverse.statistics.quantities import default_quantities

NUM, DRAWS, SIDE, NOISE = 1000, 29, 8, 0.7


def log_likelihood(x: Tensor, y: Tensor, **params: Tensor) -> Tensor:
    return -((x - y) ** 2).sum((-1, -2, -3)) / (2 * NOISE**2)


@cache
def checked(
    width: float = 1.0, shift: float = 0.0, lost: float = 0.0, trust: float = 1.0, seed: int = 0
) -> xr.Dataset:
    """Report of Gaussian fields seen in noise, with draws that have a fault.

    Args:
        width: of the draws over the right one.
        shift: of the draws in posterior standard deviations.
        lost: share of the posterior's correlations that is lost.
        trust: in the data: their noise is taken for so many times what it is.
    """
    where = torch.arange(SIDE, dtype=torch.float64)
    prior = torch.exp(-torch.cdist(*[torch.cartesian_prod(where, where)] * 2) / 4)
    unit = torch.eye(SIDE**2, dtype=torch.float64)
    gain = prior @ torch.linalg.inv(prior + NOISE**2 * unit)
    posterior = prior - gain @ prior
    std = posterior.diagonal().sqrt()
    posterior = posterior * (1 - lost) + lost * torch.diag(std**2)
    believed = prior @ torch.linalg.inv(prior + (trust * NOISE) ** 2 * unit)

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, SIDE**2, generator=generator)

    truth = normal(NUM) @ torch.linalg.cholesky(prior).float().T
    y = truth + NOISE * normal(NUM)
    drawn = y @ believed.float().T + shift * std.float()
    drawn = drawn + width * normal(DRAWS, NUM) @ torch.linalg.cholesky(posterior).float().T
    fields = [value.unflatten(-1, (1, SIDE, SIDE)) for value in (drawn, truth, y)]
    like = xr.DataArray(
        fields[0].numpy(), dims=("draw", "simulation", "c", "y", "x"), attrs={"units": "K"}
    )
    quantities = default_quantities((1, SIDE, SIDE), log_likelihood)
    return from_draws(like, fields[1], y=fields[2], quantities=quantities, seed=seed)


def marks(report: xr.Dataset) -> dict[str, str]:
    return dict(zip(report.aspect.values.tolist(), report.grade.values.tolist(), strict=True))


ASPECTS = ["means", "intervals", "regional means", "extremes", "small scales", "whole field"]


def test_exact_draws_pass_in_every_aspect() -> None:
    report = checked()
    assert report.attrs["verdict"] == "pass"
    assert marks(report) == dict.fromkeys([*ASPECTS, "fit to the data"], "pass")
    found = {one.aspect: one.size for one in grades(report)}
    assert list(found.values()) == report.grade_size.values.tolist()
    share = 100 * report.coverage_map.sel(level=0.9).mean().item()
    assert found["intervals"].startswith(f"90 % intervals hold {share:.1f} % ± ")
    assert 88.5 < share < 91.5


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"width": 1.1}, "means pass, intervals fail, small scales fail, whole field fail"),
        (
            {"shift": 0.3},
            "means fail, intervals borderline, regional means fail, extremes fail, "
            "small scales pass",
        ),
        (
            {"lost": 0.99},
            "means pass, intervals pass, regional means fail, extremes fail, small scales fail, "
            "whole field fail",
        ),
        ({"lost": 0.4}, "means pass, intervals pass, small scales borderline"),
        ({"trust": 0.7}, "means pass, small scales fail, fit to the data fail"),
    ],
    ids=["too wide", "shifted", "uncorrelated", "a little too rough", "noise fitted"],
)
def test_a_fault_is_seen_where_it_is(fault: dict[str, float], expected: str) -> None:
    report = checked(**fault)
    found = marks(report)
    assert report.attrs["verdict"] == "fail"
    for one in expected.split(", "):
        aspect, grade = one.rsplit(" ", 1)
        assert found[aspect] == grade, aspect


def test_sizes_are_said_in_plain_words_and_in_the_unit() -> None:
    sizes = {one.aspect: one.size for one in grades(checked(shift=0.3))}
    # 0.3 of a standard deviation of 0.41 K.
    kelvin, deviations = re.findall(r"too high by (\S+) K \((\S+) posterior", sizes["means"])[0]
    assert float(kelvin) == pytest.approx(0.123, abs=0.01)
    assert float(deviations) == pytest.approx(0.3, abs=0.06)
    report = checked(lost=0.99)
    ratio = report.quantity_mean / report.quantity_truth
    rough = 100 * (np.sqrt(ratio.sel(quantity="band_power[1]").item()) - 1)
    sizes = {one.aspect: one.size for one in grades(report)}
    assert sizes["small scales"].startswith(
        f"draws are {rough:.1f} % rougher than truths at the smallest scale"
    )
    assert "too narrow" in sizes["extremes"]
    better = {one.aspect: one.size for one in grades(checked(trust=0.7))}
    assert "the log-likelihood is drawn too high by" in better["fit to the data"]
    assert " nat (" in better["fit to the data"]


def test_a_difference_that_is_seen_and_small_is_borderline() -> None:
    """64 numbers in 600 simulations show a width wrong by 3 %, which matters to nobody."""
    samples = torch.randn(40, 600, 64, generator=torch.Generator().manual_seed(0))
    for scale, grade in ((1.03, "borderline"), (1.12, "fail")):
        report = from_draws(scale * samples[1:], samples[0], joint=False)
        assert report.attrs["verdict"] == "fail" and marks(report)["intervals"] == grade
        assert marks(report)["means"] == "pass"
    assert report.held.sel(level=0.9).item() > 0.9 + SHARE
    assert report.held_error.sel(level=0.9).item() < 0.002


def test_an_offset_matters_over_a_tenth_of_a_standard_deviation() -> None:
    samples = torch.randn(20, 100, 3, generator=torch.Generator().manual_seed(0))
    report = from_draws(samples[1:], samples[0], joint=False)
    report.attrs["num_simulations"] = 20_000
    report["p_adjusted"][0] = 0.0
    for offset, grade in ((0.06, "borderline"), (-0.12, "fail"), (0.0, "pass")):
        report["offset"][0] = offset
        assert {one.aspect: one.grade for one in grades(report)}["means"] == grade


def test_grades_pass_when_the_verdict_does_and_not_otherwise() -> None:
    """So false alarms of grades are those of the verdict."""
    verdicts = set()
    for seed in range(12):
        samples = torch.randn(20, 100, 3, generator=torch.Generator().manual_seed(seed))
        samples[0] *= 1 + 0.4 * (seed % 3)
        report = from_draws(samples[1:], samples[0], seed=seed)
        passed = set(marks(report).values()) == {"pass"}
        assert passed == (report.attrs["verdict"] == "pass")
        verdicts.add(passed)
    assert verdicts == {True, False}


def test_every_default_quantity_is_defined_and_has_a_unit() -> None:
    for event in ((3,), (1, 16), (2, 8, 8), (1, 4, 6, 6), (3, 1, 1)):
        for name in default_quantities(event, log_likelihood):
            assert family(name) in MEANINGS, name
    report = checked()
    assert unit_of(report, "max") == "K" and unit_of(report, "band_power[1]") == "K^2"
    assert unit_of(report, "log_likelihood") == "nat"
    assert "largest value" in describe(report, "max")


def test_quantities_of_the_user_have_a_grade_and_their_own_words() -> None:
    def peak(x: Tensor, y: Any = None, **params: Tensor) -> Tensor:
        """Height of the peak in metres."""
        return x.amax(-1)

    samples = torch.randn(40, 200, 5, generator=torch.Generator().manual_seed(0))
    own = {"max": peak, "total": lambda x, y=None, **params: x.sum(-1)}
    report = from_draws(2 + samples[1:], samples[0], quantities=own)
    assert json.loads(report.attrs["own_quantities"])["max"] == "Height of the peak in metres"
    assert describe(report, "max") == "Height of the peak in metres"
    assert describe(report, "total") == "given by the user" and unit_of(report, "max") == ""
    assert marks(report)["own quantities"] == "fail" and "extremes" not in marks(report)


def test_channels_without_a_common_unit_have_no_offset_in_one() -> None:
    samples = torch.randn(30, 100, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    samples[:, :, 1] *= 1e4
    report = from_draws(samples[1:], samples[0])
    report.crps.attrs["units"] = "K"
    assert unit_of(report, "mean") == "" and unit_of(report, "pixel[1,0,0]") == "K"


def test_a_report_of_an_older_version_has_grades() -> None:
    report = checked(shift=0.3)
    gone = ["quantity_std", "quantity_mean", "quantity_truth", "held", "held_error", "grade"]
    old = report.drop_vars([*gone, "grade_size", "aspect", "density_p_adjusted", "hpd_coverage"])
    found = {one.aspect: one for one in grades(old)}
    assert found["means"].grade == "fail" and " K " not in found["means"].size
    assert found["small scales"].grade == "pass"
