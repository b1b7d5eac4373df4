"""The range of every setting: one table for Python, settings files and the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.calibration import calibrate
from vfm_inverse.cli.program import main
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.settings import SETTINGS, Setting, check_settings
from vfm_inverse.training.loop import fit
from vfm_inverse.training.objective import Objective

BAD: dict[type, list[Any]] = {
    int: [-1, -(10**400), 1.5, math.nan, math.inf, True, "3", [3], None, np.float64(2.5), 1j],
    float: [-0.1, -(10**400), math.nan, -math.inf, math.inf, True, "0.5", None, 1j],
    bool: ["no", 0, 1, None, "true", 1.0],
}


@pytest.mark.parametrize("function", sorted(SETTINGS))
def test_every_setting_has_a_range(function: str) -> None:
    for name, setting in SETTINGS[function].items():
        for value in BAD[setting.kind]:
            if value is None and setting.optional:
                continue
            with pytest.raises(ValueError, match=rf"^'{name}' must be an? .*; got|^'{name}' must"):
                setting.check(name, value)


@pytest.mark.parametrize(
    ("function", "of"),
    [
        ("fit", fit),
        ("model", VariationalFlowMap.for_problem),
        ("objective", Objective),
        ("calibration", calibrate),
    ],
)
def test_every_number_and_switch_of_a_function_has_a_range(
    function: str, of: Callable[..., Any]
) -> None:
    defaults = {k: p.default for k, p in inspect.signature(of).parameters.items()}
    for name, value in defaults.items():
        if isinstance(value, bool | int | float):
            assert name in SETTINGS[function], name
            assert check_settings(function, {name: value}) == {name: value}
    assert SETTINGS[function].keys() <= defaults.keys()


def test_a_number_comes_as_its_kind() -> None:
    given = {"steps": 512.0, "batch_size": np.int32(8), "learning_rate": np.float32(0.5)}
    given |= {"clip": 1, "progress": np.bool_(True), "device": "cpu"}
    checked = check_settings("fit", given)
    assert checked == {**given, "steps": 512, "progress": True}
    assert [type(checked[k]) for k in ("steps", "batch_size", "clip")] == [int, int, float]
    assert checked["progress"] is True


def test_messages_are_short_and_name_the_section() -> None:
    with pytest.raises(ValueError) as refused:
        check_settings("fit", {"validations": 0}, "fit")
    assert str(refused.value) == "'validations' in [fit] must be an integer of at least 1; got 0"
    with pytest.raises(ValueError) as refused:
        check_settings("fit", {"average_decay": 1})
    assert str(refused.value) == (
        "'average_decay' must be a number of at least 0 and below 1; got 1"
    )
    with pytest.raises(ValueError) as refused:
        check_settings("objective", {"tau": [0.1] * 1000})
    assert len(str(refused.value)) < 100
    assert str(Setting(float, 0, open_low=True)) == "a number above 0"


@pytest.mark.parametrize(
    "setting",
    [
        {"validations": 0},
        {"steps": "long"},
        {"steps": "auto", "minutes": 0},
        {"minutes": 5},
        {"checkpoint_every": 0},
        {"batch_size": 1},
        {"average_decay": 2.0},
        {"learning_rate": -1.0},
        {"seed": -1},
        {"progress": "no"},
        {"objective": {"off_diagonal": 2.0}},
        {"objective": {"tau": 0}},
        {"objective": {"adaptive": "no"}},
        {"objective": {"adapter_share": 1.5}},
        {"objective": {"flows": 1.0}},
    ],
    ids=str,
)
def test_fit_refuses_what_makes_no_sense_and_writes_nothing(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    ours = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(ours, num_simulations=300, width=8, depth=1)
    name, value = list(setting.items())[-1]
    name = next(iter(value)) if isinstance(value, dict) else name
    with pytest.raises(ValueError, match=f"'{name}'"):
        fit(vfm, ours, **({"steps": 2, "device": "cpu"} | setting), checkpoint_dir=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "setting",
    [{"width": -1}, {"width": 10**9}, {"depth": -1}, {"num_simulations": 1}, {"steps": 0.5}],
    ids=str,
)
def test_a_map_refuses_what_makes_no_sense(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(setting))}' must be an integer of"):
        vi.VariationalFlowMap.for_problem(problems.load("linear-gaussian"), **setting)


def test_the_smallest_settings_train() -> None:
    """A batch of two, one step, terms that share it in every way."""
    ours = problems.load("linear-gaussian")
    quick = {"steps": 1.0, "batch_size": 2, "num_validation": 2, "progress": False}
    for share in (0.0, 0.25, 1.0):
        vfm = vi.VariationalFlowMap.for_problem(ours, num_simulations=300, width=1, depth=0)
        fit(vfm, ours, objective={"off_diagonal": share}, device="cpu", **quick)
        assert all(torch.isfinite(p).all() for p in vfm.networks.parameters())


def test_an_objective_without_terms_is_refused() -> None:
    ours = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(
        ours, num_simulations=300, width=8, depth=1, gaussian_start=False
    )
    with pytest.raises(ValueError, match="must be above 0; got none"):
        Objective(vfm, flow=0.0, forward=0.0)
    for terms in ({"forward": 0.0}, {"flow": 0.0}):
        with pytest.raises(ValueError, match="'adapter_share' must be 0 unless"):
            Objective(vfm, **terms, adapter_share=0.5)
    with pytest.raises(TypeError, match="'objective' must be a name or a mapping; got int"):
        fit(vfm, ours, objective=3)
    with pytest.raises(TypeError, match="'vfm' must be a VariationalFlowMap; got InverseProblem"):
        fit(ours, vfm)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("fit.validations=0", "'validations' in [fit] must be an integer of at least 1; got 0"),
        ("fit.clip=nan", "'clip' in [fit] must be a number above 0; got nan"),
        ("fit.objective={tau=0}", "'tau' in [fit.objective] must be a number above 0; got 0"),
        ("fit.objective={taus=1}", "unknown key in [fit.objective]: 'taus'; did you mean 'tau'?"),
        (
            "fit.steps=true",
            "'steps' in [fit] must be an integer of at least 1 or 'auto'; got True",
        ),
        (
            "model.width=-1",
            "'width' in [model] must be an integer of at least 1 and at most 65536",
        ),
        ("model.gaussian_start='no'", "in [model] must be true or false; got 'no'"),
        ("calibration.joint='no'", "'joint' in [calibration] must be true or false; got 'no'"),
        ("calibration.alpha=1", "'alpha' in [calibration] must be a number above 0 and below 1"),
        ("calibration.num_draws=1", "'num_draws' in [calibration] must be an integer of at least"),
    ],
)
def test_a_settings_file_is_held_to_the_same_ranges(
    change: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", "linear-gaussian", "--out", str(out), "--set", change]) == 2
    assert text in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "RUN", "--num-simulations", "1"],
        ["calibrate", "RUN", "--num-draws", "x"],
        ["calibrate", "RUN", "--seed", "-1"],
        ["sample", "RUN", "OBS", "--out", "POST", "-n", "0"],
        ["train", "heat", "--out", "RUN", "--batch-size", "1"],
        ["verify", "heat", "--seed", "1.5"],
    ],
    ids=" ".join,
)
def test_the_command_line_is_held_to_the_same_ranges(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert f"must be an integer of at least {0 if '--seed' in command else ''}" in (
        capsys.readouterr().err
    )
