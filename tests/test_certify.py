"""The command that certifies problems: what it writes, resumes and goes on after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benchmarks.certify import main
from tests.benchmarks.certify_figures import misfits
from tests.benchmarks.certify_pages import put, table
from tests.benchmarks.certify_settings import QUICK, SETTINGS, setting_of
from vfm_inverse import VariationalFlowMap, problems

ROOT = Path(__file__).resolve().parents[1]


def test_every_problem_has_a_setting() -> None:
    assert set(SETTINGS) == set(problems.available())
    for name in SETTINGS:
        page = (ROOT / "docs" / "problems" / f"{name}.md").read_text()
        assert "<!-- figures -->" in page and "<!-- end of figures -->" in page


def test_fields_are_checked_with_fewer_simulations() -> None:
    setting = setting_of("darcy")
    assert setting.settled(16 * 16).simulations == setting.settled(8).simulations == 1000
    assert setting.settled(32 * 32).simulations == 500
    assert setting_of("heat").settled(32 * 32).corrected_simulations == 500
    assert setting_of("darcy", corrected=0).settled(4).corrected_simulations == 0
    assert setting_of("darcy", minutes=3.0).steps == "auto"
    assert "--steps auto" in setting_of("darcy", minutes=3.0).shown("darcy")
    with pytest.raises(ValueError, match="unknown problem 'darcie'"):
        setting_of("darcie")


@pytest.fixture
def commanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A documentation folder in which the command ran on a good and two bad problems."""
    docs = tmp_path / "docs"
    (docs / "problems").mkdir(parents=True)
    page = "above\n<!-- figures -->\nold\n<!-- end of figures -->\nbelow\n"
    (docs / "problems" / "rotated-gaussian.md").write_text(page)
    (docs / "problems.md").write_text("<!-- certified -->\n<!-- end of certified -->\n")
    threads = torch.get_num_threads()
    monkeypatch.setitem(QUICK, "model", {"network": "none"})
    code = main(["heat", "no-such", "--quick", *folders(tmp_path)])
    told = capsys.readouterr().out
    assert code == 1
    assert "not certified: heat: RuntimeError: training ended with code" in told
    assert "'network' must be" in told
    assert "not certified: no-such: ValueError: unknown problem" in told
    monkeypatch.setitem(QUICK, "model", {"num_simulations": 300})
    code = main(["heat-not", "rotated-gaussian", "--quick", *folders(tmp_path)])
    assert code == 1 and "heat-not" in capsys.readouterr().out
    torch.set_num_threads(threads)
    return tmp_path


def folders(home: Path) -> list[str]:
    return ["--docs", str(home / "docs"), "--runs", str(home / "runs")]


def test_the_command(commanded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = commanded / "docs"
    (path,) = (docs / "certified").iterdir()
    one = json.loads(path.read_text())
    assert one["problem"] == "rotated-gaussian" and one["setting"]["steps"] == QUICK["steps"]
    assert one["raw"]["simulations"] == QUICK["simulations"]
    assert one["corrected"]["simulations"] == QUICK["corrected_simulations"]
    assert one["misfit"][1] == pytest.approx(1, abs=0.6) and one["ms_observation"] > 0
    assert (docs / "_static" / "problems" / "rotated-gaussian.png").stat().st_size > 1000
    page = (docs / "problems" / "rotated-gaussian.md").read_text()
    assert page.startswith("above\n") and page.endswith("below\n") and "\nold\n" not in page
    assert "$ vfm-inverse train rotated-gaussian --out runs/rotated-gaussian --steps 20" in page
    rows = (docs / "problems.md").read_text().splitlines()
    assert sum(row.startswith("| [`") for row in rows) == len(problems.available())
    (row,) = (row for row in rows if row.startswith("| [`rotated-gaussian`]"))
    assert "30 x 19, 0" in row and row.count("|") == 10

    # Again: nothing is done anew, and the pages can be written without a run.
    before = path.read_bytes()
    (docs / "problems.md").write_text("<!-- certified -->\n<!-- end of certified -->\n")
    assert main(["rotated-gaussian", "--quick", *folders(commanded)]) == 0
    assert "there is a certificate of this setting" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert (docs / "problems.md").read_text().splitlines() == rows
    assert main(["--pages", *folders(commanded)]) == 0


def check(verdict: str, **others: object) -> dict[str, object]:
    failing = [
        {"quantity": f"q{i}", "offset": -2.3, "width": 1.4 if i else None} for i in range(5)
    ]
    failing = failing if verdict == "fail" else []
    sizes = {"quantities": 18, "simulations": 500, "draws": 99}
    return {"verdict": verdict, "failing": failing, **sizes} | others


def test_the_table_names_what_fails_and_by_how_much() -> None:
    setting = replace(SETTINGS["darcy"], seed=3).table()
    one = {
        "raw": check("fail", over_start=0.6123, joint_p=0.003, failing_density=2),
        "corrected": check("pass"),
        "setting": setting,
        "misfit": [1.013, 0.998],
        "ms_draw": 0.51,
        "ms_observation": 120.0,
        "training_minutes": 12.34,
        "machine": "a machine",
    }
    lines = table(["darcy", "heat"], {"darcy": one}).splitlines()
    assert "| **fail** (5 of 18) | pass | `q0` -2.3 sd, `q1` -2.3 sd, x 1.40, " in lines[2]
    assert "2 more, density regions of 2, joint coverage (p = 0.003) | 0.612 |" in lines[2]
    assert lines[2].endswith("| 1.01 (0.998) | 0.51 / 1.2e+02 | 12.3 | 500 x 99, 3 |")
    one["corrected"] = check("pass", simulations=24)
    few = table(["darcy", "heat"], {"darcy": one})
    assert "| pass (24 simulations) |" in few and "0 as they are sampled or corrected" in few
    assert set(lines[3].split(" | ")[1:-1]) == {"–"}
    assert lines[5].startswith(
        "0 of 2 problems pass as they are sampled, 1 as they are sampled or"
    )


def test_a_page_without_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ValueError, match="must have lines '<!-- figures -->'"):
        put(tmp_path / "page.md", "figures", "text")


def test_misfit_sees_draws_that_miss_the_data() -> None:
    problem = problems.load("linear-gaussian", dim=4, obs_dim=2)
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=300)
    draws, truth = misfits(vfm, problem) or (0.0, 0.0)
    assert draws == pytest.approx(truth, rel=0.5)
    vfm.whitening.mean += 3
    assert (misfits(vfm, problem) or (0.0, 0.0))[0] > 4 * truth
