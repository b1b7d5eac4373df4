"""What users bring to a check of draws: any container, type, order, unit and size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vfm_inverse.calibration import from_draws
from vfm_inverse.report import page as pages
from vfm_inverse.statistics import scores
from vfm_inverse.statistics.joint_coverage import tarp
from vfm_inverse.statistics.local_c2st import local_c2st
from vfm_inverse.statistics.quantities import channel_units, default_quantities, evaluate

FREE = (
    "ranks",
    "density_ranks",
    "p_value",
    "density_p_value",
    "chi2_per_dof",
    "coverage",
    "hpd_coverage",
    "skill",
    "spread_skill",
    "chi2_per_dof_map",
    "coverage_map",
    "hpd_coverage_map",
    "spread_skill_map",
    "tarp_coverage",
    "tarp_p_value",
)
"""What has no unit in a report."""


def samples(*event: int, draws: int = 20, num: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws and truths that are exchangeable."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1 + draws, num, *event, generator=generator)
    return values[1:], values[0]


def labelled(event: int = 3) -> tuple[xr.DataArray, xr.DataArray]:
    draws, truth = samples(event)
    coords = {"lat": np.linspace(0.1, 0.1 * event, event), "simulation": np.arange(30)}
    dims = ("draw", "simulation", "lat")
    return (
        xr.DataArray(draws.numpy(), dims=dims, coords=coords),
        xr.DataArray(truth.numpy(), dims=dims[1:], coords=coords),
    )


KINDS = {
    "big-endian": lambda a: a.astype(">f4"),
    "little double": lambda a: a.astype("<f8"),
    "long double": lambda a: a.astype(np.longdouble),
    "Fortran order": np.asfortranarray,
    "negative strides": lambda a: a[..., ::-1].copy()[..., ::-1],
    "read only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "masked, nothing hidden": np.ma.MaskedArray,
    "list": lambda a: a.tolist(),
    "tensor with a graph": lambda a: torch.from_numpy(a).requires_grad_(),
    "list of tensors": lambda a: list(torch.from_numpy(a)),
    "transposed tensor": lambda a: torch.from_numpy(a).mT.contiguous().mT,
    "labelled, big-endian": lambda a: xr.DataArray(a.astype(">f8")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind_give_the_same_report(kind: str) -> None:
    draws, truth = (value.numpy() for value in samples(1, 3, 4))
    y, params, baseline = truth[:, 0, :, 0] + 1, {"a": truth[:, 0, 0, 0]}, draws[::2] * 1.1

    def asks(x: Tensor, y: Tensor, *, a: Tensor, b: Tensor) -> Tensor:
        return x.mean((-1, -2, -3)) + y.mean(-1) * a + b

    def report(convert: Any) -> xr.Dataset:
        return from_draws(
            convert(draws),
            convert(truth),
            y=convert(y),
            params={"a": convert(params["a"]), "b": 2.0}
            if kind != "transposed tensor"
            else params | {"b": 2},
            baseline=convert(baseline),
            quantities=default_quantities((1, 3, 4)) | {"asks": asks},
        )

    expected, found = report(np.asarray), report(KINDS[kind])
    for name in FREE:
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["ranks"], expected["ranks"])


@pytest.mark.parametrize("kind", ["float16", "int16", "uint8", "bool", "int64"])
def test_coarse_and_whole_numbers_keep_their_ties(kind: str) -> None:
    draws, truth = (value.mul(3).abs().numpy().astype(kind) for value in samples(4, draws=60))
    report = from_draws(draws, truth)
    wide = from_draws(draws.astype(float), truth.astype(float))
    np.testing.assert_array_equal(report["ranks"], wide["ranks"])
    assert report.attrs["verdict"] == "pass"
    half = torch.from_numpy(draws).to(torch.bfloat16)
    assert from_draws(half, torch.from_numpy(truth).to(torch.bfloat16)).attrs["verdict"] == "pass"


@pytest.mark.parametrize("coarse", ["float16", "float32"])
@pytest.mark.parametrize("side", ["draws", "truth"])
def test_a_constant_ties_whichever_side_is_rounded(coarse: str, side: str) -> None:
    draws, truth = (value.double().numpy() for value in samples(3, num=100, draws=40))
    draws[..., 1] = truth[..., 1] = 0.1
    given = {"draws": draws, "truth": truth}
    report = from_draws(**{**given, side: given[side].astype(coarse)})
    assert report.p_value.sel(quantity="x[1]") > 1e-3
    assert report.spread_map.values[1] == report.skill_map.values[1] == 0
    # Out of a coarse type's range nothing is rounded.
    large = from_draws(**{**given, "draws": draws.astype("float16"), "truth": truth * 1e9})
    assert large.attrs["verdict"] == "fail"


def test_double_precision_is_ranked_in_double_precision() -> None:
    draws, truth = (value.double() * 1e-12 + 1 for value in samples(3))
    assert set(np.unique(from_draws(draws.float(), truth.float()).crps_map)) == {0.0}
    exact = from_draws(draws - 1, truth - 1)
    report = from_draws(draws, truth)
    np.testing.assert_allclose(report.crps_map, exact.crps_map, rtol=1e-3)


REFUSED = {
    "complex draws": (lambda d, t: from_draws(d + 1j, t), TypeError, "'draws' .* complex"),
    "complex truth": (lambda d, t: from_draws(d, t + 1j), TypeError, "'truth' .* complex"),
    "complex y": (lambda d, t: from_draws(d, t, y=t + 1j), TypeError, "'y' .* complex"),
    "dates": (lambda d, t: from_draws(d, t.astype("M8[s]")), TypeError, "'truth' .* dates"),
    "text": (lambda d, t: from_draws(d.astype(str), t), TypeError, "'draws' .* text"),
    "nothing": (lambda d, t: from_draws(None, t), TypeError, "'draws' must hold real numbers"),
    "ragged": (lambda d, t: from_draws([[1.0], [1.0, 2.0]], t), ValueError, "'draws' must be"),
    "masked": (
        lambda d, t: from_draws(np.ma.masked_greater(d, 1.0), t),
        ValueError,
        "'draws' must have no masked entries",
    ),
    "no elements": (lambda d, t: from_draws(d[..., :0], t[..., :0]), ValueError, "elements"),
    "NaN in y": (lambda d, t: from_draws(d, t, y=t * np.nan), ValueError, "'y' must be finite"),
    "short y": (lambda d, t: from_draws(d, t, y=t[:5]), ValueError, "'y' must be .* 30"),
    "scalar y": (lambda d, t: from_draws(d, t, y=1.0), ValueError, "'y' must be"),
    "params a list": (lambda d, t: from_draws(d, t, params=[t]), TypeError, "'params' must map"),
    "short params": (lambda d, t: from_draws(d, t, params={"a": t[:3]}), ValueError, "'a' must"),
    "params of text": (lambda d, t: from_draws(d, t, params={"a": "b"}), TypeError, "'a' must"),
    "one draw behind": (
        lambda d, t: from_draws(d, t, baseline=d[:1]),
        ValueError,
        "'baseline' must hold at least 2 draws",
    ),
    "NaN behind": (
        lambda d, t: from_draws(d, t, baseline=d * np.nan),
        ValueError,
        "'baseline' must be finite",
    ),
    "seed": (lambda d, t: from_draws(d, t, seed=-1), ValueError, "'seed' must be at least 0"),
    "half a seed": (lambda d, t: from_draws(d, t, seed=0.5), ValueError, "'seed' must be a whole"),
    "true seed": (lambda d, t: from_draws(d, t, seed=True), TypeError, "'seed' must be a whole"),
    "alpha NaN": (lambda d, t: from_draws(d, t, alpha=np.nan), ValueError, "'alpha' must lie"),
    "alpha text": (lambda d, t: from_draws(d, t, alpha="5 %"), TypeError, "'alpha' must be"),
    "alpha true": (lambda d, t: from_draws(d, t, alpha=True), TypeError, "'alpha' must be"),
    "memory": (lambda d, t: from_draws(d, t, memory=0), ValueError, "'memory' must be at least 1"),
    "endless": (lambda d, t: from_draws(d, t, memory=np.inf), ValueError, "'memory' must be a"),
    "joint": (lambda d, t: from_draws(d, t, joint="no"), TypeError, "'joint' must be True or"),
    "local": (lambda d, t: from_draws(d, t, local=1), TypeError, "'local' must be True or False"),
    "no quantity": (lambda d, t: from_draws(d, t, quantities={}), ValueError, "'quantities' must"),
    "quantity list": (lambda d, t: from_draws(d, t, quantities=[max]), TypeError, "'quantities'"),
    "quantity text": (
        lambda d, t: from_draws(d, t, quantities={"a": "mean"}),
        TypeError,
        "'quantities' must map names to functions",
    ),
    "quantity of nothing": (
        lambda d, t: from_draws(d, t, quantities={"a": lambda x, y: None}),
        TypeError,
        "'quantity a' must hold real numbers",
    ),
    "complex quantity": (
        lambda d, t: from_draws(d, t, quantities={"a": lambda x, y: x[..., 0] * 1j}),
        TypeError,
        "'quantity a' must hold real numbers; got complex",
    ),
    "quantity of another shape": (
        lambda d, t: from_draws(d, t, quantities={"a": lambda x, y: 1.0}),
        ValueError,
        "quantity 'a' must return shape",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_meaning_is_refused_by_name(what: str) -> None:
    action, error, text = REFUSED[what]
    with pytest.raises(error, match=text) as caught:
        action(*(value.numpy() for value in samples(3)))  # type: ignore[no-untyped-call]
    assert len(str(caught.value)) < 250


def test_numbers_of_any_kind_are_settings() -> None:
    draws, truth = samples(3)
    one = from_draws(draws, truth, seed=np.int64(3), memory=1e9, alpha=np.float32(0.05))
    xr.testing.assert_equal(one, from_draws(draws, truth, seed=3.0, alpha=torch.tensor(0.05)))


def test_quantities_of_every_type_are_ranked() -> None:
    draws, truth = samples(3)
    own = {
        "count": lambda x, y: (x > 0).sum(-1),
        "any": lambda x, y: (x > 1).any(-1),
        "NumPy": lambda x, y: x.numpy().max(-1),
        "half": lambda x, y: x[..., 0].half(),
    }
    report = from_draws(draws, truth, quantities=own)
    assert report.attrs["verdict"] == "pass"
    np.testing.assert_array_equal(
        evaluate(own, draws, None, {})[..., 2], draws.amax(-1), strict=False
    )


# -- labels ---------------------------------------------------------------------------------------


TURNED = {
    "reversed": lambda t: t.isel(lat=slice(None, None, -1)),
    "permuted": lambda t: t.isel(lat=[1, 2, 0], simulation=list(range(29, -1, -1))),
    "single precision": lambda t: t.assign_coords(lat=t.lat.astype("f4")),
    "observation": lambda t: t.rename(simulation="observation"),
    "without coordinates": lambda t: t.drop_vars(["lat", "simulation"]),
}


@pytest.mark.parametrize("how", TURNED)
def test_what_belongs_to_the_draws_is_put_in_their_order(how: str) -> None:
    draws, truth = labelled()
    y, baseline = truth + 1.0, draws[::2] * 1.5
    quantities = {"seen": lambda x, y, *, a: (x * y * a).sum(-1)}
    options = {"y": y, "params": {"a": truth * 2}, "baseline": baseline, "quantities": quantities}
    turn = TURNED[how]
    expected = from_draws(draws, truth, **options)  # type: ignore[arg-type]
    # An observation's own axes are its own affair; simulations are put in order.
    moved = {
        "y": turn(y).sel(lat=y.lat) if how == "permuted" else y,
        "params": {"a": truth * 2},
        "baseline": turn(baseline) if how != "observation" else baseline,
        "quantities": quantities,
    }
    found = from_draws(draws, turn(truth), **moved)
    xr.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(found["ranks"], expected["ranks"])


def test_dates_and_names_of_places_are_put_in_order() -> None:
    draws, truth = labelled(4)
    for places in (
        np.array(["d", "b", "c", "a"]),
        np.array(["2020-01-04", "2020-01-02", "2020-01-03", "2020-01-01"], dtype="M8[ns]"),
        np.array([0.4, np.nan, 0.1, 0.2]),
    ):
        one, two = (value.assign_coords(lat=places) for value in (draws, truth))
        expected = from_draws(one, two)
        xr.testing.assert_identical(from_draws(one, two.isel(lat=[2, 0, 3, 1])), expected)
        with pytest.raises(ValueError, match="must have the same coordinate 'lat'"):
            from_draws(one, two.assign_coords(lat=np.roll(places[[0, 0, 2, 3]], 1)))


def test_other_places_units_and_doubtful_orders_are_refused() -> None:
    draws, truth = labelled()
    same = r"'truth' and 'draws' must have the same coordinate 'lat'"
    for lat in ([0.1, 0.2, 0.4], [0.3, 0.2, 0.1001], [0.1, 0.1, 0.3], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=same):
            from_draws(draws, truth.assign_coords(lat=lat))
    twice = [0.1, 0.1, 0.3]
    one, two = (value.assign_coords(lat=twice) for value in (draws, truth))
    assert from_draws(one, two).attrs["verdict"] == "pass"  # they are in one order already
    with pytest.raises(ValueError, match=same):
        from_draws(one, two.isel(lat=[2, 0, 1]))
    # Numbers of simulations that single precision could not tell apart.
    large = np.arange(30) + 10_000_000
    with pytest.raises(ValueError, match="must have the same coordinate 'simulation'"):
        from_draws(
            draws.assign_coords(simulation=large), truth.assign_coords(simulation=large + 1)
        )
    with pytest.raises(ValueError, match="the same coordinate 'height'"):
        from_draws(draws.assign_coords(height=2.0), truth.assign_coords(height=10.0))
    with pytest.raises(ValueError, match="'truth' is in 'degC', 'draws' in 'K'"):
        from_draws(draws.assign_attrs(units="K"), truth.assign_attrs(units="degC"))
    from_draws(draws.assign_attrs(units="K"), truth.assign_attrs(units="kelvin"))
    with pytest.raises(ValueError, match="the same size along 'simulation'; got 29 and 30"):
        from_draws(draws, truth.isel(simulation=slice(29)))
    with pytest.raises(ValueError, match="'baseline' and 'draws' must have the same"):
        from_draws(draws, truth, baseline=draws.assign_coords(lat=[5.0, 6.0, 7.0]))


def test_truths_alone_may_have_labels() -> None:
    draws, truth = labelled()
    report = from_draws(draws.values, truth.transpose("lat", "simulation"))
    np.testing.assert_array_equal(report["ranks"], from_draws(draws, truth)["ranks"])
    assert report.crps_map.dims == ("lat",)


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ((3, 1, 1), ["pixel[0,0,0]", "pixel[1,0,0]", "pixel[2,0,0]", "distance"]),
        ((1, 1, 1), ["pixel[0,0]"]),
        ((3, 1), ["pixel[0,0]", "pixel[1,0]", "pixel[2,0]", "distance", "mean", "max", "min"]),
        ((1, 1), ["pixel[0]"]),
        ((1,), ["x[0]"]),
        ((2, 4, 4, 4), ["gradient_energy", "band_power[0]", "block_mean[1,1,1]"]),
        ((1, 5, 4, 3), ["gradient_energy", "pixel[3,3,2]"]),
        ((1, 2, 2, 2, 2, 2), ["block_mean[1,1,1,1,0]"]),
        ((1, 1, 7), ["gradient_energy", "block_mean[0,1]"]),
    ],
)
def test_fields_of_every_size_are_checked(
    event: tuple[int, ...], expected: list[str], tmp_path: Path
) -> None:
    draws, truth = samples(*event)
    report = from_draws(draws, truth)
    names = report.quantity.values.tolist()
    assert set(expected) <= set(names) and len(names) == len(set(names))
    if np.prod(event[1:]) == 1:
        assert "gradient_energy" not in names and len(names) <= 7
    assert report.attrs["verdict"] == "pass"
    assert report.crps_map.size == np.prod(event)
    wide = from_draws(draws.mul(2), truth)
    assert float(wide.p_adjusted.min()) < float(report.p_adjusted.min())
    if event == (2, 4, 4, 4):
        pages.write_report(tmp_path / "page.html", report)


def test_labels_of_a_volume() -> None:
    report = from_draws(*samples(1, 2, 3, 4))
    assert report.crps_map.dims == ("depth", "row", "column")
    with pytest.raises(ValueError, match="'event_shape' must be"):
        default_quantities(())


def test_the_smallest_numbers(tmp_path: Path) -> None:
    report = from_draws(*samples(3, num=2))
    assert np.isnan(report.skill).all() and np.isfinite(report.p_value).all()
    three = from_draws(*samples(3, num=3, draws=2))
    assert np.isfinite(three.skill.sel(score="crps"))
    with pytest.raises(ValueError, match="'num_simulations' must be at least 2; got 1"):
        from_draws(*samples(3, num=1))
    with pytest.raises(ValueError, match="'calibration' must be a report"):
        pages.write_report(tmp_path / "page.html", tmp_path)  # type: ignore[arg-type]


# -- units and constants --------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    power=st.floats(-30, 30),
    event=st.sampled_from([(3,), (1, 4, 4), (2, 6)]),
    double=st.booleans(),
)
def test_a_report_does_not_depend_on_the_unit(
    power: float, event: tuple[int, ...], double: bool
) -> None:
    pair = samples(*event, draws=15, num=20)
    draws, truth = (value.double() if double else value for value in pair)
    expected, scale = from_draws(draws, truth, y=truth), 2.0 ** round(power / np.log10(2))
    found = from_draws(draws * scale, truth * scale, y=truth * scale)
    for name in FREE:
        np.testing.assert_allclose(
            found[name].values, expected[name].values, rtol=1e-4, atol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(found["ranks"], expected["ranks"])
    np.testing.assert_allclose(found.crps, expected.crps * scale, rtol=1e-4)
    np.testing.assert_allclose(found.energy_score, expected.energy_score * scale, rtol=1e-4)


@settings(max_examples=6, deadline=None)
@given(powers=st.tuples(*[st.integers(-99, 99)] * 2))
def test_quantities_of_one_channel_do_not_depend_on_the_units_of_others(
    powers: tuple[int, int],
) -> None:
    draws, truth = samples(3, 2, 2, draws=15, num=20)
    far = torch.tensor([1.0, 1e4, 1e-4])[:, None, None]
    unit = far * torch.tensor([1.0, *(2.0**power for power in powers)])[:, None, None]
    if channel_units(truth * unit) is None:  # these units are alike again
        return
    expected, found = (from_draws(draws * u, truth * u) for u in (far, unit))
    names = ["ranks", "density_ranks", "coverage_map", "chi2_per_dof_map", "tarp_coverage"]
    for name in names:
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-4, atol=1e-6)


def test_no_variable_hides_behind_a_larger_one() -> None:
    draws, truth = samples(3, 4, 4, draws=40, num=80)
    unit = torch.tensor([10.0, 1e3, 1e-3])[:, None, None]
    centre = torch.tensor([280.0, 1e5, 5e-3])[:, None, None]
    wide = draws.clone()
    wide[:, :, 2] *= 1.6
    good, bad = (from_draws(x * unit + centre, truth * unit + centre) for x in (draws, wide))
    assert good.attrs["verdict"] == "pass" and bad.attrs["verdict"] == "fail"
    assert float(bad.p_value.sel(quantity="distance")) < 1e-6
    assert channel_units(truth) is None and channel_units(truth * 1e-20) is not None
    mixed = channel_units(truth * unit + centre)
    assert mixed is not None
    torch.testing.assert_close(mixed.centre, centre.flatten().double(), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("event", "local"), [((4,), True), ((4,), False), ((1, 4, 4), False), ((2, 6), False)]
)
def test_what_never_varies_fails_nothing(event: tuple[int, ...], local: bool) -> None:
    draws, truth = samples(*event, draws=40, num=60)
    fixed = torch.zeros(event, dtype=torch.bool)
    fixed.view(-1)[::3] = True
    level = torch.linspace(0.1, 3e4, fixed.numel()).reshape(event)
    draws, truth = (torch.where(fixed, level, value) for value in (draws, truth))
    y = torch.full((60, 40), 0.1)
    y[:, 0] = torch.randn(60, generator=torch.Generator().manual_seed(1))
    report = from_draws(draws, truth, y=y, local=local)
    assert report.attrs["verdict"] == "pass"
    maps = report[["crps_map", "bias_map", "spread_map", "skill_map"]].to_dataarray().values
    still = fixed.reshape(maps.shape[1:]).numpy()
    assert (maps[:, still] == 0).all() and (maps[[0, 2, 3]][:, ~still] > 0).all()
    assert 0.5 < report.chi2_per_dof_map.values[still].mean() < 2
    assert np.isnan(report.spread_skill_map.values[still]).all()
    assert np.isfinite(report.spread_skill) and np.isfinite(report.skill).all()


def test_a_field_that_never_varies(tmp_path: Path) -> None:
    constant = torch.full((41, 60, 1, 3, 3), 0.1)
    y = torch.full((60, 40), 0.1)
    report = from_draws(constant[1:], constant[0], y=y)
    assert report.attrs["verdict"] == "pass" and np.isnan(report.spread_skill)
    pages.write_report(tmp_path / "page.html", report)


# -- functions of samples -------------------------------------------------------------------------

SCORES: dict[str, Callable[[Any, Any], Tensor]] = {
    "crps": scores.crps,
    "energy": scores.energy_score,
    "variogram": scores.variogram_score,
    "field": scores.field_scores,
    "spread": lambda draws, truth: scores.spread_skill(draws, truth)[0],
    "skill": lambda draws, truth: scores.spread_skill(draws, truth)[1],
    "sliced": lambda draws, truth: scores.sliced_wasserstein(draws, draws[:9] * 1.5),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_any_array_and_unit(name: str) -> None:
    draws, truth = samples(4)
    score, unit = SCORES[name], 2.0**-99
    expected = score(draws, truth)
    found = score(draws.numpy().astype(">f4"), truth.numpy()[..., ::-1].copy()[..., ::-1])
    torch.testing.assert_close(found, expected)
    small = score(draws * unit, truth * unit).double() / unit
    torch.testing.assert_close(small, expected.double(), rtol=1e-4, atol=1e-5)
    one = score(draws[:, :1] * unit, truth[:1] * unit).double() / unit
    torch.testing.assert_close(one, score(draws[:, :1], truth[:1]).double(), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="'draws' must hold real numbers; got complex"):
        score(draws + 1j, truth)


def test_joint_and_local_tests_of_any_array_and_unit() -> None:
    draws, truth = samples(4)
    y = truth + 1
    expected = tarp(draws, truth, y=y, num_null=99)
    xr.testing.assert_identical(
        expected, tarp(draws.numpy(), truth.numpy(), y=y.numpy(), num_null=99)
    )
    unit = 2.0**-99
    small = tarp(draws * unit, truth * unit, y=y * unit, num_null=99)
    xr.testing.assert_allclose(expected, small)
    with pytest.raises(ValueError, match="'y' must be finite; got 120 values not so"):
        tarp(draws, truth, y=y * np.nan)
    values = (draws[0], truth, y, draws[:, :1], y[:1])
    options: dict[str, Any] = {"steps": 5, "num_null": 19}
    local = local_c2st(*values, **options)
    for other in ([v.numpy() for v in values], [v * unit for v in values]):
        xr.testing.assert_allclose(local, local_c2st(*other, **options), rtol=1e-4)
