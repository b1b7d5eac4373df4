"""One HTML page that says whether a posterior is calibrated, shows it, and says what to do if not.

The page is a single file: pictures are embedded, nothing is fetched, and it prints.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from vfm_inverse import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

#: Longest table of quantities.
ROWS = 15

#: Title, what the picture means, how a fault looks in it.
TEXTS = {
    "ranks": (
        "Ranks of the truth",
        "For every simulated observation each quantity of the truth is ranked among its "
        "posterior draws. If truth and draws are exchangeable, all ranks are equally likely and "
        "the curve stays in the grey band; the band holds for all positions and all quantities "
        "together.",
        "A hill: draws too high; a valley: too low. Up, then down: draws too narrow; down, then "
        "up: too wide.",
    ),
    "histogram": (
        "Rank histograms",
        "The same ranks in bins, worst quantity first. The grey band holds 99 % of the bins of "
        "uniform ranks.",
        "A slope: draws to one side; a bowl: too narrow; a dome: too wide.",
    ),
    "coverage": (
        "Coverage of central intervals",
        "An interval that states 90 % should hold the truth in 90 % of cases. The grey band is "
        "the noise of so many simulations, at each level by itself.",
        "Below the line: overconfident, too narrow or misplaced. Above: too wide.",
    ),
    "maps": (
        "Where in the field",
        "Coverage, spread over error, misfit of the ranks and CRPS of each element. White, or "
        "inside the grey band, is as it should be; scattered colour is noise and decides "
        "nothing.",
        "A connected patch of one colour: the posterior is wrong there.",
    ),
    "history": (
        "Training",
        "Terms of the loss and health figures along training, with a running median.",
        "A term that still falls: train longer. A dispersion far above one: the adapter is "
        "collapsing.",
    ),
}

#: What helps, by what the worst quantity shows.
REMEDIES = {
    "narrow": (
        "Draws too narrow: the adapter was probably trained by the reverse term alone or with "
        "too poor a family. Give the 'forward' term weight, or take a richer family ('full', "
        "'mixture')."
    ),
    "wide": (
        "Draws too wide: the family is too poor for the forward term, or training too short. "
        "Train longer, take a richer family, or let the observation into the map "
        '(observation="both").'
    ),
    "place": (
        "Draws in the wrong place: train longer, or use more steps of the map (1, 2 and 4 are "
        "worth a look). If the training split passes and the test split fails, the prior samples"
        " are too few."
    ),
    "likelihood": (
        "The log-likelihood fails: the draws do not fit the data as the truth does. See that "
        "sigma, mask and the other parameters reach the map, then correct the draws with the "
        "likelihood."
    ),
    "shape": (
        "Place and width are right and the shape is not: take a richer family, or more steps."
    ),
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: {{ verdict }}</title>
<style>
:root { --ok: #0072B2; --bad: #D55E00; --ink: #222; --soft: #5b6670; --line: #dde3e8; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  color: var(--ink); max-width: 60rem; margin: 2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
.verdict { border-left: .4rem solid var(--ok); background: #f2f7fb; padding: .8rem 1.1rem; }
.verdict.fail { border-color: var(--bad); background: #fdf3ec; }
.verdict strong { color: var(--ok); } .verdict.fail strong { color: var(--bad); }
p { margin: .4rem 0; } .soft { color: var(--soft); } em { font-style: normal; font-weight: 600; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
table.settings td:last-child { text-align: left; overflow-wrap: anywhere; }
tr.bad td:first-child { color: var(--bad); font-weight: 600; }
li { margin: .3rem 0; } code { font-size: .95em; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
</style></head><body>
<h1>{{ title }}</h1>
<div class="verdict {{ verdict }}"><p><strong>{{ headline }}</strong> {{ reason }}.</p></div>
<p class="soft">{{ scope }}</p>
{% if remedies %}
<h2>What to do</h2>
<ul>{% for remedy in remedies %}<li>{{ remedy }}</li>{% endfor %}</ul>
{% endif %}
{% for figure in figures %}
<h2>{{ figure.title }}</h2>
{% if figure.meaning %}<p>{{ figure.meaning }}</p>{% endif %}
{% if figure.fault %}<p class="soft"><em>How a fault looks.</em> {{ figure.fault }}</p>{% endif %}
<img alt="{{ figure.title }}" width="{{ figure.width }}"
 src="data:image/png;base64,{{ figure.png }}">
{% endfor %}
<h2>Quantities</h2>
<p>{{ shown }} p is exact for the simultaneous test of the ranks, after correction for all
{{ count }} quantities; offset is how many posterior standard deviations the draws sit too high
(0 is right), width is their standard deviation over the one the truth needs (1 is right).</p>
<div class="wide"><table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr{% if row.bad %} class="bad"{% endif %}>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h2>Scores</h2>
<table class="settings"><tbody>{% for name, value in scores %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table>
<h2>Settings</h2>
<table class="settings"><tbody>{% for name, value in settings %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table>
</body></html>
"""


def write_report(
    path: str | Path,
    calibration: xr.Dataset,
    *,
    history: str | Path | Iterable[Mapping[str, Any]] | None = None,
    figures: Mapping[str, Figure] | None = None,
    provenance: Mapping[str, str | float | int] | None = None,
    title: str = "Calibration report",
) -> Path:
    """Write the page; an older one is replaced only when the new one is complete.

    Args:
        path: The file to write.
        calibration: From ``calibration.calibrate`` or ``from_draws``, or read back from netCDF.
        history: Path of a ``log.csv`` or rows of a training run, see ``plots.training_history``.
        figures: Further figures by caption, such as a posterior gallery; they come first.
        provenance: Settings to list beside the attributes of ``calibration``.
        title: Heading of the page.

    Returns:
        ``path``.

    Raises:
        ValueError: ``calibration`` is no calibration report.
    """
    from jinja2 import Environment

    if "verdict" not in calibration.attrs or "p_adjusted" not in calibration:
        raise ValueError("'calibration' must be a report of calibration.calibrate or from_draws")
    own = {
        "ranks": plots.rank_ecdf(calibration),
        "histogram": plots.rank_histogram(calibration),
        "coverage": plots.coverage_curve(calibration),
        "maps": plots.calibration_maps(calibration),
    }
    if history is not None:
        own["history"] = plots.training_history(history)
    pictures = [_picture(figure, caption) for caption, figure in (figures or {}).items()]
    pictures += [_picture(figure, *TEXTS[key]) for key, figure in own.items()]

    attrs = calibration.attrs
    failed = attrs["verdict"] == "fail"
    order = np.lexsort((-calibration.chi2_per_dof.values, calibration.p_adjusted.values))
    count = len(order)
    page = (
        Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=title,
            verdict=attrs["verdict"],
            headline="Not calibrated:" if failed else "No sign of miscalibration:",
            reason=attrs["reason"],
            scope=(
                f"{attrs['num_simulations']} simulated observations, {attrs['num_draws']} "
                "posterior draws for each. A calibrated posterior fails this test with "
                f"probability at most {attrs['alpha']:g}. It speaks of observations like the "
                "simulated ones, on average over them, and not of a single one."
            ),
            remedies=_remedies(calibration) if failed else [],
            figures=pictures,
            count=count,
            shown=f"The worst {ROWS} of {count}." if count > ROWS else "Worst first.",
            columns=["quantity", "p", "chi2/dof", "offset", "width", "in 50 %", "in 90 %", "CRPS"],
            rows=[_row(calibration.isel(quantity=index)) for index in order[:ROWS]],
            scores=_scores(calibration),
            settings=[
                (name, f"{value:.6g}" if isinstance(value, float) else value)
                for name, value in {**attrs, **(provenance or {})}.items()
                if name not in ("verdict", "reason")
            ],
        )
    )
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the page from a web server
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _picture(figure: Figure, title: str, meaning: str = "", fault: str = "") -> dict[str, Any]:
    """What the template shows of a figure; its width in pixels keeps letters of one size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(100 * figure.get_figwidth())
    return {"title": title, "meaning": meaning, "fault": fault, "png": png, "width": width}


def _row(one: xr.Dataset) -> dict[str, Any]:
    """Cells of one quantity; the CRPS is in the quantity's own unit."""
    coverage = [100 * one["coverage"].sel(level=level).item() for level in (0.5, 0.9)]
    p_value = one.p_adjusted.item()
    cells = [
        one.quantity.item(),
        f"{p_value:.2g}" if p_value > 1e-99 else "< 1e-99",
        f"{one.chi2_per_dof.item():.2f}",
        f"{one['offset'].item():+.2f}",
        "-" if np.isnan(one["width"]) else f"{one['width'].item():.2f}",
        *(f"{share:.1f} %" for share in coverage),
        f"{one.quantity_crps.item():.3g}",
    ]
    return {"cells": cells, "bad": p_value <= one.attrs["alpha"]}


def _scores(report: xr.Dataset) -> list[tuple[str, str]]:
    """Means over simulations with their standard errors, and the field's own figures."""
    unit = report.crps.attrs.get("units", "1")
    unit = "" if unit == "1" else f" {unit}"
    rows = []
    for name, label in (("crps", "CRPS"), ("energy_score", "energy score")):
        values = report[name].values
        error = values.std(ddof=1) / np.sqrt(len(values))
        rows.append((label, f"{values.mean():.4g} ± {error:.2g}{unit} (smaller is better)"))
    spread, skill = (float(np.sqrt((report[f"{n}_map"] ** 2).mean())) for n in ("spread", "skill"))
    ratio = f"{spread:.4g} / {skill:.4g}{unit} = {spread / skill:.3f} (1 is right)"
    rows.append(("spread / error", ratio))
    for level in (0.5, 0.9):
        share = 100 * report.coverage_map.sel(level=level).mean().item()
        rows.append((f"coverage at {100 * level:.0f} %", f"{share:.1f} %, mean over the field"))
    misfit = report.chi2_per_dof_map.mean().item()
    rows.append(("rank chi2 / dof", f"{misfit:.2f}, mean over the field"))
    return rows


def _remedies(report: xr.Dataset) -> list[str]:
    """What helps against the faults of the failing quantities, the most common one first."""
    bad = report.isel(quantity=np.flatnonzero(report.p_adjusted <= report.attrs["alpha"]))
    plain = bad.isel(quantity=np.flatnonzero(bad.quantity != "log_likelihood"))
    num = report.attrs["num_simulations"]
    wrong = 3 / np.sqrt(2 * num)
    log_width = np.log(plain["width"].values)
    found = {
        "narrow": int((log_width < -wrong).sum()),
        "wide": int((log_width > wrong).sum()),
        "place": int((np.abs(plain["offset"].values) > 3 / np.sqrt(num)).sum()),
        "likelihood": int(bad.sizes["quantity"] > plain.sizes["quantity"]),
    }
    keys = sorted((key for key, number in found.items() if number), key=lambda key: -found[key])
    return [REMEDIES[key] for key in keys or ["shape"]]
