"""Faults are named from the figures, and each comes with three ways out."""

from __future__ import annotations

import pytest
import torch
import xarray as xr

from vfm_inverse.calibration import from_draws
from vfm_inverse.report.remedies import remedies


def checked(scale: float = 1.0, shift: float = 0.0, **options: object) -> xr.Dataset:
    samples = torch.randn(60, 300, 3, generator=torch.Generator().manual_seed(0))
    return from_draws(shift + scale * samples[1:], samples[0], **options)


def test_a_pass_needs_none() -> None:
    assert remedies(checked()) == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"scale": 0.6}, "Draws too narrow"),
        ({"scale": 1.6}, "Draws too wide"),
        ({"shift": 0.6}, "Draws in the wrong place"),
    ],
)
def test_faults_of_place_and_width(fault: dict[str, float], expected: str) -> None:
    report = checked(**fault)
    first = remedies(report)[0]
    assert first.fault == expected
    assert f"of {report.sizes['quantity']} quantities" in first.evidence
    if "scale" in fault:
        ratio = float(first.evidence.split(", ")[1].split()[0])
        assert ratio == pytest.approx(fault["scale"], rel=0.25)
    assert all((first.ladder, first.train, first.family))


def test_the_log_likelihood_has_a_word_of_its_own() -> None:
    report = checked(
        scale=0.6, quantities={"log_likelihood": lambda x, y=None, **p: x.square().sum(-1)}
    )
    assert [one.fault for one in remedies(report)] == ["Draws that do not fit the data"]


def test_a_lost_correlation_is_told_from_wrong_widths() -> None:
    """Both marginals are right; what the joint test finds is then the fault."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(100, 600, 1, generator=generator)
    own = torch.randn(100, 600, 2, generator=generator)
    points = (0.95**0.5) * common + (0.05**0.5) * own
    points[1:] = torch.randn(99, 600, 2, generator=generator)
    parts = {f"x[{i}]": lambda x, y=None, i=i, **p: x[..., i] for i in range(2)}
    report = from_draws(points[1:], points[0], quantities=parts)
    assert report.attrs["verdict"] == "fail"
    found = remedies(report)
    assert [one.fault for one in found] == ["Right one by one and wrong together"]
    assert "TARP" in found[0].evidence


def test_a_wrong_shape_is_left_when_place_and_width_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.sign(torch.randn(1, 1000, 1, generator=generator))
    truth = truth + 0.3 * torch.randn(truth.shape, generator=generator)
    draws = (1 + 0.3**2) ** 0.5 * torch.randn(99, 1000, 1, generator=generator)
    report = from_draws(draws, truth[0], joint=False)
    assert report.attrs["verdict"] == "fail"
    kinds = [one.fault for one in remedies(report)]
    assert "Draws in the wrong place" not in kinds
    flat = report.assign(width=report.width * 0 + 1, offset=report.offset * 0)
    assert [one.fault for one in remedies(flat)] == ["Right place and width, wrong shape"]


def test_a_report_without_joint_and_density_tests_is_enough() -> None:
    report = checked(scale=0.6)
    old = report.drop_vars([n for n in report if str(n).startswith(("tarp", "density", "hpd"))])
    assert [one.fault for one in remedies(old)] == [one.fault for one in remedies(report)]
