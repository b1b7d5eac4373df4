"""The report page: verdict first, everything inside one file, nothing unescaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import xarray as xr

from vfm_inverse import gallery, report
from vfm_inverse.calibration import from_draws
from vfm_inverse.report import write_report


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
    monkeypatch.setattr(report, "_picture", lambda *args: {"title": args[1]})


def test_the_page_of_a_good_posterior(tmp_path: Path) -> None:
    result = checked()
    path = write_report(tmp_path / "report.html", result)
    assert list(tmp_path.iterdir()) == [path]
    page = Page(path.read_text())
    assert page.open == [] and page.outside == []
    assert len(page.pictures) == 4
    assert all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    body = page.text[page.text.index("Calibration report") :]
    assert body[1] == "No sign of miscalibration:"
    assert body[2] == result.attrs["reason"] + "."
    assert "What to do" not in page.text
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
    assert page.text[page.text.index("Calibration report") + 1] == "Not calibrated:"
    advice = page.text[page.text.index("What to do") + 1 :]
    assert any(line.startswith(words) for line in advice)
    # The worst quantity heads the table, with its figures.
    worst = result.attrs["reason"].split("'")[1]
    header = page.text.index("CRPS", page.text.index("Quantities"))
    assert page.text[header + 1] == worst
    offset = result["offset"].sel(quantity=worst).item()
    assert f"{offset:+.2f}" in page.text[header + 1 : header + 9]


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
    assert len(page.pictures) == 6
    assert "<script>" not in html and "<b>" not in html
    assert "<script>alert(1)</script>" in page.text and "A <b>run</b>" in page.text
    assert "Two & more" in page.text and "0.333333" in page.text
    assert re.search(r"coverage at 90 %.*?8\d|9\d", html, re.S)


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
