"""The report page: verdict first, everything inside one file, nothing unescaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from vfm_inverse.calibration import from_draws, grades
from vfm_inverse.posterior.card import Card
from vfm_inverse.report import gallery
from vfm_inverse.report import page as report
from vfm_inverse.report.page import write_report
from vfm_inverse.statistics.meanings import describe


def checked(scale: float = 1.0, shift: float = 0.0) -> xr.Dataset:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(40, 200, 1, 4, 6, generator=generator)
    return from_draws(shift + scale * samples[1:], samples[0])


class Page(HTMLParser):
    """Text in order, pictures, addresses that a browser would fetch, tags left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.pictures: list[bytes] = []
        self.open: list[str] = []
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "meta"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value:
                if value.startswith("data:image/png;base64,"):
                    self.pictures.append(base64.b64decode(value.split(",")[1], validate=True))
                else:
                    self.outside.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.text.append(data.strip())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take most of the time."""
    monkeypatch.setattr(report, "_figures", lambda calibration: dict.fromkeys(report.TEXTS))
    monkeypatch.setattr(report, "_picture", lambda *args: {"title": args[1]})


def test_every_figure_has_its_words() -> None:
    """One without would be left out."""
    assert report._figures(checked()).keys() <= report.TEXTS.keys()


def test_the_page_of_a_good_posterior(tmp_path: Path) -> None:
    result = checked()
    path = write_report(tmp_path / "report.html", result)
    assert list(tmp_path.iterdir()) == [path]
    page = Page(path.read_text())
    assert page.open == [] and page.outside == []
    assert len(page.pictures) == 7
    assert all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    body = page.text[page.text.index("Calibration report") :]
    # The grades open the page, each with its size; the strict verdict follows.
    assert body[1] == "What may be trusted" and body[2] == "6 pass."
    for one in grades(result):
        at = body.index(one.aspect)
        assert body[at + 2 : at + 4] == [one.grade, one.size]
    verdict = body.index("Strict verdict")
    assert body[verdict + 1] == "No sign of miscalibration:"
    assert body[verdict + 2] == result.attrs["reason"] + "."
    assert "What to do" not in page.text
    # The key figures come next, and the words of each picture before the tables.
    count = result.sizes["quantity"]
    assert body[verdict + 3 : verdict + 5] == [
        f"{count} of {count}",
        "quantities with uniform ranks",
    ]
    # Every quantity is defined above the table.
    for name in ("max", "block_mean[...]"):
        assert describe(result, name.split("[")[0]) == body[body.index(name) + 1]
    titles = [
        "Ranks of the truth",
        "Coverage of intervals",
        "Joint coverage",
        "Where in the field",
    ]
    titles += ["Spread and error", "Scores against the baseline", "Rank histograms"]
    titles += ["Quantities", "Scores", "Settings"]
    assert [text for text in body if text in titles] == titles
    assert body.count("How a fault looks.") == 7
    for name in result.quantity.values:
        assert name in page.text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"scale": 0.6}, "Draws too narrow"),
        ({"scale": 1.6}, "Draws too wide"),
        ({"shift": 0.6}, "Draws in the wrong place"),
    ],
)
def test_the_page_of_a_bad_posterior_says_what_to_do(
    fault: dict[str, float], words: str, tmp_path: Path, undrawn: None
) -> None:
    result = checked(**fault)
    page = Page(write_report(tmp_path / "report.html", result).read_text())
    assert page.text[page.text.index("Strict verdict") + 1] == "Not calibrated:"
    failing = [one.aspect for one in grades(result) if one.grade == "fail"]
    assert f"Not to be trusted before that: {', '.join(failing)}." in " ".join(page.text)
    advice = page.text[page.text.index("What to do") + 1 : page.text.index("Ranks of the truth")]
    assert words in advice
    for way in ("the ladder", "more training", "a richer family"):
        assert way in advice
    assert any("correction.auto" in line for line in advice)
    # The worst quantity heads the table, with its figures.
    worst = result.attrs["reason"].split("'")[1]
    header = page.text.index("in 90 %", page.text.index("Quantities")) + 1
    assert page.text[header + 1] == worst
    offset = result["offset"].sel(quantity=worst).item()
    assert f"{offset:+.2f}" in page.text[header + 1 : header + 10]


def test_history_figures_provenance_and_escaping(tmp_path: Path) -> None:
    result = checked()
    result.to_netcdf(tmp_path / "calibration.nc")  # as the command line has it
    with xr.open_dataset(tmp_path / "calibration.nc") as read:
        draws = torch.randn(10, 2, 1, 4, 6)
        path = write_report(
            tmp_path / "report.html",
            read.load(),
            history=[{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}],
            figures={"Two & more": gallery.posterior_gallery(draws)},
            provenance={"checkpoint": "<script>alert(1)</script>", "learning_rate": 1 / 3},
            title="A <b>run</b>",
        )
    html = path.read_text()
    page = Page(html)
    assert len(page.pictures) == 9
    assert "<script>" not in html and "<b>" not in html
    assert "<script>alert(1)</script>" in page.text and "A <b>run</b>" in page.text
    assert "Two & more" in page.text and "0.333333" in page.text
    assert re.search(r"coverage at 90 %.*?8\d|9\d", html, re.S)


def test_a_report_of_an_older_version_is_enough(tmp_path: Path) -> None:
    """Without joint test, density regions, scores with baseline, spread over error."""
    result = checked(scale=0.6)
    new = ("density", "hpd", "tarp", "score_", "baseline", "skill", "spread_skill")
    keep = {"skill_map"}
    gone = [n for n in result if str(n).startswith(new) and n not in keep]
    assert len(gone) >= 15
    old = result.drop_vars(gone).drop_dims(["score", "tarp_set"])
    for name in ("num_tests", "families", "baseline"):
        del old.attrs[name]
    page = Page(write_report(tmp_path / "report.html", old).read_text())
    assert page.open == [] and len(page.pictures) == 5
    assert "What may be trusted" in page.text and "small scales" in page.text
    assert "Joint coverage" not in page.text and "Scores against the baseline" not in page.text
    assert "energy score" in page.text  # in the list that then stands for the table
    assert "Draws too narrow" in page.text


def test_scores_are_told_against_the_baseline(tmp_path: Path, undrawn: None) -> None:
    result = checked()
    page = Page(write_report(tmp_path / "report.html", result).read_text())
    at = page.text.index("this posterior")
    assert page.text[at + 1 : at + 4] == ["baseline", "skill", "CRPS"]
    one = result.sel(score="crps")
    value, skill = one.score_value.item(), 100 * one.skill.item()
    assert page.text[at + 4] == f"{value:.4g} ± {one.score_error.item():.2g}"
    assert page.text[at + 5] == f"{one.baseline_score.item():.4g}"
    assert page.text[at + 6] == f"{skill:+.1f} ± {100 * one.skill_error.item():.1f} %"


def test_skill_against_the_untrained_map_has_columns_and_a_sentence(
    tmp_path: Path, undrawn: None
) -> None:
    result = checked()
    for part, value in {"score": 1.0, "skill": 0.1, "skill_error": 0.01}.items():
        result[f"untrained_{part}"] = ("score", np.full(result.sizes["score"], value))
    gain = 100 * result.skill.sel(score="crps").item()
    text = Page(write_report(tmp_path / "report.html", result).read_text()).text
    side = "below" if gain > 0 else "above"
    said = f"The CRPS is 10.0 % below the untrained map's, {abs(gain):.1f} % {side} the prior's."
    assert said in text
    at = text.index("this posterior")
    assert text[at + 3 : at + 5] == ["untrained map", "skill against it"]
    assert text[at + 9 : at + 11] == ["1", "+10.0 ± 1.0 %"]


def test_the_card_is_shown_once_and_not_as_json(tmp_path: Path, undrawn: None) -> None:
    card = Card(
        "pass",
        "because",
        {"crps": 0.25},
        200,
        39,
        0.05,
        7,
        "test",
        "own",
        "Blur",
        "a1",
        "b2",
        "c3",
        {"y": [-3.0, 4.5], "sigma": [0.1, 0.5]},
        0.001,
        "9.9",
    )
    told = {"calibration_card": card.to_json(), "calibration_verdict": "pass", "seed": 7}
    page = Page(write_report(tmp_path / "a.html", checked(), provenance=told).read_text())
    at = page.text.index("Calibration card")
    rows = dict(zip(page.text[at + 2 :: 2], page.text[at + 3 :: 2], strict=False))
    assert rows["weights SHA-256"] == "c3" and rows["figures"] == "crps 0.25"
    assert rows["valid range"] == "y from -3 to 4.5, sigma from 0.1 to 0.5"
    assert not any("{" in text for text in page.text)
    assert "out of date" not in page.text
    told["weights_sha256"] = "d4"  # trained on since
    stale = Page(write_report(tmp_path / "c.html", checked(), provenance=told).read_text())
    assert stale.text[stale.text.index("out of date") + 1].startswith("the map has other weights")
    plain = Page(write_report(tmp_path / "b.html", checked()).read_text())
    assert "Calibration card" not in plain.text


def test_a_failed_write_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="'calibration' must be a report"):
        write_report(path, xr.Dataset())

    def refuse(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, checked())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
