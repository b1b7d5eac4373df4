"""One HTML page that says whether a posterior is calibrated, shows it, and says what to do if not.

The page is a single file: pictures are embedded, nothing is fetched, and it prints.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from vfm_inverse.calibration.grading import ABOUT, Grade, grades
from vfm_inverse.calibration.verdict import state_skill
from vfm_inverse.posterior.card import Card, told_of_prior
from vfm_inverse.report import rank_plots as plots
from vfm_inverse.report import score_plots
from vfm_inverse.report.remedies import remedies
from vfm_inverse.report.score_plots import SCORE_NAMES, p_text
from vfm_inverse.report.template import PAGE, TEXTS
from vfm_inverse.runtime.files import replacing
from vfm_inverse.statistics.meanings import describe, family, is_own

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

ROWS = 15
"""Longest table of quantities."""


def write_report(
    path: str | Path,
    calibration: xr.Dataset,
    *,
    history: str | Path | Iterable[Mapping[str, Any]] | None = None,
    figures: Mapping[str, Figure] | None = None,
    provenance: Mapping[str, str | float | int] | None = None,
    title: str = "Calibration report",
) -> Path:
    """Write the page: grades (:mod:`vfm_inverse.calibration.grading`), strict verdict, pictures.

    An older page is replaced only when the new one is complete.

    Args:
        path: the file to write.
        calibration: from ``calibration.calibrate`` or ``from_draws``, or read back from netCDF.
        history: path of a ``log.csv`` or rows of a training run, see
            ``rank_plots.training_history``.
        figures: further figures by caption, such as a posterior gallery; they come first.
        provenance: settings to list beside the attributes of ``calibration``.
        title: heading of the page.

    Returns:
        ``path``.

    Raises:
        ValueError: ``calibration`` is no calibration report.
    """
    from jinja2 import Environment

    attrs = getattr(calibration, "attrs", {})
    if "verdict" not in attrs or "p_adjusted" not in calibration:
        raise ValueError("'calibration' must be a report of calibration.calibrate or from_draws")
    given, attrs = grades(calibration), {**calibration.attrs, **(provenance or {})}
    page = (
        Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=title,
            counts=_counts(given),
            grades=given,
            about=ABOUT,
            against=state_skill(calibration),
            training=_trained(attrs.get("calibration_card")),
            prior=told_of_prior(attrs.get("model")),
            tiles=_tiles(calibration),
            remedies=remedies(calibration),
            advice=_advice(given),
            definitions=_definitions(calibration),
            figures=_pictures(calibration, history, figures or {}),
            scores=_scores(calibration),
            score_columns=_score_columns(calibration),
            summary=_summary(calibration),
            card=_card(attrs.get("calibration_card"), attrs.get("weights_sha256")),
            settings=_settings(attrs),
            **_verdict(attrs),
            **_worst_quantities(calibration, attrs),
        )
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _verdict(attrs: Mapping[str, Any]) -> dict[str, str]:
    """The strict verdict, what it speaks of, and what the scores are compared with."""
    failed, baseline = attrs["verdict"] == "fail", attrs.get("baseline")
    made = f", {attrs['draws']}" if attrs.get("draws") else ""
    return {
        "verdict": attrs["verdict"],
        "headline": "Not calibrated:" if failed else "No sign of miscalibration:",
        "reason": attrs["reason"],
        "scope": (
            f"{attrs['num_simulations']} simulated observations, {attrs['num_draws']} "
            f"posterior draws for each{made}. A calibrated posterior fails this test with "
            f"probability at most {attrs['alpha']:g}. It speaks of observations like the "
            "simulated ones, on average over them, and not of a single one."
        ),
        "baseline": f"The baseline is {baseline}." if baseline else "",
    }


def _worst_quantities(report: xr.Dataset, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The table of quantities, worst first."""
    order = np.lexsort((-report.chi2_per_dof.values, report.p_adjusted.values))
    count = len(order)
    columns = ["quantity", "p", "chi2/dof", "offset", "width", "in 50 %", "in 90 %", "CRPS"]
    if "density_p_adjusted" in report:
        columns[2:2] = ["p, density"]
    return {
        "tests": attrs.get("num_tests", count),
        "shown": f"The worst {ROWS} of {count}." if count > ROWS else "Worst first.",
        "columns": columns,
        "rows": [_row(report.isel(quantity=index)) for index in order[:ROWS]],
    }


def _settings(attrs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and values of the attributes that no other part of the page shows."""
    return [
        (name, f"{value:.6g}" if isinstance(value, float) else value)
        for name, value in attrs.items()
        if name not in ("verdict", "reason") and not name.startswith("calibration_")
    ]


def _pictures(
    report: xr.Dataset,
    history: str | Path | Iterable[Mapping[str, Any]] | None,
    figures: Mapping[str, Figure],
) -> list[dict[str, Any]]:
    """The user's figures, those of the report and that of the training, for the template."""
    own = _figures(report)
    if history is not None:
        own["history"] = plots.training_history(history)
    pictures = [_picture(figure, caption) for caption, figure in figures.items()]
    return pictures + [_picture(own[key], *words) for key, words in TEXTS.items() if key in own]


def _counts(given: Sequence[Grade]) -> str:
    """``"4 pass, 1 borderline, 2 fail"``."""
    marks = [one.grade for one in given]
    return ", ".join(f"{marks.count(g)} {g}" for g in ("pass", "borderline", "fail") if g in marks)


def _advice(given: Sequence[Grade]) -> str:
    """What to begin with, by the grades."""
    failed = [one.aspect for one in given if one.grade == "fail"]
    small = [one.aspect for one in given if one.grade == "borderline"]
    kept = f" Too small to matter, as a rule: {', '.join(small)}." if small else ""
    if not failed:
        return f"No grade fails: the draws may be used as they are.{kept}"
    return f"Not to be trusted before that: {', '.join(failed)}.{kept}"


def _definitions(report: xr.Dataset) -> list[tuple[str, str]]:
    """Families of quantities, or quantities of the user, and what they are."""
    found: dict[str, str] = {}
    for name in map(str, report.quantity.values):
        kind = family(name)
        shown = name if is_own(report, name) or kind == name else f"{kind}[...]"
        found.setdefault(shown, describe(report, name))
    return list(found.items())


def _trained(text: str | None) -> str:
    """What the card says of the training, without its full stop."""
    card = {} if text is None else asdict(Card.from_json(text))
    return str(card.get("training", "")).rstrip(".")


def _score_columns(report: xr.Dataset) -> list[str]:
    names = ["score", "this posterior", "baseline", "skill"]
    return [*names, "untrained map", "skill against it"] if "untrained_skill" in report else names


def _figures(report: xr.Dataset) -> dict[str, Figure]:
    """The pictures that the report has data for."""
    own = {
        "ranks": plots.rank_ecdf(report),
        "coverage": plots.coverage_curve(report),
        "maps": plots.calibration_maps(report),
        "histogram": plots.rank_histogram(report),
    }
    if report.spread_map.size > 1:
        own["spread"] = score_plots.spread_skill(report)
    if "tarp_coverage" in report:
        own["joint"] = score_plots.tarp_curve(report)
    if "skill" in report and bool(np.isfinite(report.skill).any()):
        own["scores"] = score_plots.skill_scores(report)
    if "local_observation" in report:
        own["local"] = score_plots.local_map(report)
    return own


def _picture(figure: Figure, title: str, meaning: str = "", fault: str = "") -> dict[str, Any]:
    """What the template shows of a figure; its width in pixels keeps letters of one size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(100 * figure.get_figwidth())
    return {"title": title, "meaning": meaning, "fault": fault, "png": png, "width": width}


def _tiles(report: xr.Dataset) -> list[dict[str, str]]:
    """The figures to see first, vermilion where they decide against the posterior."""
    alpha, found = report.attrs["alpha"], []

    def add(figure: str, meaning: str, failed: bool | None = None) -> None:
        state = "" if failed is None else "bad" if failed else "ok"
        found.append({"figure": figure, "meaning": meaning, "state": state})

    failing = int((report.p_adjusted <= alpha).sum())
    count = report.sizes["quantity"]
    add(f"{count - failing} of {count}", "quantities with uniform ranks", failing > 0)
    if "tarp_p_adjusted" in report:
        joint = float(report.tarp_p_adjusted)
        add(f"p = {p_text(joint)}", "joint coverage (TARP)", joint <= alpha)
    if "local_global_p_adjusted" in report:
        local = float(report.local_global_p_adjusted)
        add(f"p = {p_text(local)}", "local tests together", local <= alpha)
    share = 100 * float(report.coverage_map.sel(level=0.9).mean())
    add(f"{share:.1f} %", "of truths in the 90 % interval, mean over the field")
    add(f"{_ratio(report)[0]:.3f}", "spread over error; 1 is right")
    for prefix, other in (("", "baseline"), ("untrained_", "untrained map")):
        names = [f"{prefix}{part}" for part in ("skill", "skill_error")]
        if names[0] in report and np.isfinite(report[names[0]].sel(score="crps")):
            skill, error = (100 * float(report[name].sel(score="crps")) for name in names)
            add(f"{skill:+.1f} ± {error:.1f} %", f"CRPS skill against the {other}")
    return found


def _ratio(report: xr.Dataset) -> tuple[float, float, float]:
    """Spread over error of the whole field, and the two."""
    spread, skill = (float(np.sqrt((report[f"{n}_map"] ** 2).mean())) for n in ("spread", "skill"))
    return spread / skill if skill else np.nan, spread, skill


def _row(one: xr.Dataset) -> dict[str, Any]:
    """Cells of one quantity; the CRPS is in the quantity's own unit."""
    coverage = [100 * one["coverage"].sel(level=level).item() for level in (0.5, 0.9)]
    p_values = [one.p_adjusted.item()]
    if "density_p_adjusted" in one:
        p_values.append(one.density_p_adjusted.item())
    cells = [
        one.quantity.item(),
        *map(p_text, p_values),
        f"{one.chi2_per_dof.item():.2f}",
        f"{one['offset'].item():+.2f}",
        "-" if np.isnan(one["width"]) else f"{one['width'].item():.2f}",
        *(f"{share:.1f} %" for share in coverage),
        f"{one.quantity_crps.item():.3g}",
    ]
    return {"cells": cells, "bad": min(p_values) <= one.attrs["alpha"]}


def _scores(report: xr.Dataset) -> list[list[str]]:
    """Scores of the posterior and of the baseline, and skill; none in an older report."""
    rows = []
    for name in report.score.values if "score_value" in report else ():
        one = report.sel(score=name)
        cells = [SCORE_NAMES.get(str(name), str(name))]
        cells.append(f"{one.score_value.item():.4g} ± {one.score_error.item():.2g}")
        for base, prefix in (("baseline_score", ""), ("untrained_score", "untrained_")):
            if prefix and "untrained_skill" not in one:
                continue
            value = one[base].item() if base in one else np.nan
            cells.append("-" if np.isnan(value) else f"{value:.4g}")
            skill, error = (
                one[f"{prefix}{part}"].item() if f"{prefix}{part}" in one else np.nan
                for part in ("skill", "skill_error")
            )
            if np.isnan(skill):
                cells.append("-")
            elif name == "log_score":
                cells.append(f"{skill:+.3g} ± {error:.2g} nat")
            else:
                cells.append(f"{100 * skill:+.1f} ± {100 * error:.1f} %")
        rows.append(cells)
    return rows


def _summary(report: xr.Dataset) -> list[tuple[str, str]]:
    """Means over simulations with their standard errors, and the field's own figures."""
    unit = report.crps.attrs.get("units", "1")
    unit = "" if unit == "1" else f" {unit}"
    rows = []
    # A report without a table of scores still has these two.
    shown = () if "score_value" in report else (("crps", "CRPS"), ("energy_score", "energy score"))
    for name, label in shown:
        values = report[name].values
        error = values.std(ddof=1) / np.sqrt(len(values))
        rows.append((label, f"{values.mean():.4g} ± {error:.2g}{unit} (smaller is better)"))
    ratio, spread, skill = _ratio(report)
    noise = f" ± {float(report.spread_skill_error):.2g}" if "spread_skill_error" in report else ""
    text = f"{spread:.4g} / {skill:.4g}{unit} = {ratio:.3f}{noise} (1 is right)"
    rows.append(("spread / error", text))
    for level in (0.5, 0.9):
        share = 100 * report.coverage_map.sel(level=level).mean().item()
        rows.append((f"coverage at {100 * level:.0f} %", f"{share:.1f} %, mean over the field"))
    misfit = report.chi2_per_dof_map.mean().item()
    rows.append(("rank chi2 / dof", f"{misfit:.2f}, mean over the field"))
    return rows


def _card(text: str | None, weights: str | None) -> list[tuple[str, str]]:
    """Rows of the calibration card; none where there is none."""
    if text is None:
        return []
    card, rows = asdict(Card.from_json(text)), []
    if weights not in (None, card["weights_sha256"]):
        rows.append(("out of date", "the map has other weights by now: calibrate it again"))
    for name, value in card.items():
        if name == "draws" and not value:
            continue
        if name == "figures":
            shown = ", ".join(f"{key} {number:.4g}" for key, number in value.items())
        elif name == "grades":
            shown = ", ".join(f"{aspect} {grade}" for aspect, grade, _ in value)
        elif name == "valid_range":
            shown = ", ".join(f"{key} from {a:.4g} to {b:.4g}" for key, (a, b) in value.items())
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append((name.replace("_", " ").replace("sha256", "SHA-256"), shown))
    return rows
